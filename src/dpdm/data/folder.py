"""Image files in a folder: flat, or in one folder for each class."""

import csv
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dpdm.data.class_folders import load_tree
from dpdm.data.dataset import ImageDataset
from dpdm.data.framing import to_pillow
from dpdm.data.image_files import ImageFile, ReadImages, read_images
from dpdm.data.layout import PARTS, Split, in_order_of_classes, is_hidden, part_in, plain_name
from dpdm.data.listing import CLASSES
from dpdm.data.tree import Tree
from dpdm.types import Images, InputError, Labels, as_images

_MOST_BYTES: Final = 255  # of a name in most file systems


def load_folder(
    path: Path,
    read: ReadImages = read_images,
    *,
    split: Split = "train",
    num_classes: int | None = None,
    group: str | None = None,
    chosen: bool = False,
) -> ImageDataset:
    """Return the images of a folder, in the order of their classes and names.

    The names of class folders are the declaration of the classes, so nothing is read off the records: their order is
    that of numbers if all of them are numbers, else that of letters. With a listing (`dataset.json` or `labels.csv`,
    see `read_listing`) images may lie at any depth. A single folder around all images is looked through; it is a class
    only if one class is declared. Files that systems leave are ignored; any other file that is no image is refused: no
    record vanishes unnoticed.

    Args:
        path: A folder of images (no labels), or of class folders that hold images, or of parts of either.
        read: Decodes and frames the images, which must agree on size and channels.
        split: Which part, where there are folders called `train`, `val` or `test`, in any case, or `training`,
            `valid`, `validation` or `testing`. A folder without these is its own train part.
        num_classes: If given, the number of class folders must be this; 0 leaves classes aside, and takes images at any
            depth. A listing needs it, or a `classes.txt`.
        group: What names the group of an image: "folder", the folder it lies in, which is inside of a class folder (one
            name in two classes is one group), or anywhere if there are no classes; or a listing's further column.
        chosen: Whether the folder is that part by a name further up.

    Raises:
        InputError: If a file is no image, a class is empty or beside images, or sizes or channels differ; or an image
            has no group, or there is no such part.
    """
    return load_tree(_files_in(path), split, read, num_classes=num_classes, group=group, chosen=chosen)


def save_folder(path: Path, images: Images, labels: Labels | None = None, class_names: Sequence[str] = ()) -> None:
    """Write images as PNG files, in class folders if there are labels, wholly or not at all.

    `load_folder` gives the same labels back: names that would not sort in the order of their classes, that no file
    system takes, or that would be taken for parts, get the number of the class in front. A class without images is an
    empty folder. One class alone gets a `labels.csv` and a `classes.txt`, since a single folder names no class.

    Args:
        path: The folder to make, and folders above it; it may exist if it is empty.
        images: `uint8` (number, height, width[, channel]).
        labels: Integers (number,), 0 <= label < len(class_names), or None for a flat folder.
        class_names: One name for each class.

    Raises:
        InputError: If the folder holds something already, or the arrays make no `ImageDataset`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is no empty folder: name another one, or remove it first")
    images = as_images(f"{path}:", images)
    dataset = ImageDataset(images=images, labels=labels, num_classes=len(class_names), name=str(path))
    folders = [""] if dataset.labels is None else _folder_names(class_names)
    digits = len(str(len(images) - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        for folder in folders:
            (partial / folder).mkdir(parents=True)
        for index, image in enumerate(images):
            folder = folders[0 if dataset.labels is None else dataset.labels[index]]
            to_pillow(image).save(partial / folder / f"{index:0{digits}d}.png")
        if len(class_names) == 1:
            _list_one_class(partial, folders[0])
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _list_one_class(folder: Path, name: str) -> None:
    """Write that all images in a folder are of one class."""
    images = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
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


def _files_in(path: Path) -> Tree:
    """Return what is in a folder and in all folders inside it, through links too, without hidden entries."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder: check the path")
    files: dict[str, ImageFile] = {}
    folders: set[str] = set()
    to_read = [(path, "", frozenset({os.path.realpath(path)}))]
    while to_read:
        folder, start, above = to_read.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror}): check who may read it") from error
        for entry in entries:
            name = start + plain_name(entry.name, folder)
            if name in files or name in folders:
                raise InputError(f"{folder} has two entries of one name, {name.removeprefix(start)!r}: rename one")
            if not entry.is_dir():
                files[name] = folder / entry.name
                continue
            real = os.path.realpath(entry.path)
            if real in above:
                raise InputError(f"{entry.path} is a link to a folder that it lies in: remove it")
            folders.add(name)
            to_read.append((folder / entry.name, f"{name}/", above | {real}))
    if not files and not folders:
        raise InputError(f"{path} is empty: put images in it, or remove it")
    return Tree(str(path), dict(sorted(files.items(), key=lambda item: item[0].split("/"))), frozenset(folders))
