"""Matching of moments: noisy sums of features of private images, and a small generator whose images have the same.

For each class the sum of its images' features and their number are released once, as one vector. A generator is then
trained until the features of its images have the same means. That is post-processing: it may take as long as one likes.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.feature_maps import PART, AnyFeatures, FeatureMap, Fourier, PublicFeatures
from dpdm.methods.interface import (
    Budget,
    ImageFacts,
    ImageGenerator,
    Method,
    Progress,
    PublicPart,
    PublicStart,
    Read,
    Run,
    Sizes,
)
from dpdm.methods.possible import require_shares
from dpdm.methods.small_generator import SmallGenerator
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.privacy.sums import BoundedSum, cell_sums
from dpdm.types import InputError, require_at_most, require_counts, require_within

_SUMS = "features of each class"
_COUNT_SCALE = 0.3  # of counts beside rows of length one: the sums get 4 % more noise for them
_MOST_NUMBERS = 10**8  # of all sums
_MOST_UPDATES, _MOST_BATCH, _MOST_WIDTH, _MOST_LATENT = 10**7, 10**5, 2**12, 2**12
_FEWEST_OF_CLASS = 8  # images of a class in an update; where there are many classes, each update has some of them
_SHOWN = 20  # times that a person hears how far the generator is


@dataclass(frozen=True, kw_only=True)
class MeanEmbedding(Method):
    """A small generator, trained to have the mean features of each class that a noisy sum tells.

    Args:
        features: In which images are compared: `Fourier` (of pixels), `NTK`, or `PublicFeatures`.
        updates: Of the generator: they cost time, and nothing else.
        batch_size: Images of an update.
        learning_rate: Adam's; it falls linearly to zero.
        latent: Random numbers that an image is made of.
        width: Of the generator.

    Guarantees:
        * A private image adds one row of length one to its class's sum, and one to its count; a group shares both.

    Source:
        Harder, Adamczewski & Park 2021; Harder et al. 2023; Yang et al. 2023: see the features.
    """

    kind: ClassVar[str] = "mean-embedding"
    features: AnyFeatures = field(default_factory=Fourier)
    updates: int = 1000
    batch_size: int = 200
    learning_rate: float = 3e-3
    latent: int = 10
    width: int = 200

    def __post_init__(self) -> None:
        require_counts(updates=self.updates, batch_size=self.batch_size, latent=self.latent, width=self.width)
        require_at_most(_MOST_UPDATES, updates=self.updates)
        require_within(_FEWEST_OF_CLASS, _MOST_BATCH, batch_size=self.batch_size)
        require_within(8, _MOST_WIDTH, width=self.width)
        require_at_most(_MOST_LATENT, latent=self.latent)
        require_within(1e-6, 0.1, learning_rate=self.learning_rate)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the one sum, which gets all of the budget."""
        budget.require_no_steps(self.kind)
        return (FullSum(name=_SUMS),)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if there is more to add up than memory is good for."""
        self.features.require_images(facts.shape)
        numbers = self.features.dimensions(facts.shape) * max(1, facts.num_classes)
        require_at_most(_MOST_NUMBERS, **{"the number of features × classes": numbers})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> SmallGenerator:
        """Return a generator with first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallGenerator(facts, latent=self.latent, width=self.width)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: sums, rows and weights of features, and a batch with gradients."""
        row = self.features.dimensions(facts.shape)
        numbers = row * max(1, facts.num_classes)
        kept = 4 * row * records if isinstance(self.features, PublicFeatures) else 0
        rows = 8 * 5 * max(PART, row) + kept
        of_image = self.features.bytes_of_one(facts.shape) + 16 * self.width * math.prod(facts.shape[1:])
        return 8 * 5 * numbers + rows + self.features.bytes_of_weights(facts.shape) + self.batch_size * of_image

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if the features are not there, or give no gradient for such images."""
        assert isinstance(generator, SmallGenerator)
        features = self.features.built(generator.facts, run.seed, run.device)
        latent = torch.zeros(2, self.latent, device=run.device)
        means = features.means(generator(latent, latent[:, 0].long())[None])
        expected = (1, self.features.dimensions(generator.facts.shape))
        if not means.requires_grad or means.shape != expected or not means.isfinite().all():
            raise InputError("these features give no finite numbers, or no gradient, for such images: choose others")

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, SmallGenerator]:
        """Release the sums, and train the generator; of the latter nothing is kept when a run is stopped."""
        assert isinstance(generator, SmallGenerator)
        run.resume()
        features = self.features.built(generator.facts, run.seed, run.device)
        cells, dimensions = len(generator.shares), self.features.dimensions(generator.facts.shape)
        noisy, noise_std = run.once(_SUMS, lambda: _sums(features, run, data, cells=cells, dimensions=dimensions))
        least = max(1.0, 2 * noise_std / _COUNT_SCALE)  # a count that is not told from none
        counts = (noisy[-cells:] / _COUNT_SCALE).clamp(min=least)
        generator.shares.copy_(counts / counts.sum())
        means = (noisy[:-cells].view(cells, dimensions) / counts[:, None]).float().to(run.device)
        yield from self._fit(generator, features, means, run)
        for tensor in generator.state_dict().values():  # all processes have come to the same, if all are alike
            tensor.copy_(run.processes.from_first(tensor))
        return generator

    def _fit(
        self, generator: SmallGenerator, features: FeatureMap, means: Float32[Tensor, "class features"], run: Run
    ) -> Generator[Progress, None, None]:
        """Train the generator; yield now and then, where a run may be stopped."""
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.learning_rate)
        random = torch.Generator().manual_seed(run.seed)
        chosen = min(len(means), self.batch_size // _FEWEST_OF_CLASS)
        each = self.batch_size // chosen
        weights = (generator.shares * len(means)).float()
        for update in range(self.updates):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 - update / self.updates)
            classes = torch.randperm(len(means), generator=random)[:chosen]
            latent = torch.randn(chosen * each, self.latent, generator=random)
            labels, classes = classes.repeat_interleave(each).to(run.device), classes.to(run.device)
            made = features.means(generator(latent.to(run.device), labels).unflatten(0, (chosen, each)))
            optimizer.zero_grad()
            (discrepancies(made, means[classes], each) * weights[classes]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (update + 1) % max(1, self.updates // _SHOWN) == 0 or update + 1 == self.updates:
                tell_progress("generator", update + 1, self.updates)
                yield run.made_sum(generator)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one, and all weights are finite."""
        require_shares(read, where)
        for name in dict(self.untrained(facts).named_parameters()):
            if not read(name).isfinite().all():
                raise InputError(f"{where} holds weights that are not finite")

    @property
    def networks(self) -> tuple[str, ...]:
        """What a claim calls the public network in whose features images are compared."""
        return self.features.embedding.network if isinstance(self.features, PublicFeatures) else ()

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return this network with the digest of its weights."""
        return self.features.embedding.parts() if isinstance(self.features, PublicFeatures) else ()

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "MeanEmbedding":
        """Return the method as settings can say it."""
        return replace(self, features=self.features.said())


def discrepancies(
    made: Float32[Tensor, "class features"], released: Float32[Tensor, "class features"], images: int
) -> Float32[Tensor, " class"]:
    """Return ‖E made - released‖² of each class, but for a constant, estimated without bias from means of so many rows.

    Rows have length one. So the mean of n of them has the expected square length ‖E‖² + (1 - ‖E‖²) / n. To make that
    small would reward images that are alike; n / (n - 1) times as much is ‖E‖² + 1 / (n - 1).
    """
    return made.square().sum(1) * (images / (images - 1)) - 2 * (made * released).sum(1)


def _sums(features: FeatureMap, run: Run, data: ImageDataset, *, cells: int, dimensions: int) -> BoundedSum:
    """Return the sums of the rows of each class, and its counts."""
    labels = torch.zeros(len(data), dtype=torch.long) if data.labels is None else torch.from_numpy(data.labels)
    weights = torch.from_numpy(data.weights)
    parts = ((rows, labels[part], weights[part]) for part, rows in features.rows(run, data))
    return cell_sums(parts, cells=cells, dimensions=dimensions, max_norm=1.0, count_scale=_COUNT_SCALE)
