"""A small network that makes images of random numbers and a class."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from dpdm.methods.interface import ImageGenerator
from dpdm.methods.values import ImageFacts

_SMALLEST = 8  # side of an image at most, below which nothing is doubled
_FEWEST_CHANNELS = 4
_AT_ONCE = 500  # images drawn in one call of the network


class SmallGenerator(ImageGenerator):
    """Two linear layers, and convolutions between which the sides double until they are those of the images.

    Args:
        facts: Of the images.
        latent: Random numbers of an image.
        width: Units of the first layer; channels are an eighth of it.
        counted: Whether it also holds how frequent each class is.
    """

    shares: Float64[Tensor, " class"]

    def __init__(self, facts: ImageFacts, *, latent: int, width: int, counted: bool = True) -> None:
        super().__init__()
        self.facts, self.latent, self._classes = facts, latent, max(1, facts.num_classes)
        channels, height, width_of_image = facts.shape
        doublings = max(0, math.ceil(math.log2(max(height, width_of_image) / _SMALLEST)))
        self._start = (
            max(_FEWEST_CHANNELS, width // 8),
            -(-height // 2**doublings),
            -(-width_of_image // 2**doublings),
        )
        self.first, self.norm = nn.Linear(latent + self._classes, width), nn.LayerNorm(width)
        self.second, self.of_channels = nn.Linear(width, math.prod(self._start)), nn.GroupNorm(1, self._start[0])
        made = [max(_FEWEST_CHANNELS, self._start[0] // 2**number) for number in range(doublings + 1)]
        self.doublings = nn.ModuleList(nn.Conv2d(one, other, 3, padding=1) for one, other in pairwise(made))
        self.last = nn.Conv2d(made[-1], channels, 3, padding=1)
        self._counted = counted
        if counted:
            self.register_buffer("shares", torch.full((self._classes,), 1 / self._classes, dtype=torch.float64))

    def forward(
        self, latent: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return one image in [-1, 1] for each row of random numbers."""
        of_class = (labels[:, None] == torch.arange(self._classes, device=labels.device)).to(latent)  # as vmap takes it
        hidden = relu(self.norm(self.first(torch.cat([latent, of_class], dim=1))))
        image = relu(self.of_channels(self.second(hidden).unflatten(1, self._start)))
        for layer in self.doublings:
            image = interpolate(relu(layer(image)), scale_factor=2, mode="bilinear")
        _, height, width = self.facts.shape
        return torch.tanh(self.last(image)[..., :height, :width])

    def code(
        self, normal: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Return the random numbers that images are made of: normal ones, as they are."""
        return normal

    @torch.no_grad()
    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return one image for each label."""
        normal = torch.randn(len(labels), self.latent, generator=random, device=labels.device)
        parts = (slice(start, start + _AT_ONCE) for start in range(0, len(labels), _AT_ONCE))
        none = normal.new_zeros(0, *self.facts.shape)
        return torch.cat([none, *(self(self.code(normal[part], labels[part]), labels[part]) for part in parts)])

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, by its noisy count."""
        return tuple(self.shares.tolist()) if self.facts.num_classes and self._counted else None
