"""Images in folders or an archive with labels and groups: of class folders, or as a listing says."""

from pathlib import PurePosixPath

import numpy as np

from dpdm.data.declared import Asked, Records
from dpdm.data.image_files import FilesByKind, ImageFile, may_list_labels, why_no_image
from dpdm.data.layout import part_in
from dpdm.data.listing import load_listed
from dpdm.data.tree import FOLDER, Tree, choose
from dpdm.types import InputError


def load_tree(tree: Tree, asked: Asked) -> Records:
    """Return the images of a part of a tree, in the order of classes and of names, with their labels and groups.

    The names of class folders are the declaration of the classes, so nothing is read off the records. With a listing
    (see `load_listed`) images may lie at any depth. A single folder around all images is looked through; it is a class
    only if one class is declared. In an archive, folders without an entry of their own are known by their images only,
    which must not tell the classes: these must then be declared. Files that are no images by their names come back as
    `others`: no record vanishes unnoticed.

    No classes declared (`num_classes` of 0) takes images at any depth. The group "folder" is the folder that an image
    lies in, inside of a class folder (one name in two classes is one group). If there are no classes, that folder may
    be anywhere.
    """
    part = choose(tree, asked)
    images, others = part.tree.images(), part.tree.others()
    if not images:
        raise InputError(why_no_image(others[0]) if others else f"{tree.where} holds no images: put some in")
    if part.listing is not None:
        return load_listed(part)
    part.asked.require_whole(tree.where)
    if asked.group not in (None, FOLDER):
        raise InputError(
            f"{tree.where} has no labels.csv with a column {asked.group!r}: add it, or set data.group=folder, if there "
            "is a folder for each group inside the class folders"
        )
    names = {"": images} if asked.num_classes == 0 else _by_class(part.tree, asked)
    classes = tuple(name for name in names if name)
    if asked.num_classes not in (None, len(classes)) and (listing := next(filter(may_list_labels, others), None)):
        raise InputError(why_no_image(listing))  # or else the number of classes would seem to be wrong
    ordered = [name for inside in names.values() for name in inside]
    return Records(
        tree.where,
        FilesByKind([part.tree.files[name] for name in ordered], others),
        labels=np.repeat(np.arange(len(classes)), [len(names[name]) for name in classes]) if classes else None,
        class_names=classes,
        groups=None if asked.group is None else [_folder_of(part.tree, name) for name in ordered],
    )


def _by_class(tree: Tree, asked: Asked) -> dict[str, list[str]]:
    """Return the names of the images of each class, in the order of classes; of "" where there are no classes."""
    top, loose = tree.top(), tree.loose_image()
    if loose is not None:
        if asked.group is not None:
            raise InputError(_in_no_group(tree.files[loose]))
        if top:
            raise InputError(
                f"{tree.where} holds images ({loose}) beside class folders ({top[0]}): "
                "move every image into a class folder, or all of them out"
            )
        return {"": tree.images()}
    _check_folders(tree, asked)
    names: dict[str, list[str]] = {name: [] for name in top}
    for name in tree.images():
        if asked.group is not None and name.count("/") == 1:
            raise InputError(_in_no_group(tree.files[name]))
        names[name.partition("/")[0]].append(name)
    return names


def _check_folders(tree: Tree, asked: Asked) -> None:
    """Raise InputError unless all folders are those of classes, or of groups in them, and are declared."""
    holding = {name.rpartition("/")[0] for name in (*tree.files, *tree.folders)}
    above = {str(folder) for inner in holding for folder in (PurePosixPath(inner), *PurePosixPath(inner).parents)} - {
        "."
    }
    for folder in sorted(tree.folders | above):
        if folder.count("/") > int(asked.group is not None):
            raise InputError(_too_deep(f"{tree.where}/{folder}", folder))
        if folder not in above:
            raise InputError(f"{tree.where}/{folder} is empty: put images in it, or remove it")
    for folder in tree.top():
        if asked.num_classes is None and folder not in tree.folders:
            raise InputError(
                f"{tree.where}/{folder} has no entry of its own, and classes must not be read off the images: declare "
                "how many there are, --set data.num_classes=10, or make the archive with entries for folders (zip -r)"
            )


def _folder_of(tree: Tree, name: str) -> str:
    """Return the name of the folder that an image lies in."""
    if "/" not in name:
        raise InputError(_in_no_group(tree.files[name]))
    return name.split("/")[-2]


def _in_no_group(image: ImageFile) -> str:
    return (
        f"{image} lies in no folder that names its group: move it into one inside of its class folder or, if there are "
        "no classes, set data.num_classes=0"
    )


def _too_deep(folder: str, name: str) -> str:
    """Say what to do about a folder inside a class folder; it is no group if names look like parts."""
    if any(map(part_in, name.split("/"))):
        return f"{folder} is a folder inside a class folder: folders train, val and test must lie above all classes"
    return (
        f"{folder} is a folder inside a class folder: move its images up or, if it is of one person's images, "
        "say, set data.group=folder"
    )
