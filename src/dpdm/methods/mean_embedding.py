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

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.class_means import ClassMeans, discrepancies, released
from dpdm.methods.feature_maps import PART, AnyFeatures, Fourier, PublicFeatures
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
from dpdm.methods.possible import require_finite, require_shares
from dpdm.methods.small_generator import SmallGenerator
from dpdm.privacy import AnyPlan, FullSum, MechanismRun, gaussian_mu
from dpdm.types import InputError, require_at_most, require_counts, require_within

_SUMS, _PROXY = "features of each class", "features to stop by"
_OF_PROXY = Fourier()  # in which the second sum is: they cost no network, and tell any images apart
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
        stopping: Share of the budget for a second sum, in random Fourier features of another draw: the state of the
            generator that is nearest to it is kept, of twenty on the way. Default: none, and the last state is kept.

    Guarantees:
        * A private image adds one row of length one to its class's sum, and one to its count; a group shares both.
        * Both sums are in the plan. What the generator is judged by is post-processing of the second.

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
    stopping: float = 0.0

    def __post_init__(self) -> None:
        require_counts(updates=self.updates, batch_size=self.batch_size, latent=self.latent, width=self.width)
        require_at_most(_MOST_UPDATES, updates=self.updates)
        require_within(_FEWEST_OF_CLASS, _MOST_BATCH, batch_size=self.batch_size)
        require_within(8, _MOST_WIDTH, width=self.width)
        require_at_most(_MOST_LATENT, latent=self.latent)
        require_within(1e-6, 0.1, learning_rate=self.learning_rate)
        require_within(0, 0.5, stopping=self.stopping)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the one sum, and the one to stop by if it has a share."""
        budget.require_no_steps(self.kind)
        if not self.stopping:
            return (FullSum(name=_SUMS),)
        whole = gaussian_mu(epsilon=budget.epsilon, delta=budget.delta)
        return FullSum(name=_SUMS), FullSum(name=_PROXY, noise_multiplier=1 / (whole * math.sqrt(self.stopping)))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if there is more to add up than memory is good for."""
        for features in self._all_features:
            features.require_images(facts.shape)
        numbers = self._numbers(facts)
        require_at_most(_MOST_NUMBERS, **{"the number of features × classes": numbers})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> SmallGenerator:
        """Return a generator with first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallGenerator(facts, latent=self.latent, width=self.width)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: sums, rows and weights of features, and a batch with gradients."""
        row = self.features.dimensions(facts.shape)
        kept = 4 * row * records if isinstance(self.features, PublicFeatures) else 0
        rows = 8 * 5 * max(PART, row) + kept
        of_image = self.features.bytes_of_one(facts.shape) + 16 * self.width * math.prod(facts.shape[1:])
        weights = sum(features.bytes_of_weights(facts.shape) for features in self._all_features)
        return 8 * 5 * self._numbers(facts) + rows + weights + self.batch_size * of_image

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
        facts, judge = generator.facts, None
        told = released(_SUMS, self.features, run, data, facts, seed=run.seed)
        if self.stopping:
            judge = released(_PROXY, _OF_PROXY, run, data, facts, seed=run.seed + 1)
        generator.shares.copy_(told.shares)
        yield from self._fit(generator, told, judge, run)
        for tensor in generator.state_dict().values():  # all processes have come to the same, if all are alike
            tensor.copy_(run.processes.from_first(tensor))
        return generator

    def _fit(
        self, generator: SmallGenerator, told: ClassMeans, judge: ClassMeans | None, run: Run
    ) -> Generator[Progress, None, None]:
        """Train the generator; yield now and then, where a run may be stopped."""
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.learning_rate)
        random = torch.Generator().manual_seed(run.seed)
        classes = len(told.means)
        chosen = min(classes, self.batch_size // _FEWEST_OF_CLASS)
        each = self.batch_size // chosen
        weights = (generator.shares * classes).float()
        nearest, best = math.inf, generator.state_dict()
        for update in range(self.updates):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 - update / self.updates)
            taken = torch.randperm(classes, generator=random)[:chosen]
            latent = torch.randn(chosen * each, self.latent, generator=random)
            labels, taken = taken.repeat_interleave(each).to(run.device), taken.to(run.device)
            made = told.features.means(generator(latent.to(run.device), labels).unflatten(0, (chosen, each)))
            optimizer.zero_grad()
            (discrepancies(made, told.means[taken], each) * weights[taken]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (update + 1) % max(1, self.updates // _SHOWN) == 0 or update + 1 == self.updates:
                tell_progress("generator", update + 1, self.updates)
                if judge and (distance := judge.discrepancy_of(generator, seed=run.seed)) < nearest:
                    nearest, best = distance, copy.deepcopy(generator.state_dict())
                yield run.made_sum(generator)
        if judge:
            generator.load_state_dict(best)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one, and all weights are finite."""
        require_shares(read, where)
        require_finite(read, dict(self.untrained(facts).named_parameters()), where)

    @property
    def _all_features(self) -> tuple[AnyFeatures, ...]:
        return (self.features, _OF_PROXY) if self.stopping else (self.features,)

    def _numbers(self, facts: ImageFacts) -> int:
        """Return how many numbers are added up."""
        return sum(features.dimensions(facts.shape) for features in self._all_features) * max(1, facts.num_classes)

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
