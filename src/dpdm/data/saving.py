"""Images and labels written for others to read: as an .npz file, or as PNG files in folders."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpdm.data.claims import png_with
from dpdm.data.dataset import ImageDataset
from dpdm.data.framing import to_pillow
from dpdm.data.layout import CLASSES, LISTINGS, PARTS, in_order_of_classes, is_hidden, part_in
from dpdm.files import write_atomically, write_folder_atomically
from dpdm.types import Images, InputError, Labels, as_images

_MOST_BYTES: Final = 255  # of a name in most file systems


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

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a path would be given the ending .npz
            np.savez_compressed(file, **arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def save_folder(
    path: Path,
    images: Images,
    labels: Labels | None = None,
    class_names: Sequence[str] = (),
    claim: Mapping[str, object] | None = None,
) -> None:
    """Write images as PNG files, in class folders if there are labels, wholly or not at all.

    `open_dataset` gives the same labels back. So all names get the number of their class in front if they would not
    sort in the order of the classes. They also do if a file system does not take one of them, or if one would be taken
    for a part. A class without images is an empty folder. One class alone gets a `labels.csv` and a `classes.txt`,
    since a single folder names no class.

    Args:
        path: The folder to make, and folders above it; it may exist if it is empty.
        images: `uint8` (number, height, width[, channel]).
        labels: Integers (number,), 0 <= label < len(class_names), or None for a flat folder.
        class_names: One name for each class.
        claim: What is claimed of the images, which each file carries, as `save_npz` does.

    Raises:
        InputError: If the folder holds something already, or the arrays make no `ImageDataset`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is no empty folder: name another one, or remove it first")
    images = as_images(f"{path}:", images)
    dataset = ImageDataset(images=images, labels=labels, num_classes=len(class_names), name=str(path))
    folders = [""] if dataset.labels is None else _folder_names(class_names)
    of_image = np.zeros(len(images), int) if dataset.labels is None else dataset.labels
    digits = len(str(len(images) - 1))
    carried = None if claim is None else png_with(json.dumps(claim, ensure_ascii=False))

    def write(temporary: Path) -> None:
        for folder in folders:
            (temporary / folder).mkdir(exist_ok=True)
        for index, image in enumerate(images):
            place = temporary / folders[of_image[index]] / f"{index:0{digits}d}.png"
            to_pillow(image).save(place, pnginfo=carried)

        if len(class_names) == 1:
            _list_one_class(temporary, folders[0])

    write_folder_atomically(path, write)


def _list_one_class(folder: Path, name: str) -> None:
    """Write that all images in a folder are of one class."""
    images = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    with (folder / LISTINGS[0]).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *((image, name) for image in images)])
    (folder / CLASSES).write_text(f"{name}\n", encoding="utf-8")


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Return names for class folders that sort in the order of the classes."""
    safe = [re.sub(r'[\x00-\x1f/\\:*?"<>|]|^[. ]|[. ]$', "-", name) for name in class_names]
    apart = len({name.casefold() for name in safe}) == len(safe)  # to all file systems
    read_otherwise = any(not name or is_hidden(name) or name.casefold() in PARTS for name in safe)
    if in_order_of_classes(safe) == [*class_names] and apart and not read_otherwise and not _are_parts(safe):
        return safe
    digits = len(str(len(safe) - 1))
    cut = [name.encode()[: _MOST_BYTES - digits - 1].decode(errors="ignore") for name in safe]
    numbered = [f"{label:0{digits}d}_{name}" for label, name in enumerate(cut)]
    return [f"{label:0{digits}d}" for label in range(len(cut))] if _are_parts(numbered) else numbered


def _are_parts(names: Sequence[str]) -> bool:
    """Whether folders of these names may be taken for parts, and not for classes."""
    return len({*map(part_in, names)} - {None}) > 1
