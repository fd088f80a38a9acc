"""Distillation: a few images of each class that have the mean features which one noisy sum tells.

The features are those of several random networks. They are summed once for each class. The images then follow the
gradient of their distance to these means, for as long as one likes: that is post-processing.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.class_means import ClassMeans, released, require_gradients, require_summed
from dpdm.methods.embedding import Embedding
from dpdm.methods.feature_maps import PART, AnyFeatures, PublicFeatures
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.populations import PopulationGenerator
from dpdm.methods.possible import require_shares
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart, Read, Sizes
from dpdm.privacy import AnyPlan, FullSum, MechanismRun
from dpdm.types import require_at_most, require_counts, require_within, tensor_to_images

_SUMS = "features of each class"
_MOST_UPDATES, _MOST_IMAGES, _MOST_SHIFT = 10**7, 10**6, 16
_SHOWN = 20  # times that a person hears how far the images are
_START = 0.3  # standard deviation of what the first images are made of


class DistilledGenerator(PopulationGenerator):
    """A few images of each class, of which each is moved at random by up to `shift` pixels when it is drawn."""

    def __init__(self, facts: ImageFacts, population: int, shift: int) -> None:
        super().__init__(facts, population)
        self._shift = shift

    def draw_at(
        self, places: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the image at each place of an endless sample of its class, moved at random."""
        x, most = super().draw_at(places, labels, random=random), self._shift
        down, right = torch.randint(2 * most + 1, (2, len(labels)), generator=random, device=labels.device)
        rows, columns = (torch.arange(side, device=labels.device) for side in x.shape[2:])
        wide = pad(x, (most,) * 4, mode="replicate")
        place = torch.arange(len(x), device=labels.device)[:, None, None]
        moved = wide.movedim(1, -1)[place, (down[:, None] + rows)[:, :, None], (right[:, None] + columns)[:, None]]
        return moved.movedim(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Distillation(Method):
    """Moves a few images of each class until their mean features match a noisy sum.

    Args:
        features: The features that images are compared in (default: those of eight random networks).
        images: Number of images of each class.
        updates: Number of updates of the images. They cost time, and no privacy.
        learning_rate: Learning rate of Adam; it falls linearly to zero.
        shift: Most pixels of the random shift of an image, in an update and in a draw.

    Guarantees:
        * A private image adds one row of length one to its class's sum, and one to its count; a group shares both.

    Source:
        NDPDC (a submission to ICLR 2023) reads private images in each update, and so pays for each. Dosser collects the
        sums once, as here.

    Example:
        >>> [release.name for release in Distillation().plan(epsilon=1.0, dataset_size=60000).releases]
        ['features of each class']
    """

    kind: ClassVar[str] = "distillation"
    features: AnyFeatures = field(
        default_factory=lambda: PublicFeatures(embedding=Embedding(features="random-convnets", size=32))
    )
    images: int = 20
    updates: int = 300
    learning_rate: float = 0.05
    shift: int = 1

    def __post_init__(self) -> None:
        require_counts(images=self.images, updates=self.updates)
        require_at_most(_MOST_UPDATES, updates=self.updates)
        require_within(0, _MOST_SHIFT, shift=self.shift)
        require_within(1e-6, 1, learning_rate=self.learning_rate)

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the one sum, which gets all of the budget."""
        budget.require_no_steps(self.kind)
        return (FullSum(name=_SUMS),)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if sums or images need too much memory."""
        require_summed((self.features,), facts)
        require_at_most(_MOST_IMAGES, **{"images × classes": self.images * max(1, facts.num_classes)})

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> DistilledGenerator:
        """Return black images."""
        return DistilledGenerator(facts, self.images, self.shift)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes that a run needs at most: sums, rows and weights of features, and images with gradients."""
        row, classes = self.features.dimensions(facts.shape), max(1, facts.num_classes)
        sums = 8 * 5 * (row * classes + max(PART, row))
        of_image = self.features.bytes_of_one(facts.shape) + 4 * 8 * math.prod(facts.shape)
        return sums + self.features.bytes_of_weights(facts.shape) + self.images * classes * of_image

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if the features are not there, or give no gradient for such images."""
        made_up = torch.zeros(2, *generator.facts.shape, device=run.device, requires_grad=True)
        require_gradients(self.features, made_up, generator.facts, seed=run.seed)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, DistilledGenerator]:
        """Release the sums, then move the images. A run that stops keeps the sums alone."""
        assert isinstance(generator, DistilledGenerator)
        run.resume()
        told = released(_SUMS, self.features, run, data, generator.facts, seed=run.seed)
        generator.shares.copy_(told.shares)
        yield from self._move(generator, told, run)
        generator.images.copy_(run.processes.from_first(generator.images))
        return generator

    def _move(self, generator: DistilledGenerator, told: ClassMeans, run: Run) -> Generator[Progress, None, None]:
        """Let images begin as noise, and follow the gradient; yield now and then, where a run may be stopped."""
        random = torch.Generator().manual_seed(run.seed)
        start = _START * torch.randn(generator.images.shape, generator=random)
        pixels = start.to(run.device).requires_grad_()  # of which the tangent is a pixel in [-1, 1]
        optimizer = torch.optim.Adam([pixels], lr=self.learning_rate)
        height, width = pixels.shape[-2:]
        for update in range(self.updates):
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - update / self.updates)
            down, right = torch.randint(2 * self.shift + 1, (2,), generator=random).tolist()
            wide = pad(pixels.tanh().flatten(0, 1), (self.shift,) * 4, mode="replicate")
            moved = wide[..., down : down + height, right : right + width].view_as(pixels)
            optimizer.zero_grad()
            (told.features.means(moved) - told.means).square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (update + 1) % max(1, self.updates // _SHOWN) == 0 or update + 1 == self.updates:
                tell_progress("images", update + 1, self.updates)
                levels = tensor_to_images(pixels.detach().tanh().flatten(0, 1).cpu())
                generator.images.copy_(torch.from_numpy(levels).movedim(-1, 1).view_as(generator.images))
                yield run.made_sum(generator)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one."""
        require_shares(read, where)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the public network of the features."""
        return self.features.networks

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return this network with the digest of its weights."""
        return self.features.network_parts()

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "Distillation":
        """Return the method in the form that a release stores."""
        return replace(self, features=self.features.said())
