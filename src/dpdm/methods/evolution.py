"""Private evolution: private images vote for candidates that look like them, round by round.

Each round has a population for each class. Each private image votes for the nearest candidates of its class; the counts
with their noise are all that is released. The next population are variations of the candidates that were voted for, the
more alike the fewer of these there are. The last population is the generator.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.embedding import Embedding
from dpdm.methods.interface import ImageGenerator, Kept, Method, Run
from dpdm.methods.nearest import bytes_of_votes, columns_of, parts_for, squared_distances
from dpdm.methods.populations import Pool, PopulationGenerator, chosen_by, perplexity
from dpdm.methods.possible import require_shares
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart, Read, Sizes
from dpdm.methods.variations import Looks, Variations
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.privacy.sums import BoundedSum, Choices, votes
from dpdm.types import InputError, require_at_most, require_counts

_THRESHOLD = 2.0  # standard deviations of the noise, below which a count is taken for none
_MOST_BINS = 10**6
_MOST_ROUNDS = 100  # and children of one candidate
_DRAWN = 6  # draws of a prior for each candidate
_MOST_COLUMNS = 2048  # of an embedding: `Space` is exact for no more


@dataclass(frozen=True, kw_only=True)
class Evolution(Method):
    """Private evolution over public images, images of a finished release, or draws of a prior of the same plan.

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

    Guarantees:
        * A private image has votes of norm one in a round, among the candidates of its class; a group shares them.
        * Distances are exact: a vote depends on no other image, and on no order.

    Source:
        Lin et al. 2024 (private evolution, lookahead); Lin et al. 2025, over images in place of a simulator: neighbours
        as variations. Several votes, and the prior as what draws candidates, are ours.

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

    def __post_init__(self) -> None:
        require_counts(rounds=self.rounds, population=self.population, votes=self.votes)
        require_at_most(_MOST_ROUNDS, rounds=self.rounds, lookahead=self.lookahead)
        if self.lookahead != 0:
            require_counts(lookahead=self.lookahead)
        if not 0 <= self.augment <= 1:
            raise InputError(f"augment must be from 0 to 1, not {self.augment}")
        for name, kind in (("embedding", Embedding), ("prior", Prior)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise InputError(f"{name} must be {kind.__name__} or None, not {type(value).__name__}")
        object.__setattr__(self, "starts_from_images", self.prior is None)  # of this one: a prior needs no images

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the sums of a prior, if there is one, and the votes of each round, which share the rest."""
        budget.require_no_steps(self.kind)
        before = self.prior.planned(budget, alone=False) if self.prior else ()
        return (*before, *(FullSum(name=_votes_of(number)) for number in range(1, self.rounds + 1)))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if the votes need too much memory."""
        require_at_most(_MOST_BINS, **{"population × classes": self.population * max(1, facts.num_classes)})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> PopulationGenerator:
        """Return a population of black images."""
        self.require_images(facts)
        return PopulationGenerator(facts, self.population)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: features of all images, candidates, distances, and populations."""
        classes, columns = max(1, facts.num_classes), _MOST_COLUMNS if self.embedding else columns_of(facts.shape)
        drawn = _DRAWN * classes * self.population if self.prior else 0
        computed = drawn + (classes * self.population if self.augment or self.lookahead else 0)
        most = {"classes": classes, "population": self.population, "records": records}
        own = math.prod(facts.shape) * drawn + 4 * columns * computed
        return own + bytes_of_votes(columns, math.prod(facts.shape), known=public + drawn, **most)

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if a class has no public image to start from, or the features do not fit such images."""
        if self.embedding is not None:
            self.embedding.compute(generator.facts.shape)
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
        pool = self._pool(generator.facts, data, run)
        looks = Looks(run, self.embedding, pool, data.shape)
        rows, variations = looks.of_private(data), Variations(pool, looks, run, strength=self.augment)
        population = variations.first(self.population)
        for number in range(1, self.rounds + 1):
            candidates = looks.exact(variations.looks(population, ahead=self.lookahead))

            def cast(candidates: Tensor = candidates) -> BoundedSum:
                parts = _nearest_votes(data, rows, candidates, min(self.votes, self.population))
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

    def _pool(self, facts: ImageFacts, data: ImageDataset, run: Run) -> Pool:
        """Return what candidates are made of: the images that a run begins with, or draws of its prior."""
        if self.prior is None:
            assert run.public is not None
            return Pool.of_public(run.public, facts)
        return Pool.of_prior(release_prior(run, data, self.prior), facts, _DRAWN * self.population, run)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one."""
        require_shares(read, where)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the network of the features, if its weights were trained."""
        return () if self.embedding is None else self.embedding.network

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return the network with the digest of its weights."""
        return () if self.embedding is None else self.embedding.parts()

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "Evolution":
        """Return the method in the form that a release stores."""
        return self if self.embedding is None else replace(self, embedding=self.embedding.said())


def _nearest_votes(
    data: ImageDataset, rows: Kept, candidates: Float[Tensor, "class candidate features"], number: int = 1
) -> Iterator[Choices]:
    """Yield the bins of the nearest candidates of its own class for each private image, and the image's weight."""
    labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
    squares = [each.square().sum(1) for each in candidates]
    for part in parts_for(len(data), against=candidates.shape[1]):
        x, of = torch.from_numpy(rows[part]).to(candidates), torch.from_numpy(labels[part])
        chosen = torch.zeros(len(x), number, dtype=torch.long)
        for label in range(len(candidates)):
            mine = of == label
            distances = squared_distances(x[mine], candidates[label], squares[label])
            chosen[mine] = distances.topk(number, largest=False).indices
        yield of[:, None] * candidates.shape[1] + chosen, torch.from_numpy(data.weights[part])


def _votes_of(number: int) -> str:
    return f"votes, round {number}"
