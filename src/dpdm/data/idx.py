"""IDX files, the format of MNIST and of the data sets that copied it."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, Split
from dpdm.types import InputError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, gzipped or plain.

    Raises:
        InputError: If the file is missing, truncated, longer than it says, or no IDX file of unsigned bytes.

    Source: http://yann.lecun.com/exdb/mnist/ ("The IDX file format").
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again") from error
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
    path: Path, split: Split = "train", *, num_classes: int, class_names: tuple[str, ...] = ()
) -> ImageDataset:
    """Return the train or test part of a folder that holds the files of MNIST by their usual names.

    Args:
        path: The folder with `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` etc., gzipped or plain.
        split: Which part.
        num_classes: How many classes are declared.
        class_names: Their names, if declared.

    Raises:
        InputError: If a file is missing or damaged, or a label is outside the declared classes.
    """
    stem = "train" if split == "train" else "t10k"
    return ImageDataset(
        images=read_idx(_file(path, f"{stem}-images-idx3-ubyte"))[..., np.newaxis],
        labels=read_idx(_file(path, f"{stem}-labels-idx1-ubyte")).astype(np.int64),
        num_classes=num_classes,
        class_names=class_names,
        name=str(path),
    )


def is_idx_directory(path: Path) -> bool:
    """Whether a folder holds IDX images by the names MNIST gave them."""
    return any(path.glob("*-images-idx3-ubyte*"))


def _file(folder: Path, name: str) -> Path:
    """Return the gzipped or plain file of that name."""
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise InputError(f"{folder} lacks the file {name} or {name}.gz: put it there")
