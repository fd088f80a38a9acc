"""Pictures of many images: grids, a row for each class, two sets next to each other.

Small images are enlarged by a whole factor without smoothing, so that every pixel shown is a pixel that was made.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dpdm.files import write_atomically
from dpdm.types import Images, InputError, Labels, as_images, require_counts

_WHITE = 255
_INK = (55, 55, 55)
_CELL = 48  # pixels: the size to which small images are enlarged, about
_GAP = 2  # pixels of white between neighbours
_MARGIN = 16  # pixels of white around and between the two grids of a page
_FONT_SIZE = 18


def image_grid(images: Images, *, columns: int, scale: int = 1) -> Images:
    """Lay images out in reading order as one picture, white where the last row has none left.

    Args:
        images: uint8 (number, height, width[, channel]), at least one; grey (1 channel), RGB (3) or RGBA (4).
        columns: Images in a row, >= 1.
        scale: Whole factor by which each image is enlarged, >= 1.

    Returns:
        One picture, uint8 (height, width, channel), with as many channels as the images.

    Raises:
        InputError: The images cannot be shown, or `columns` or `scale` is below 1.
    """
    images = _showable(images)
    require_counts(columns=columns, scale=scale)
    enlarged = images.repeat(scale, axis=1).repeat(scale, axis=2)
    number, height, width, channels = enlarged.shape
    rows = -(-number // columns)
    cells = np.full((rows * columns, height + _GAP, width + _GAP, channels), _WHITE, dtype=np.uint8)
    cells[:number, :height, :width] = enlarged
    cells = cells.reshape(rows, columns, height + _GAP, width + _GAP, channels)
    picture = cells.swapaxes(1, 2).reshape(rows * (height + _GAP), columns * (width + _GAP), channels)
    return picture[:-_GAP, :-_GAP]


def one_row_per_class(images: Images, labels: Labels, *, num_classes: int, per_class: int = 10) -> Images:
    """Return the first images of each class, in the order in which a grid of `per_class` columns shows them.

    Taking the first ones rather than the best ones keeps a picture honest. A class that has too few is filled up with
    white, to (num_classes * per_class, height, width, channel) in all.

    Raises:
        InputError: There is not one label for each image, or `num_classes` or `per_class` is below 1.
    """
    images = as_images("shown", images)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{len(images)} images need as many labels, not an array of shape {labels.shape}")
    require_counts(num_classes=num_classes, per_class=per_class)
    picked = np.full((num_classes, per_class, *images.shape[1:]), _WHITE, dtype=np.uint8)
    for label in range(num_classes):
        first = images[np.flatnonzero(labels == label)[:per_class]]
        picked[label, : len(first)] = first
    return picked.reshape(-1, *images.shape[1:])


def save_grid(
    path: str | Path,
    images: Images,
    labels: Labels | None,
    *,
    num_classes: int,
    per_class: int = 10,
    info: PngInfo | None = None,
) -> None:
    """Write a PNG with one row for each class, or, without labels, with the first images in as many rows.

    Args:
        path: The file to write, in a folder that exists; replaced at once or left as it was.
        images: uint8 (number, height, width[, channel]).
        labels: Their classes, (number,), or None.
        num_classes: Number of rows.
        per_class: Images in a row.
        info: What the file says beside its pixels, such as a claim.

    Raises:
        InputError: The images cannot be shown or the folder does not exist.

    Privacy:
        The picture is as public as the images are.
    """
    images = _showable(images)
    require_counts(num_classes=num_classes, per_class=per_class)
    if labels is None:
        shown = images[: num_classes * per_class]
    else:
        shown = one_row_per_class(images, labels, num_classes=num_classes, per_class=per_class)
    _write_png(Path(path), _enlarged(shown, per_class), info)


def side_by_side(
    path: str | Path,
    left: Images,
    right: Images,
    *,
    columns: int = 10,
    captions: tuple[str, str] = ("real", "synthetic"),
) -> None:
    """Write a PNG of two captioned grids next to each other, for a page or a README.

    Args:
        path: The file to write, in a folder that exists; replaced at once or left as it was.
        left: Images of the left grid, uint8 (number, height, width[, channel]), as from `one_row_per_class`.
        right: Images of the right grid; may differ from `left` in number and shape.
        columns: Images in a row of either grid.
        captions: What to write above each grid, in ASCII.

    Raises:
        InputError: Images or captions cannot be shown, or the folder does not exist.

    Privacy:
        A picture that shows private images is private: ε does not cover it. Publish it only if both sets may be
        seen by anyone.
    """
    if not all(caption.isascii() for caption in captions):  # the font at hand would show boxes
        raise InputError(f"captions may hold plain ASCII characters only, not {' and '.join(captions)}")
    grids = [_enlarged(images, columns) for images in (left, right)]
    font = ImageFont.load_default(_FONT_SIZE)
    widths = [max(grid.width, round(font.getlength(text))) for grid, text in zip(grids, captions, strict=True)]
    top = _MARGIN // 2 + 2 * _FONT_SIZE
    size = (sum(widths) + 3 * _MARGIN, max(grid.height for grid in grids) + top + _MARGIN)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    x = _MARGIN
    for grid, caption, width in zip(grids, captions, widths, strict=True):
        page.paste(grid, (x + (width - grid.width) // 2, top))
        # anchored by its baseline, so that a letter with a descender does not lift one of the captions
        draw.text((x + width / 2, top - _FONT_SIZE * 3 // 4), caption, fill=_INK, font=font, anchor="ms")
        x += width + _MARGIN
    _write_png(Path(path), page)


def _showable(images: Images) -> Images:
    """Return images with their axis of channels, or raise InputError if there is nothing to show."""
    images = as_images("shown", images)
    if not images.size:
        raise InputError(f"there is nothing to show in images of shape {images.shape}: give at least one")
    return images


def _enlarged(images: Images, columns: int) -> Image.Image:
    """Return a grid, on white, in which the longer side of a small image has about `_CELL` pixels."""
    images = _showable(images)
    picture = image_grid(images, columns=columns, scale=max(1, round(_CELL / max(images.shape[1:3]))))
    if picture.shape[-1] < 4:
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3))))
    image = Image.fromarray(picture)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _write_png(path: Path, picture: Image.Image, info: PngInfo | None = None) -> None:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    write_atomically(path, lambda unfinished: picture.save(unfinished, format="PNG", optimize=True, pnginfo=info))
