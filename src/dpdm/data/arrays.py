"""Images and labels as the arrays of one .npz file."""

import contextlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, group_indices, require_same_num_classes
from dpdm.data.labels import read_labels
from dpdm.data.layout import PARTS, Split, choose_part, require_whole
from dpdm.types import Images, InputError, Labels, as_images, explained

_OF_PART = re.compile("(.+)_(images|labels)|([xy])_(.+)", re.IGNORECASE)  # as MedMNIST or Keras call them
_ROLES: Final = {"x": "images", "y": "labels"}
_DECLARED: Final = ("num_classes", "class_names", "claim")
_TOO_LONG: Final = 8  # times the other side: no image is so long, but an array whose last axis is the number of images
_LONGEST_CLAIM = 1000  # characters of it that are shown


def load_npz(
    path: Path,
    split: Split = "train",
    *,
    num_classes: int | None = None,
    group: str | None = None,
    chosen: bool = False,
) -> ImageDataset:
    """Return the data set in an .npz file of `images` and, optionally, `labels`, `num_classes` and `class_names`.

    Args:
        path: The file. `images` is `uint8` (number, height, width[, channel]), `labels` integers or words (number,),
            `num_classes` one integer and `class_names` words (num_classes,): declarations by whoever wrote the
            file. `claim` is for `read_claim`.
            Instead of `images` and `labels` it may have those of its parts: `train_images`, `train_labels`,
            `val_images` and so on, or `x_train`, `y_train` and so on.
        split: Which part; a file without parts is its own train part.
        num_classes: The caller's declaration, which goes before the file's number. Labels need one of the two, or
            names; 0 leaves labels aside.
        group: The name of a further array, of integers or words (number,), which says to which group each image
            belongs; in a file of parts it has the part's name in front (`train_patients` for `patients`).
        chosen: Whether the file is that part by its own name.

    Raises:
        InputError: If it is no such file, or labels are undeclared or outside the declared classes.
    """
    arrays = _read_npz(path, split, group, chosen=chosen)
    images = _in_four_axes(arrays["images"], path)
    groups = None if group is None else group_indices(arrays["groups"], f"{path}: {group}")
    if num_classes == 0:
        return ImageDataset(images=images, groups=groups, name=str(path))
    names = _words(arrays["class_names"], path) if "class_names" in arrays else ()
    if names:
        require_same_num_classes(len(names), num_classes, str(path))
    if num_classes is None and "num_classes" in arrays:
        num_classes = _one_integer(arrays["num_classes"], path)
        if names:
            require_same_num_classes(len(names), num_classes, str(path))
    count = num_classes or len(names)
    labels = arrays.get("labels")
    if labels is not None and labels.dtype.kind == "U":
        words = labels.ravel().tolist()
        labels = read_labels(
            words, names, count, of=lambda row: f"{path}: label {row}", where=str(path), named_in="an array class_names"
        )
    return ImageDataset(
        images=images, labels=labels, num_classes=count, class_names=names, groups=groups, name=str(path)
    )


def _read_npz(path: Path, split: Split, group: str | None, *, chosen: bool) -> dict[str, NDArray[Any]]:
    """Return the arrays of a part by what they are: `images`, `labels`, `groups` and what is declared."""
    # TypeError is how a lone .npy array, which np.load opens as well, fails here; RuntimeError how encryption does.
    damage = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, TypeError, RuntimeError)
    with (
        explained(lambda _: f"{path} is no .npz file of plain arrays: write it with numpy.savez", *damage),
        path.open("rb") as file,
        # Never with pickle: a file that someone sent must not be able to run code.
        np.load(file, allow_pickle=False) as archive,
    ):
        wanted = _arrays_of(archive.files, path, split, group, chosen=chosen)
        return {role: np.asarray(archive[name]) for role, name in wanted.items()}


