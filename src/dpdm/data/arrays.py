"""Images and labels as the arrays of one .npz file."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, group_indices
from dpdm.types import Images, InputError, Labels


def load_npz(path: Path, *, num_classes: int | None = None, group: str | None = None) -> ImageDataset:
    """Return the data set in an .npz file of `images` and, optionally, `labels` and `num_classes`.

    Args:
        path: The file. `images` is `uint8` (number, height, width[, channel]), `labels` integers (number,),
            `num_classes` one integer: a declaration by whoever wrote the file.
        num_classes: The caller's declaration, which goes before the file's. Labels need one of the two.
        group: The name of a further array, of integers or words (number,): which group each image belongs to.

    Raises:
        InputError: If it is no such file, or labels are undeclared or outside the declared classes.
    """
    try:
        # Never with pickle: a file that someone sent must not be able to run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    # TypeError is how a lone .npy array, which np.load opens as well, fails here; RuntimeError how encryption does.
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is no .npz file of plain arrays: write it with numpy.savez") from error
    groups = None if group is None else arrays.pop(group, None)
    if group is not None and groups is None:
        raise InputError(f"{path} holds no array {group}, that would say which images form a group: correct data.group")
    if "images" not in arrays or not arrays.keys() <= {"images", "labels", "num_classes"}:
        hint = "" if group is not None or "groups" not in arrays else " (groups are for --set data.group=groups)"
        raise InputError(
            f"{path} holds the arrays {', '.join(sorted(arrays))}: it must hold images, may hold labels "
            f"and num_classes, and nothing else{hint}"
        )
    images = arrays["images"]
    if num_classes is None:
        num_classes = _one_integer(arrays.get("num_classes", np.array(0)), path)
    return ImageDataset(
        images=images[..., np.newaxis] if images.ndim == 3 else images,
        labels=arrays.get("labels"),
        num_classes=num_classes,
        groups=None if groups is None else group_indices(groups, f"{path}: {group}"),
        name=str(path),
    )


def load_npy(path: Path) -> ImageDataset:
    """Return the images in an .npy file, without labels; they stay on disk, and are read as they are needed.

    Args:
        path: The file, `uint8` (number, height, width[, channel]).

    Raises:
        InputError: If it is no such file.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is no .npy file of a plain array: write it with numpy.save") from error
    return ImageDataset(images=images[..., np.newaxis] if images.ndim == 3 else images, name=str(path))


def save_npz(path: Path, images: Images, labels: Labels | None = None, *, num_classes: int = 0) -> None:
    """Write images and labels to an .npz file, wholly or not at all; a file of that name is replaced.

    Args:
        path: The file. Missing folders above it are made.
        images: `uint8` (number, height, width, channel).
        labels: Integers (number,), or None.
        num_classes: How many classes there are, written beside the labels so that readers need not be told.

    Raises:
        InputError: If the arrays make no `ImageDataset`.
    """
    dataset = ImageDataset(images=images, labels=labels, num_classes=num_classes, name=str(path))
    arrays: dict[str, Any] = {"images": images}
    if dataset.labels is not None:
        arrays |= {"labels": dataset.labels, "num_classes": np.array(num_classes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _one_integer(array: NDArray[Any], path: Path) -> int:
    """Return the number of classes that a file declares."""
    if array.shape != () or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: num_classes is {array.dtype} of shape {array.shape}: store one integer")
    return int(array)
