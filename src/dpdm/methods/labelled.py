"""Public images with private labels: what is asked of them, what to know of them, a vote between them and the prior."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from dpdm.diffusion import GaussianMixture
from dpdm.methods.embedding import Embedded
from dpdm.methods.stored import StoredGenerator
from dpdm.methods.values import ImageFacts
from dpdm.privacy.sums import Choices
from dpdm.types import InputError, require_at_most

_MOST_IMAGES = 10**6
_FEWEST = 10  # images of a class that are drawn, even if some are nearer to another class
# Of the squared length of rows: more is what private images have in common, and public ones lack. Measured, ← public:
# CIFAR-10 ← Tiny ImageNet 0.006, MNIST ← fonts 0.018, Fashion-MNIST ← Tiny ImageNet 0.077.
_FAR = 0.04


class ShowingGenerator(StoredGenerator):
    """Public images that show a class more than any other one, by their margins, of which the largest come first.

    Of a class that fewer than ten show, the ten are drawn that show it most clearly.
    """

    margins: Float32[Tensor, "class number"]

    def __init__(self, facts: ImageFacts, number: int) -> None:
        super().__init__(facts, number)
        self.register_buffer("margins", torch.zeros(len(self.images), number))

    @property
    def drawn_from(self) -> Int[Tensor, " class"]:
        """How many images each class draws from: its first ones."""
        return (self.margins > 0).sum(1).clamp(min=min(_FEWEST, self.margins.shape[1]))


class LabelledGenerator(ShowingGenerator):
    """Public images with private labels, and the prior beside them; one or the other is drawn for each label."""

    shares: Float64[Tensor, " class"]
    from_prior: Float64[Tensor, " 1"]
    agreement: Float64[Tensor, " 1"]

    def __init__(self, facts: ImageFacts, number: int, from_prior: float, mixture: GaussianMixture | None) -> None:
        super().__init__(facts, number)
        self.register_buffer("shares", torch.full((len(self.images),), 1 / len(self.images), dtype=torch.float64))
        self.register_buffer("from_prior", torch.tensor([from_prior], dtype=torch.float64))
        self.register_buffer("agreement", torch.zeros(1, dtype=torch.float64))
        self.mixture = mixture

    @property
    def draws_of_all(self) -> int:
        """How many images a sample needs, as many of each class, to have each image that is drawn beside the prior."""
        of_public = 1 - float(self.from_prior)
        each = int(self.drawn_from.max()) / of_public if of_public else 0
        return len(self.images) * math.ceil(each + 1)  # whatever the first place is

    def draw_at(
        self, places: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return for each label one of its images, mirrored half of the time where in colour, or one of the prior.

        The prior has its share of places, evenly among those of a class.
        """
        of_prior, of_prior_then = (((places + more) * self.from_prior).floor().long() for more in (0, 1))
        drawn = super().draw_at(places - of_prior, labels, random=random)
        if self.facts.shape[0] > 1:  # no letter or digit
            mirrored = torch.rand(labels.shape, generator=random, device=labels.device) < 0.5
            drawn[mirrored] = drawn[mirrored].flip(-1)
        if self.mixture is not None:
            other = of_prior_then > of_prior
            drawn[other] = self.mixture.sample(labels[other], generator=random).float().view(-1, *self.facts.shape)
        return drawn

    @property
    def class_shares(self) -> tuple[float, ...]:
        """How frequent each class is, by the noisy counts."""
        return tuple(self.shares.tolist())

    @property
    def remark(self) -> str:
        """Whether the public images are far from the private ones, or were not chosen."""
        if self.mixture is not None and float(self.from_prior) == 1:
            return "private images chose the prior, whose images are nearer to them than the public ones"
        far = float(self.agreement) > _FAR
        return "the public images are far from the private ones: name nearer ones by --public" if far else ""


def agreement_of(mean: Float64[Tensor, " directions"], *, noise_std: float) -> Float64[Tensor, ""]:
    """Return how much rows of length one have in common, from 0 to 1, by their noisy mean.

    It is the squared length of the mean without noise, or less: noise has it larger in one case of a thousand.
    """
    length, number = float(mean.norm()), len(mean)
    of_noise = number + 3 * (math.sqrt(2 * number) + 2 * length / noise_std) if noise_std else 0.0
    return (mean.square().sum() - of_noise * noise_std**2).clamp(0, 1)


def require_classes(kind: str, facts: ImageFacts, per_class: int) -> None:
    """Raise InputError unless there are classes for public images, and not more of these than a release holds."""
    if facts.num_classes < 2:
        raise InputError(f"the method {kind} names the classes of images, and these have no two: give labels")
    require_at_most(_MOST_IMAGES, **{"per_class × classes": per_class * facts.num_classes})


def nearer_kinds(
    own: Embedded,
    labels: Int[Tensor, " images"],
    weights: Float64[Tensor, " images"],
    kinds: list[Float32[Tensor, "class candidate directions"]],
) -> Iterator[Choices]:
    """Yield for each private image which kind of candidates of its class holds the nearest, and the image's weight.

    Rows are on a grid where products are exact: a vote depends on no other image.
    """
    for part, rows in own.parts():
        best = torch.stack([_best_of_class(rows, labels[part], candidates) for candidates in kinds], dim=1)
        yield best.argmax(1, keepdim=True), weights[part]


def _best_of_class(
    rows: Float32[Tensor, "images directions"],
    labels: Int[Tensor, " images"],
    candidates: Float32[Tensor, "class candidate directions"],
) -> Float32[Tensor, " images"]:
    best = torch.zeros(len(rows))
    for label, of_class in enumerate(candidates):
        best[labels == label] = (rows[labels == label] @ of_class.T).amax(1)
    return best
