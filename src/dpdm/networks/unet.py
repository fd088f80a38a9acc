"""The U-Net of the published method: DDPM++ at a small width, with self-attention at chosen resolutions."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, silu

from dpdm.networks.layers import MOST_BLOCKS, MOST_WIDTH, ConditionEmbedding, zero_initialised
from dpdm.types import InputError, require_at_most, require_counts

_MOST_LEVELS = 8  # each halves the image


@dataclass(frozen=True, kw_only=True)
class UNet:
    """One level for each multiplier, each at half the resolution of the one before.

    The defaults are those published for images of 28 by 28 pixels (1.75 million parameters). The network pads sides
    that do not halve evenly down to the coarsest level, and crops the result.

    Args:
        width: Channels at the first level, a multiple of 4.
        multipliers: Channels at each level, as multiples of `width`.
        blocks: Residual blocks at each level on the way down. The way up has one more.
        attention: Heights, in pixels, of the levels with self-attention: after each block on the way down, and once on
            the way up. Each must be the height of a level. The middle always has attention.

    Source:
        Dockhorn et al. 2023, appendix: sizes. Song et al. 2021, appendix H: residual blocks that change the resolution
        (Brock et al. 2019), skips rescaled by 1/√2. Ho et al. 2020, appendix B: levels, attention, conditioning.

    Example:
        >>> UNet(width=32, attention=()).build((1, 28, 28), num_classes=10).multiple
        4
    """

    kind: ClassVar[str] = "unet"
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (7,)

    def __post_init__(self) -> None:
        require_counts(width=self.width, blocks=self.blocks)
        for multiplier in self.multipliers or (0,):
            require_counts(multipliers=multiplier)
        for height in self.attention:
            require_counts(attention=height)
        require_at_most(MOST_WIDTH, width=self.width * max(self.multipliers))
        require_at_most(MOST_BLOCKS, blocks=self.blocks)
        require_at_most(_MOST_LEVELS, multipliers=len(self.multipliers), attention=len(self.attention))
        if self.width % 4:
            raise InputError(f"width must be a multiple of 4, not {self.width}")

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the network for images of `shape` (channel, height, width).

        Raises:
            InputError: No level has the height of an entry of `attention`.
        """
        coarsest = -(-shape[1] // 2 ** (len(self.multipliers) - 1))
        heights = [coarsest * 2**level for level in reversed(range(len(self.multipliers)))]
        for height in self.attention:
            if height not in heights:
                known = ", ".join(map(str, heights))
                raise InputError(f"attention at height {height}: choose among the heights of levels, {known}")
        return _UNet(self, shape[0], [height in self.attention for height in heights], num_classes, images_in)


class _UNet(nn.Module):
    def __init__(self, spec: UNet, channels: int, attends: list[bool], num_classes: int, images_in: int) -> None:
        super().__init__()
        levels = [(multiplier * spec.width, at) for multiplier, at in zip(spec.multipliers, attends, strict=True)]
        embedded = 4 * spec.width
        self.multiple = 2 ** (len(levels) - 1)
        self.condition = ConditionEmbedding(embedded, num_classes)
        self.stem = _conv(images_in * channels, spec.width, 3)

        width, skips = spec.width, [spec.width]  # now, and of all that the way down leaves for the way up
        self.down = nn.ModuleList()
        for level, (wide, attend) in enumerate(levels):
            if level:
                self.down.append(_Block(width, width, embedded, resolution=0.5))
                skips.append(width)
            for _ in range(spec.blocks):
                self.down.append(_Block(width, wide, embedded, attend=attend))
                skips.append(width := wide)
        self.middle = nn.ModuleList([_Block(width, width, embedded, attend=True), _Block(width, width, embedded)])
        self.up = nn.ModuleList()
        for level, (wide, attend) in reversed([*enumerate(levels)]):
            for i in range(spec.blocks + 1):
                self.up.append(_Block(width + skips.pop(), wide, embedded, attend=attend and i == spec.blocks))
                width = wide
            if level:
                self.up.append(_Block(width, width, embedded, resolution=2))
        self.norm = _norm(width)
        self.head = zero_initialised(_conv(width, channels, 3))

    def forward(
        self,
        x: Float[Tensor, "batch channel_in height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        height, width = x.shape[2:]
        embedding = self.condition(c_noise, labels)
        h = self.stem(pad(x, (0, -width % self.multiple, 0, -height % self.multiple)))
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            h = block(h if block.resolution == 2 else torch.cat([h, skips.pop()], dim=1), embedding)
        return self.head(silu(self.norm(h)))[..., :height, :width]  # type: ignore[no-any-return]


class _Block(nn.Module):
    """(x + conv(SiLU(norm(conv(SiLU(norm(x))) + linear(condition))))) / √2, then self-attention if it attends.

    A change of resolution is made to x, and in the residual before the first convolution.
    """

    def __init__(self, width: int, wide: int, embedded: int, *, resolution: float = 1, attend: bool = False) -> None:
        super().__init__()
        self.resolution = resolution
        self.norm1 = _norm(width)
        self.conv1 = _conv(width, wide, 3)
        self.condition = nn.Linear(embedded, wide)
        self.norm2 = _norm(wide)
        self.conv2 = zero_initialised(_conv(wide, wide, 3))
        self.shortcut = nn.Identity() if width == wide and resolution == 1 else _conv(width, wide, 1)
        self.attention = _Attention(wide) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self._resample(silu(self.norm1(x)))) + self.condition(embedding)[:, :, None, None]
        residual = self.conv2(silu(self.norm2(h)))
        joined: Tensor = self.attention((self.shortcut(self._resample(x)) + residual) / math.sqrt(2))
        return joined

    def _resample(self, x: Tensor) -> Tensor:
        if self.resolution == 1:
            return x
        return avg_pool2d(x, 2) if self.resolution < 1 else interpolate(x, scale_factor=2)


class _Attention(nn.Module):
    """(x + conv(softmax(q·k / √width) v)) / √2, over the pixels of one image; q, k, v = conv(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.qkv = _conv(width, 3 * width, 1)
        self.out = zero_initialised(_conv(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.mT @ k / math.sqrt(x.shape[1]), dim=2)
        mixed: Tensor = self.out((v @ weights.mT).unflatten(2, x.shape[2:]))
        return (x + mixed) / math.sqrt(2)


def _conv(width: int, wide: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(width, wide, side, padding=side // 2)


def _norm(width: int) -> nn.GroupNorm:
    """Return the norm of at most 32 groups, of at least 4 channels each: as many as divide the width."""
    groups = next(groups for groups in range(min(width // 4, 32), 0, -1) if width % groups == 0)
    return nn.GroupNorm(groups, width, eps=1e-6)
