"""Matching of moments: noisy sums of features of private images, and a small generator whose images have the same.

For each class the sum of its images' features and their number are released once, as one vector. A generator is then
trained until the features of its images have the same means. That is post-processing: it may take as long as one likes.
"""

import copy
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.class_means import discrepancies, released, require_gradients, require_summed
from dpdm.methods.feature_maps import PART, AnyFeatures, Fourier
from dpdm.methods.fitted import FitsGenerator, same_everywhere
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart
from dpdm.privacy import AnyPlan, FullSum, MechanismRun, gaussian_mu
from dpdm.types import require_within

_SUMS, _PROXY = "features of each class", "features to stop by"
_OF_PROXY = Fourier()  # in which the second sum is: they cost no network, and tell any images apart


@dataclass(frozen=True, kw_only=True)
class MeanEmbedding(FitsGenerator):
    """Trains a small generator until its mean features of each class match a noisy sum.

    Args:
        features: The features that images are compared in: `Fourier` (of pixels), `NTK`, or `PublicFeatures`.
        updates: Number of updates of the generator. They cost time, and no privacy.
        batch_size: Generated images of an update.
        learning_rate: Learning rate of Adam; it falls linearly to zero.
        latent: Number of random inputs of the generator for an image.
        width: Width of the generator's layers.
        stopping: Share of the budget for a second noisy sum, in other random Fourier features. Of twenty states on
            the way, the generator keeps the nearest to this sum (default: no second sum, and the last state).

    Guarantees:
        * A private image adds one row of length one to its class's sum, and one to its count; a group shares both.
        * Both sums are in the plan. The choice among states is post-processing of the second sum.

    Source:
        Harder, Adamczewski & Park 2021; Harder et al. 2023; Yang et al. 2023: see the features.

    Example:
        >>> [release.name for release in MeanEmbedding().plan(epsilon=1.0, dataset_size=60000).releases]
        ['features of each class']
    """

    kind: ClassVar[str] = "mean-embedding"
    features: AnyFeatures = field(default_factory=Fourier)
    stopping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(0, 0.5, stopping=self.stopping)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the one sum, and the one to stop by if it has a share."""
        budget.require_no_steps(self.kind)
        if not self.stopping:
            return (FullSum(name=_SUMS),)
        whole = gaussian_mu(epsilon=budget.epsilon, delta=budget.delta)
        return FullSum(name=_SUMS), FullSum(name=_PROXY, noise_multiplier=1 / (whole * math.sqrt(self.stopping)))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if the sums need too much memory."""
        require_summed(self._all_features, facts)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: sums, rows and weights of features, and a batch with gradients."""
        row = self.features.dimensions(facts.shape)
        rows = 8 * 5 * max(PART, row)
        of_update = self.batch_size * self.features.bytes_of_one(facts.shape) + self.bytes_of_update(facts)
        weights = sum(features.bytes_of_weights(facts.shape) for features in self._all_features)
        return 8 * 5 * self._numbers(facts) + rows + weights + of_update

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if the features are not there, or give no gradient for such images."""
        assert isinstance(generator, SmallGenerator)
        latent = torch.zeros(2, self.latent, device=run.device)
        require_gradients(self.features, generator(latent, latent[:, 0].long()), generator.facts, seed=run.seed)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, SmallGenerator]:
        """Release the sums, then train the generator. A run that stops keeps the sums alone."""
        assert isinstance(generator, SmallGenerator)
        run.resume()
        facts, judge = generator.facts, None
        told = released(_SUMS, self.features, run, data, facts, seed=run.seed)
        if self.stopping:
            judge = released(_PROXY, _OF_PROXY, run, data, facts, seed=run.seed + 1)
        generator.shares.copy_(told.shares)
        nearest, best = math.inf, generator.state_dict()

        def loss(made: Tensor, classes: Tensor) -> Tensor:
            return discrepancies(told.features.means(made), told.means[classes], made.shape[1])

        for progress in self.fit(generator, loss, run):
            if judge and (distance := judge.discrepancy_of(generator, seed=run.seed)) < nearest:
                nearest, best = distance, copy.deepcopy(generator.state_dict())
            yield progress
        if judge:
            generator.load_state_dict(best)
        same_everywhere(generator, run)
        return generator

    @property
    def _all_features(self) -> tuple[AnyFeatures, ...]:
        return (self.features, _OF_PROXY) if self.stopping else (self.features,)

    def _numbers(self, facts: ImageFacts) -> int:
        """Return how many numbers are added up."""
        return sum(features.dimensions(facts.shape) for features in self._all_features) * max(1, facts.num_classes)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the public network of the features."""
        return self.features.networks

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return this network with the digest of its weights."""
        return self.features.network_parts()

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "MeanEmbedding":
        """Return the method in the form that a release stores."""
        return replace(self, features=self.features.said())
