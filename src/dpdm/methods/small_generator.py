"""A small network that makes images of random numbers and a class."""

import math

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, pixel_shuffle, relu

from dpdm.methods.interface import ImageFacts, ImageGenerator

_SMALLEST = 8  # side of an image at most, below which nothing is doubled
_AT_ONCE = 500  # images drawn in one call of the network


class SmallGenerator(ImageGenerator):
    """Two linear layers, and convolutions that double the sides until they are those of the images.

    Args:
        facts: Of the images.
        latent: Random numbers of an image.
        width: Units of the first layer; channels are an eighth of it.
    """

    shares: Float64[Tensor, " class"]

    def __init__(self, facts: ImageFacts, *, latent: int, width: int) -> None:
        super().__init__()
        self.facts, self.latent, self._classes = facts, latent, max(1, facts.num_classes)
        channels, height, width_of_image = facts.shape
        doublings = max(0, math.ceil(math.log2(max(height, width_of_image) / _SMALLEST)))
        self._start = (width // 8, -(-height // 2**doublings), -(-width_of_image // 2**doublings))
        self.first, self.norm = nn.Linear(latent + self._classes, width), nn.LayerNorm(width)
        self.second, self.of_channels = nn.Linear(width, math.prod(self._start)), nn.GroupNorm(1, self._start[0])
        made = [*[self._start[0]] * max(0, doublings - 1), channels] if doublings else []
        self.doublings = nn.ModuleList(nn.Conv2d(self._start[0], 4 * each, 3, padding=1) for each in made)
        self.last = nn.Identity() if doublings else nn.Conv2d(self._start[0], channels, 3, padding=1)
        self.register_buffer("shares", torch.full((self._classes,), 1 / self._classes, dtype=torch.float64))

    def forward(
        self, latent: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return one image in [-1, 1] for each row of random numbers."""
        hidden = relu(self.norm(self.first(torch.cat([latent, one_hot(labels, self._classes).to(latent)], dim=1))))
        image = relu(self.of_channels(self.second(hidden).unflatten(1, self._start)))
        for number, double in enumerate(self.doublings):
            image = pixel_shuffle(double(relu(image) if number else image), 2)
        _, height, width = self.facts.shape
        return torch.tanh(self.last(image)[..., :height, :width])

    @torch.no_grad()
    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return one image for each label."""
        latent = torch.randn(len(labels), self.latent, generator=random, device=labels.device)
        parts = (slice(start, start + _AT_ONCE) for start in range(0, len(labels), _AT_ONCE))
        none = latent.new_zeros(0, *self.facts.shape)
        return torch.cat([none, *(self(latent[part], labels[part]) for part in parts)])

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, by its noisy count."""
        return tuple(self.shares.tolist()) if self.facts.num_classes else None
