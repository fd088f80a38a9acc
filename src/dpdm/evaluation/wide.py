"""A wide residual network, by which benchmarks on GPUs judge synthetic images: WRN-40-4 unless it is made otherwise.

Source:
    Zagoruyko & Komodakis 2016 (arXiv 1605.07146): blocks B(3, 3) that normalise before they convolve, with dropout
    between the two convolutions.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from dpdm.evaluation.residual import BatchNorm
from dpdm.types import InputError, require_counts

_NARROW = (16, 32, 64)  # channels of the stages at width 1
_STEM = 16


@dataclass(frozen=True)
class WideResidualNet:
    """WRN-`depth`-`width`: images (channels, h, w), a stem, three stages of (depth - 4) / 6 blocks, and an average.

    Each stage but the first one halves the image: 32 × 32 becomes 16 × 16 and 8 × 8. With ten classes WRN-40-4 has 8.9
    million weights, and 50 epochs of 55,000 images of 32 × 32 are 10¹⁶ multiplications: it is for a GPU.

    Args:
        depth: Convolutions in a row, shortcuts aside: 6 n + 4, n >= 1.
        width: Times as many channels as a narrow one's 16, 32 and 64.
        dropout: Between the two convolutions of a block.
    """

    depth: int = 40
    width: int = 4
    dropout: float = 0.3

    def __post_init__(self) -> None:
        require_counts(depth=self.depth, width=self.width)
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"depth must be 10, 16, 22 or so on in steps of 6, not {self.depth}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout}")

    def build(self, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return the untrained module."""
        widths = [_STEM, *(self.width * channels for channels in _NARROW)]
        layers: list[nn.Module] = [_convolution(shape[0], _STEM)]
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(WideBlock(inputs, outputs, stride=2 if stage else 1, dropout=self.dropout))
            layers += [
                WideBlock(outputs, outputs, stride=1, dropout=self.dropout) for _ in range((self.depth - 10) // 6)
            ]
        last = nn.Linear(outputs, num_classes)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, BatchNorm(outputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


class WideBlock(nn.Module):
    """Norm, ReLU, convolution, norm, ReLU, dropout, convolution, beside a shortcut.

    Maps (batch, inputs, h, w) to (batch, outputs, ⌈h / stride⌉, ⌈w / stride⌉). Where these differ, the shortcut is a
    1 × 1 convolution of what was normalised.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(BatchNorm(inputs), nn.ReLU())
        self.first = _convolution(inputs, outputs, stride=stride)
        self.between = nn.Sequential(BatchNorm(outputs), nn.ReLU(), nn.Dropout(dropout))
        self.second = _convolution(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else _convolution(inputs, outputs, size=1, stride=stride)

    def forward(self, x: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs _ _"]:
        """Return the sum of both ways."""
        normal: Tensor = self.before(x)
        beside = x if self.shortcut is None else self.shortcut(normal)
        both: Tensor = self.second(self.between(self.first(normal))) + beside
        return both


def _convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, whose weights are drawn as He et al. 2015 draw them, by what comes out."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (size * size * outputs)))
    return layer
