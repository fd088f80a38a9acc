"""Strided convolutions that make few numbers of an image."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

_SMALLEST = 4  # side of an image at most, below which nothing is halved
_MOST_CHANNELS = 512


class Halvings(nn.Module):
    """Convolutions that halve the sides until one is four pixels or fewer.

    Args:
        shape: Of the images.
        width: Channels of the first layer; each further one has twice as many.

    Source:
        Radford, Metz & Chintala 2016, without batch normalisation, through which examples would meet.
    """

    def __init__(self, shape: tuple[int, int, int], *, width: int) -> None:
        super().__init__()
        channels, height, across = shape
        halvings = max(1, math.ceil(math.log2(min(height, across) / _SMALLEST)))
        made = [channels, *(min(_MOST_CHANNELS, width * 2**number) for number in range(halvings))]
        self.layers = nn.ModuleList(nn.Conv2d(one, other, 4, stride=2, padding=1) for one, other in pairwise(made))
        self.numbers = made[-1] * (height // 2**halvings) * (across // 2**halvings)
        """How many numbers it makes of an image."""

    def forward(self, x: Float[Tensor, "rows channel height width"]) -> Float[Tensor, "rows numbers"]:
        """Return the numbers of each image."""
        for layer in self.layers:
            x = leaky_relu(layer(x), 0.2)
        return x.flatten(1)
