"""How images of any size and colour are brought into one frame, by public constants only."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from dpdm.data.dataset import MIN_SIDE
from dpdm.types import Images, InputError, as_images, require_counts

Fit = Literal["crop", "pad", "resize"]
Channels = Literal[1, 3, 4]

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_FILTER: Final = Image.Resampling.LANCZOS


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Side, way of fitting, and channels that every image of a source is given.

    Each image is framed by itself and by constants, so that one record never changes another one.

    Args:
        size: Side of the square in pixels, >= 8; None leaves sizes as they are.
        fit: "crop" scales the shorter side to `size` and crops the centre. "pad" scales the longer side and pads with
            black (where there is alpha, with transparent black). "resize" stretches.
        channels: 1 grey, 3 RGB, 4 RGBA; None leaves channels as they are. Transparency is removed by
            compositing on black.

    Raises:
        InputError: If a value is none of these.
    """

    size: int | None = None
    fit: Fit = "crop"
    channels: Channels | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            require_counts(**{"data.size": self.size})
        if self.size is not None and self.size < MIN_SIDE:
            raise InputError(f"data.size must be at least {MIN_SIDE} pixels, not {self.size}")
        if self.fit not in get_args(Fit):
            raise InputError(f"data.fit must be one of {', '.join(get_args(Fit))}, not {self.fit!r}")
        if self.channels not in (None, *_MODES):
            raise InputError(f"data.channels must be 1 (grey), 3 (RGB) or 4 (RGBA), not {self.channels}")

    def frame(self, image: Image.Image) -> Images:
        """Return one L, RGB or RGBA image as `uint8` (height, width, channel)."""
        if self.channels is not None:
            if image.mode == "RGBA" and self.channels != 4:
                # convert() alone would uncover whatever colour lies hidden under transparent pixels.
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
            image = image.convert(_MODES[self.channels])
        if self.size is not None:
            image = _fitted(image, self.size, self.fit)
        return np.asarray(image).reshape(image.height, image.width, -1)

    def keeps(self, height: int, width: int, channels: int) -> bool:
        """Whether nothing is to do about images of this shape."""
        return (height, width, channels) == (self.size or height, self.size or width, self.channels or channels)

    def frame_all(self, images: Images) -> Images:
        """Return `uint8` (number, height, width[, channel]) framed one by one; as it is if nothing is to do."""
        images = as_images("all", images)
        if self.keeps(*images.shape[1:]):
            return images
        return np.stack([self.frame(to_pillow(image)) for image in images])


def to_pillow(image: Images) -> Image.Image:
    """Turn `uint8` (height, width, channel) into an L, RGB or RGBA image."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Return the image as a square of side `size`."""
    if fit == "resize":
        return image.resize((size, size), _FILTER)
    if fit == "crop":
        return ImageOps.fit(image, (size, size), _FILTER)
    # Not ImageOps.pad: it rounds the shorter side of a very long image to 0 pixels, and fails.
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), _FILTER), ((size - width) // 2, (size - height) // 2))
    return square
