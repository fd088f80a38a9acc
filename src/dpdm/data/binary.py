"""The binary formats of MNIST (IDX files) and of CIFAR-10 and CIFAR-100."""

import gzip
import math
import re
import struct
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from dpdm.data.declared import Asked, Records
from dpdm.data.layout import Split, choose_part, part_in
from dpdm.files import damaged
from dpdm.types import InputError

_IMAGES: Final = re.compile(r"(.+)-images[-.]idx3-ubyte(?:\.gz)?", re.IGNORECASE)
_PLANES: Final = (3, 32, 32)  # of an image of CIFAR: red, green, blue; each row by row


def load_idx(path: Path, asked: Asked) -> Records:
    """Return a part of a folder of files in the format of MNIST.

    Their names are `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` etc., gzipped or plain; more may stand in front
    of them, as in EMNIST.
    """
    parts = {start: part_in(start.lower().replace("t10k", "test")) for start in _starts(path)}
    starts = [start for start, part in parts.items() if part == asked.split]
    if len(starts) > 1:
        raise InputError(f"{path} holds images of {starts[0]} and of {starts[1]}: move one of them elsewhere")
    if asked.split == "val" and not starts:
        known: list[Split] = [part for part in parts.values() if part is not None]
        choose_part(known or ["train", "test"], asked.split, str(path))
    start = starts[0] if starts else "train" if asked.split == "train" else "t10k"
    images = read_idx(_file(path, start, "images", 3))[..., np.newaxis]
    labels = None if asked.num_classes == 0 else read_idx(_file(path, start, "labels", 1))
    return Records(str(path), images, labels)


def read_idx(path: Path) -> UInt8[ndarray, "..."]:
    """Return the array in an IDX file of unsigned bytes, gzipped or plain.

    Source: http://yann.lecun.com/exdb/mnist/ ("The IDX file format").
    """
    with damaged(path, "fetch it again"):
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


def _file(folder: Path, start: str, what: str, axes: int) -> Path:
    """Return the gzipped or plain file of that name."""
    names = [f"{start}-{what}{mark}idx{axes}-ubyte{ending}" for mark in "-." for ending in (".gz", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} lacks the file {names[1]} or {names[0]}: put it there")


class _Version(NamedTuple):
    """Which files a version of CIFAR has, and how many labels, a byte each, stand before an image, the finest last."""

    train: tuple[str, ...]
    test: str
    names: str
    labels: int


_VERSIONS: Final = (
    _Version(tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    _Version(("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


def load_cifar(path: Path, asked: Asked) -> Records:
    """Return the train or test part of a folder that holds the binary version of CIFAR-10 or CIFAR-100.

    The file of class names, one a line, is the declaration of the classes. Of CIFAR-100's two labels it is the
    fine one that is read.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html ("Binary version").
    """
    choose_part(("train", "test"), asked.split, str(path))
    version = _version_of(path)
    if version is None:
        raise InputError(f"{path} lacks the files of CIFAR's binary version (.bin and .txt): put them there")
    lines = _content(path / version.names).decode(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    files = version.train if asked.split == "train" else (version.test,)
    records = np.concatenate([_cifar_records(path / file, version, len(names)) for file in files])
    planes = records[:, version.labels :].reshape(-1, *_PLANES)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Records(str(path), images, records[:, version.labels - 1], names)


def is_cifar_directory(path: Path) -> bool:
    """Whether a folder holds a file by one of the names in CIFAR's binary versions."""
    return _version_of(path) is not None


def _version_of(path: Path) -> _Version | None:
    """Return the version of which any file is there."""
    for version in _VERSIONS:
        if any((path / name).is_file() for name in (*version.train, version.test, version.names)):
            return version
    return None


def _cifar_records(file: Path, version: _Version, num_classes: int) -> UInt8[ndarray, "images bytes"]:
    """Return the records of one file: (number, labels and pixels)."""
    content, size = _content(file), version.labels + math.prod(_PLANES)
    if not content or len(content) % size:
        raise InputError(f"{file} holds {len(content)} bytes, which are no records of {size}: fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, version.labels - 1]
    outside = labels[labels >= num_classes]
    if outside.size:
        raise InputError(
            f"{file} has the label {outside[0]}, but {version.names} names {num_classes} classes: fetch both again"
        )
    return records


def _content(file: Path) -> bytes:
    """Return the bytes of one file of CIFAR."""
    if not file.is_file():
        raise InputError(f"{file.parent} lacks the file {file.name}: put it there")
    with damaged(file, "fetch it again"):
        return file.read_bytes()
