"""Noisy aggregated embeddings: sums of public features over random batches, each near public images that are drawn.

Each query is about one class. What it releases is the sum of its batch's unit-length rows with noise, divided by the
number of images that were expected. Around each noisy embedding lie public images; these are the generator.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.embedding import Embedding, InFeatures, of_unit_length
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.nearest import public_of
from dpdm.methods.unit_rows import Rows, UnitRows, Units, Weigh, nearness
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, MechanismRun, PoissonSums
from dpdm.privacy.releases import noise_of
from dpdm.types import InputError, RandomBytes, require_at_most, require_counts, require_within

_NAME = "noisy embeddings"
_MOST_QUERIES, _MOST_DIRECTIONS, _MOST_IMAGES = 10_000, 1024, 10**6
_MOST_FEATURES = 2048
_LEAST = 1e-30  # what images that nobody chose are drawn by: of a generator that knows nothing yet


class AggregatedGenerator(ImageGenerator):
    """Public images near noisy embeddings; query j is about class j mod C. Of one that is lost none is drawn."""

    embeddings: Float32[Tensor, "query direction"]
    images: UInt8[Tensor, "query neighbour channel height width"]
    weights: Float32[Tensor, "query neighbour"]

    def __init__(self, facts: ImageFacts, queries: int, directions: int, neighbours: int) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("embeddings", torch.zeros(queries, directions))
        self.register_buffer("images", torch.zeros(queries, neighbours, *facts.shape, dtype=torch.uint8))
        self.register_buffer("weights", torch.zeros(queries, neighbours))

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return an image near a random embedding of its class, for each label."""
        mine = torch.arange(len(self.weights), device=labels.device) % max(1, self.facts.num_classes) == labels[:, None]
        query = torch.multinomial(mine * (self.weights.sum(1) + _LEAST), 1, generator=random)[:, 0]
        image = torch.multinomial(self.weights[query] + _LEAST, 1, generator=random)[:, 0]
        return self.images[query, image].float().div(127.5).sub(1)


