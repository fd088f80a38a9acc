"""Statistic matching: moments of a public network's layers, released once, and images that are moved to have them.

Each private image adds one clipped vector to one sum. After a prior, if images begin as its draws, it is all.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.beginning import beginning, known_before
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.layers import Layers, View
from dpdm.methods.matching import BATCH, Matching, Moves, pace_of
from dpdm.methods.moments import Layout
from dpdm.methods.populations import PopulationGenerator
from dpdm.methods.possible import require_shares
from dpdm.methods.prior import Prior
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart, Read, Sizes
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.privacy.sums import BoundedSum, clipped_sum
from dpdm.types import InputError, require_at_most, require_counts, require_within

MOMENTS = "layer moments"  # what the sum is called
_MOST_IMAGES, _MOST_NUMBERS, _MOST_PASSES = 10**6, 2**24, 100_000
_FEWEST = 20  # images of a class, and updates of each, which are given up last where time is short
_LARGEST = 50_000  # images that time is chosen for, at most


@dataclass(frozen=True, kw_only=True)
class StatisticMatching(Method):
    """Moves images until a public network's layers have the moments that they have for private images.

    Args:
        layers: The public network, and which of its moments to match.
        prior: A prior whose draws the images begin as, for its part of the budget (default: public images).
        population: Number of images of each class.
        passes: Number of updates of each image.
        candidates: Most public images, or draws of the prior, to choose from.
        shift: Most pixels of the random shift of an image before the network sees it (0 to 8).
        flip: Whether to mirror images at random, too (default: those in colour): of no use to digits.

    Guarantees:
        * A private image adds one vector to one sum: all layers, all moments and its count, clipped together.

    Source:
        The idea: SPS, statistic matching in public features (ICLR 2026). The rest: docs/method.md.

    Example:
        >>> [release.name for release in StatisticMatching().plan(epsilon=1.0, dataset_size=50000).releases]
        ['layer moments']
    """

    kind: ClassVar[str] = "statistics"
    timed: ClassVar[tuple[str, ...]] = ("population", "passes")
    layers: Layers = field(default_factory=Layers)
    prior: Prior | None = None
    population: int = 100
    passes: int = 100
    candidates: int = 20_000
    shift: int = 2
    flip: bool | None = None

    def __post_init__(self) -> None:
        require_counts(population=self.population, passes=self.passes, candidates=self.candidates)
        require_at_most(_MOST_PASSES, passes=self.passes)
        require_at_most(_MOST_IMAGES, population=self.population, candidates=self.candidates)
        require_within(0, 8, shift=self.shift)

    @property
    def starts_from_images(self) -> bool:  # type: ignore[override]
        """Whether images begin as public ones: as draws of a prior they need none."""
        return self.prior is None

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the public network."""
        return self.layers.trained

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return the network with the digest of its weights; raise InputError if it is not there."""
        return self.layers.parts()

    @property
    def start_folders(self) -> tuple[str, ...]:
        """The folder of the public network, if `dpdm pretrain` made it."""
        return self.layers.folders

    @property
    def start_digests(self) -> tuple[str, ...]:
        """The SHA-256 of the weights, as a release stores it."""
        return (self.layers.sha256,) if self.layers.folders else ()

    def begun_from(self, folders: Sequence[str]) -> "StatisticMatching":
        """Return the method with this folder of its classifier."""
        return replace(self, layers=replace(self.layers, network=folders[0]))

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "StatisticMatching":
        """Return the method in the form that a release stores: a classifier by name and digest."""
        return replace(self, layers=self.layers.said(starts))

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the sum of moments, after those of a prior, if there is one."""
        budget.require_no_steps(self.kind)
        before = () if self.prior is None else self.prior.planned(budget, alone=False)
        return (*before, FullSum(name=MOMENTS))

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if images, or the vector of a record, need too much memory."""
        looked, classes = self.layers, max(1, facts.num_classes)
        require_at_most(_MOST_IMAGES, **{"population × classes": self.population * classes})
        layout = Layout((looked.directions,) * 8, looked.pairs, looked.own, looked.own_pairs, classes)
        require_at_most(_MOST_NUMBERS, **{"moments of all classes": layout.dimensions})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> PopulationGenerator:
        """Return black images."""
        self.require_images(facts)
        return PopulationGenerator(facts, self.population)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: public rows, vectors of records, images and one update."""
        width, number = 2100, self.population * max(1, facts.num_classes)
        images = 24 * number * (math.prod(facts.shape) + 8 * self.layers.directions)
        looking = min(public or self.candidates, self.candidates) * (24 * width + 64 * self.layers.directions)
        return images + looking + 2**28 + 4096 * BATCH * self.layers.side**2

    def seconds(self, facts: ImageFacts, *, records: int, device: torch.device) -> float:
        """Return about how long a run takes here."""
        looking, updating = pace_of(self.layers, facts.shape, device)
        made = self.population * max(1, facts.num_classes)
        return looking * (records + self.candidates + made) + updating * made * self.passes

    def fitted(self, facts: ImageFacts, *, records: int, device: torch.device, seconds: float) -> "StatisticMatching":
        """Return the method with as many images as fill the time, and fewer updates if the images would be few.

        Raises:
            InputError: There is no time for a single update of one image of each class.
        """
        (looking, updating), classes = pace_of(self.layers, facts.shape, device), max(1, facts.num_classes)
        updates = int((seconds - looking * (records + self.candidates)) / (looking / self.passes + updating) / classes)
        passes = max(min(self.passes, updates // _FEWEST), min(self.passes, _FEWEST))
        if updates < passes:
            least = "the time is too short for one image of each class"
            raise InputError(f"{least}: give more minutes, or a smaller layers.size")
        return replace(self, passes=passes, population=min(updates // passes, _LARGEST // classes))

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError unless the network is there and takes such images."""
        self.require_starts(generator, run.starts)

    def require_starts(self, generator: ImageGenerator, starts: Sequence[PublicStart]) -> None:
        """Raise InputError unless the classifier, if a start is one, takes such images."""
        self.layers.widths(generator.facts.shape, starts)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, PopulationGenerator]:
        """Release the moments, begin with images that are like them, and match the moments."""
        assert isinstance(generator, PopulationGenerator)
        shape, random = data.shape, torch.Generator().manual_seed(run.seed)
        known = known_before(run, data, self.prior, self.candidates, random)
        rows = self.layers.of_public(run, known.images, shape)
        widths = self.layers.widths(shape, run.starts)
        view = run.processes.object_from_first(View.of(rows, widths, self.layers.directions))
        own = min(self.layers.own, len(widths)) if data.num_classes else 0
        layout = Layout(tuple(view.sizes), self.layers.pairs, own, self.layers.own_pairs, len(generator.images))
        seen = torch.cat([view.exact(part) for part in torch.split(rows, 1024)])
        norm = run.processes.object_from_first(layout.norm(seen))

        def summed() -> BoundedSum:
            vectors = layout.vectors(self.layers.keep(run, "layers", data.images, shape), data, view.exact, norm)
            return clipped_sum(vectors, dimensions=layout.dimensions, max_norm=norm)

        noisy, std = run.once(MOMENTS, summed)
        target = layout.statistics(noisy, noise_std=std, norm=norm)
        start = beginning(known, seen, layout, target, generator.facts, self.population, random).to(run.device)
        generator.shares.copy_(target.counts / target.counts.sum())
        mirrored = shape[0] > 1 if self.flip is None else self.flip
        moves, network = Moves(self.shift, mirrored, run.seed), self.layers.build(shape, run.starts)
        matching = Matching(start, target, layout, view, network, moves, self.passes, run.processes)
        run.resume(matching=matching)
        generator.images.copy_(matching.images())
        yield run.made_sum(generator)
        while not matching.finished:
            matching.update()
            tell_progress("matching images", int(matching.done), matching.updates)
            yield run.worked()
        generator.images.copy_(run.processes.from_first(matching.images()))
        yield run.made_sum(generator)
        return generator

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes add up to one, and the digest of a classifier is named."""
        if self.layers.folders and not self.layers.sha256:
            raise InputError(f"{where} is of a run with a classifier, and config.toml lacks layers.sha256")
        require_shares(read, where)
