"""Image files in a folder: flat, or in one folder for each class."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from dpdm.data.dataset import ImageDataset, group_indices
from dpdm.data.framing import to_pillow
from dpdm.data.image_files import (
    Found,
    ReadImages,
    by_name,
    is_hidden,
    is_image_name,
    joined,
    load_image_files,
    read_images,
)
from dpdm.data.listing import CLASSES, find_listing, read_listing
from dpdm.types import Images, InputError, Labels

FOLDER: Final = "folder"  # the `group` of images whose groups are named by the folders they lie in
_MOST_BYTES = 255  # of a name in most file systems


def load_folder(
    path: Path, read: ReadImages = read_images, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images of a folder, in the order of their names.

    The sorted names of class folders are the declaration of the classes, so nothing is read off the records. With a
    listing (`dataset.json` or `labels.csv`, see `read_listing`) images may lie at any depth.
    Hidden files are ignored; any other file that is no image is refused: no record vanishes unnoticed.

    Args:
        path: A folder of images (no labels), or of class folders that hold images.
        read: Decodes and frames the images, which must agree on size and channels.
        num_classes: If given, the number of class folders must be this; 0 leaves classes aside. A listing needs it, or
            a `classes.txt`.
        group: What names the group of an image: "folder", the folder it lies in, which is inside of a class folder (one
            name in two classes is one group), or at the top where there are no classes; or a listing's third column.

    Raises:
        InputError: If a file is no image, a class is empty or beside images, or sizes or channels differ; or an image
            has no group.
    """
    if path.is_dir() and (listing := find_listing(path)) is not None:
        return _load_listed(path, listing, read, num_classes, group)
    require_folder(group, str(path))
    folders, loose = _contents(path)
    if group is not None and loose.images:
        raise InputError(f"{loose.images[0]} lies in no folder that names its group: move it into one")
    in_groups = group is not None and (num_classes != 0 or any(_contents(folder)[0] for folder in folders))
    inside = cache(_files_of_groups if in_groups else _class_files)  # images and groups are of one listing
    if num_classes == 0 and not loose.images:
        loose, folders = joined([loose, *map(inside, folders)]), []
    data = load_image_files(
        loose,
        [folder.name for folder in folders],
        lambda name: inside(path / name),
        read=read,
        num_classes=num_classes,
        where=str(path),
    )
    if group is None:
        return data
    files = joined([loose, *map(inside, folders)]).images
    return replace(data, groups=group_indices([Path(str(file)).parent.name for file in files], str(path)))


def require_folder(group: str | None, where: str) -> None:
    """Raise InputError if what shall name the groups of images in folders is something else than folders."""
    if group not in (None, FOLDER):
        raise InputError(
            f"{where} has no labels.csv with a column {group!r}: add it, or set data.group=folder, if there is a "
            "folder for each group inside the class folders"
        )


def _load_listed(
    path: Path, listing: Path, read: ReadImages, num_classes: int | None, group: str | None
) -> ImageDataset:
    """Return the images at any depth of a folder, with the labels of its listing."""
    classes = path / CLASSES if (path / CLASSES).is_file() else None
    inside = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if not file.is_dir()}
    files = {
        name: file
        for name, file in sorted(inside.items(), key=lambda item: item[0].split("/"))
        if file not in (listing, classes) and not any(map(is_hidden, name.split("/")))
    }
    found = by_name(files.values())
    if not found.images:
        raise InputError(f"{path} holds no images: put some in")
    names = [*filter(is_image_name, files)]
    if num_classes == 0 and group is None:
        return ImageDataset(images=read(*found), name=str(path))
    listed = read_listing(listing, classes, names, num_classes=num_classes, group=group)
    return ImageDataset(images=read(*found), **listed._asdict(), name=str(path))


def save_folder(path: Path, images: Images, labels: Labels | None = None, class_names: Sequence[str] = ()) -> None:
    """Write images as PNG files, in class folders if there are labels, wholly or not at all.

    `load_folder` gives the same labels back: names that would not sort in the order of their classes, or that
    no file system takes, get the number of the class in front. A class without images is an empty folder.

    Args:
        path: The folder to make, and folders above it; it may exist if it is empty.
        images: `uint8` (number, height, width, channel).
        labels: Integers (number,), 0 <= label < len(class_names), or None for a flat folder.
        class_names: One name for each class.

    Raises:
        InputError: If the folder holds something already, or the arrays make no `ImageDataset`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is no empty folder: name another one, or remove it first")
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
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Return names for class folders that sort in the order of the classes."""
    safe = [re.sub(r'[\x00-\x1f/\\:*?"<>|]|^[. ]|[. ]$', "-", name) for name in class_names]
    apart = len({name.casefold() for name in safe}) == len(safe)  # to all file systems
    if safe == sorted(class_names) and apart and not any(map(is_hidden, safe)):
        return safe
    digits = len(str(len(safe) - 1))
    cut = [name.encode()[: _MOST_BYTES - digits - 1].decode(errors="ignore") for name in safe]
    return [f"{label:0{digits}d}_{name}" for label, name in enumerate(cut)]


def _class_files(folder: Path) -> Found:
    """Return the files of one class."""
    folders, files = _contents(folder)
    if folders:
        raise InputError(
            f"{folders[0]} is a folder inside a class folder: move its images up or, if it is of one person's images, "
            "say, set data.group=folder"
        )
    return files


def _files_of_groups(folder: Path) -> Found:
    """Return the files of one class, whose images each lie in the folder of their group."""
    groups, files = _contents(folder)
    if files.images:
        raise InputError(f"{files.images[0]} lies in no folder that names its group: move it into one")
    return joined([files, *map(_class_files, groups)])


def _contents(path: Path) -> tuple[list[Path], Found]:
    """Return the folders and the files in a folder, each sorted by name, without hidden ones."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder: check the path")
    entries = sorted((entry for entry in path.iterdir() if not is_hidden(entry.name)), key=lambda entry: entry.name)
    if not entries:
        raise InputError(f"{path} is empty: put images in it, or remove it")
    folders = [entry for entry in entries if entry.is_dir()]
    return folders, by_name(entry for entry in entries if not entry.is_dir())
