"""What a network sees of images layer by layer: features of each stage, averaged over positions."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpdm.evaluation.features import EfficientNetLite0, RandomConvNet, resized

_STAGES_OF_LITE0 = (0, 2, 4, 7, 10, 14, 15)
"""Blocks of EfficientNet-Lite0 after which another width or resolution begins."""


class LayerMeans(nn.Module):
    """A network in stages. Of images in 0..255 it returns what each stage makes of them, averaged over positions.

    An image is one row of each layer, whatever its number of positions. What follows can be differentiated by images.
    """

    def __init__(self, stages: Iterable[nn.Module], *, side: int, middle: float, reach: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._side, self._middle, self._reach = side, middle, reach
        self.requires_grad_(False).eval()
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Float[Tensor, "images channels height width"]) -> list[Float[Tensor, "images _"]]:
        """Return the features of each layer, the first one's first."""
        x = resized(images, side=self._side, colour=True).sub(self._middle).div(self._reach)
        x = x.contiguous(memory_format=torch.channels_last)
        layers = []
        for stage in self.stages:
            x = stage(x)
            layers.append(x.mean((2, 3)))
        return layers


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
