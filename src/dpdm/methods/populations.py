"""What private evolution's candidates are made of, and the generator that the last of them are.

Nothing here is private. Images are public ones, those of a release, or draws of a prior that is released.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, UInt8
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.methods.interface import Run
from dpdm.methods.nearest import public_of
from dpdm.methods.stored import StoredGenerator
from dpdm.methods.values import ImageFacts
from dpdm.types import Images, tensor_to_images

_PART = 4096  # images drawn at a time


class PopulationGenerator(StoredGenerator):
    """Public images that private ones voted for; one is drawn for each label."""

    shares: Float64[Tensor, " class"]

    def __init__(self, facts: ImageFacts, population: int) -> None:
        super().__init__(facts, population)
        self.register_buffer("shares", torch.full((len(self.images),), 1 / len(self.images), dtype=torch.float64))

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, by the noisy votes of the last round."""
        return tuple(self.shares.tolist()) if self.facts.num_classes else None


class Pool(NamedTuple):
    """Images that candidates are made of, and which of them may stand for each class."""

    images: Images
    of_class: list[Int[Tensor, " images"]]
    labels: Int[np.ndarray, " images"] | None

    @classmethod
    def of_public(cls, public: ImageDataset, facts: ImageFacts) -> "Pool":
        """Return images that a run begins with: those of a class's name for it, if public classes have the names."""
        return cls(public.images, public_of(public, facts), public.labels)

    @classmethod
    def of_prior(cls, mixture: GaussianMixture, facts: ImageFacts, each: int, run: Run) -> "Pool":
        """Return `each` exact draws of every class from a released prior, by the run's public seed."""
        labels = torch.arange(max(1, facts.num_classes)).repeat_interleave(each)
        random = torch.Generator().manual_seed(run.seed)
        images = torch.zeros(len(labels), *facts.shape[1:], facts.shape[0], dtype=torch.uint8)
        for part in (slice(start, start + _PART) for start in range(0, len(labels), _PART)):
            drawn = mixture.sample(labels[part], generator=random).float().view(-1, *facts.shape)
            images[part] = torch.from_numpy(tensor_to_images(drawn))
        images = run.processes.from_first(images)  # on other processors, other last digits
        return cls(images.numpy(), [*torch.arange(len(labels)).view(-1, each)], labels.numpy())


class Population(NamedTuple):
    """The candidates of each class: which image of the pool each is made of, and how that is changed, if it is."""

    made_of: Int[Tensor, "class candidate"]
    moves: Float32[Tensor, "class candidate 2 3"] | None = None
    drawn: UInt8[Tensor, "class candidate height width channel"] | None = None  # what a network made of it


def chosen_by(counts: Float64[Tensor, " candidates"], *, least: float) -> Float64[Tensor, " candidates"]:
    """Return how often each candidate is to be drawn again: by its count, if that is more than noise."""
    for kept in (torch.where(counts > least, counts, 0.0), counts.clamp(min=0)):
        if kept.sum() > 0:
            return kept / kept.sum()
    return torch.full_like(counts, 1 / len(counts))


def perplexity(weights: Float64[Tensor, " candidates"]) -> float:
    """Return among how many candidates a draw is as uncertain as among equal ones: exp of the entropy."""
    return math.exp(float(torch.special.entr(weights).sum()))
