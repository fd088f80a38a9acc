"""Sliced Wasserstein: noisy histograms of projections, and a small generator whose images project alike.

Each private image votes once in a histogram for each of many random directions. All histograms of all classes are one
noisy sum. What follows is post-processing: the generator learns to have the same projections, direction by direction.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.fitted import FitsGenerator, same_everywhere
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.projections import as_floats, choices, directions, on_simplex, quantiles
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import Budget, ImageFacts, Progress
from dpdm.privacy import FullSum
from dpdm.privacy.sums import votes
from dpdm.types import require_at_most, require_counts, require_within

_HISTOGRAMS = "histograms of projections"
_NOISY = 0.3  # of an average count: noise of a bin, up to which more directions are asked
_FEWEST, _MOST = 50, 2000  # directions, where nobody says how many
_AT_ONCE = 500  # directions of an update
_MOST_NUMBERS = 10**8  # bins of all histograms
_MOST_WEIGHTS = 10**8


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein(FitsGenerator):
    """Trains a small generator until its random projections of each class match noisy histograms.

    Args:
        directions: Number of projections, from 50 to 2,000 (default: chosen by plan and declared size, so that
            the noise of a bin is three tenths of an average count).
        bins: Number of bins of a histogram.
        updates: Number of updates of the generator. They cost time, and no privacy.
        batch_size: Generated images of an update.
        learning_rate: Learning rate of Adam; it falls linearly to zero.
        latent: Number of random inputs of the generator for an image.
        width: Width of the generator's layers.

    Guarantees:
        * A private image has one vote in each histogram of its class, all of them together of norm one; a group shares
          them.
        * The number of bins does not depend on the number of images.

    Source:
        Rakotomamonjy & Ralaivola 2021 (sliced Wasserstein under privacy); Sebag et al. 2023 (particles that follow it).
        Both release projections image by image, and so the number of images. Histograms, directions and the generator
        in place of particles are ours.

    Example:
        >>> [release.name for release in SlicedWasserstein().plan(epsilon=1.0, dataset_size=60000).releases]
        ['histograms of projections']
    """

    kind: ClassVar[str] = "sliced"
    fewest_of_class: ClassVar[int] = 64
    directions: int | None = None
    bins: int = 32
    batch_size: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(bins=self.bins, **({} if self.directions is None else {"directions": self.directions}))
        require_within(2, 10**4, bins=self.bins)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the one sum, which gets all of the budget."""
        budget.require_no_steps(self.kind)
        return (FullSum(name=_HISTOGRAMS),)

    @property
    def _at_most(self) -> int:
        return _MOST if self.directions is None else self.directions

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if bins, or weights of directions, need too much memory."""
        numbers = self._at_most * self.bins * max(1, facts.num_classes)
        require_at_most(_MOST_NUMBERS, **{"directions × bins × classes": numbers})
        require_at_most(_MOST_WEIGHTS, **{"directions × pixels": self._at_most * math.prod(facts.shape)})

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: histograms, bins of images, weights, and a batch."""
        numbers, pixels = self._at_most * self.bins * max(1, facts.num_classes), math.prod(facts.shape)
        votes_at_a_time = 8 * 5 * max(2**22, self._at_most)
        weights = 8 * 4 * self._at_most * pixels
        return 8 * 6 * numbers + votes_at_a_time + weights + self.bytes_of_update(facts) + self._bytes_of_batch

    @property
    def _bytes_of_batch(self) -> int:
        return 4 * 8 * self.batch_size * min(_AT_ONCE, self._at_most)

    def number_of(self, run: Run, classes: int) -> int:
        """Return how many directions there are, by the plan alone."""
        if self.directions is not None:
            return self.directions
        plan = run.mechanism.plan
        average = plan.dataset_size / (classes * self.bins)
        allowed = (_NOISY * average / max(plan.noise_std(0, 1.0), 1e-9)) ** 2  # a bin's noise is √directions as large
        return int(min(_MOST, max(_FEWEST, allowed)))

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, SmallGenerator]:
        """Release the histograms, and train the generator."""
        assert isinstance(generator, SmallGenerator)
        run.resume()
        classes = len(generator.shares)
        number = self.number_of(run, classes)
        drawn = directions(generator.facts.shape, number, seed=run.seed)
        cast = {"bins": classes * number * self.bins}
        noisy, noise_std = run.once(_HISTOGRAMS, lambda: votes(choices(data, drawn, bins=self.bins), **cast))
        counts = (noisy * math.sqrt(number)).view(classes, number, self.bins)
        least = max(1.0, 2 * noise_std * math.sqrt(self.bins))  # a class that is not told from none
        sizes = counts.sum(2).mean(1).clamp(min=least)
        generator.shares.copy_(sizes / sizes.sum())
        shares = on_simplex(counts, sizes[:, None].expand(-1, number))
        weights = as_floats(drawn).to(run.device)
        wanted = quantiles(shares, self.batch_size // self.classes_at_once(classes)).float().to(run.device)
        random = torch.Generator().manual_seed(run.seed)

        def loss(made: Tensor, of: Tensor) -> Tensor:
            some = torch.randperm(number, generator=random)[:_AT_ONCE].to(run.device)
            ordered = (made.flatten(2) @ weights[:, some]).mT.sort(dim=2).values
            return (ordered - wanted[of[:, None], some]).square().mean(dim=(1, 2))

        yield from self.fit(generator, loss, run)
        same_everywhere(generator, run)
        return generator