def _arrays_of(names: Sequence[str], path: Path, split: Split, group: str | None, *, chosen: bool) -> dict[str, str]:
    """Return which array is which, of the part that is asked for."""
    whole = {role: role for role in ("images", "labels") if role in names}
    if group is not None:
        whole["groups"] = group
    parts: dict[Split, dict[str, str]] = {}
    for name in names:
        if "images" not in names and (said := _part_and_role(name, group)) is not None:
            part, role = said
            if role in parts.setdefault(part, {}):
                raise InputError(f"{path} holds {parts[part][role]} and {name} for one part: remove one")
            parts[part][role] = name
    if not parts and not chosen:
        require_whole(split, path)
    wanted = parts[choose_part(parts, split, str(path))] if parts else whole
    if group is not None and wanted.get("groups") not in names:
        raise InputError(f"{path} holds no array {group}, that would say which images form a group: correct data.group")
    read = {name for arrays in (*parts.values(), wanted) for name in arrays.values()}
    if "images" not in wanted or not {*names} <= {*read, *_DECLARED}:
        hint = "" if group is not None or "groups" not in names else " (groups are for --set data.group=groups)"
        raise InputError(
            f"{path} holds the arrays {', '.join(sorted(names))}: it must hold images, may hold labels, num_classes "
            f"and class_names, or those of parts (train_images, train_labels, ...), and nothing else{hint}"
        )
    return wanted | {name: name for name in _DECLARED if name in names}


def _part_and_role(name: str, group: str | None) -> tuple[Split, str] | None:
    """Return which part's array it is, by its name, and what it holds."""
    if group is not None and name.endswith(f"_{group}"):
        before, role = name.removesuffix(f"_{group}"), "groups"
    elif (found := _OF_PART.fullmatch(name)) is not None:
        before, role = found[1] or found[4], (found[2] or _ROLES[found[3].lower()]).lower()
    else:
        return None
    part = PARTS.get(before.casefold())
    return None if part is None else (part, role)


def _in_four_axes(images: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return images with an axis of channels; one that lacks it must not have the number of images last."""
    if images.ndim != 3:
        return images
    number, height, width = images.shape
    if number == height != width or max(height, width) >= _TOO_LONG * min(height, width):
        raise InputError(
            f"{path} would be {number} images of {width} x {height} pixels: move the axis of their number to the front "
            "(numpy.moveaxis) or, if that is right, add an axis of channels to its end"
        )
    return images[..., np.newaxis]


def load_npy(path: Path) -> ImageDataset:
    """Return the images in an .npy file, without labels; they stay on disk, and are read as they are needed.

    Args:
        path: The file, `uint8` (number, height, width[, channel]).

    Raises:
        InputError: If it is no such file.
    """
    damage = (OSError, EOFError, ValueError)
    with explained(lambda _: f"{path} is no .npy file of a plain array: write it with numpy.save", *damage):
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    return ImageDataset(images=_in_four_axes(images, path), name=str(path))


def read_claim(path: Path) -> str | None:
    """Return the statement of the claim that an .npz file makes for its images, or None: nothing has verified it."""
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, zlib.error, LookupError, TypeError, RuntimeError):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            statement = json.loads(str(archive["claim"]))["statement"]
        if isinstance(statement, str):
            return "".join(c if c.isprintable() else "?" for c in statement[:_LONGEST_CLAIM])
    return None


def save_npz(
    path: Path,
    images: Images,
    labels: Labels | None = None,
    *,
    num_classes: int = 0,
    class_names: Sequence[str] = (),
    claim: Mapping[str, object] | None = None,
) -> None:
    """Write images and labels to an .npz file, wholly or not at all; a file of that name is replaced.

    Args:
        path: The file. Missing folders above it are made.
        images: `uint8` (number, height, width[, channel]); an axis of channels is written in any case.
        labels: Integers (number,), or None.
        num_classes: How many classes there are, written beside the labels so that readers need not be told.
        class_names: Their names, one each, written likewise; default: none are written.
        claim: What is claimed of the images; its `statement` is the claim in one line. Written as JSON.

    Raises:
        InputError: If the arrays make no `ImageDataset`.
    """
    names, images = tuple(class_names), as_images(f"{path}:", images)
    dataset = ImageDataset(images=images, labels=labels, num_classes=num_classes, class_names=names, name=str(path))
    arrays: dict[str, Any] = {"images": images}
    if dataset.labels is not None:
        arrays |= {"labels": dataset.labels, "num_classes": np.array(num_classes)}
        arrays |= {"class_names": np.array(names)} if names else {}
    if claim is not None:
        arrays["claim"] = np.array(json.dumps(claim, ensure_ascii=False))
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


def _words(array: NDArray[Any], path: Path) -> tuple[str, ...]:
    """Return the names of classes that a file declares."""
    if array.ndim != 1 or array.dtype.kind != "U":
        raise InputError(f"{path}: class_names is {array.dtype} of shape {array.shape}: store one word for each class")
    return tuple(array.tolist())


def _one_integer(array: NDArray[Any], path: Path) -> int:
    """Return the number of classes that a file declares."""
    if array.shape != () or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: num_classes is {array.dtype} of shape {array.shape}: store one integer")
    return int(array)
