"""Image files in a .zip archive, the form in which the tools around StyleGAN and EDM keep a data set."""

import posixpath
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dpdm.data.dataset import ImageDataset, Split, group_indices
from dpdm.data.folder import require_folder
from dpdm.data.image_files import (
    Found,
    ReadImages,
    by_name,
    is_hidden,
    is_image_name,
    load_image_files,
    read_images,
)
from dpdm.data.listing import CLASSES, CSV, JSON, read_listing
from dpdm.types import InputError


def load_archive(
    path: Path,
    split: Split = "train",
    read: ReadImages = read_images,
    *,
    num_classes: int | None = None,
    group: str | None = None,
) -> ImageDataset:
    """Return the images of a .zip archive, in the order of their names; nothing is extracted to disk.

    Without a listing an archive is read as a folder is: loose images, or class folders. Folders that have no entry of
    their own are known by their images only, which must not tell the classes: these must then be declared. With a
    listing (`dataset.json` or `labels.csv`, see `read_listing`) images may lie at any depth.

    Args:
        path: The archive.
        split: Which part, `train/` or `test/`; an archive without these two folders is its own train part.
        read: Decodes and frames the images, which must agree on size and channels.
        num_classes: How many classes there are; 0 takes images at any depth and leaves labels aside. The labels of
            a listing need it, or a `classes.txt`, since they must not tell.
        group: What names the group of an image, as in `load_folder`.

    Raises:
        InputError: If the archive is damaged or lacks the part, a file is no image, sizes or channels differ, or
            a listing does not give each image one label within the declared classes; or an image has no group.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile answers damaged bytes with many exceptions.
        raise InputError(f"{path} is no .zip archive that can be read ({error}): make or fetch it again") from error
    with archive:
        entries = _entries(archive, path, split)
        listings = [entries.pop(name) for name in (JSON, CSV) if name in entries]
        classes_file = entries.pop(CLASSES, None) if listings else None
        if len(listings) > 1:
            raise InputError(f"{path} has both {JSON} and {CSV}: remove one")
        files = {name: entry for name, entry in entries.items() if not entry.is_dir()}
        found = by_name(files.values())
        if not found.images:
            raise InputError(f"{path} holds no images: put some in")
        names = [*filter(is_image_name, files)]
        if num_classes == 0 and group is None:
            return ImageDataset(images=read(*found), name=str(path))
        if listings:
            listed = read_listing(listings[0], classes_file, names, num_classes=num_classes, group=group)
            if listed.labels is not None or group is not None:
                return ImageDataset(images=read(*found), **listed._asdict(), name=str(path))
        require_folder(group, str(path))
        loose, classes = (found, {}) if listings else _by_class(entries)
        members = {} if group is None else {name: files[name] for name in names}
        groups = None if group is None else group_indices(_folders_of_groups(members, num_classes), str(path))
        if num_classes == 0:
            return ImageDataset(images=read(*found), groups=groups, name=str(path))
        data = load_image_files(
            loose,
            list(classes),
            lambda name: _class_files(classes[name], declared=num_classes is not None, in_groups=group is not None),
            read=read,
            num_classes=num_classes,
            where=str(path),
        )
        return data if groups is None else replace(data, groups=groups)


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
    has_parts = top >= {"train", "test"} and not {JSON, CSV} & names
    if split == "test" and not has_parts:
        raise InputError(f"{path} has no folders train/ and test/: give the archive of the test images itself")
    root = f"{split}/" if has_parts else ""
    chosen = sorted((name for name in names if name.startswith(root) and name != root), key=lambda n: n.split("/"))
    return {name.removeprefix(root): zipfile.Path(archive, name) for name in chosen}


def _by_class(entries: Mapping[str, zipfile.Path]) -> tuple[Found, dict[str, dict[str, zipfile.Path]]]:
    """Return the files outside folders, and the entries in each folder by their names there, itself by ""."""
    loose: list[zipfile.Path] = []
    classes: dict[str, dict[str, zipfile.Path]] = {}
    for name, entry in entries.items():
        folder, slash, rest = name.partition("/")
        if slash:
            classes.setdefault(folder, {})[rest] = entry
        else:
            loose.append(entry)
    return by_name(loose), classes


def _folders_of_groups(images: Mapping[str, zipfile.Path], num_classes: int | None) -> list[str]:
    """Return the name of the folder that each image lies in: inside of a class folder or, without classes, anywhere."""
    for name, entry in images.items():
        if "/" not in name or (num_classes != 0 and name.count("/") != 2):
            raise InputError(f"{entry} lies in no folder that names its group, inside of a class folder: move it")
    return [name.split("/")[-2] for name in images]


def _class_files(inside: Mapping[str, zipfile.Path], *, declared: bool, in_groups: bool) -> Found:
    """Return the files of one class, whose folder has an entry of its own unless classes are declared."""
    for name, entry in inside.items():
        if "/" in name and not in_groups:
            raise InputError(
                f"{posixpath.dirname(str(entry))} is a folder inside a class folder: move its images up or, if it is "
                "of one person's images, say, set data.group=folder"
            )
    files = [entry for name, entry in inside.items() if name and not name.endswith("/")]
    if not files:
        raise InputError(f"{next(iter(inside.values()))} is empty: put images in it, or remove it")
    if not declared and "" not in inside:
        raise InputError(
            f"{posixpath.dirname(str(files[0]))} has no entry of its own, and images must not tell which classes there "
            "are: declare how many with --set data.num_classes=10, or make it with entries for folders (zip -r)"
        )
    return by_name(files)
