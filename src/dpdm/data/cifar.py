"""The binary versions of CIFAR-10 and CIFAR-100."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, require_same_num_classes
from dpdm.data.layout import Split, choose_part
from dpdm.types import InputError, explained

_PLANES: Final = (3, 32, 32)  # red, green, blue; each row by row
_PIXELS: Final = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which files a version has, and how many bytes of labels stand before each image, the finest label last."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int


_VERSIONS: Final = (
    _Version(
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        names="batches.meta.txt",
        label_bytes=1,
    ),
    _Version(train=("train.bin",), test=("test.bin",), names="fine_label_names.txt", label_bytes=2),
)


def load_cifar_directory(path: Path, split: Split = "train", *, num_classes: int | None = None) -> ImageDataset:
    """Return the train or test part of a folder that holds the binary version of CIFAR-10 or CIFAR-100.

    The file of class names, one a line, is the declaration of the classes. Of CIFAR-100's two labels it is the
    fine one that is read.

    Args:
        path: The folder with `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt`, or with
            `train.bin`, `test.bin` and `fine_label_names.txt`.
        split: Which part.
        num_classes: If given, the number of class names must be this.

    Raises:
        InputError: If a file is missing or damaged, or a label is outside the named classes.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html ("Binary version").
    """
    choose_part(("train", "test"), split, str(path))
    version = _version_of(path)
    if version is None:
        raise InputError(f"{path} lacks the files of CIFAR's binary version (.bin and .txt): put them there")
    lines = _content(path / version.names).decode(errors="replace").splitlines()
    class_names = tuple(line.strip() for line in lines if line.strip())
    require_same_num_classes(len(class_names), num_classes, str(path))
    files = [path / name for name in (version.train if split == "train" else version.test)]
    records = np.concatenate([_read_records(file, version, len(class_names)) for file in files])
    planes = records[:, version.label_bytes :].reshape(-1, *_PLANES)
    return ImageDataset(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, version.label_bytes - 1].astype(np.int64),
        num_classes=len(class_names),
        class_names=class_names,
        name=str(path),
    )


def is_cifar_directory(path: Path) -> bool:
    """Whether a folder holds a file by one of the names in CIFAR's binary versions."""
    return _version_of(path) is not None


def _version_of(path: Path) -> _Version | None:
    """Return the version of which any file is there."""
    for version in _VERSIONS:
        if any((path / name).is_file() for name in (*version.train, *version.test, version.names)):
            return version
    return None


def _read_records(file: Path, version: _Version, num_classes: int) -> NDArray[np.uint8]:
    """Return the records of one file: (number, labels and pixels)."""
    content, size = _content(file), version.label_bytes + _PIXELS
    if not content or len(content) % size:
        raise InputError(f"{file} holds {len(content)} bytes, which are no records of {size}: fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, version.label_bytes - 1]
    outside = labels[labels >= num_classes]
    if outside.size:
        raise InputError(
            f"{file} has the label {outside[0]}, but {version.names} names {num_classes} classes: fetch both again"
        )
    return records


def _content(file: Path) -> bytes:
    """Return the bytes of one file."""
    if not file.is_file():
        raise InputError(f"{file.parent} lacks the file {file.name}: put it there")
    with explained(lambda error: f"{file} cannot be read ({error}): fetch it again", OSError):
        return file.read_bytes()
