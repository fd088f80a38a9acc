"""Private evolution over public images: private images vote for those that look like them, round by round.

Each round has a population for each class. Each private image votes for the nearest candidate of its class; the counts
with their noise are all that is released. The next population are public neighbours of the candidates that were voted
for, the nearer the fewer of them there are. The last population is the generator.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, UInt8
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.interface import Budget, ImageFacts, ImageGenerator, Kept, Method, Progress, Read, Run, Sizes
from dpdm.methods.nearest import (
    bytes_of_distances,
    columns_of,
    neighbours,
    parts_for,
    public_of,
    squared_distances,
    whole_features,
)
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.privacy.sums import BoundedSum, Choices, votes
from dpdm.types import InputError, require_at_most, require_counts

_THRESHOLD = 2.0  # standard deviations of the noise, below which a count is taken for none
_MOST_BINS = 10**6
_MOST_ROUNDS = 100


class PopulationGenerator(ImageGenerator):
    """Public images that private ones voted for; one is drawn at random for each label."""

    images: UInt8[Tensor, "class population channel height width"]
    shares: Float64[Tensor, " class"]

    def __init__(self, facts: ImageFacts, population: int) -> None:
        super().__init__()
        self.facts, classes = facts, max(1, facts.num_classes)
        self.register_buffer("images", torch.zeros(classes, population, *facts.shape, dtype=torch.uint8))
        self.register_buffer("shares", torch.full((classes,), 1 / classes, dtype=torch.float64))

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return an image of the population for each label."""
        chosen = torch.randint(self.images.shape[1], labels.shape, generator=random, device=labels.device)
        return self.images[labels, chosen].float().div(127.5).sub(1)

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, by the noisy votes of the last round."""
        return tuple(self.shares.tolist()) if self.facts.num_classes else None


@dataclass(frozen=True, kw_only=True)
class Evolution(Method):
    """Private evolution whose candidates are public images, and whose variations are their public neighbours.

    Args:
        rounds: How often private images vote. Each round gets the same noise.
        population: Candidates of each class.

    Guarantees:
        * A private image has one vote in a round, among the candidates of its class; a group shares one.
        * Distances are whole numbers: a vote depends on no other image, and on no order.

    Source:
        Lin et al. 2024 (private evolution); Lin et al. 2025, over images without their simulator: neighbours as
        variations.
    """

    kind: ClassVar[str] = "evolution"
    starts_from_images: ClassVar[bool] = True
    rounds: int = 4
    population: int = 500

    def __post_init__(self) -> None:
        require_counts(rounds=self.rounds, population=self.population)
        require_at_most(_MOST_ROUNDS, rounds=self.rounds)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the votes of each round."""
        budget.require_no_steps(self.kind)
        return tuple(FullSum(name=_votes_of(number)) for number in range(1, self.rounds + 1))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if there are more bins than memory is good for."""
        require_at_most(_MOST_BINS, **{"population × classes": self.population * max(1, facts.num_classes)})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> PopulationGenerator:
        """Return a population of black images."""
        self.require_images(facts)
        return PopulationGenerator(facts, self.population)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: features of all images, candidates, distances, and populations."""
        classes, columns = max(1, facts.num_classes), columns_of(facts.shape)
        kept = 4 * columns * (public + records)
        populations = 3 * classes * self.population * math.prod(facts.shape)  # one in the generator, two on the way
        reading = 4 * columns * public
        voting = 4 * columns * classes * self.population + 16 * columns * self.population
        varying = 16 * columns * public
        distances = 2 * bytes_of_distances(max(records, self.population), against=max(public, self.population))
        return kept + populations + max(reading, voting + distances, varying + distances)

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if some class has no public image to start from."""
        assert run.public is not None
        for label, candidates in enumerate(public_of(run.public, generator.facts)):
            if not len(candidates):
                raise InputError(f"{run.public.name} has no image of the class {generator.facts.class_names[label]}")

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, PopulationGenerator]:
        """Let private images vote, and populations follow them."""
        assert isinstance(generator, PopulationGenerator)
        assert run.public is not None
        run.resume()
        public, random = run.public, torch.Generator().manual_seed(run.seed)
        features = whole_features(public.images)
        of_class = public_of(public, generator.facts)
        rows = run.keep("pixels", data.images, whole_features, made_by="pixels, whole numbers")
        population = [known[torch.randint(len(known), (self.population,), generator=random)] for known in of_class]
        reach = [len(known) / self.population for known in of_class]
        for number in range(1, self.rounds + 1):

            def cast(population: list[Tensor] = population) -> BoundedSum:
                candidates = features[torch.stack(population)]
                return votes(_nearest_votes(data, rows, candidates), bins=len(of_class) * self.population)

            noisy, noise_std = run.once(_votes_of(number), cast)
            counts = noisy.view(len(of_class), self.population)
            for label, known in enumerate(of_class):
                weights = chosen_by(counts[label], least=_THRESHOLD * noise_std)
                # As many public images stand behind a candidate as there are for each that is likely to be drawn again.
                reach[label] = max(1.0, reach[label] * perplexity(weights) / self.population)
                parents = population[label][torch.multinomial(weights, self.population, True, generator=random)]
                population[label] = neighbours(features, known, parents, round(reach[label]), random)
            generator.images.copy_(torch.from_numpy(public.images[torch.stack(population)]).movedim(-1, -3))
            sizes = counts.sum(1).clamp(min=max(noise_std, 1.0))
            generator.shares.copy_(sizes / sizes.sum())
            yield run.made_sum(generator)
        return generator

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one."""
        shares = read("shares")
        if not (shares > 0).all() or abs(float(shares.sum()) - 1) > 1e-9:
            raise InputError(f"{where} holds shares of classes that do not add up to one")


def chosen_by(counts: Float64[Tensor, " candidates"], *, least: float) -> Float64[Tensor, " candidates"]:
    """Return how often each candidate is to be drawn again: by its count, if that is more than noise."""
    for kept in (torch.where(counts > least, counts, 0.0), counts.clamp(min=0)):
        if kept.sum() > 0:
            return kept / kept.sum()
    return torch.full_like(counts, 1 / len(counts))


def perplexity(weights: Float64[Tensor, " candidates"]) -> float:
    """Return among how many candidates a draw is as uncertain as among equal ones: exp of the entropy."""
    return math.exp(float(torch.special.entr(weights).sum()))


def _nearest_votes(
    data: ImageDataset, rows: Kept, candidates: Float32[Tensor, "class candidate features"]
) -> Iterator[Choices]:
    """Yield the bin of the nearest candidate of its own class for each private image, and the image's weight."""
    labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
    for part in parts_for(len(data), against=candidates.shape[1]):
        x, of = torch.from_numpy(rows[part]).double(), torch.from_numpy(labels[part])
        chosen = torch.zeros(len(x), dtype=torch.long)
        for label in range(len(candidates)):
            mine = of == label
            chosen[mine] = squared_distances(x[mine], candidates[label].double()).argmin(1)
        yield (of * candidates.shape[1] + chosen)[:, None], torch.from_numpy(data.weights[part])


def _votes_of(number: int) -> str:
    return f"votes, round {number}"
