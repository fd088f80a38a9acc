"""IDX files, the format of MNIST and of the data sets that copied it."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset
from dpdm.data.layout import Split, choose_part, part_in
from dpdm.types import InputError, explained

_IMAGES: Final = re.compile(r"(.+)-images[-.]idx3-ubyte(?:\.gz)?", re.IGNORECASE)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, gzipped or plain.

    Raises:
        InputError: If the file is missing, truncated, longer than it says, or no IDX file of unsigned bytes.

    Source: http://yann.lecun.com/exdb/mnist/ ("The IDX file format").
    """
    with explained(lambda e: f"{path} cannot be read ({e}): fetch it again", OSError, EOFError, zlib.error):
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    num_axes = content[3] if content.startswith(b"\x00\x00\x08") and len(content) > 3 else 0
    header = 4 + 4 * num_axes
    if not 1 <= num_axes <= 4 or len(content) < header:
        raise InputError(f"{path} is no IDX file of unsigned bytes: give a file in the format of MNIST")
    shape = struct.unpack(f">{num_axes}I", content[4:header])
    given, said = len(content) - header, math.prod(shape)
    if given != said:
        raise InputError(f"{path} holds {given} bytes where its header says {said}: fetch it again")
    # A copy, because torch refuses to share memory that may not be written.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def load_idx_directory(
    path: Path, split: Split = "train", *, num_classes: int | None, class_names: tuple[str, ...] = ()
) -> ImageDataset:
    """Return a part of a folder that holds files in the format of MNIST by their usual names.

    Args:
        path: The folder with `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` etc., gzipped or plain; more may stand
            in front of these names, as in EMNIST.
        split: Which part.
        num_classes: How many classes are declared; 0 leaves labels aside.
        class_names: Their names, if declared.

    Raises:
        InputError: If a file is missing or damaged, or a label is outside the declared classes.
    """
    parts = {start: _part_of(start) for start in _starts(path)}
    starts = [start for start, part in parts.items() if part == split]
    if len(starts) > 1:
        raise InputError(f"{path} holds images of {starts[0]} and of {starts[1]}: move one of them elsewhere")
    if split == "val" and not starts:
        choose_part([part for part in parts.values() if part is not None] or ["train", "test"], split, str(path))
    start = starts[0] if starts else "train" if split == "train" else "t10k"
    images = read_idx(_file(path, start, "images", 3))[..., np.newaxis]
    if num_classes == 0:
        return ImageDataset(images=images, name=str(path))
    return ImageDataset(
        images=images,
        labels=read_idx(_file(path, start, "labels", 1)).astype(np.int64),
        num_classes=num_classes or 0,
        class_names=class_names,
        name=str(path),
    )


def is_idx_images(name: str) -> bool:
    """Whether a file's name is one that MNIST gave to IDX images."""
    return _IMAGES.fullmatch(name) is not None


def is_idx_directory(path: Path) -> bool:
    """Whether a folder holds IDX images by the names MNIST gave them."""
    return path.is_dir() and bool(_starts(path))


def _starts(path: Path) -> list[str]:
    """Return what stands in front of the names of images: the part, and perhaps more."""
    found = (_IMAGES.fullmatch(file.name) for file in path.glob("*"))
    return sorted({match[1] for match in found if match is not None})


def _part_of(start: str) -> Split | None:
    return part_in(start.lower().replace("t10k", "test"))


def _file(folder: Path, start: str, what: str, axes: int) -> Path:
    """Return the gzipped or plain file of that name."""
    names = [f"{start}-{what}{mark}idx{axes}-ubyte{ending}" for mark in "-." for ending in (".gz", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} lacks the file {names[1]} or {names[0]}: put it there")
