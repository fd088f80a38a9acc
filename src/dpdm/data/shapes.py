"""Leaves, strokes, blobs and textures that a program draws: images that are nobody's, and of no class."""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dpdm.data.dataset import ImageDataset
from dpdm.data.procedural import Levels, Shape, draw_images, require_frame

_FINER: Final = 2  # pixels in which edges are drawn, along a side of each pixel of an image
_LEAVES: Final = 600  # that fall on an image and around it: enough to cover nearly all of it
_SMALLEST, _LARGEST = 1 / 20, 1 / 2  # radius of a leaf, of the shorter side of an image
_CORNERS: Final = 14  # of a polygon that stands for a curve

_Painter = Callable[[np.random.Generator, int, int, int], Levels]
"""Called with a generator, height, width and the number of colours, 1 or 3."""


def draw_shapes(count: int, shape: Shape) -> ImageDataset:
    """Return images of four kinds in turn: dead leaves, strokes, blobs with smooth gradients, and textures.

    Args:
        count: How many images there are.
        shape: Channels, height and width of each; with 4 channels images are opaque.

    Guarantees:
        * The same arguments make the same images; of fewer images, the same first ones.
    """
    require_frame("shapes", count, shape)
    channels, height, width = shape
    colours = 1 if channels == 1 else 3

    def draw(index: int, rng: np.random.Generator) -> Levels:
        return _lit(_KINDS[index % len(_KINDS)](rng, height, width, colours), rng)

    return ImageDataset(images=draw_images(draw, count, shape, source="shapes"), name="shapes", public=True)


def dead_leaves(rng: np.random.Generator, height: int, width: int, colours: int) -> Levels:
    """Return leaves that have fallen on one another: images whose statistics hardly change with scale.

    The density of their radii r is 1 ÷ r³ between two bounds, and each covers what it falls on. Here leaves are
    ellipses, or quadrangles.

    Source: Lee, Mumford & Huang, "Occlusion Models for Natural Images: A Statistical Study of a Scale-Invariant Dead
    Leaves Model", International Journal of Computer Vision 41, 2001.
    """
    image, pen, short = _canvas(rng, height, width, colours)
    # The share of radii above r falls as 1 ÷ r²: this is the inverse of their distribution function.
    most, fewest = _SMALLEST**-2, _LARGEST**-2
    radii = short * (fewest + (most - fewest) * rng.random(_LEAVES)) ** -0.5
    sides, around = np.array([image.width, image.height]), _LARGEST * short
    centres = rng.random((_LEAVES, 2)) * (sides + 2 * around) - around
    seen = ((centres > -radii[:, np.newaxis]) & (centres < sides + radii[:, np.newaxis])).all(axis=1)
    radii, centres = radii[seen], centres[seen]
    corners = 4 if rng.random() < 0.3 else _CORNERS
    turns = math.tau * (np.arange(corners) / corners + rng.random((len(radii), 1)))
    stretch = np.exp(rng.normal(0, 0.3, (len(radii), 1)))
    directions = math.tau * rng.random((len(radii), 1))
    cos, sin = np.cos(turns) * stretch, np.sin(turns) / stretch
    across = np.cos(directions) * cos - np.sin(directions) * sin
    along = np.sin(directions) * cos + np.cos(directions) * sin
    points = centres[:, np.newaxis] + radii[:, np.newaxis, np.newaxis] * np.stack([across, along], axis=2)
    for leaf, tone in zip(points.reshape(len(radii), -1).tolist(), _tones(rng, colours, len(radii)), strict=True):
        pen.polygon(leaf, fill=tone)
    return _reduced(image)


def strokes(rng: np.random.Generator, height: int, width: int, colours: int) -> Levels:
    """Return a few lines and curves on a plain ground, which is dark in half of the images."""
    image, pen, short = _canvas(rng, height, width, colours, dark=rng.random() < 0.5)
    number = int(rng.integers(1, 9))
    steps = np.linspace(0, 1, _CORNERS)[:, np.newaxis]
    thickness = short * rng.uniform(0.03, 0.12)
    for tone in _tones(rng, colours, number, darkest=0.4):
        start, over, end = rng.uniform(0.05, 0.95, (3, 2)) * [image.width, image.height]
        if rng.random() < 0.4:
            over = (start + end) / 2  # a straight line
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * over + steps**2 * end  # Bézier's
        thick = max(2, round(thickness * rng.uniform(0.7, 1.3)))
        pen.line([*map(tuple, curve.tolist())], fill=tone, width=thick, joint="curve")
        for x, y in (start, end):
            pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=tone)
    return _reduced(image)