@dataclass(frozen=True, kw_only=True)
class AggregatedEmbeddings(InFeatures):
    """Draws public images near noisy sums of private features, each over a random batch.

    Args:
        embedding: The public features.
        queries: How many noisy embeddings there are, of all classes in turn.
        directions: Of the public features, those in which public images differ most; the more, the more noise.
        neighbours: Public images that are drawn near each embedding.
        sharpness: How much rather the nearest: images are drawn in proportion to exp(sharpness · cosine).
        locality: How local a query is. At 0 each image of the class counts alike. Above, each query has a public image,
            and a private image at cosine c to this image counts exp(locality · (c − r)), at most 1. Here r is the
            cosine of the last of the public image's public neighbours.

    Guarantees:
        * What an image adds is its own unit-length row times at most 1, for the queries about its class, and else zero.
          A group adds the mean of what its images would. A sum is divided by a constant of the plan.
        * Each noisy embedding is kept as soon as it is made. One that a crash has lost stays spent.

    Source:
        Noisy aggregated embeddings: DPAgg-TI (arXiv 2411.14639). Queries by similarity: DP-RDM (arXiv 2403.14421), with
        a weighted sum in place of the mean of k nearest rows.

    Example:
        >>> AggregatedEmbeddings(queries=100).plan(epsilon=1.0, dataset_size=60000).steps
        100
    """

    kind: ClassVar[str] = "aggregated-embeddings"
    starts_from_images: ClassVar[bool] = True
    embedding: Embedding = field(default_factory=Embedding)
    queries: int = 100
    directions: int = 512
    neighbours: int = 100
    sharpness: float = 10.0
    locality: float = 0.0

    def __post_init__(self) -> None:
        require_counts(queries=self.queries, directions=self.directions, neighbours=self.neighbours)
        require_at_most(_MOST_QUERIES, queries=self.queries)
        require_at_most(_MOST_DIRECTIONS, directions=self.directions)
        require_at_most(_MOST_IMAGES, **{"queries × neighbours": self.queries * self.neighbours})
        require_within(0, 1000, sharpness=self.sharpness, locality=self.locality)

    def releases(self, budget: Budget) -> tuple[PoissonSums, ...]:
        """Return the noisy embeddings, by default each over a quarter of the images: a larger batch gains little."""
        if budget.steps is not None or budget.max_grad_norm != 1:
            raise InputError(
                f"the method {self.kind} takes no steps: set queries, and leave out privacy.steps and "
                "privacy.max_grad_norm"
            )
        batch = budget.expected_batch_size or max(1, budget.dataset_size // 4)
        return (PoissonSums(name=_NAME, count=self.queries, expected_batch_size=batch, max_norm=1.0),)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if some class has no query."""
        if self.queries < facts.num_classes:
            raise InputError(f"queries = {self.queries} are fewer than {facts.num_classes} classes: give each some")

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> AggregatedGenerator:
        """Return a generator of black images."""
        self.require_images(facts)
        return AggregatedGenerator(facts, self.queries, self.directions, self.neighbours)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: features of all images, rows, and the generator twice."""
        rows = 4 * _MOST_FEATURES * (2 * public + records) + 8 * self.directions * (public + records)
        return rows + 2 * self.queries * self.neighbours * math.prod(facts.shape)

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError unless there are enough public images and features, and the plan has the queries."""
        assert run.public is not None
        if plan.steps != self.queries or plan.poisson[0].max_norm not in (1, math.inf):
            raise InputError(f"the plan is not of {self.queries} noisy embeddings of norm 1 each: make it anew")
        for label, known in enumerate(public_of(run.public, generator.facts)):
            if len(known) < self.neighbours:
                name = generator.facts.class_names[label] if generator.facts.num_classes else "all"
                raise InputError(
                    f"{run.public.name} has {len(known)} images for the class {name}: set neighbours to as many at most"
                )
        features = self.embedding.compute(run.public.shape)(run.public.images[:1]).shape[1]
        if features < self.directions:
            raise InputError(f"{self.embedding.features} has {features} features: set directions to as many at most")

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, AggregatedGenerator]:
        """Make each noisy embedding, and look for public images near it."""
        assert isinstance(generator, AggregatedGenerator)
        assert run.public is not None
        run.resume()
        known, random = public_of(run.public, generator.facts), torch.Generator().manual_seed(run.seed)
        rows, whole = self.embedding.of_public(run)
        public, space = run.processes.object_from_first(whole.leading(rows, self.directions))
        del rows
        parts = [part for _, part in self.embedding.of_private(run, data, space).parts()]
        private = UnitRows(data, torch.cat([torch.zeros(0, self.directions), *parts]))
        for number in range(self.queries):
            mine = known[number % len(known)]
            query = public[mine[torch.randint(len(mine), (), generator=random)]]
            weigh = nearness(public[mine], query, rank=self.neighbours, locality=self.locality)

            def load(units: Units, draws: RandomBytes, number: int = number, weigh: Weigh = weigh) -> Rows:
                return private.of_class(units, number % len(known), weigh)

            noisy = run.of_batch(_NAME, number, dimensions=self.directions, load=load)
            if noisy is not None:
                cosines, nearest = (public @ of_unit_length(noisy.values[None])[0])[mine].topk(self.neighbours)
                images = run.public.images[mine[nearest].numpy()]
                generator.embeddings[number] = noisy.values / run.mechanism.plan.expected_batch_size
                generator.images[number] = torch.from_numpy(images).movedim(-1, -3)
                generator.weights[number] = (self.sharpness * cosines.double()).softmax(0)
            yield run.made_sum(generator)
        if not all(generator.weights[label :: len(known)].any() for label in range(len(known))):
            raise InputError("crashes have spent all noisy embeddings of a class: start a new run")
        return generator

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless each query has an embedding of such noise, and images, or nothing at all."""
        weights, lengths = read("weights").double(), read("embeddings").double().norm(dim=1)
        noise = noise_of(plan.poisson[0]) * math.sqrt(self.directions)
        longest = (plan.dataset_size + 10 * noise) / plan.expected_batch_size
        lost = weights.sum(1) == 0
        sound = (weights >= 0).all() and (lost | ((weights.sum(1) - 1).abs() < 1e-5)).all()
        shown = (read("images", slice(int(query), int(query) + 1)).any() for query in lost.nonzero())
        planned = plan.steps == self.queries and plan.poisson[0].max_norm in (1, math.inf)  # infinite without a claim
        if not planned or not sound or (lengths > longest * ~lost).any() or any(shown):
            raise InputError(f"{where} holds noisy embeddings, or images near them, that no run comes to")
