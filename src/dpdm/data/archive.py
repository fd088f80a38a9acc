"""Image files in a .zip archive, the form in which the tools around StyleGAN and EDM keep a data set."""

import json
import posixpath
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from dpdm.data.dataset import ImageDataset, Split, require_declared
from dpdm.data.framing import Framing
from dpdm.data.image_files import is_hidden, load_image_files, read_images, require_image_name
from dpdm.types import InputError, Labels

_LISTING: Final = "dataset.json"


def load_archive(
    path: Path, split: Split = "train", framing: Framing | None = None, *, num_classes: int | None = None
) -> ImageDataset:
    """Return the images of a .zip archive, in the order of their names; nothing is extracted to disk.

    Without a `dataset.json` an archive is read as a folder is: loose images, or class folders. Folders that have no
    entry of their own are known by their images only, which must not tell the classes: these must then be declared.
    With a `dataset.json` images may lie at any depth: {"labels": [["00000/img00000000.png", 3], ...]} gives each its
    label, {"labels": null} none.

    Args:
        path: The archive.
        split: Which part, `train/` or `test/`; an archive without these two folders is its own train part.
        framing: Size and channels; where it leaves them open, all images must agree.
        num_classes: How many classes there are; 0 takes images at any depth and leaves labels aside. The labels of
            `dataset.json` need it, since they must not tell.

    Raises:
        InputError: If the archive is damaged or lacks the part, a file is no image, sizes or channels differ, or
            `dataset.json` does not give each image one label within the declared classes.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile answers damaged bytes with many exceptions.
        raise InputError(f"{path} is no .zip archive that can be read ({error}): make or fetch it again") from error
    with archive:
        entries = _entries(archive, path, split)
        listing = entries.pop(_LISTING, None)
        images = {name: entry for name, entry in entries.items() if not entry.is_dir()}
        if not images:
            raise InputError(f"{path} holds no images: put some in")
        for image in images.values():
            require_image_name(image)
        files = list(images.values())
        if num_classes == 0:
            return ImageDataset(images=read_images(files, framing), name=str(path))
        labels = None if listing is None else _labels(listing, images, num_classes or 0)
        if labels is not None:
            return ImageDataset(
                images=read_images(files, framing), labels=labels, num_classes=num_classes or 0, name=str(path)
            )
        loose, classes = _by_class(entries) if listing is None else (files, {})
        return load_image_files(
            loose,
            list(classes),
            lambda name: _class_files(classes[name], declared=num_classes is not None),
            framing=framing,
            num_classes=num_classes,
            where=str(path),
        )


def _entries(archive: zipfile.ZipFile, path: Path, split: Split) -> dict[str, zipfile.Path]:
    """Return what is in a part of an archive by its name there, sorted as in folders, without hidden entries."""
    names: set[str] = set()
    for name in (entry.filename for entry in archive.infolist()):
        parts = name.removesuffix("/").split("/")
        odd = "\\" in name or name.splitlines() != [name] or not {"", ".", ".."}.isdisjoint(parts)
        if odd or name in names:
            what = "a name that is no plain path" if odd else "two files of one name"
            raise InputError(f"{path} holds {what}, {name!r}: make it again from a folder")
        if not any(map(is_hidden, parts)):
            names.add(name)
    top = {name.partition("/")[0] for name in names if "/" in name}
    has_parts = top >= {"train", "test"} and _LISTING not in names
    if split == "test" and not has_parts:
        raise InputError(f"{path} has no folders train/ and test/: give the archive of the test images itself")
    root = f"{split}/" if has_parts else ""
    chosen = sorted((name for name in names if name.startswith(root) and name != root), key=lambda n: n.split("/"))
    return {name.removeprefix(root): zipfile.Path(archive, name) for name in chosen}


def _by_class(entries: Mapping[str, zipfile.Path]) -> tuple[list[zipfile.Path], dict[str, dict[str, zipfile.Path]]]:
    """Return the entries outside folders, and those in each folder by their names there, itself by ""."""
    loose: list[zipfile.Path] = []
    classes: dict[str, dict[str, zipfile.Path]] = {}
    for name, entry in entries.items():
        folder, slash, rest = name.partition("/")
        if slash:
            classes.setdefault(folder, {})[rest] = entry
        else:
            loose.append(entry)
    return loose, classes


def _class_files(inside: Mapping[str, zipfile.Path], *, declared: bool) -> list[zipfile.Path]:
    """Return the image files of one class, whose folder has an entry of its own unless classes are declared."""
    for name, entry in inside.items():
        if "/" in name:
            raise InputError(f"{posixpath.dirname(str(entry))} is a folder inside a class folder: move its images up")
    files = [entry for name, entry in inside.items() if name]
    if not files:
        raise InputError(f"{inside['']} is empty: put images in it, or remove it")
    if not declared and "" not in inside:
        raise InputError(
            f"{posixpath.dirname(str(files[0]))} has no entry of its own, and images must not tell which classes there "
            "are: declare how many with --set data.num_classes=10, or make it with entries for folders (zip -r)"
        )
    return files


def _labels(listing: zipfile.Path, images: Mapping[str, zipfile.Path], num_classes: int) -> Labels | None:
    """Return the label of each image, or None if the listing says that there are none."""
    try:
        stated = json.loads(listing.read_bytes())["labels"]
        pairs = None if stated is None else [(str(name), label) for name, label in stated]
    except Exception as error:  # Damage to the archive, or whatever else JSON can hold.
        form = '{"labels": [["a.png", 3], ...]} or {"labels": null}'
        raise InputError(f"{listing} cannot be read as {form}: correct it") from error
    if pairs is None:
        return None
    require_declared(num_classes, str(listing))
    labels: dict[str, int] = {}
    for name, label in pairs:
        if name not in images:
            raise InputError(f"{listing} has a label for {name!r}, which is no image there: remove it")
        if name in labels:
            raise InputError(f"{listing} has two labels for {name!r}: remove one")
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError(
                f"{listing}: the label of {name!r} is no integer from 0 to {num_classes - 1}: "
                "correct it or data.num_classes"
            )
        labels[name] = label
    for name, image in images.items():
        if name not in labels:
            raise InputError(f"{image} has no label in {_LISTING}: add it")
    return np.array([labels[name] for name in images])
