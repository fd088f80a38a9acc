"""Images in a frame: with a border, so that their sides are those that a public network takes."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from dpdm.types import Images


def framed_sides(sides: Iterable[int], multiple: int) -> tuple[int, ...]:
    """Return the least multiples that are no smaller than the sides."""
    return tuple(-(-side // multiple) * multiple for side in sides)


def framed(images: Images, sides: tuple[int, ...]) -> Images:
    """Return images in the middle of larger ones, whose border repeats the image's outermost pixels."""
    before = _borders(images.shape[1:3], sides)
    after = [side - old - first for side, old, first in zip(sides, images.shape[1:3], before, strict=True)]
    return np.pad(images, ((0, 0), *zip(before, after, strict=True), (0, 0)), mode="edge")


def unframed(
    x: Float[Tensor, "batch channel height width"], sides: tuple[int, ...]
) -> Float[Tensor, "batch channel inner_height inner_width"]:
    """Return what `framed` put into the middle."""
    top, left = _borders(sides, x.shape[2:])
    return x[:, :, top : top + sides[0], left : left + sides[1]]


class Frame(nn.Module):
    """What a codec is, without a network: images are learnt with a border, which drawn ones lose.

    Args:
        shape: Of images: channels, height, width.
        latent: Of images with a border.

    Guarantees:
        * The row of an image depends on this image alone, and `decode` gives the image back, to the bit.
    """

    most, dtype = 1.0, np.uint8

    def __init__(self, *, shape: tuple[int, int, int], latent: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.latent = shape, latent

    def rows(self, images: Images) -> Float32[Tensor, "batch numbers"]:
        """Return a row for each image: its levels and those of its border, the channels last."""
        return torch.from_numpy(framed(images, self.latent[1:])).flatten(1).float()

    def decode(self, latents: Float[Tensor, "batch latent down across"]) -> Float[Tensor, "batch channel height width"]:
        """Return the images without their border."""
        return unframed(latents, self.shape[1:])


def _borders(inner: Iterable[int], outer: Iterable[int]) -> list[int]:
    return [(large - small) // 2 for small, large in zip(inner, outer, strict=True)]
