"""One glyph as a hand might have written it: stroke, slant, size and place vary, the middle of its mass hardly does.

Images are framed as those of MNIST: a glyph fills a box of 20 of 28 pixels, and the centre of its mass is that of the
image. See LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998, section
III.A.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import map_coordinates

Ink = NDArray[np.floating[Any]]
"""How much ink there is at a place, from 0 to 1, as float32."""

_BOX: Final = 20 / 28  # of the shorter side of an image that the longer side of a glyph takes
_MOVED: Final = 0.5 / 28  # of the shorter side of an image that a glyph is moved by, at most
_MARGIN: Final = 0.2  # of the longer side of a glyph, around it: room for a thicker stroke
_STEEPEST: Final = 15  # degrees by which a glyph is turned, at most
_THICKEST, _THINNEST = 0.16, 0.66  # levels of blurred ink at which a stroke ends
_MOST_SUPERSAMPLED: Final = 64  # pixels of the longer side of an image


class Hand(NamedTuple):
    """What varies from image to image. Lengths are shares of the longer side of a glyph."""

    blur: float  # before the ink is cut at a level
    level: float
    angle: float  # radians
    shear: float
    narrow: float  # by how much wider a glyph becomes, and 1 ÷ that by how much higher
    size: float  # in boxes
    right: float  # of `_MOVED`
    down: float
    gain: float
    waves: tuple[tuple[float, float, float, float], ...]  # frequency across and along, phase, height: one for each axis


def draw_hand(rng: np.random.Generator) -> Hand:
    """Return a hand: one of those that this generator can give."""
    uniform, normal = rng.random(11).tolist(), rng.normal(size=6).tolist()
    steepest = math.radians(_STEEPEST)
    return Hand(
        blur=0.016 + 0.03 * uniform[0],
        level=_THICKEST + (_THINNEST - _THICKEST) * uniform[1],
        angle=min(max(math.radians(7) * normal[0], -steepest), steepest),
        shear=min(max(0.1 + 0.2 * normal[1], -0.4), 0.5),
        narrow=math.exp(0.4 * uniform[2] - 0.25),
        size=0.85 + 0.23 * uniform[3],
        right=2 * uniform[4] - 1,
        down=2 * uniform[5] - 1,
        gain=1 + 0.3 * uniform[6],
        waves=tuple(
            (3.6 * normal[axis], 3.6 * normal[axis + 2], math.tau * uniform[axis + 5], 0.12 * uniform[axis + 7] - 0.06)
            for axis in (2, 3)
        ),
    )


def font_size(height: int, width: int) -> int:
    """Return the size, in pixels, at which glyphs are drawn before they are brought into an image."""
    return min(max(64, 9 * min(height, width) // 4), 256)


def draw_ink(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image | None:
    """Return a glyph in white on black, cut to its ink, or None if it has none, or is larger than any letter."""
    size = round(font.size)
    image = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(image).text((size, size // 2), glyph, fill=255, font=font)
    box = image.getbbox()
    if box is None or min(box) == 0 or max(box) == 3 * size:
        return None
    return image.crop(box)


def write_glyph(ink: Image.Image, hand: Hand, height: int, width: int) -> Ink:
    """Return an image (height, width) of a glyph that was drawn in a font."""
    long, short = max(ink.size), min(height, width)
    written = _with_another_stroke(ink, hand)
    linear = _slant(hand)
    middle, span, reach = _extent(written, linear)
    scale = short * _BOX * hand.size / max(span)
    scale = min(scale, (width / 2 - 1) / reach[0], (height / 2 - 1) / reach[1])  # so that nothing is cut off
    # From each place in the image back to where it was in the drawing, by the inverse of `linear`.
    finer = 2 if max(height, width) <= _MOST_SUPERSAMPLED else 1
    (a, b), (c, d) = linear.tolist()
    unit = scale * (a * d - b * c)
    x = (_centred(width, finer) - hand.right * _MOVED * short) / unit
    y = (_centred(height, finer) - hand.down * _MOVED * short)[:, np.newaxis] / unit
    across, along = d * x - b * y, a * y - c * x
    places = np.empty((2, *across.shape), np.float32)
    for place, moved, wave, centre in zip(places, (along, across), hand.waves, middle[::-1], strict=True):
        np.add(moved, _wave(across, along, long, wave), out=place)
        place += centre
    found: Ink = map_coordinates(written, places, order=1, output=np.float32, prefilter=False)
    if finer > 1:
        found = (found[::2, ::2] + found[1::2, ::2] + found[::2, 1::2] + found[1::2, 1::2]) / 4
    return found * hand.gain


def _with_another_stroke(ink: Image.Image, hand: Hand) -> Ink:
    """Return the ink with a margin, its stroke thicker or thinner, and its corners rounded.

    Blurred ink that is cut at a level below 1/2 is dilated, and eroded at a level above. Dense ink is rather eroded.
    The level stays below what the middle of strokes has, so that thin ones do not vanish.
    """
    long = max(ink.size)
    margin = math.ceil(_MARGIN * long)
    framed = Image.new("L", (ink.width + 2 * margin, ink.height + 2 * margin))
    framed.paste(ink, (margin, margin))
    soft = np.asarray(framed.filter(ImageFilter.GaussianBlur(long * hand.blur)), np.float32) / 255
    total = float(soft.sum())
    middle, density = float(np.vdot(soft, soft)) / total, total / (ink.width * ink.height)
    level = min(max(hand.level + 0.6 * (density - 0.4), _THICKEST), 0.8 * middle)
    hardness = 4 / middle
    return np.clip(soft * hardness + (0.5 - level * hardness), 0, 1)


def _slant(hand: Hand) -> Ink:
    """Return a rotation after a shear after a change of the ratio of the sides."""
    cos, sin = math.cos(hand.angle), math.sin(hand.angle)
    wide, high = hand.narrow, 1 / hand.narrow
    return np.array(
        [[cos * wide, -(cos * hand.shear + sin) * high], [sin * wide, (cos - sin * hand.shear) * high]], np.float32
    )


def _extent(ink: Ink, linear: Ink) -> tuple[list[float], list[float], list[float]]:
    """Return the middle of the mass of ink, and, once it is slanted, its sides and how far from the middle it reaches.

    Each across first, then along.
    """
    mass = ink.sum(axis=0), ink.sum(axis=1)
    middle = [float(of @ np.arange(len(of), dtype=np.float32) / of.sum()) for of in mass]
    rows, columns = np.nonzero(ink > 0.5)
    slanted = linear @ np.array([columns - middle[0], rows - middle[1]], np.float32)
    low, high = slanted.min(axis=1), slanted.max(axis=1)
    return middle, (high - low).tolist(), np.maximum(-low, high).tolist()


def _centred(side: int, finer: int) -> Ink:
    """Return the places of the middles of pixels along a side, from its middle."""
    return (np.arange(side * finer, dtype=np.float32) + np.float32(0.5)) / finer - np.float32(side / 2)


def _wave(across: Ink, along: Ink, long: int, wave: tuple[float, float, float, float]) -> Ink:
    """Return a smooth displacement, zero in the middle, as of a hand that is not steady."""
    a, b, phase, height = wave
    return long * height * (np.sin(a / long * across + (b / long * along + phase)) - math.sin(phase))
