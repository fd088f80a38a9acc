"""Gaussian noise for the mechanism, in float64, and the grid that it may be rounded to.

Box-Muller on 53-bit uniforms reaches 8.57 standard deviations; the 24-bit uniforms behind float32 generators stop at
5.77, which one training run's 10^9 coordinates would notice.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from dpdm.types import RandomBytes

GRID_BITS = 24
"""A clipped vector's coordinates stay whole numbers in float32, and sums of 10^8 of them in float64."""

_PAIRS_AT_ONCE = 1 << 18  # 4 MB of keystream: stays in the cache


def gaussian(num_coordinates: int, *, std: float, random_bytes: RandomBytes) -> Float64[Tensor, " coordinates"]:
    """Draw independent N(0, std²) coordinates.

    Args:
        num_coordinates: How many.
        std: Standard deviation >= 0.
        random_bytes: Sixteen bytes are read for each pair of coordinates.

    Guarantees:
        * Standard deviation and normality as stated (chi-square and Kolmogorov-Smirnov tests).
        * No state survives the call: fresh bytes give fresh noise.

    Source:
        Box & Muller 1958; on sources and precision: Holohan & Braghin 2021 (arXiv 2107.10138).
    """
    pairs = (num_coordinates + 1) // 2
    normals = np.empty((pairs, 2))
    for start in range(0, pairs, _PAIRS_AT_ONCE):
        part = normals[start : start + _PAIRS_AT_ONCE]
        words = np.frombuffer(random_bytes(16 * len(part)), dtype=np.uint64).reshape(-1, 2)
        uniforms = (words >> np.uint64(11)).astype(np.float64)  # integers below 2^53
        radius = std * np.sqrt(-2 * np.log((uniforms[:, 0] + 1) * 2.0**-53))
        angle = uniforms[:, 1] * (2 * np.pi * 2.0**-53)
        np.multiply(radius, np.cos(angle), out=part[:, 0])
        np.multiply(radius, np.sin(angle), out=part[:, 1])
    return torch.from_numpy(normals.reshape(-1)[:num_coordinates])


def grid_step(sensitivity: float) -> float:
    """Return the step of the grid for sums of this sensitivity: a power of two, at least 2^24 times smaller."""
    return 2.0 ** (math.floor(math.log2(sensitivity)) - GRID_BITS)


def rounded(noise: Float64[Tensor, " coordinates"]) -> Float64[Tensor, " coordinates"]:
    """Round with halves up: so that rounding noise beside a whole number is rounding their sum, ties included."""
    whole = noise.floor()
    return whole + (noise - whole >= 0.5)
