"""Private images with noise that each chooses by its own pixels, in parts of one size.

So what an image is computed from depends on this image alone, to the bit, whatever its neighbours and its place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from dpdm.data import ImageDataset, level_digests
from dpdm.data.dataset import MIN_SIDE
from dpdm.diffusion import GAIN_LEVELS
from dpdm.methods.values import ImageFacts
from dpdm.types import levels_to_tensor

_ROWS = 96  # noisy images at once: each row comes of a computation of one shape
_DRAWS = 64  # noise images, of which each image has one that its pixels choose


class Part(NamedTuple):
    """Some images, filled up to as many as every part has: what is there counts, and weighs."""

    x: Float32[Tensor, "images channel height width"]
    labels: Int64[Tensor, " images"]
    levels: Int64[Tensor, "images K"]
    noise: Float32[Tensor, "images channel height width"]
    weights: Float64[Tensor, " there"]

    @property
    def sigma(self) -> Float32[Tensor, "images K"]:
        """The noise levels."""
        return torch.tensor(GAIN_LEVELS)[self.levels]


def levels_of_each(size: int, *, calls: int) -> int:
    """Return at how many noise levels each image is asked: by the declared size, so that time is bounded."""
    return next(k for k in (12, 6, 4, 3, 2, 1) if k == 1 or k * size <= calls)


def any_image(facts: ImageFacts) -> ImageDataset:
    """Return a black image that nobody took, or a latent, of these facts."""
    channels, height, width = facts.shape
    data = ImageDataset(
        images=np.zeros((1, MIN_SIDE, MIN_SIDE), dtype=np.uint8),  # a latent may be smaller than images are
        labels=np.zeros(1, dtype=np.int64) if facts.num_classes else None,
        num_classes=facts.num_classes,
        class_names=facts.class_names,
        name="made up",
    )
    return data.shown_by(np.zeros((1, height, width, channels), dtype=np.uint8))


def parts_of(data: ImageDataset, of_each: int, *, seed: int, most: int = _ROWS) -> Iterator[Part]:
    """Yield all images, part by part, each with so many of the noise levels and one of a few public noise images.

    Args:
        data: The images.
        of_each: Noise levels of each image.
        seed: Of the noise images.
        most: Images of a part: it follows from public numbers alone.
    """
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn((_DRAWS, *data.shape), generator=random)
    weights, known = torch.from_numpy(data.weights), data.labels
    at_once, apart = max(1, min(most, _ROWS // of_each)), len(GAIN_LEVELS) // of_each
    for start in range(0, len(data), at_once):
        part = slice(start, start + at_once)
        images = data.images[part]
        labels = torch.zeros(at_once, dtype=torch.long)
        if known is not None:
            labels[: len(images)] = torch.from_numpy(known[part])
        x = torch.zeros(at_once, *data.shape)
        x[: len(images)] = levels_to_tensor(images)
        keys = torch.zeros(at_once, 2, dtype=torch.long)
        keys[: len(images)] = torch.from_numpy(level_digests(images)[:, :2].astype("int64"))
        levels = (keys[:, :1] + apart * torch.arange(of_each)) % len(GAIN_LEVELS)
        yield Part(x, labels, levels, noise[keys[:, 1] % _DRAWS], weights[part])
