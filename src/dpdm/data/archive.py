"""Image files in a .zip archive, the form in which the tools around StyleGAN and EDM keep a data set."""

import zipfile
from pathlib import Path

from dpdm.data.class_folders import load_tree
from dpdm.data.dataset import ImageDataset
from dpdm.data.image_files import ImageFile, ReadImages, read_images
from dpdm.data.layout import Split, is_hidden, normal_form
from dpdm.data.tree import Tree
from dpdm.types import InputError, explained

_UTF8 = 0x800  # the flag of a member whose name is UTF-8


def load_archive(
    path: Path,
    split: Split = "train",
    read: ReadImages = read_images,
    *,
    num_classes: int | None = None,
    group: str | None = None,
    chosen: bool = False,
) -> ImageDataset:
    """Return the images of a .zip archive, as of the folder that it was made of; nothing is extracted to disk.

    Folders that have no entry of their own are known by their images only, which must not tell the classes: these must
    then be declared.

    Args:
        path: The archive.
        split: Which part, as in `load_folder`.
        read: Decodes and frames the images, which must agree on size and channels.
        num_classes: How many classes there are, as in `load_folder`.
        group: What names the group of an image, as in `load_folder`.
        chosen: Whether the archive is that part by its own name.

    Raises:
        InputError: If it is no such archive, or what `load_folder` raises it for.
    """
    # zipfile answers damaged archives with many exceptions.
    with explained(lambda e: f"{path} is no .zip archive that can be read ({e}): make or fetch it again", Exception):
        archive = zipfile.ZipFile(path)
    with archive:
        tree = _members(archive, path)
        return load_tree(tree, split, read, num_classes=num_classes, group=group, chosen=chosen)


def _members(archive: zipfile.ZipFile, path: Path) -> Tree:
    """Return what is in an archive, without hidden entries."""
    files: dict[str, ImageFile] = {}
    folders: set[str] = set()
    for entry in archive.infolist():
        raw, name = entry.filename, normal_form(_name(entry))
        parts = name.removesuffix("/").split("/")
        if any(map(is_hidden, parts)) and not {"", ".", ".."} & {*parts}:
            continue
        odd = "\\" in name or name.splitlines() != [name] or not {"", ".", ".."}.isdisjoint(parts)
        if odd or name in files or name.removesuffix("/") in folders:
            what = "a name that is no plain path" if odd else "two files of one name"
            raise InputError(f"{path} holds {what}, {name!r}: make it again from a folder")
        if name.endswith("/"):
            folders.add(name.removesuffix("/"))
        else:
            files[name] = zipfile.Path(archive, raw)
    return Tree(str(path), dict(sorted(files.items(), key=lambda item: item[0].split("/"))), frozenset(folders))


def _name(entry: zipfile.ZipInfo) -> str:
    """Return the name of a member; macOS writes UTF-8 without saying so, which `zipfile` then reads as a DOS name."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename
