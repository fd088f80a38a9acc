"""Features of several random networks: where things are counts in them, and no image has trained them."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from dpdm.evaluation.checks import Compute
from dpdm.evaluation.features import OfLevels
from dpdm.evaluation.preparation import framed, prepared
from dpdm.types import InputError

_NETWORKS, _WIDTH, _CELLS = 8, 8, 4


@dataclass(frozen=True, kw_only=True)
class RandomConvNets:
    """1,024 features of eight networks of three convolutions, at four by four places, of weights that a seed has drawn.

    Args:
        size: Side to which images are resized, bilinearly.

    Source:
        Zhao & Bilen 2023 (matching of distributions in random networks).
    """

    size: int = 32
    number: ClassVar[int] = _NETWORKS * _WIDTH * _CELLS**2

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"size must be at least 8, not {self.size}: each layer halves an image")

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"random-convnets at {self.size} × {self.size}"

    @property
    def digest(self) -> str:
        """The preparation of the images, as the weights follow from a seed."""
        return f"weights of seed 0, colour, bilinear to {self.size} × {self.size}, x / 127.5 - 1"

    def build(self) -> Compute:
        """Return the function."""
        features = self.of_levels()
        return lambda images: features(prepared(images, colour=False))

    def of_levels(self, device: torch.device | None = None) -> OfLevels:
        """Return the function of levels."""
        network = self._network().to(device)

        def features(levels: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images features"]:
            maps = network(framed(levels, side=self.size, colour=True).div(127.5).sub(1))
            return adaptive_avg_pool2d(maps, _CELLS).flatten(1)

        return features

    def _network(self) -> nn.Sequential:
        """Return all networks side by side: a norm for each channel of each image, as if it were alone."""
        random, layers = torch.Generator().manual_seed(0), list[nn.Module]()
        channels = _NETWORKS * _WIDTH
        for inputs, outputs in pairwise((3, channels, channels, channels)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=1 if inputs == 3 else _NETWORKS)
            with torch.no_grad():
                conv.weight.normal_(0, math.sqrt(2 / conv.weight[0].numel()), generator=random)
                conv.bias.zero_()  # type: ignore[union-attr]
            norm = nn.GroupNorm(outputs, outputs, eps=1e-2)
            layers += [conv, norm, nn.ReLU(), nn.AvgPool2d(2)]
        return nn.Sequential(*layers).requires_grad_(False)
