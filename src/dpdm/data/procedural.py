"""What images that a program draws have in common: a frame, and a seed for each image, which everybody knows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import MAX_SIDE, MIN_SIDE
from dpdm.types import Images, InputError, require_counts

Shape = tuple[int, int, int]
"""Of one image: (channel, height, width)."""

Levels = NDArray[np.floating[Any]]
"""Of one image: (height, width) or (height, width, 3), from 0 to 1; what lies outside is cut off."""

OnProgress = Callable[[str, int, int], None]
"""Called with a source, a number of images and their total."""

_PART: Final = 250  # images, after which drawing says how far it is
_ON_PROGRESS: Final[ContextVar[OnProgress]] = ContextVar("on_progress", default=lambda source, done, total: None)


def draw_images(draw: Callable[[int, np.random.Generator], Levels], count: int, shape: Shape, *, source: str) -> Images:
    """Return what `draw` draws for each index, as `uint8` (number, height, width, channel).

    Every image has a generator of its own, seeded by the source's name and the index. So no image depends on how many
    others there are, and whoever draws them again has the same.

    Args:
        draw: Returns the image of an index.
        count: How many images there are.
        shape: Channels, height and width of each.
        source: Its name.
    """
    channels, height, width = shape
    images = np.empty((count, height, width, channels), np.uint8)
    name = int.from_bytes(source.encode())
    for index in range(count):
        if index % _PART == 0 and index:
            tell_progress(source, index, count)
        levels = draw(index, np.random.default_rng([name, index]))
        pixels = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
        images[index, ..., :3] = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
        images[index, ..., 3:] = 255
    if count > _PART:
        tell_progress(source, count, count)
    return images


def tell_progress(source: str, done: int, count: int) -> None:
    """Say how many images of a source are drawn, or how much of other work is done, to whoever watches: no secret."""
    _ON_PROGRESS.get()(source, done, count)


@contextmanager
def watched(on_progress: OnProgress) -> Iterator[None]:
    """Have drawing within say how far it is: the source, how many images are drawn, and of how many."""
    token = _ON_PROGRESS.set(on_progress)
    try:
        yield
    finally:
        _ON_PROGRESS.reset(token)


def require_frame(source: str, count: int, shape: Shape) -> None:
    """Raise InputError unless so many images of this shape can be drawn."""
    require_counts(**{f"{source}: count": count})
    channels, *sides = shape
    if channels not in (1, 3, 4) or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise InputError(
            f"{source}: images of shape {tuple(shape)} cannot be drawn: give 1, 3 or 4 channels, and sides from "
            f"{MIN_SIDE} to {MAX_SIDE:,} pixels"
        )
