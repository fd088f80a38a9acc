"""Images and labels as the arrays of one .npz file, or images as one .npy file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpdm.data.claims import read_claim
from dpdm.data.declared import Asked, Records
from dpdm.data.layout import PARTS, Split, choose_part
from dpdm.files import damaged
from dpdm.types import InputError

_OF_PART = re.compile("(.+)_(images|labels)|([xy])_(.+)", re.IGNORECASE)  # as MedMNIST or Keras call them
_ROLES: Final = {"x": "images", "y": "labels"}
_DECLARED: Final = ("num_classes", "class_names", "claim")
_TOO_LONG: Final = 8  # times the other side: no image is so long, but an array whose last axis is the number of images


def load_npz(path: Path, asked: Asked) -> Records:
    """Return what is in an .npz file of `images` and, optionally, `labels`, `num_classes` and `class_names`.

    `images` is `uint8` (number, height, width[, channel]), `labels` integers or words (number,), `num_classes` one
    integer and `class_names` words (num_classes,): declarations by whoever wrote the file. `claim` is for `read_claim`.
    Instead of `images` and `labels` it may have those of its parts: `train_images`, `train_labels`, `val_images` and so
    on, or `x_train`, `y_train` and so on.

    The group that is asked for is the name of a further array, of integers or words (number,). The array says to which
    group each image belongs. In a file of parts its name has the part's name in front (`train_patients` for
    `patients`).
    """
    # Never with pickle: a file that someone sent must not be able to run code.
    with (
        damaged(path, "write it with numpy.savez", what="is no .npz file of plain arrays"),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        wanted = _arrays_of(archive.files, path, asked)
        arrays = {role: np.asarray(archive[name]) for role, name in wanted.items()}
    claim = (read_claim(path) or "") if "claim" in arrays else ""
    labels, names, number = arrays.get("labels"), arrays.get("class_names"), arrays.get("num_classes")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"{path}: class_names is {names.dtype} of shape {names.shape}: store one word for each class")
    if number is not None and (number.shape != () or not np.issubdtype(number.dtype, np.integer)):
        raise InputError(f"{path}: num_classes is {number.dtype} of shape {number.shape}: store one integer")
    return Records(
        str(path),
        _in_four_axes(arrays["images"], path),
        labels=labels.ravel().tolist() if labels is not None and labels.dtype.kind == "U" else labels,
        class_names=() if names is None else tuple(names.tolist()),
        num_classes=0 if number is None else int(number),
        groups=arrays.get("groups"),
        names_in="an array class_names",
        claim=claim,
    )


def _arrays_of(names: Sequence[str], path: Path, asked: Asked) -> dict[str, str]:
    """Return which array is which, of the part that is asked for: `images`, `labels`, `groups` and what is declared."""
    group = asked.group
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
    if not parts:
        asked.require_whole(path)
    wanted = parts[choose_part(parts, asked.split, str(path))] if parts else whole
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


def load_npy(path: Path, asked: Asked) -> Records:
    """Return the images in an .npy file, `uint8` (number, height, width[, channel]), which stay on disk."""
    asked.require_whole(path)
    with damaged(path, "write it with numpy.save", what="is no .npy file of a plain array"):
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    return Records(str(path), _in_four_axes(images, path))
