"""What lies at a path, and who opens it: files by their endings, folders by what is in them.

Of a folder that holds no image files but tables, arrays or archives, the part is chosen by the names of these or of the
folders they lie in, and then opened as if its own path had been given.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dpdm.data.archive import load_archive
from dpdm.data.arrays import load_npy, load_npz
from dpdm.data.cifar import is_cifar_directory, load_cifar_directory
from dpdm.data.dataset import ImageDataset, require_no_groups, require_same_num_classes
from dpdm.data.folder import load_folder
from dpdm.data.framing import Framing
from dpdm.data.idx import is_idx_directory, is_idx_images, load_idx_directory
from dpdm.data.image_files import ReadImages, is_image_name, what_instead
from dpdm.data.layout import Split, choose_part, find_parts, is_hidden, one_of_each, part_in, plain_name, require_whole
from dpdm.data.listing import CLASSES
from dpdm.data.prepared import is_prepared, load_prepared
from dpdm.data.tables import is_arrow_directory, load_arrow_directory, load_parquet
from dpdm.types import InputError

_OPENED: Final = (".zip", ".npz", ".npy", ".parquet")
_NO_RECORDS: Final = ("readme", "license", CLASSES, "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
_NUMBERED: Final = re.compile(r"-\d+-of-(\d+)$")
_DEEPEST = 4  # folders inside one another that are looked into for tables


@dataclass(frozen=True)
class Asked:
    """What is asked of a source, as `open_dataset` has it.

    `is_part` says that a name further up is that of the part: what lies below is its own.
    """

    split: Split
    read: ReadImages
    framing: Framing
    num_classes: int | None
    group: str | None
    is_part: bool = False

    def whole(self, path: Path) -> None:
        """Refuse another part than `train` of what has no parts."""
        if not self.is_part:
            require_whole(self.split, path)


def open_path(path: Path, asked: Asked) -> ImageDataset:
    """Return the part of what lies at a path that is asked for.

    Raises:
        InputError: It is of no kind that is opened, or has no such part.
    """
    if path.is_dir():
        return _open_folder(path, asked)
    num_classes, group = asked.num_classes, asked.group
    match path.suffix.lower():
        case ".zip":
            return load_archive(
                path, asked.split, asked.read, num_classes=num_classes, group=group, chosen=asked.is_part
            )
        case ".npz":
            return load_npz(path, asked.split, num_classes=num_classes, group=group, chosen=asked.is_part)
        case ".npy":
            asked.whole(path)
            require_no_groups(group, str(path))
            require_same_num_classes(0, num_classes, str(path))
            return load_npy(path)
        case ".parquet":
            asked.whole(path)
            return load_parquet([path], asked.read, num_classes=num_classes, group=group)
    kinds = f"neither a folder nor a {', '.join(_OPENED[:-1])} or {_OPENED[-1]} file"
    if is_image_name(path.name):
        raise InputError(f"{path} is one image, {kinds}: give the folder of all images")
    raise InputError(f"{path} is {kinds}: {what_instead(path) or 'give one of these'}")


def _open_folder(path: Path, asked: Asked) -> ImageDataset:
    num_classes, group = asked.num_classes, asked.group
    if is_idx_directory(path):
        require_no_groups(group, str(path))
        return load_idx_directory(path, asked.split, num_classes=num_classes)
    if is_cifar_directory(path):
        require_no_groups(group, str(path))
        return load_cifar_directory(path, asked.split, num_classes=num_classes)
    if is_prepared(path):
        asked.whole(path)
        return load_prepared(path, asked.framing, num_classes=num_classes, group=group)
    if is_arrow_directory(path):
        asked.whole(path)
        return load_arrow_directory(path, asked.read, num_classes=num_classes, group=group)
    if not _holds_tables(path):
        return load_folder(
            path, asked.read, split=asked.split, num_classes=num_classes, group=group, chosen=asked.is_part
        )
    entries = {plain_name(entry.name, path): entry for entry in path.iterdir() if not is_hidden(entry.name)}
    files = {name: entry for name, entry in entries.items() if entry.is_file() and not _is_about(name)}
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


def _open_files(path: Path, files: dict[str, Path], asked: Asked) -> ImageDataset:
    """Open the files of one kind in a folder: tables of one data set, or one file for each part."""
    stranger = next((name for name in sorted(files) if not name.lower().endswith(_OPENED)), None)
    if stranger is not None:
        known = [name for name in sorted(files) if name.lower().endswith(_OPENED)]
        raise InputError(f"{path} holds {known[0]} beside {stranger}, which is no such file: move it elsewhere")
    parts = {name: part for name in sorted(files) if (part := part_in(name)) is not None}
    if parts and len(parts) < len(files):
        raise InputError(
            f"{path} holds {min(parts)} and {min({*files} - {*parts})}: call all files by their parts (train, val, "
            "test), or none, or give the path of one"
        )
    are_tables = all(name.lower().endswith(".parquet") for name in files)
    if parts:
        choose_part(parts.values(), asked.split, str(path))
        asked = replace(asked, is_part=True)
        if not are_tables:
            return open_path(files[one_of_each(parts, str(path))[asked.split]], asked)
    elif len(files) > 1 and not are_tables:
        raise InputError(f"{path} holds {', '.join(sorted(files))}: give the path of one, or call them by their parts")
    if not are_tables:
        return open_path(next(iter(files.values())), asked)
    asked.whole(path)
    shards = [file for name, file in sorted(files.items()) if not parts or parts[name] == asked.split]
    _require_all(shards)
    return load_parquet(shards, asked.read, num_classes=asked.num_classes, group=asked.group)


def _require_all(shards: Sequence[Path]) -> None:
    """Raise InputError if the name of a shard says that there are more of them, as `train-00000-of-00002` does."""
    for shard in shards:
        said = _NUMBERED.search(shard.stem)
        start = "" if said is None else shard.stem[: said.start()]
        alike = [other for other in shards if other.stem.startswith(start) and _NUMBERED.search(other.stem)]
        if said is not None and len(alike) != int(said[1]):
            raise InputError(f"{shard} is one of {int(said[1])} files, and {len(alike)} are there: fetch the others")


def _is_about(name: str) -> bool:
    """Whether a file that lies beside tables tells about them, and has no records."""
    return name.lower().startswith(_NO_RECORDS) or name.lower().endswith(".md")


def _holds_tables(path: Path, depth: int = _DEEPEST) -> bool:
    """Whether a folder, or one inside it, holds what is opened and is no image file."""
    if is_prepared(path) or is_arrow_directory(path) or is_cifar_directory(path):
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
