"""Image files, wherever they lie: what counts as one, and how it is decoded."""

import contextlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dpdm.data.claims import claim_in
from dpdm.data.framing import Framing
from dpdm.data.identity import DIGEST, file_digests
from dpdm.files import damaged
from dpdm.types import Images, InputError, explained


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


class ImageFiles(Protocol):
    """Image files in their order, at least one; a list is this, or what reads them from a table, at each pass anew."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ImageFile | EncodedImage]: ...


class FilesByKind(NamedTuple):
    """Files, by their names: those that are images, and the others."""

    images: ImageFiles
    others: Sequence[ImageFile] = ()


class ReadImages(Protocol):
    """From all image files of a source, in order, to its images: `Reader`, or what prepares them."""

    def __call__(self, files: ImageFiles, others: Sequence[ImageFile] = ()) -> Images:
        """Return the images of `files`, at least one; `others` lie among them and are no images by their names."""
        ...


_EXTENSIONS: Final = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
_LISTS: Final = ".csv .tsv .jsonl .json .xls .xlsx"
# Names decide nothing, and some formats that Pillow knows start other programs: only these are tried.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_BITS_PER_SAMPLE = 258  # the tag of a TIFF
_LARGEST_OF_PPM = re.compile(rb"P[56](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)")
_DICOM: Final = "convert its images to PNG of 8 bits, all by one fixed window"
_INSTEAD: Final = {  # of files that no one meant to be decoded as they are
    ".dcm .ima .nii .nii.gz .mha .mhd .nrrd": _DICOM,
    _LISTS: "a list of labels must be called labels.csv, with the columns file,label, or dataset.json; "
    "move other lists elsewhere",
    ".heic .heif .avif .svg .psd .jp2 .dng .cr2 .nef .arw": "convert it to PNG or JPEG",
    ".zip .npz .npy .parquet": "give its own path to open it, or move it elsewhere",
    ".tar .gz .tgz .7z .rar .bz2 .xz": "unpack it into a folder",
    ".h5 .hdf5 .mat .pt .pth .pkl .tfrecord .tfrecords .lmdb": "save its images as PNG files, or with their labels by "
    "numpy.savez",
}


def is_image_name(name: str) -> bool:
    """Whether a file of that name claims to be an image."""
    return name.lower().endswith(_EXTENSIONS)


def may_list_labels(file: ImageFile) -> bool:
    """Whether a file may be a list of labels by another name than those that are read."""
    return file.name.lower().endswith(tuple(_LISTS.split()))


def what_instead(file: ImageFile) -> str | None:
    """Return what to do about a file that is known by its ending, or as DICOM by its content, and is not opened."""
    name = file.name.lower()
    advice = next((advice for endings, advice in _INSTEAD.items() if name.endswith(tuple(endings.split()))), None)
    return _DICOM if advice is None and _is_dicom(file) else advice


def _is_dicom(file: ImageFile | EncodedImage) -> bool:
    """Whether a file begins as DICOM does: scanners and archives of clinics give theirs no ending."""
    with contextlib.suppress(InputError), damaged(file, ""), file.open("rb") as stream:
        return bytes(stream.read(132)[128:]) == b"DICM"
    return False


def why_no_image(file: ImageFile) -> str:
    """Say that a file is no image by its name: it is refused, so that no record vanishes unnoticed."""
    return f"{file} is no image ({', '.join(_EXTENSIONS)}): {what_instead(file) or 'move it elsewhere'}"


class Reader:
    """Reads images into memory, framed; they must agree on size and channels, and there may be no `others`.

    `sources` then has what they were before, as `ImageDataset.sources` has it, and `claim` what one of them says.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.sources: UInt8[np.ndarray, "images 2 32"] | None = None
        self.claim: str | None = None

    def __call__(self, files: ImageFiles, others: Sequence[ImageFile] = ()) -> Images:
        """Return the images of all files."""
        if others:
            raise InputError(why_no_image(others[0]))
        first = next(iter(files))
        like = read_image(first, self._framing).image
        images = np.empty((len(files), *like.shape), np.uint8)
        self.sources = np.empty((len(files), 2, DIGEST), np.uint8)
        for index, file in enumerate(files):
            images[index], self.sources[index], claim = read_image(file, self._framing, like=like, which=first)
            self.claim = self.claim or claim
        return images


class ReadImage(NamedTuple):
    """A framed image, digests of what it was before (`file_digests`), and the claim that it makes, if it does."""

    image: UInt8[np.ndarray, "height width channel"]
    digests: UInt8[np.ndarray, "2 32"]
    claim: str | None


def read_image(
    file: ImageFile | EncodedImage,
    framing: Framing,
    *,
    like: Images | None = None,
    which: ImageFile | EncodedImage | None = None,
) -> ReadImage:
    """Return one image, framed.

    It must be of the shape of `like`, the image of `which`, if given.
    """
    decoded, encoded = decode_image(file)
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
    return ReadImage(image, file_digests(encoded, decoded), claim_in(encoded))


def decode_image(file: ImageFile | EncodedImage) -> tuple[Image.Image, bytes]:
    """Return the upright image of one file as L, RGB or RGBA, and the file's bytes."""

    def why(error: Exception) -> str:
        if isinstance(error, Image.DecompressionBombError):
            return f"{file} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: scale it down, it is whole"
        if isinstance(error, UnidentifiedImageError) and _is_dicom(file):
            return f"{file} is DICOM by its content: {_DICOM}"
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        return f"{file} is no image that can be decoded ({reason}): repair or remove it"

    with explained(why, Exception):  # Pillow's decoders answer damaged bytes with nearly any exception.
        with file.open("rb") as stream:
            encoded = stream.read()
        # Pillow's warnings about odd metadata would be output about a record.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(encoded), formats=_FORMATS) as image,
        ):
            bits = _bits(image, encoded)
            # The further pictures in a camera's MPO file are previews and depth, not records.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            upright = ImageOps.exif_transpose(image)
            has_alpha = upright.getbands()[-1] == "A" or "transparency" in upright.info
            decoded = upright.convert("RGBA" if has_alpha else "L" if upright.mode in ("1", "L") else "RGB")
    if bits > 8 or upright.mode.startswith(("I", "F")):
        # Which of 16 bits matter (12 in many scanners) the owner knows; to guess it from records would leak.
        raise InputError(
            f"{file} has more than 8 bits of grey or of each colour: convert all images to 8 bits by one fixed scale"
        )
    if frames > 1:
        raise InputError(f"{file} holds {frames} pictures: save each one as a file of its own")
    return decoded, encoded


def _bits(image: Image.Image, encoded: bytes) -> int:
    """Return how many bits a sample has in the file: Pillow cuts deep colours to 8 bits, and does not say so."""
    if image.format == "PNG":
        return encoded[24]  # of the header, which is the first chunk
    if image.format == "TIFF":
        samples: tuple[int, ...] = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return max(samples)
    deep = _LARGEST_OF_PPM.match(encoded) if image.format == "PPM" else None
    return 8 if deep is None else int(deep[1]).bit_length()
