"""Images without their pose: each is centred, straightened and stretched by its own moments, and its pose is kept."""

import itertools
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from dpdm.types import Images

NUMBERS: Final = 5
"""Of a pose: where the centre is, across and down, how far it leans, how wide and how high it is."""

_MULTIPLE = 4  # sides of what is learnt, for networks that halve them twice
_WIDTH, _HEIGHT = 0.40, 0.42  # halves of a side: standard deviations of what is drawn, without its pose
_MIDDLE = np.array([0.0, 0.0, 0.0, 0.8, 0.85])
_REACH = np.array([0.4, 0.4, 0.8, 0.6, 0.45])  # on both sides of the middle: what is further is taken for that
_LEAST = 1e-6  # of a variance
_AT_ONCE = 2**20  # pixels whose places are in memory at a time: some 100 MB


class _Pose(NamedTuple):
    """Moves a place without pose, from -1 to 1 in each direction, to where it is in the image."""

    across: Float64[ndarray, " images"]
    down: Float64[ndarray, " images"]
    lean: Float64[ndarray, " images"]
    wide: Float64[ndarray, " images"]
    high: Float64[ndarray, " images"]


def posed_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of images of this shape (channel, height, width) with rows for their pose."""
    _, height, width = shape
    return 1, height + _MULTIPLE + -height % _MULTIPLE, width


class Posed(nn.Module):
    """What a codec is, without a network: images are learnt without their pose, and beside it.

    Args:
        shape: Of images: one channel, height, width.
        ground: The level, from 0 to 255, of what nothing is drawn on.

    Guarantees:
        * The row of an image depends on this image alone, to the bit: its moments are sums of whole numbers, and all
          else is done number by number in float64.

    Source:
        Normalisation by moments: Hu 1962, "Visual Pattern Recognition by Moment Invariants". That a pose is learnt
        beside its image is ours.
    """

    most, dtype = 1.0, np.uint8

    def __init__(self, shape: tuple[int, int, int], *, ground: int = 0) -> None:
        super().__init__()
        self.shape, self.latent, self.ground = shape, posed_shape(shape), ground

    def rows(self, images: Images) -> Float32[Tensor, "batch numbers"]:
        """Return a row for each image: its levels without pose, and below them those of its pose."""
        few = max(1, _AT_ONCE // (self.shape[1] * self.shape[2]))
        return torch.cat([self._rows(images[start : start + few]) for start in range(0, len(images), few)])

    def _rows(self, images: Images) -> Float32[Tensor, "batch numbers"]:
        levels = _levels_of(_pose_of(images[..., 0], self.ground))
        straight = _seen_at(images[..., 0], _pose_at(levels), self.ground)
        below = np.zeros((len(images), self.latent[1] - self.shape[1], self.shape[2]), dtype=np.uint8)
        for number, part in enumerate(_strips(self.shape[2])):
            below[:, :, part] = levels[:, number, None, None]
        return torch.from_numpy(np.concatenate([straight, below], axis=1)).flatten(1).float()

    def decode(self, latents: Float[Tensor, "batch 1 down across"]) -> Float[Tensor, "batch 1 height width"]:
        """Return images in [-1, 1], moved to their poses."""
        height, width = self.shape[1:]
        below = latents[:, 0, height:].mean(1).double()
        drawn = torch.stack([below[:, part].mean(1) for part in _strips(width)], dim=1).clamp(-1, 1)
        pose = drawn * torch.from_numpy(_REACH).to(drawn) + torch.from_numpy(_MIDDLE).to(drawn)
        across, down, lean, wide, high = pose.unbind(1)
        back = torch.stack([1 / wide, -lean / wide, torch.zeros_like(wide), 1 / high], dim=1).view(-1, 2, 2)
        moved = torch.cat([back, -back @ torch.stack([across, down], dim=1)[:, :, None]], dim=2).to(latents)
        ground = self.ground / 127.5 - 1
        grid = affine_grid(moved, [len(latents), 1, height, width], align_corners=False)
        seen = grid_sample(latents[:, :, :height] - ground, grid, mode="bicubic", align_corners=False)
        return (seen + ground).clamp(-1, 1)


def _strips(width: int) -> list[slice]:
    """Return which columns each number of a pose has."""
    ends = [width * number // NUMBERS for number in range(NUMBERS + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _places(side: int) -> Int[ndarray, " side"]:
    """Return the middle of each pixel, in whole numbers: twice its distance from the middle of the side."""
    return 2 * np.arange(side) + 1 - side


def _pose_of(levels: UInt8[ndarray, "images height width"], ground: int) -> _Pose:
    """Return the pose of each image, by the moments of what stands out of the ground."""
    height, width = levels.shape[1:]
    weight = np.abs(levels.astype(np.int64) - ground)
    x, y = _places(width), _places(height)
    columns, lines = weight.sum(1), weight.sum(2)
    whole = np.maximum(lines.sum(1), 1).astype(np.float64)
    across, down = ((sums * places).sum(1) / whole for sums, places in ((columns, x), (lines, y)))
    var_x, var_y = ((sums * places**2).sum(1) / whole for sums, places in ((columns, x), (lines, y)))
    both = ((weight * x).sum(2) * y).sum(1) / whole - across * down
    var_x, var_y = var_x - across * across, np.maximum(var_y - down * down, _LEAST)
    lean = both / var_y
    wide = np.sqrt(np.maximum(var_x - lean * both, 0.0)) / (width * _WIDTH)
    return _Pose(across / width, down / height, lean * height / width, wide, np.sqrt(var_y) / (height * _HEIGHT))


def _levels_of(pose: _Pose) -> UInt8[ndarray, "images 5"]:
    """Return the numbers of each pose in levels, as pixels are kept."""
    scaled = np.clip((np.stack(pose, axis=1) - _MIDDLE) / _REACH, -1, 1)
    levels: UInt8[ndarray, "images 5"] = np.round((scaled + 1) * 127.5).astype(np.uint8)
    return levels


def _pose_at(levels: UInt8[ndarray, "images 5"]) -> _Pose:
    """Return the poses that these levels say."""
    return _Pose(*(((levels / 127.5 - 1) * _REACH + _MIDDLE).T))


def _seen_at(
    levels: UInt8[ndarray, "images height width"], pose: _Pose, ground: int
) -> UInt8[ndarray, "images height width"]:
    """Return images as they are where a pose puts each pixel, between the four pixels around that place."""
    number, height, width = levels.shape
    u, v = _places(width) / width, (_places(height) / height)[:, None]
    across, down, lean, wide, high = (each[:, None, None] for each in pose)
    y = down + high * v
    x = across + wide * u + lean * (high * v)
    x, y = ((np.broadcast_to(x, levels.shape) + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
    left, top = np.floor(x), np.floor(y)
    right_part, low_part = x - left, y - top
    framed = np.pad(levels, ((0, 0), (1, 1), (1, 1)), constant_values=ground).astype(np.float64)
    of = np.arange(number)[:, None, None]

    def level(row: Float64[ndarray, "..."], column: Float64[ndarray, "..."]) -> Float64[ndarray, "..."]:
        inside = np.clip(row, -1, height).astype(np.int64) + 1, np.clip(column, -1, width).astype(np.int64) + 1
        found: Float64[ndarray, ...] = framed[of, inside[0], inside[1]]
        return found

    upper = level(top, left) * (1 - right_part) + level(top, left + 1) * right_part
    lower = level(top + 1, left) * (1 - right_part) + level(top + 1, left + 1) * right_part
    seen: UInt8[ndarray, "images height width"] = np.round(upper * (1 - low_part) + lower * low_part).astype(np.uint8)
    return seen
