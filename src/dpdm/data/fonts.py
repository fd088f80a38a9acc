"""Glyphs of the fonts on this machine, slanted, thickened and moved: images that are nobody's."""

import os
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageFont

from dpdm.data.dataset import ImageDataset
from dpdm.data.glyphs import Ink, draw_hand, draw_ink, font_size, write_glyph
from dpdm.data.procedural import Shape, draw_images, require_frame
from dpdm.types import InputError, require_names_of_classes

FOLDERS: Final = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
)
"""Where systems keep fonts."""

FEWEST: Final = 20
"""Fonts: with fewer, images would hardly differ."""

_ENDINGS: Final = (".ttf", ".otf", ".ttc", ".otc", ".pfb")
_MOST_FACES: Final = 64  # in one file
_ANY: Final = string.digits + string.ascii_letters
_NO_GLYPH: Final = "\uffff"  # no character, and none will ever be
_SIDE: Final = 16  # pixels of the small images by which fonts are compared
_RECOGNISED: Final = 3  # glyphs of a font that has letters and no ornaments, at least, and a sixth of all
_PACKAGES: Final = "fonts-urw-base35 fonts-dejavu fonts-liberation fonts-linuxlibertine fonts-lato fonts-bwht"


class _Font(NamedTuple):
    """A font that has all glyphs, what it is called, and its glyphs as small images (glyph, side, side)."""

    family: str
    style: str
    small: bytes
    font: ImageFont.FreeTypeFont


def render_fonts(count: int, shape: Shape, class_names: Sequence[str] = ()) -> ImageDataset:
    """Return images of glyphs, light on dark and grey, centred by their mass as those of MNIST are.

    If every class has a name of one character, images are of these characters in turn, and labelled. Otherwise images
    are of digits and letters, without labels. Each image is of a random family of fonts, so that no family with many
    styles outweighs the others.

    Args:
        count: How many images there are.
        shape: Channels, height and width of each; with 3 channels all colours are equal, with 4 images are opaque.
        class_names: The names of classes, if there are any.

    Guarantees:
        * The same arguments and the same fonts make the same images; of fewer images, the same first ones.

    Raises:
        InputError: Fewer than `FEWEST` fonts here have all glyphs, each unlike the others.
    """
    require_frame("fonts", count, shape)
    require_names_of_classes(class_names, "a class of fonts")
    _, height, width = shape
    labelled = bool(class_names) and all(len(name) == 1 for name in class_names)
    glyphs = "".join(class_names) if labelled else _ANY
    size = font_size(height, width)
    families = _families(glyphs, size, all_differ=labelled)

    def draw(index: int, rng: np.random.Generator) -> Ink:
        family = families[rng.integers(len(families))]
        ink = draw_ink(family[rng.integers(len(family))], glyphs[index % len(glyphs)])
        assert ink is not None  # as when the font was chosen
        return write_glyph(ink, draw_hand(rng), height, width)

    return ImageDataset(
        images=draw_images(draw, count, shape, source="fonts"),
        labels=np.arange(count) % len(glyphs) if labelled else None,
        num_classes=len(glyphs) if labelled else 0,
        class_names=tuple(class_names) if labelled else (),
        name="fonts",
        public=True,
    )


def _families(glyphs: str, size: int, *, all_differ: bool) -> list[list[ImageFont.FreeTypeFont]]:
    """Return the fonts that have all glyphs, by families, each in an order that hangs on what is in the fonts alone."""
    fonts = {font.small: font for path in _files() for font in _fonts_in(path, glyphs, size, all_differ)}
    known = _recognised([*fonts.values()], len(glyphs))
    if len(known) < FEWEST:
        shown = glyphs if len(glyphs) <= len(_ANY) else f"{glyphs[: len(_ANY)]}…"
        raise InputError(
            f"fonts: {FEWEST} with all of {shown} are needed, and {len(known)} are on this machine: run "
            f"apt-get install {_PACKAGES}, or put .ttf or .otf files in ~/.local/share/fonts"
        )
    families: dict[str, list[ImageFont.FreeTypeFont]] = {}
    for font in sorted(known, key=lambda font: font[:3]):
        families.setdefault(font.family, []).append(font.font)
    return [*families.values()]


def _files() -> Iterator[Path]:
    """Yield all files of fonts, in a fixed order."""
    for folder in FOLDERS:
        walk = os.walk(os.path.expanduser(folder))  # which stays as it is where nobody has a home
        found = (Path(above) / name for above, _, names in walk for name in names)
        yield from sorted(path for path in found if path.suffix.lower() in _ENDINGS)


def _fonts_in(path: Path, glyphs: str, size: int, all_differ: bool) -> Iterator[_Font]:
    """Yield the fonts in a file that can draw all glyphs."""
    for index in range(_MOST_FACES if path.suffix.lower() in (".ttc", ".otc") else 1):
        try:
            font = ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)
        except (OSError, ValueError):
            return
        try:
            small = _small_images(font, glyphs, all_differ)
        except (OSError, ValueError):  # FreeType cannot draw one of them
            continue
        if small is not None:
            family, style = font.getname()
            yield _Font(family or path.stem, style or "", small, font)


def _small_images(font: ImageFont.FreeTypeFont, glyphs: str, all_differ: bool) -> bytes | None:
    """Return small images of all glyphs, or None if one is missing or blank, or if too many are equal.

    A glyph that is missing looks like the one of what is no character. In a font without lower case letters each pair
    is equal, which is no fault where there are no labels.
    """
    drawn = []
    missing = draw_ink(font, _NO_GLYPH)
    for glyph in glyphs:
        ink = draw_ink(font, glyph)
        if ink is None or (missing is not None and _same(ink, missing)):
            return None
        drawn.append(ink)
    different = len({(ink.size, ink.tobytes()) for ink in drawn})
    if different < (len(glyphs) if all_differ else len(glyphs) / 2):
        return None
    return b"".join(ink.resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes() for ink in drawn)


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def _recognised(fonts: Sequence[_Font], num_glyphs: int) -> list[_Font]:
    """Return the fonts in which some glyphs are nearest to the mean of their like in all fonts.

    Of ornaments, symbols or another script's letters under these codes hardly one is, and then by chance.
    """
    if not fonts:
        return []
    joined = np.frombuffer(b"".join(font.small for font in fonts), np.uint8)
    small = joined.reshape(len(fonts), num_glyphs, _SIDE * _SIDE).astype(np.float32)
    small -= small.mean(axis=2, keepdims=True)
    small /= np.linalg.norm(small, axis=2, keepdims=True) + 1e-6
    means = small.mean(axis=0)
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-6
    nearest = np.argmax(small @ means.T, axis=2)
    right = np.count_nonzero(nearest == np.arange(num_glyphs), axis=1)
    enough = max(min(_RECOGNISED, (num_glyphs + 1) // 2), num_glyphs // 6)
    return [font for font, number in zip(fonts, right, strict=True) if number >= enough]
