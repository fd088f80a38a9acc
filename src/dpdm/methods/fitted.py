"""What all methods share that train a small generator to agree with what noisy sums tell."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from dpdm.data.procedural import tell_progress
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.possible import require_finite, require_shares
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan
from dpdm.types import require_at_most, require_counts, require_within

Loss = Callable[
    [Float32[Tensor, "class images channel height width"], Int64[Tensor, " class"]], Float32[Tensor, " class"]
]
"""Returns how far each class's images are from what was released of it."""

_MOST_UPDATES, _MOST_BATCH, _MOST_WIDTH, _MOST_LATENT = 10**7, 10**5, 2**12, 2**12
_SHOWN = 20  # times that a person hears how far the generator is


@dataclass(frozen=True, kw_only=True)
class FitsGenerator(Method):
    """A method that makes noisy sums, and trains a small generator by it.

    Args:
        updates: Of the generator: they cost time, and nothing else.
        batch_size: Images of an update.
        learning_rate: Adam's; it falls linearly to zero.
        latent: Random numbers that an image is made of.
        width: Of the generator.
    """

    fewest_of_class: ClassVar[int] = 8
    """Images of a class in an update; where there are many classes, each update has some of them."""

    updates: int = 1000
    batch_size: int = 200
    learning_rate: float = 3e-3
    latent: int = 10
    width: int = 200

    def __post_init__(self) -> None:
        require_counts(updates=self.updates, batch_size=self.batch_size, latent=self.latent, width=self.width)
        require_at_most(_MOST_UPDATES, updates=self.updates)
        require_within(self.fewest_of_class, _MOST_BATCH, batch_size=self.batch_size)
        require_within(8, _MOST_WIDTH, width=self.width)
        require_at_most(_MOST_LATENT, latent=self.latent)
        require_within(1e-6, 0.1, learning_rate=self.learning_rate)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> SmallGenerator:
        """Return a generator with first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallGenerator(facts, latent=self.latent, width=self.width)

    def bytes_of_update(self, facts: ImageFacts) -> int:
        """Return the bytes that the generator takes for the images of an update, with gradients."""
        return self.batch_size * 16 * self.width * math.prod(facts.shape[1:])

    def classes_at_once(self, classes: int) -> int:
        """Return how many of so many classes an update is about."""
        return min(classes, max(1, self.batch_size // self.fewest_of_class))

    def fit(self, generator: SmallGenerator, loss: Loss, run: Run) -> Generator[Progress, None, None]:
        """Train the generator; yield now and then, where a run may be stopped. Nothing of it is kept then."""
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.learning_rate)
        random = torch.Generator().manual_seed(run.seed)
        number = len(generator.shares)
        chosen = self.classes_at_once(number)
        each = self.batch_size // chosen
        weights = (generator.shares * number).float()
        for update in range(self.updates):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 - update / self.updates)
            classes = torch.randperm(number, generator=random)[:chosen]
            latent = torch.randn(chosen * each, self.latent, generator=random)
            labels, classes = classes.repeat_interleave(each).to(run.device), classes.to(run.device)
            made = generator(latent.to(run.device), labels).unflatten(0, (chosen, each))
            optimizer.zero_grad()
            (loss(made, classes) * weights[classes]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (update + 1) % max(1, self.updates // _SHOWN) == 0 or update + 1 == self.updates:
                tell_progress("generator", update + 1, self.updates)
                yield run.made_sum(generator)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one, and all weights are finite."""
        require_shares(read, where)
        require_finite(read, dict(self.untrained(facts).named_parameters()), where)


def same_everywhere(generator: ImageGenerator, run: Run) -> None:
    """Let all processes have the generator of the first: they have come to the same, if all are alike."""
    for tensor in generator.state_dict().values():
        tensor.copy_(run.processes.from_first(tensor))
