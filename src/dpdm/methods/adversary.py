"""What a generator is trained against: a discriminator, its loss of one private image, and how often it is asked.

All of it stays in a run's `private/`. What is released is the generator alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import softplus

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss
from dpdm.methods.halvings import Halvings
from dpdm.methods.loader import UnitLoader, own_normals, random_images
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import ImageFacts
from dpdm.types import RandomBytes

_PAST = 0.95  # weight of what was seen before, in the accuracy
_LADDER = (1, 2, 5)  # times powers of ten: private steps for each of the generator


class Discriminator(nn.Module):
    """Strided convolutions, and one linear function for each class: positive for what looks private.

    Args:
        facts: Of the images.
        width: Channels of the first layer.
    """

    def __init__(self, facts: ImageFacts, *, width: int) -> None:
        super().__init__()
        self.halvings = Halvings(facts.shape, width=width)
        self.heads = nn.Linear(self.halvings.numbers, max(1, facts.num_classes))

    def forward(
        self, x: Float[Tensor, "rows channel height width"], labels: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Return one number for each image, as one of its class."""
        of_class: Tensor = self.heads(self.halvings(x))
        return of_class.gather(1, labels[:, None]).squeeze(1)


class Pairs(NamedTuple):
    """Private images, and beside each one that was generated for the same class."""

    images: Float[Tensor, "batch two channel height width"]
    labels: Int[Tensor, " batch"]


def made_up_pairs(number: int, generator: SmallGenerator) -> Pairs:
    """Return pairs of random pixels and of what a generator makes."""
    images, labels, latent = random_images(number, generator.facts, generator.latent, generator.device)
    with torch.no_grad():
        return Pairs(torch.stack([images, generator(latent, labels)], dim=1), labels)


@dataclass(frozen=True)
class PairLoss:
    """ℓ = softplus(−D(x)) + softplus(D(G(z))): one number, and one clipped gradient, of a private image.

    The generated image is of the example's own draws and of a generator that may be released, so it costs nothing.
    """

    def __call__(self, discriminator: nn.Module, pairs: Pairs) -> Float[Tensor, " batch"]:
        """Return the loss of each pair."""
        images, labels = pairs
        values = discriminator(images.flatten(0, 1), labels.repeat_interleave(2)).view(-1, 2)
        loss: Tensor = softplus(-values[:, 0]) + softplus(values[:, 1])
        return loss


class PairLoader(UnitLoader):
    """Maps the indices of units to pairs: of a group, one of its images, chosen at random.

    Args:
        data: The images.
        generator: What the other images are made by, as it is when a batch is loaded.
        device: Where the loss is computed.
    """

    def __init__(self, data: ImageDataset, generator: SmallGenerator, device: torch.device) -> None:
        super().__init__(data, DenoisingLoss(noise_multiplicity=1), device)
        self._generator = generator

    def _draw(self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch one"], random_bytes: RandomBytes) -> Pairs:
        x, labels = self._clean(images.reshape(len(images)))
        latent = own_normals((len(images), self._generator.latent), random_bytes).to(self._device)
        with torch.no_grad():
            made = self._generator(latent, labels)
        return Pairs(torch.stack([x, made], dim=1), labels)


class Pace(nn.Module):
    """How many private steps the discriminator takes for one of the generator: more, once it is fooled too often.

    It follows from generated images alone, so it is post-processing. Its state is kept with a run's checkpoint.

    Args:
        threshold: Share of generated images that a discriminator has to know, lest it be asked more often.
        most: Private steps for one of the generator, at most.

    Source:
        Bie, Kamath & Zhang 2023, adaptive discriminator step frequency.
    """

    steps: Int[Tensor, ""]
    taken: Int[Tensor, ""]
    seen: Int[Tensor, ""]
    accuracy: Float[Tensor, ""]

    def __init__(self, *, threshold: float, most: int) -> None:
        super().__init__()
        self._threshold, self._most = threshold, most
        for name in ("steps", "taken", "seen"):
            self.register_buffer(name, torch.tensor(int(name == "steps")))
        self.register_buffer("accuracy", torch.tensor(1.0))

    def is_due(self) -> bool:
        """Count a private step, and return whether it is the generator's turn."""
        self.taken += 1
        return bool(self.taken >= self.steps)

    def saw(self, known: Bool[Tensor, " images"]) -> None:
        """Note which generated images the discriminator knew, in a step of the generator."""
        self.taken.zero_()
        self.seen += 1
        self.accuracy.lerp_(known.float().mean().cpu(), 1 - _PAST)
        if self.accuracy < self._threshold and self.seen >= 2 / (1 - _PAST):  # a time of grace after each change
            power = 10 ** (len(str(int(self.steps))) - 1)
            more = next(power * each for each in (*_LADDER, 10) if power * each > self.steps)
            self.steps.fill_(min(more, self._most))
            self.seen.zero_()