def blobs(rng: np.random.Generator, height: int, width: int, colours: int) -> Levels:
    """Return colours that run into one another, in half of the images within an outline on a dark ground."""
    number, short = int(rng.integers(2, 9)), min(height, width)
    tones = np.array(_tones(rng, colours, number, darkest=0.2)).reshape(number, colours) / 255
    radii = short * rng.uniform(0.1, 0.4, (number, 1))
    rows, columns = (
        np.exp(-0.5 * ((np.arange(side) - side * rng.uniform(0, 1, (number, 1))) / radii) ** 2) + 1e-9
        for side in (height, width)
    )
    field = np.einsum("nh,nw,nc->hwc", rows, columns, np.c_[tones, np.ones(number)])
    mixed: Levels = field[..., :-1] / field[..., -1:]
    if rng.random() < 0.5:
        return mixed
    y, x = (np.linspace(-1, 1, side) for side in (height, width))
    roundness = 1 - (np.hypot(x, y[:, np.newaxis]) / rng.uniform(0.6, 0.95)) ** 2
    outline = roundness + rng.uniform(0.2, 0.6) * _noise(rng, height, width, slope=2)
    mixed *= np.clip(outline * short / 6 + 0.5, 0, 1)[..., np.newaxis]
    return mixed


def textures(rng: np.random.Generator, height: int, width: int, colours: int) -> Levels:
    """Return filtered noise, coarse or fine, often of one direction, between two colours."""
    slope, direction, stretch = rng.uniform(0.7, 1.8), rng.uniform(0, math.pi), math.exp(rng.exponential(0.6))
    noise = _noise(rng, height, width, slope, direction, stretch)
    match rng.integers(3):
        case 0:
            mix = 0.5 + 0.3 * noise
        case 1:
            mix = 0.5 + 0.5 * np.sin(rng.uniform(1, 4) * noise)  # veins
        case _:
            mix = 0.5 + rng.uniform(0.5, 3) * noise  # patches
    first, second = np.array(_tones(rng, colours, 2)).reshape(2, colours) / 255
    mixed: Levels = first + (second - first) * np.clip(mix, 0, 1)[..., np.newaxis]
    return mixed


_KINDS: Final[tuple[_Painter, ...]] = (dead_leaves, strokes, blobs, textures)


def _noise(
    rng: np.random.Generator, height: int, width: int, slope: float, direction: float = 0, stretch: float = 1
) -> NDArray[np.float64]:
    """Return noise of mean 0 and deviation 1 whose amplitudes fall as frequency to the power of minus `slope`."""
    down, right = np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width)
    along = (math.cos(direction) * right + math.sin(direction) * down) * stretch
    across = (math.cos(direction) * down - math.sin(direction) * right) / stretch
    frequencies = np.hypot(along, across)
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) * frequencies**-slope
    noise: NDArray[np.float64] = np.fft.irfft2(spectrum, (height, width))
    noise /= noise.std()
    return noise


def _lit(levels: Levels, rng: np.random.Generator) -> Levels:
    """Return an image under light from one side, with a little grain, in two of three images."""
    if rng.random() < 1 / 3:
        return levels
    height, width, _ = levels.shape
    side, grain = rng.normal(0, 0.15, 2), rng.exponential(0.04)
    light = 1 + side[0] * np.linspace(-1, 1, width) + side[1] * np.linspace(-1, 1, height)[:, np.newaxis]
    lit: Levels = levels * (0.9 * light + grain * _noise(rng, height, width, slope=0.8))[..., np.newaxis]
    return lit


def _canvas(
    rng: np.random.Generator, height: int, width: int, colours: int, *, dark: bool = False
) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    """Return a plain ground, its pen, and its shorter side in pixels."""
    mode, size = "L" if colours == 1 else "RGB", (_FINER * width, _FINER * height)
    image = Image.new(mode, size, 0 if dark else _tones(rng, colours, 1)[0])
    return image, ImageDraw.Draw(image), min(size)


def _tones(rng: np.random.Generator, colours: int, number: int, darkest: float = 0.0) -> list[Any]:
    """Return levels of grey, or colours of one cast, from 0 to 255."""
    contrast = rng.uniform(0.35, 1) * (1 - darkest)
    low = rng.uniform(darkest, 1 - contrast)
    tones = grey = low + contrast * rng.random((number, 1))
    if colours == 3:
        tones = grey + rng.normal(0, 0.12, 3) + rng.normal(0, rng.exponential(0.12), (number, 3))
    levels = np.rint(255 * np.clip(tones, 0, 1)).astype(int).tolist()
    return [tuple(level) if colours == 3 else level[0] for level in levels]


def _reduced(image: Image.Image) -> Levels:
    """Return a canvas at the size of the image."""
    reduced = np.asarray(image.reduce(_FINER), np.float32) / 255
    return reduced if reduced.ndim == 3 else reduced[..., np.newaxis]
