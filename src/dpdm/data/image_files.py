"""Image files, wherever they lie: what counts as one, how it is decoded, and how folders become classes."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dpdm.data.dataset import ImageDataset, require_same_num_classes
from dpdm.data.framing import Framing
from dpdm.data.identity import DIGEST, file_digests
from dpdm.types import Images, InputError


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file that lie in a table, None where there are none, and where, for messages."""

    where: str
    encoded: bytes | None

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the bytes as an open file."""
        if self.encoded is None:
            raise InputError(f"{self} has no encoded image: write its bytes there")
        return io.BytesIO(self.encoded)

    def __str__(self) -> str:
        return self.where


ImageFile = Path | zipfile.Path
"""A file in a folder, or one in an archive: both open, and both say in messages where they are."""


class ReadImages(Protocol):
    """From all image files of a source, in order, to its images: `read_images`, or what prepares them."""

    def __call__(self, files: Sequence[ImageFile | EncodedImage], others: Sequence[ImageFile] = ()) -> Images:
        """Return the images of `files`, at least one; `others` lie among them and are no images by their names."""
        ...


class Found(NamedTuple):
    """Files, by their names: those that are images, and the others."""

    images: list[ImageFile]
    others: list[ImageFile]


_EXTENSIONS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Names decide nothing, and some formats that Pillow knows start other programs: only these are tried.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def load_image_files(
    loose: Found,
    folders: Sequence[str],
    inside: Callable[[str], Found],
    *,
    read: ReadImages,
    num_classes: int | None,
    where: str,
) -> ImageDataset:
    """Return loose images without labels, or those of class folders with the folders' order as labels.

    Args:
        loose: The loose files, in order.
        folders: The names of the class folders, in order: the declaration of the classes.
        inside: Returns the files in one of them, in order; called only where there are no loose images.
        read: Decodes and frames all of them.
        num_classes: If given, the number of class folders must be this.
        where: The source, for messages.

    Raises:
        InputError: If there are both loose images and class folders, or a file is no image that can be used.
    """
    if folders and loose.images:
        raise InputError(
            f"{where} holds images ({loose.images[0].name}) beside class folders ({folders[0]}): "
            "move every image into a class folder, or all of them out"
        )
    require_same_num_classes(len(folders), num_classes, where)
    classes = [inside(folder) for folder in folders]
    found = joined([loose, *classes])
    if not found.images:
        nothing = f"{where} holds no images ({', '.join(_EXTENSIONS)}): put some in"
        raise InputError(why_no_image(found.others[0]) if found.others else nothing)
    images = read(*found)
    if not folders:
        return ImageDataset(images=images, name=where)
    return ImageDataset(
        images=images,
        labels=np.repeat(np.arange(len(classes)), [len(files.images) for files in classes]),
        num_classes=len(classes),
        class_names=tuple(folders),
        name=where,
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is a system's own and no record."""
    return name.startswith(".") or name == "__MACOSX"


def is_image_name(name: str) -> bool:
    """Whether a file of that name claims to be an image."""
    return name.lower().endswith(_EXTENSIONS)


def by_name(files: Iterable[ImageFile]) -> Found:
    """Return the files that claim to be images, and the others, each in their order."""
    found = Found([], [])
    for file in files:
        (found.images if is_image_name(file.name) else found.others).append(file)
    return found


def joined(parts: Sequence[Found]) -> Found:
    """Return the files of all parts."""
    return Found([file for part in parts for file in part.images], [file for part in parts for file in part.others])


def why_no_image(file: ImageFile) -> str:
    """Say that a file is no image by its name: it is refused, so that no record vanishes unnoticed."""
    return f"{file} is no image ({', '.join(_EXTENSIONS)}): move it elsewhere"


class Reader:
    """Reads images into memory, framed; they must agree on size and channels, and there may be no `others`.

    `sources` then has what they were before, as `ImageDataset.sources` has it.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.sources: NDArray[np.uint8] | None = None

    def __call__(self, files: Sequence[ImageFile | EncodedImage], others: Sequence[ImageFile] = ()) -> Images:
        """Return the images of all files."""
        if others:
            raise InputError(why_no_image(others[0]))
        first = files[0]
        like = read_image(first, self._framing).image
        images = np.empty((len(files), *like.shape), np.uint8)
        self.sources = np.empty((len(files), 2, DIGEST), np.uint8)
        for index, file in enumerate(files):
            images[index], self.sources[index] = read_image(file, self._framing, like=like, which=first)
        return images


def read_images(files: Sequence[ImageFile | EncodedImage], others: Sequence[ImageFile] = ()) -> Images:
    """Return the images of all files as they are, which must agree on size and channels; there may be no `others`."""
    return Reader(Framing())(files, others)


class ReadImage(NamedTuple):
    """A framed image, (height, width, channel), and digests of what it was before (`file_digests`)."""

    image: Images
    source: NDArray[np.uint8]


def read_image(
    file: ImageFile | EncodedImage,
    framing: Framing,
    *,
    like: Images | None = None,
    which: ImageFile | EncodedImage | None = None,
) -> ReadImage:
    """Return one framed image, which must be of the shape of `like`, the image of `which`."""
    decoded, encoded = _decode(file)
    image = framing.frame(decoded)
    if like is not None and image.shape[2] != like.shape[2]:
        raise InputError(
            f"{file} has {image.shape[2]} channels, but {which} has {like.shape[2]}: "
            "choose one number for all with --set data.channels=3"
        )
    if like is not None and image.shape != like.shape:
        raise InputError(
            f"{file} is {image.shape[1]} x {image.shape[0]} pixels, but {which} is "
            f"{like.shape[1]} x {like.shape[0]}: choose one size for all with --set data.size=28"
        )
    return ReadImage(image, file_digests(encoded, decoded))


def _decode(file: ImageFile | EncodedImage) -> tuple[Image.Image, bytes]:
    """Return the upright image of one file as L, RGB or RGBA, and the file's bytes."""
    try:
        with file.open("rb") as stream:
            encoded = stream.read()
        # Pillow's warnings about odd metadata would be output about a record.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(encoded), formats=_FORMATS) as image,
        ):
            # The further pictures in a camera's MPO file are previews and depth, not records.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            upright = ImageOps.exif_transpose(image)
            has_alpha = upright.getbands()[-1] == "A" or "transparency" in upright.info
            decoded = upright.convert("RGBA" if has_alpha else "L" if upright.mode in ("1", "L") else "RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders answer damaged bytes with nearly any exception.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{file} is no image that can be decoded ({reason}): repair or remove it") from error
    if upright.mode.startswith(("I", "F")):
        # Which of 16 bits matter (12 in many scanners) the owner knows; to guess it from records would leak.
        raise InputError(f"{file} has more than 8 bits of grey: convert all images to 8 bits by one fixed scale")
    if frames > 1:
        raise InputError(f"{file} holds {frames} pictures: save each one as a file of its own")
    return decoded, encoded
