"""Generators that hold the images they draw: none is drawn twice before all of its class were."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dpdm.methods.interface import ImageGenerator
from dpdm.methods.values import ImageFacts
from dpdm.types import Labels

_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of all come near every image soon


class StoredGenerator(ImageGenerator):
    """Images of each class, of which one is drawn for each label.

    Guarantees:
        * By `draw_at` no sample has an image again before it has had all that its class draws from.
    """

    images: UInt8[Tensor, "class number channel height width"]

    def __init__(self, facts: ImageFacts, number: int) -> None:
        super().__init__()
        self.facts, classes = facts, max(1, facts.num_classes)
        self.register_buffer("images", torch.zeros(classes, number, *facts.shape, dtype=torch.uint8))

    @property
    def drawn_from(self) -> Int[Tensor, " class"]:
        """How many images each class draws from: its first ones."""
        return torch.full((len(self.images),), self.images.shape[1], device=self.device)

    @property
    def draws_of_all(self) -> int:
        """How many images a sample needs, as many of each class, to have each image that is drawn at all."""
        return len(self.images) * int(self.drawn_from.max())

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return an image for each label, from any place of a long sample."""
        places = torch.randint(2**31, labels.shape, generator=random, device=labels.device)
        return self.draw_at(places, labels, random=random)

    def draw_at(
        self, places: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the image at each place of an endless sample of its class."""
        numbers = self.drawn_from
        steps = torch.tensor([_step(number) for number in numbers.tolist()], device=places.device)
        chosen = places * steps[labels] % numbers[labels]
        return self.images[labels, chosen].float().div(127.5).sub(1)


def places_of(labels: Labels, first: int) -> Int[Tensor, " images"]:
    """Return the place of each image among those of its class, which begin at `first`."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[order]]
    return torch.from_numpy(places + first)


def _step(number: int) -> int:
    """Return a step that comes by all of so many images before one of them again."""
    return next(step for step in range(max(1, round(_GOLDEN * number)), number + 2) if math.gcd(step, number) == 1)
