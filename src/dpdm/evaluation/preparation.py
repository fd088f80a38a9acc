"""Images as an extractor of features takes them: one definition for all extractors."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from dpdm.types import Images, InputError, as_images


def prepared(
    images: Images, *, side: int | None = None, how: Literal["bilinear", "average"] = "bilinear", colour: bool
) -> Float[Tensor, "images channels height width"]:
    """Return images as an extractor takes them: float32 NCHW in 0..255. This is the one definition for all extractors.

    - Quantisation: images come as uint8, clamped and rounded when they were made (`tensor_to_images`), so that both
      sides have the levels that files have. What is resized is not rounded again.
    - Grey: with `colour`, the one channel three times; without, as it is.
    - Resizing: none without a `side`. With one, to `side` × `side` whatever the proportions. That is by "bilinear"
      interpolation, antialiased where it shrinks, or by "average" over the pixels that fall together. The latter never
      enlarges a side.

    Raises:
        InputError: The images are neither grey nor colour, or no images.
    """
    images = as_images("all", images)
    if images.shape[3] not in (1, 3):
        raise InputError(f"these features are of grey or colour images, not of {images.shape[3]} channels")
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return framed(x, side=side, how=how, colour=colour)


def framed(
    x: Float[Tensor, "images channels height width"],
    *,
    side: int | None = None,
    how: Literal["bilinear", "average"] = "bilinear",
    colour: bool,
) -> Float[Tensor, "images shown rows columns"]:
    """Return levels in 0..255 as `prepared` returns those of images; gradients pass through."""
    if colour and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    if side is None:
        return x
    if how == "average":
        return adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))
    return interpolate(x, size=(side, side), mode="bilinear", antialias=True)
