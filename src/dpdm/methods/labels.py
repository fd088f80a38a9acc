"""Private labels for public images: one noisy sum for each class, in a public feature space, names what shows it.

The sum over a class's private images is its prototype. Each public image gets the class whose prototype it is nearest
to, and how clearly. The clearest of each class are the generator, alone or beside the prior of the same plan.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion.spectrum import cell_means
from dpdm.methods.embedding import Embedded, Embedding, InFeatures, Space
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.labelled import LabelledGenerator, agreement_of, nearer_kinds, require_classes
from dpdm.methods.possible import require_shares
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.public_classes import PUBLIC_CLASSES, clearest, voted_images
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, FullSum, MechanismRun, gaussian_mu
from dpdm.privacy.sums import CellRows, cell_sums, votes
from dpdm.types import InputError, require_counts, require_within, tensor_to_images

PROTOTYPES = "prototypes"
CHOICE = "prior or public images"
_COUNT_SCALE = 1 / 7  # beside a unit row: counts have seven times the noise of a coordinate, and cost 1 % more
_LEAST_COUNT = 20.0  # records by which a sum is divided at least
_OF_VOTES = 0.1  # of the budget, for the votes for public classes
_ASKED = 256  # candidates of a class, of either kind, that private images choose between


@dataclass(frozen=True, kw_only=True)
class Labels(InFeatures):
    """Public images, labelled by the noisy prototypes of private classes.

    Args:
        embedding: The public features of the prototypes.
        per_class: Number of public images that each class keeps: those that show it most clearly.
        from_prior: Share of the drawn images that the prior makes, from 0 to below 1; 0 leaves the prior out.
        prior: The prior beside the public images. `prior.share` is its part of the budget; prototypes get the rest.
        public_classes: Number of public classes whose images each private class may take: those with most of its votes.
            A private image has up to three votes. The vote costs a tenth of the budget; 0 leaves it out.
        choice: Part of the budget for one vote of each private image: is the prior nearer to it, or are the labelled
            public images? If the prior wins, it makes all images. 0 leaves the vote out.

    Guarantees:
        * A private image adds one row of length one and one count, both to its own class; a group shares one.

    Source:
        Snell et al. 2017 (prototypes); Dwork et al. 2006 (noisy sums); Li et al. 2024 (PrivImage: public classes).

    Example:
        >>> [release.name for release in Labels(from_prior=0.0).plan(epsilon=1.0, dataset_size=50000).releases]
        ['prototypes']
    """

    kind: ClassVar[str] = "labels"
    starts_from_images: ClassVar[bool] = True
    embedding: Embedding = field(default_factory=Embedding)
    per_class: int = 4000
    from_prior: float = 0.3
    prior: Prior = field(default_factory=lambda: Prior(share=0.6))
    public_classes: int = 0
    choice: float = 0.0

    def __post_init__(self) -> None:
        require_counts(per_class=self.per_class)
        require_within(0, 0.99, from_prior=self.from_prior)
        require_within(0, 0.5, choice=self.choice)
        if self.choice and not self.from_prior:
            raise InputError("choice is between the prior and public images: set from_prior too")
        if type(self.public_classes) is not int or self.public_classes < 0:
            raise InputError(f"public_classes must be a whole number, 0 or more, not {self.public_classes}")
        if (self.prior.share if self.from_prior else 0) + self.choice + self._votes_share >= 1:
            raise InputError("prior.share, choice and votes leave nothing for prototypes: let them be below 1 together")

    @property
    def _votes_share(self) -> float:
        return _OF_VOTES if self.public_classes else 0.0

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the prior's sums, if it takes part, then the prototypes, then votes."""
        budget.require_no_steps(self.kind)
        whole = gaussian_mu(epsilon=budget.epsilon, delta=budget.delta)
        parts = {PUBLIC_CLASSES: self._votes_share, CHOICE: self.choice}
        return (
            *(self.prior.planned(budget, alone=False) if self.from_prior else ()),
            FullSum(name=PROTOTYPES),
            *(FullSum(name=name, noise_multiplier=1 / (whole * math.sqrt(p))) for name, p in parts.items() if p),
        )

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError without classes, or if a release could not hold their images."""
        require_classes(self.kind, facts, self.per_class)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> LabelledGenerator:
        """Return a generator of black images, around a prior that knows nothing."""
        self.require_images(facts)
        mixture = self.prior.placeholder(facts, sizes, below="mixture.") if self.from_prior else None
        return LabelledGenerator(facts, self.per_class, self.from_prior, mixture)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: features of public images, and images on the way."""
        columns, pixels = 1280, math.prod(facts.shape)
        return 4 * columns * (2 * public + min(records, 50_000)) + 2 * pixels * self.per_class * facts.num_classes

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError unless the features work here."""
        assert run.public is not None
        if self.public_classes and not run.public.num_classes:
            raise InputError(f"{run.public.name} has no classes to vote for: leave out public_classes")
        self.embedding.compute(generator.facts.shape)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, LabelledGenerator]:
        """Release the prior and the prototypes, label public images by them, and count the private images' votes."""
        assert isinstance(generator, LabelledGenerator)
        assert run.public is not None
        run.resume()
        if self.from_prior:
            generator.mixture = release_prior(run, data, self.prior).to(run.device)
            yield run.made_sum(generator)
        rows, space = self.embedding.of_public(run)
        own, labels = self.embedding.of_private(run, data, space), torch.from_numpy(data.labels)
        weights, classes = torch.from_numpy(data.weights), data.num_classes

        def of_classes() -> Iterator[CellRows]:
            for part, x in own.parts():
                yield x, labels[part], weights[part]

        shape = {"cells": classes, "dimensions": rows.shape[1]}
        noisy, noise_std = run.once(
            PROTOTYPES, lambda: cell_sums(of_classes(), max_norm=1.0, count_scale=_COUNT_SCALE, **shape)
        )
        prototypes, counts = cell_means(noisy, cells=classes, count_scale=_COUNT_SCALE, least_count=_LEAST_COUNT)
        within = None
        if self.public_classes:
            within = voted_images(run, own, (labels, weights), rows, classes=classes, most=self.public_classes)
        chosen, margins = clearest(rows, prototypes, self.per_class, within)
        chosen = run.processes.from_first(chosen)
        generator.images.copy_(torch.from_numpy(run.public.images[chosen.numpy()]).movedim(-1, -3))
        generator.margins.copy_(margins)
        generator.shares.copy_(counts / counts.sum())
        noise_of_mean = math.sqrt(classes) * noise_std / float(counts.sum())
        generator.agreement.copy_(agreement_of(counts @ prototypes / counts.sum(), noise_std=noise_of_mean))
        yield run.made_sum(generator)
        if self.choice:
            place = torch.arange(min(_ASKED, self.per_class), device=run.device) % generator.drawn_from[:, None]
            shown = rows[chosen.gather(1, place.to(chosen.device))]
            yield self._choose(generator, run, own, (labels, weights), shown, space)
        return generator

    def _choose(
        self,
        generator: LabelledGenerator,
        run: Run,
        own: Embedded,
        records: tuple[Int[Tensor, " images"], Float64[Tensor, " images"]],
        labelled: Float32[Tensor, "class number directions"],
        space: Space,
    ) -> Progress:
        """Let each private image vote for what is nearer to it, and draw from the prior alone if that wins."""
        assert generator.mixture is not None
        classes, number = labelled.shape[:2]
        of_class = torch.arange(classes, device=run.device).repeat_interleave(number)
        random = torch.Generator(run.device).manual_seed(run.seed)
        drawn = tensor_to_images(generator.mixture.sample(of_class, generator=random).view(-1, *generator.facts.shape))
        rows = space.unit(self.embedding.compute(generator.facts.shape)(drawn))
        of_prior = run.processes.from_first(rows).view_as(labelled)
        kinds = [of_prior, labelled]
        noisy, _ = run.once(CHOICE, lambda: votes(nearer_kinds(own, *records, kinds), bins=len(kinds)))
        if noisy[0] > noisy[1]:
            generator.from_prior.fill_(1)
        return run.made_sum(generator)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless the shares add up to one, and a run of this plan can produce the prior."""
        require_shares(read, where)
        part = float(read("from_prior"))
        if not 0 <= float(read("agreement")) <= 1:
            raise InputError(f"{where} holds an agreement of private images that is no share")
        margins = read("margins")
        if not (margins[:, :-1] >= margins[:, 1:]).all() or margins.abs().max() > 2.1:  # cosines differ by 2 at most
            raise InputError(f"{where} holds margins of labels that no run comes to")
        if part != self.from_prior and not (part == 1 and self.choice):
            raise InputError(f"{where} draws another part from the prior than config.toml says")
        if self.from_prior:
            self.prior.require_possible(read, plan, facts, below="mixture.", where=where)
