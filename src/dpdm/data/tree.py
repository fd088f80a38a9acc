"""Files by their names, from a folder or an archive, and which of them are the part that is asked for."""

import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dpdm.data.declared import Asked
from dpdm.data.image_files import ImageFile, is_image_name
from dpdm.data.layout import (
    choose_part,
    find_listing,
    find_parts,
    in_order_of_classes,
    is_hidden,
    normal_form,
    plain_name,
)
from dpdm.files import damaged
from dpdm.types import InputError

FOLDER: Final = "folder"  # the `group` of images whose groups are named by the folders they lie in
_UTF8 = 0x800  # the flag of an archive's member whose name is UTF-8


@dataclass(frozen=True)
class Tree:
    """Files by their names in Unicode's NFC, with / between folders, sorted, without what systems leave.

    `folders` are those with an entry of their own: in an archive only these are declared. `strays` are files beside a
    folder that was looked through.
    """

    where: str
    files: dict[str, ImageFile]
    folders: frozenset[str]
    strays: tuple[ImageFile, ...] = ()

    def top(self) -> list[str]:
        """Return the names of the folders at the top, in the order of classes."""
        inside = {name.partition("/")[0] for name in self.files if "/" in name}
        return in_order_of_classes(inside | {name.partition("/")[0] for name in self.folders})

    def loose(self) -> dict[str, ImageFile]:
        """Return the files at the top."""
        return {name: file for name, file in self.files.items() if "/" not in name}

    def loose_image(self) -> str | None:
        """Return the name of the first image at the top, if there is one."""
        return next(filter(is_image_name, self.loose()), None)

    def images(self) -> list[str]:
        """Return the names of files that claim to be images."""
        return [*filter(is_image_name, self.files)]

    def others(self) -> list[ImageFile]:
        """Return all files that claim to be no images."""
        return [*self.strays, *(file for name, file in self.files.items() if not is_image_name(name))]

    def inside(self, folder: str, *, strays: bool) -> "Tree":
        """Return what is in a folder, with or without the files that lie beside it."""
        start = f"{folder}/"
        return Tree(
            f"{self.where}/{folder}",
            {name.removeprefix(start): file for name, file in self.files.items() if name.startswith(start)},
            frozenset(name.removeprefix(start) for name in self.folders if name.startswith(start)),
            (*self.strays, *self.loose().values()) if strays else (),
        )


@dataclass
class Chosen:
    """The part of a tree that is opened, and the listing in it or above, if there is one.

    `asked.is_part` says whether a name said that it is the part. `where` is the whole source. `listed` is the tree that
    the listing is about, and `between` the folders from there to the part.
    """

    tree: Tree
    asked: Asked
    where: str
    listed: Tree
    listing: ImageFile | None = None
    classes: ImageFile | None = None
    between: str = ""

    def take_listing(self) -> None:
        """Take the listing and the names of classes, if they are there, out of the files at the top."""
        here = self.tree
        listing, classes = find_listing(here.loose(), here.where)
        self.classes = self.classes if classes is None else here.files[classes]
        if listing is None:
            return
        if self.listing is not None:
            raise InputError(f"{self.listing} lists labels, and so does {here.files[listing]}: remove one")
        kept = {name: file for name, file in here.files.items() if name not in (listing, classes)}
        self.listing, self.between = here.files[listing], ""
        self.listed = self.tree = replace(here, files=kept)


def choose(tree: Tree, asked: Asked) -> Chosen:
    """Go down to the part that is asked for, through folders that hold everything."""
    chosen, num_classes = Chosen(tree, asked, tree.where, tree), asked.num_classes
    # One folder of images tells nothing of them: it is a class, or a group, only if that is declared.
    in_groups = asked.group == FOLDER
    depth = int(in_groups) + int(num_classes == 1 or (in_groups and num_classes != 0))
    while True:
        chosen.take_listing()
        here = chosen.tree
        top, loose = here.top(), here.loose_image()
        is_class = chosen.listing is not None or num_classes in (0, len(top))
        parts = find_parts(top, here.where, classes_if=is_class)
        if parts and loose is not None:
            beside = ", ".join(parts.values())
            raise InputError(f"{here.files[loose]} lies beside the parts {beside}: move it into one, or elsewhere")
        around = chosen.listing is None and len(top) == 1 and loose is None
        if not parts and not (around and _holds_more(here.inside(top[0], strays=False), depth)):
            return chosen
        name = parts[choose_part(parts, asked.split, tree.where)] if parts else top[0]
        chosen.asked = replace(chosen.asked, is_part=chosen.asked.is_part or bool(parts))
        chosen.tree, chosen.between = here.inside(name, strays=not parts), f"{chosen.between}{name}/"


def _holds_more(inside: Tree, depth: int) -> bool:
    """Whether a folder is no class and no group: it holds a listing, or folders that are these."""
    listing, _ = find_listing(inside.loose(), inside.where)
    return listing is not None or max((name.count("/") for name in inside.images()), default=-1) >= depth


def read_folder(path: Path) -> Tree:
    """Return what is in a folder and in all folders inside it, through links too, without hidden entries."""
    files: dict[str, ImageFile] = {}
    folders: set[str] = set()
    to_read = [(path, "", frozenset({os.path.realpath(path)}))]
    while to_read:
        folder, start, above = to_read.pop()
        with damaged(folder, "check who may read it"):
            entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
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
    return Tree(str(path), _in_order(files), frozenset(folders))


def read_archive(path: Path) -> Tree:
    """Return what is in a .zip archive, without hidden entries; it stays open as long as its files are known."""
    with damaged(path, "make or fetch it again", what="is no .zip archive that can be read"):
        archive = zipfile.ZipFile(path)
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
    return Tree(str(path), _in_order(files), frozenset(folders))


def _name(entry: zipfile.ZipInfo) -> str:
    """Return the name of a member; macOS writes UTF-8 without saying so, which `zipfile` then reads as a DOS name."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


def _in_order(files: dict[str, ImageFile]) -> dict[str, ImageFile]:
    return dict(sorted(files.items(), key=lambda item: item[0].split("/")))
