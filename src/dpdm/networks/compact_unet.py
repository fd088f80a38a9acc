"""A U-Net for processors: pixels are folded into channels first, so that every convolution is wide and small."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu

from dpdm.networks.layers import MOST_BLOCKS, MOST_WIDTH, ConditionEmbedding, zero_initialised
from dpdm.types import InputError, require_at_most, require_counts

_GROUP = 16  # channels normalised together; widths are multiples of it, which processors' convolutions like too


@dataclass(frozen=True, kw_only=True)
class CompactUNet:
    """Two resolutions, 1/patch and 1/(2 patch) of the image's, with residual blocks at each.

    Args:
        width: Channels at the finer resolution, a multiple of 16. The coarser one has twice as many.
        blocks: Residual blocks on the way down and again on the way up, at each resolution.
        patch: Side of the square of pixels that the network folds into channels.

    Source:
        U-Net: Ronneberger et al. 2015; conditioning by scale and shift: Dhariwal & Nichol 2021; folding of pixels
        (space to depth): Shi et al. 2016.

    Example:
        >>> network = CompactUNet(width=16).build((1, 28, 28), num_classes=10)
        >>> sum(p.numel() for p in network.parameters())
        62996
    """

    kind: ClassVar[str] = "compact-unet"
    width: int = 16
    blocks: int = 1
    patch: int = 2

    def __post_init__(self) -> None:
        require_counts(width=self.width, blocks=self.blocks, patch=self.patch)
        require_at_most(MOST_WIDTH, width=self.width)
        require_at_most(MOST_BLOCKS, blocks=self.blocks, patch=self.patch)
        if self.width % _GROUP:
            raise InputError(f"width must be a multiple of {_GROUP}, not {self.width}")

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the network for images of `shape` (channel, height, width); sides from 8 up, even or odd."""
        network = _CompactUNet(self, shape[0], num_classes, images_in)
        return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class _CompactUNet(nn.Module):
    def __init__(self, spec: CompactUNet, channels: int, num_classes: int, images_in: int) -> None:
        super().__init__()
        fine, coarse, embedded = spec.width, 2 * spec.width, 2 * spec.width
        folded = channels * spec.patch**2
        self.patch = spec.patch
        self.condition = ConditionEmbedding(embedded, num_classes)
        self.stem = nn.Conv2d(images_in * folded, fine, 3, padding=1)
        self.down = nn.ModuleList(_Block(fine, embedded) for _ in range(spec.blocks))
        self.shrink = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(coarse, embedded) for _ in range(2 * spec.blocks))
        self.grow = nn.Conv2d(coarse, 4 * fine, 1)
        self.up = nn.ModuleList(_Block(fine, embedded) for _ in range(spec.blocks))
        self.norm = _norm(fine)
        self.head = zero_initialised(nn.Conv2d(fine, folded, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "batch channel_in height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        height, width = x.shape[2:]
        multiple = 2 * self.patch
        x = pad(x, (0, -width % multiple, 0, -height % multiple))
        embedding = self.condition(c_noise, labels)
        fine = self.stem(pixel_unshuffle(x, self.patch))
        for block in self.down:
            fine = block(fine, embedding)
        coarse = self.shrink(fine)
        for block in self.middle:
            coarse = block(coarse, embedding)
        fine = fine + pixel_shuffle(self.grow(coarse), 2)
        for block in self.up:
            fine = block(fine, embedding)
        return pixel_shuffle(self.head(silu(self.norm(fine))), self.patch)[..., :height, :width]


def _norm(width: int) -> nn.GroupNorm:
    """Return a norm without weights of its own: the convolution before it has them, and so has the condition."""
    return nn.GroupNorm(width // _GROUP, width, affine=False)


class _Block(nn.Module):
    """x + conv(SiLU(scale · norm(conv(SiLU(norm(x)))) + shift)), scale and shift from the condition."""

    def __init__(self, width: int, embedded: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.scale_shift = zero_initialised(nn.Linear(embedded, 2 * width))
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(silu(self.norm1(x))))
        residual: Tensor = self.conv2(silu(torch.addcmul(shift, h, 1 + scale)))
        return x + residual
