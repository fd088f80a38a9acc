"""Private evolution: private images vote for candidates that look like them, round by round.

Each round has a population for each class. Each private image votes for the nearest candidates of its class; the counts
with their noise are all that is released. The next population are variations of the candidates that were voted for, the
more alike the later the round. The last population is the generator.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.embedding import Embedding
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.nearest import bytes_of_votes, columns_of, nearest_votes
from dpdm.methods.populations import Pool, PopulationGenerator, chosen_by, perplexity
from dpdm.methods.possible import require_shares
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.redrawn import ByPublicNetworks, Pipeline, PublicDraws, Redrawn
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.methods.variations import Looks, Variations
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.privacy.sums import BoundedSum, votes
from dpdm.types import InputError, require_at_most, require_counts

_THRESHOLD = 2.0  # standard deviations of the noise, below which a count is taken for none
_MOST_BINS = 10**6
_MOST_ROUNDS = 100  # and children of one candidate
_DRAWN = 6  # draws of a prior for each candidate
_MOST_COLUMNS = 2048  # of an embedding: `Space` is exact for no more


@dataclass(frozen=True, kw_only=True)
class Evolution(ByPublicNetworks):
    """Private evolution over public images, images of a finished release, or draws of a prior or a public network.

    Args:
        rounds: How often private images vote. Each round gets the same noise.
        population: Candidates of each class.
        votes: Number of candidates that each private image votes for: the nearest of its class, at most all of them.
            It makes counts √votes times as large under the same noise, and the picture coarser.
        augment: How far candidates are moved, turned and stretched at first: from 0 (not at all) to 1. Each round
            halves it.
        lookahead: Number of a candidate's children whose mean is compared in its place; 0 compares the candidate.
        embedding: Features for comparing images and finding neighbours (default: pixels, as whole numbers).
        prior: A prior that is released before the first vote, for its share of the budget. The candidates are then its
            draws, and no public images are needed (default: no prior).
        pipeline: A public network that draws the first candidates, or draws those of the prior again, and varies them
            so. No public images are needed (default: none).

    Guarantees:
        * A private image has votes of norm one in a round, among the candidates of its class; a group shares them.
        * Distances are exact: a vote depends on no other image, and on no order.

    Source:
        Lin et al. 2024 (private evolution by a network, lookahead); Lin et al. 2025, over images in place of a
        simulator: neighbours as variations. Several votes, and the prior as what draws candidates, are ours.

    Example:
        >>> plan = Evolution(rounds=2).plan(epsilon=1.0, dataset_size=60000)
        >>> [release.name for release in plan.releases]
        ['votes, round 1', 'votes, round 2']
    """

    kind: ClassVar[str] = "evolution"
    starts_from_images: ClassVar[bool] = True
    rounds: int = 4
    population: int = 500
    votes: int = 1
    augment: float = 0.0
    lookahead: int = 0
    embedding: Embedding | None = None
    prior: Prior | None = None
    pipeline: Pipeline | None = None

    def __post_init__(self) -> None:
        require_counts(rounds=self.rounds, population=self.population, votes=self.votes)
        require_at_most(_MOST_ROUNDS, rounds=self.rounds, lookahead=self.lookahead)
        if self.lookahead != 0:
            require_counts(lookahead=self.lookahead)
        if not 0 <= self.augment <= 1:
            raise InputError(f"augment must be from 0 to 1, not {self.augment}")
        for name, kind in (("embedding", Embedding), ("prior", Prior), ("pipeline", Pipeline)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise InputError(f"{name} must be {kind.__name__} or None, not {type(value).__name__}")
        if self.pipeline and self.augment:
            raise InputError("augment moves candidates, and a pipeline draws them again: set augment=0, or no pipeline")
        object.__setattr__(self, "starts_from_images", not (self.prior or self.pipeline))  # of this one

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the sums of a prior, if there is one, and the votes of each round, which share the rest."""
        budget.require_no_steps(self.kind)
        before = self.prior.planned(budget, alone=False) if self.prior else ()
        return (*before, *(FullSum(name=_votes_of(number)) for number in range(1, self.rounds + 1)))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if the votes need too much memory, or the network is for other images."""
        require_at_most(_MOST_BINS, **{"population × classes": self.population * max(1, facts.num_classes)})
        if self.pipeline:
            self.pipeline.network.require_images(facts.shape, facts.num_classes)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> PopulationGenerator:
        """Return a population of black images."""
        self.require_images(facts)
        return PopulationGenerator(facts, self.population)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: features of all images, candidates, distances, and populations."""
        classes, columns = max(1, facts.num_classes), _MOST_COLUMNS if self.embedding else columns_of(facts.shape)
        drawn = self._drawn * classes
        computed = drawn + (classes * self.population if self.augment or self.lookahead or self.pipeline else 0)
        most = {"classes": classes, "population": self.population, "records": records}
        own = math.prod(facts.shape) * drawn + 4 * columns * computed
        own += self.pipeline.memory(facts, classes * self.population) if self.pipeline else 0
        return own + bytes_of_votes(columns, math.prod(facts.shape), known=public + drawn, **most)

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if a class has no public image to start from, or the features do not fit such images."""
        if self.embedding is not None:
            self.embedding.compute(generator.facts.shape)
        if self.pipeline:
            self.pipeline.rehearse(generator.facts, run, halved=self.rounds)
        if run.public is None:
            return
        for label, candidates in enumerate(Pool.of_public(run.public, generator.facts).of_class):
            if not len(candidates):
                raise InputError(f"{run.public.name} has no image of the class {generator.facts.class_names[label]}")

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, PopulationGenerator]:
        """Release the prior, if there is one; then let private images vote, and populations follow them."""
        assert isinstance(generator, PopulationGenerator)
        run.resume()
        draws = None if self.pipeline is None else PublicDraws(self.pipeline, generator.facts, run)
        if draws is not None:
            draws.require_named(run.named(generator))
        pool = self._pool(generator.facts, data, run, draws)
        looks = Looks(run, self.embedding, pool, data.shape)
        rows, variations = looks.of_private(data), Variations(pool, looks, run, strength=self.augment)
        if draws is not None:
            variations = Redrawn(pool, looks, run, draws)
        population = variations.first(self.population)
        for number in range(1, self.rounds + 1):
            candidates = looks.exact(variations.looks(population, ahead=self.lookahead))

            def cast(candidates: Tensor = candidates) -> BoundedSum:
                parts = nearest_votes(data, rows, candidates, min(self.votes, self.population))
                return votes(parts, bins=len(candidates) * self.population)

            noisy, noise_std = run.once(_votes_of(number), cast)
            counts = noisy.view(len(candidates), self.population)
            weights = torch.stack([chosen_by(each, least=_THRESHOLD * noise_std) for each in counts])
            variations.narrow([perplexity(each) / self.population for each in weights])
            population = variations.children(population, weights)
            generator.images.copy_(variations.images(population).movedim(-1, -3))
            sizes = counts.sum(1).clamp(min=max(noise_std, 1.0))
            generator.shares.copy_(sizes / sizes.sum())
            yield run.made_sum(generator)
        return generator

    @property
    def _drawn(self) -> int:
        """How many images a prior or a network draws of each class, before the first vote."""
        return self.population * (1 if self.pipeline else _DRAWN if self.prior else 0)

    def _pool(self, facts: ImageFacts, data: ImageDataset, run: Run, draws: PublicDraws | None) -> Pool:
        """Return what candidates are made of: the images that a run begins with, or draws of prior and network."""
        pool = None
        if self.prior is not None:
            pool = Pool.of_prior(release_prior(run, data, self.prior), facts, self._drawn, run)
        if draws is not None:
            return draws.pool(self.population, of=pool)
        if pool is None:
            assert run.public is not None
            return Pool.of_public(run.public, facts)
        return pool

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one."""
        require_shares(read, where)


def _votes_of(number: int) -> str:
    return f"votes, round {number}"
