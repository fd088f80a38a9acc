"""What lies at a path, and who opens it: files by their endings, folders by what is in them."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dpdm.data.arrays import load_npy, load_npz
from dpdm.data.binary import is_cifar_directory, is_idx_directory, is_idx_images, load_cifar, load_idx
from dpdm.data.class_folders import load_tree
from dpdm.data.declared import Asked, Records
from dpdm.data.image_files import is_image_name, what_instead
from dpdm.data.layout import CLASSES, choose_part, find_parts, is_hidden, one_of_each, part_in, plain_name
from dpdm.data.prepared import is_prepared, load_prepared
from dpdm.data.tables import is_arrow_directory, load_arrow_directory, load_parquet
from dpdm.data.tree import read_archive, read_folder
from dpdm.types import InputError

_OPENED: Final = (".zip", ".npz", ".npy", ".parquet")
_NO_RECORDS: Final = ("readme", "license", CLASSES, "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
_NUMBERED: Final = re.compile(r"-\d+-of-(\d+)$")
_DEEPEST = 4  # folders inside one another that are looked into for tables
_KINDS_OF_FOLDERS: Final = (
    (is_cifar_directory, load_cifar),
    (is_prepared, load_prepared),
    (is_arrow_directory, load_arrow_directory),
)


def open_path(path: Path, asked: Asked) -> Records:
    """Return the part that is asked for of what lies at a path."""
    if path.is_dir():
        return _open_folder(path, asked)
    match path.suffix.lower():
        case ".zip":
            return load_tree(read_archive(path), asked)
        case ".npz":
            return load_npz(path, asked)
        case ".npy":
            return load_npy(path, asked)
        case ".parquet":
            asked.require_whole(path)
            return load_parquet([path], asked)
    kinds = f"neither a folder nor a {', '.join(_OPENED[:-1])} or {_OPENED[-1]} file"
    if is_image_name(path.name):
        raise InputError(f"{path} is one image, {kinds}: give the folder of all images")
    raise InputError(f"{path} is {kinds}: {what_instead(path) or 'give one of these'}")


def _open_folder(path: Path, asked: Asked) -> Records:
    """Open a folder of image files, or choose what its part is, and open that as if its own path had been given."""
    if is_idx_directory(path):
        return load_idx(path, asked)
    for is_of_kind, load in _KINDS_OF_FOLDERS:
        if is_of_kind(path):
            return load(path, asked)
    if not _holds_tables(path):
        return load_tree(read_folder(path), asked)
    entries = {plain_name(entry.name, path): entry for entry in path.iterdir() if not is_hidden(entry.name)}
    about = {name for name in entries if name.lower().startswith(_NO_RECORDS) or name.lower().endswith(".md")}
    files = {name: entry for name, entry in entries.items() if entry.is_file() and name not in about}
    folders = {name: entry for name, entry in entries.items() if entry.is_dir()}
    if files and folders:
        raise InputError(f"{path} holds {min(files)} beside the folder {min(folders)}: give the path of one of them")
    if files:
        return _open_files(path, files, asked)
    parts = find_parts(folders, str(path))
    if parts:
        inner = folders[parts[choose_part(parts, asked.split, str(path))]]
        return open_path(inner, replace(asked, is_part=True))
    if len(folders) == 1:
        return open_path(next(iter(folders.values())), asked)
    raise InputError(f"{path} holds the data sets {', '.join(sorted(folders))}: give the path of one")


def _open_files(path: Path, files: dict[str, Path], asked: Asked) -> Records:
    """Open the files of one kind in a folder: tables of one data set, or one file for each part."""
    strangers = [name for name in files if not name.lower().endswith(_OPENED)]
    if strangers:
        known = min({*files} - {*strangers})
        raise InputError(f"{path} holds {known} beside {min(strangers)}, which is no such file: move it elsewhere")
    parts = {name: part for name in sorted(files) if (part := part_in(name)) is not None}
    if parts and len(parts) < len(files):
        raise InputError(
            f"{path} holds {min(parts)} and {min({*files} - {*parts})}: call all files by their parts (train, val, "
            "test), or none, or give the path of one"
        )
    if parts:
        choose_part(parts.values(), asked.split, str(path))
        asked = replace(asked, is_part=True)
    if all(name.lower().endswith(".parquet") for name in files):
        asked.require_whole(path)
        shards = [file for name, file in sorted(files.items()) if not parts or parts[name] == asked.split]
        _require_all(shards)
        return load_parquet(shards, asked)
    if not parts and len(files) > 1:
        raise InputError(f"{path} holds {', '.join(sorted(files))}: give the path of one, or call them by their parts")
    name = one_of_each(parts, str(path))[asked.split] if parts else next(iter(files))
    return open_path(files[name], asked)


def _require_all(shards: Sequence[Path]) -> None:
    """Raise InputError if the name of a shard says that there are more of them, as `train-00000-of-00002` does."""
    numbered = [(shard, found) for shard in shards if (found := _NUMBERED.search(shard.stem)) is not None]
    for shard, found in numbered:
        start, number = shard.stem[: found.start()], int(found[1])
        alike = sum(other.stem.startswith(start) for other, _ in numbered)
        if alike != number:
            raise InputError(f"{shard} is one of {number} files, and {alike} are there: fetch the others")


def _holds_tables(path: Path, depth: int = _DEEPEST) -> bool:
    """Whether a folder, or one inside it, holds what is opened and is no image file."""
    if any(is_of_kind(path) for is_of_kind, _ in _KINDS_OF_FOLDERS):
        return True
    try:
        entries = [entry for entry in os.scandir(path) if not is_hidden(entry.name)]
    except OSError:
        return False  # which is said when it is opened
    names = [entry.name for entry in entries if not entry.is_dir()]
    if any(map(is_image_name, names)):
        return False
    if any(name.lower().endswith(_OPENED) or is_idx_images(name) for name in names):
        return True
    folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    return depth > 0 and any(_holds_tables(folder, depth - 1) for folder in folders)
