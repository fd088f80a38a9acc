"""What a network sees of images layer by layer: the maps of each stage, or their averages over positions."""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpdm.evaluation.features import EfficientNetLite0, RandomConvNet
from dpdm.evaluation.preparation import framed
from dpdm.types import InputError

_STAGES_OF_LITE0 = (0, 2, 4, 7, 10, 14, 15)
"""Blocks of EfficientNet-Lite0 after which another width or resolution begins."""

_MAPS_OF_LITE0 = ((16, 1), (24, 2), (40, 3), (80, 4), (112, 4), (192, 5), (320, 5), (1280, 5))
_MAPS_OF_RANDOM = ((64, 1), (128, 2), (256, 3))
"""Channels of each stage, and how often it has halved an image, rounding down."""

_WIDTHS = (32, 64, 128, 256)
"""Channels of the stages of a residual network, each but the first at half the resolution of the one before."""


class LayerMeans(nn.Module):
    """A network in stages. Of images in 0..255 it returns what each stage makes of them, averaged over positions.

    An image is one row of each layer, whatever its number of positions. What follows can be differentiated by images.
    """

    def __init__(self, stages: Iterable[nn.Module], *, side: int | None, middle: float, reach: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._side, self._middle, self._reach = side, middle, reach
        self.requires_grad_(False).eval()
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, images: Float[Tensor, "images channels height width"]) -> list[Float[Tensor, "images _ _ _"]]:
        """Return the maps of each layer (images, channels, rows, columns), the first one's first."""
        x = framed(images, side=self._side, colour=True).sub(self._middle).div(self._reach)
        x = x.contiguous(memory_format=torch.channels_last)
        layers = []
        for stage in self.stages:
            x = stage(x)
            layers.append(x)
        return layers

    def forward(self, images: Float[Tensor, "images channels height width"]) -> list[Float[Tensor, "images _"]]:
        """Return the features of each layer, the first one's first."""
        return [layer.mean((2, 3)) for layer in self.maps(images)]


class ResidualBlock(nn.Module):
    """Two convolutions beside what they are added to, with norms over groups of channels of one image."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "images inputs _ _"]) -> Float[Tensor, "images outputs _ _"]:
        """Return what the block makes of feature maps."""
        change: Tensor = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        skipped: Tensor = self.skip(x)
        return skipped + change


def residual_layers(*, seed: int) -> LayerMeans:
    """Return a small residual network for images as they are, with first weights: its classifier is pre-trained."""
    random = torch.Generator().manual_seed(seed)
    stages: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)]
    stages[0] = nn.Sequential(stages[0], ResidualBlock(_WIDTHS[0], _WIDTHS[0], stride=1))
    stages += [ResidualBlock(inputs, outputs, stride=2) for inputs, outputs in pairwise(_WIDTHS)]
    with torch.no_grad():
        for module in nn.ModuleList(stages).modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.normal_(0, math.sqrt(1 / fan), generator=random)
    return LayerMeans(stages, side=None, middle=127.5, reach=127.5)


def layers_of(features: EfficientNetLite0 | RandomConvNet) -> LayerMeans:
    """Return the network of these features in stages, as their `build` prepares images for it.

    Raises:
        InputError: The packages of EfficientNet are not installed.
    """
    if isinstance(features, RandomConvNet):
        return LayerMeans(features.stages(), side=features.size, middle=127.5, reach=127.5)
    network = features.network()
    stages, blocks = [], [network._conv_stem, network._bn0, network._swish]
    for number, block in enumerate(network._blocks):
        blocks.append(block)
        if number in _STAGES_OF_LITE0:
            stages.append(nn.Sequential(*blocks))
            blocks = []
    stages.append(nn.Sequential(network._conv_head, network._bn1, network._swish))
    return LayerMeans(stages, side=features.size, middle=127, reach=128)


def numbers_of_maps(features: EfficientNetLite0 | RandomConvNet) -> int:
    """Return how many numbers the maps of all layers have for one image: known without the network.

    Raises:
        InputError: Images of this size are too small for the network.
    """
    layers = _MAPS_OF_LITE0 if isinstance(features, EfficientNetLite0) else _MAPS_OF_RANDOM
    least = 2 ** max(halvings for _, halvings in layers)
    if features.size < least:
        raise InputError(f"{features.name}: choose a size of at least {least}, which the layers halve down to one")
    return sum(channels * (features.size >> halvings) ** 2 for channels, halvings in layers)
