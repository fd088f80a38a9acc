"""Files by their names, from a folder or an archive, and which of them are the part that is asked for."""

from dataclasses import dataclass, replace
from typing import Final

from dpdm.data.image_files import Found, ImageFile, is_image_name
from dpdm.data.layout import Split, choose_part, find_parts, in_order_of_classes
from dpdm.data.listing import find_listing
from dpdm.types import InputError

FOLDER: Final = "folder"  # the `group` of images whose groups are named by the folders they lie in


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

    def images(self) -> list[str]:
        """Return the names of files that claim to be images."""
        return [*filter(is_image_name, self.files)]

    def found(self, images: list[str]) -> Found:
        """Return these images, and all files that are none."""
        others = (file for name, file in self.files.items() if not is_image_name(name))
        return Found([self.files[name] for name in images], [*self.strays, *others])

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

    `is_part` says whether a name said that it is the part; `listed` is the tree that the listing is about, and
    `between` the folders from there to the part.
    """

    tree: Tree
    is_part: bool
    listing: ImageFile | None = None
    classes: ImageFile | None = None
    listed: Tree | None = None
    between: str = ""


def choose(tree: Tree, split: Split, *, num_classes: int | None, group: str | None, is_part: bool) -> Chosen:
    """Go down to the part that is asked for, through folders that hold everything.

    Raises:
        InputError: There is no such part, or a listing above another one, or images lie beside parts.
    """
    chosen, where = Chosen(tree, is_part), tree.where
    # One folder of images tells nothing of them: it is a class, or a group, only if that is declared.
    in_groups = group == FOLDER
    depth = int(in_groups) + int(num_classes == 1 or (in_groups and num_classes != 0))
    while True:
        here = chosen.tree
        listing, classes = find_listing([*here.loose()], here.where)
        chosen.classes = chosen.classes if classes is None else here.files[classes]
        if listing is not None:
            if chosen.listing is not None:
                raise InputError(f"{chosen.listing} lists labels, and so does {here.files[listing]}: remove one")
            chosen.listing, chosen.between = here.files[listing], ""
            kept = {name: file for name, file in here.files.items() if name not in (listing, classes)}
            chosen.listed = chosen.tree = here = replace(here, files=kept)
        top, loose = here.top(), next(filter(is_image_name, here.loose()), None)
        is_class = chosen.listing is not None or num_classes in (0, len(top))
        parts = find_parts(top, here.where, classes_if=is_class)
        if parts and loose is not None:
            beside = ", ".join(parts.values())
            raise InputError(f"{here.files[loose]} lies beside the parts {beside}: move it into one, or elsewhere")
        around = chosen.listing is None and len(top) == 1 and loose is None
        if not parts and not (around and _holds_more(here.inside(top[0], strays=False), depth)):
            return chosen
        name = parts[choose_part(parts, split, where)] if parts else top[0]
        chosen.is_part = chosen.is_part or bool(parts)
        chosen.tree, chosen.between = here.inside(name, strays=not parts), f"{chosen.between}{name}/"


def _holds_more(inside: Tree, depth: int) -> bool:
    """Whether a folder is no class and no group: it holds a listing, or folders that are these."""
    listing, _ = find_listing([*inside.loose()], inside.where)
    return listing is not None or max((name.count("/") for name in inside.images()), default=-1) >= depth
