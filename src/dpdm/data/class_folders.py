"""Images in folders or an archive with labels and groups: of class folders, or as a listing says."""

import numpy as np

from dpdm.data.dataset import ImageDataset, group_indices, require_same_num_classes
from dpdm.data.image_files import ImageFile, ReadImages, is_image_name, may_list_labels, no_images, why_no_image
from dpdm.data.layout import Split, part_in, require_whole
from dpdm.data.listing import read_listing
from dpdm.data.tree import FOLDER, Chosen, Tree, choose
from dpdm.types import InputError


def load_tree(
    tree: Tree, split: Split, read: ReadImages, *, num_classes: int | None, group: str | None, chosen: bool = False
) -> ImageDataset:
    """Return the images of a part of a tree, in the order of classes and of names, with their labels and groups.

    Args:
        tree: All files.
        split: Which part; a tree without parts is its own train part.
        read: Decodes and frames the images.
        num_classes: As in `load_folder`.
        group: As in `load_folder`.
        chosen: Whether the tree is this part already.

    Raises:
        InputError: The part is missing, or names do not say which class, part or group each image belongs to.
    """
    part = choose(tree, split, num_classes=num_classes, group=group, is_part=chosen)
    images, others = part.tree.found(part.tree.images())
    if not images:
        raise InputError(why_no_image(others[0]) if others else no_images(tree.where))
    if part.listing is not None:
        return _load_listed(part, split, read, num_classes, group, tree.where)
    if not part.is_part:
        require_whole(split, tree.where)
    require_folder(group, tree.where)
    names = {"": part.tree.images()} if num_classes == 0 else _by_class(part.tree, num_classes, group)
    classes = [name for name in names if name]
    if num_classes and len(classes) != num_classes and (listing := next(filter(may_list_labels, others), None)):
        raise InputError(why_no_image(listing))  # or else the number of classes would seem to be wrong
    require_same_num_classes(len(classes), num_classes, tree.where)
    ordered = [name for inside in names.values() for name in inside]
    groups = None if group is None else group_indices([_folder_of(part.tree, name) for name in ordered], tree.where)
    return ImageDataset(
        images=read(*part.tree.found(ordered)),
        labels=np.repeat(np.arange(len(classes)), [len(names[name]) for name in classes]) if classes else None,
        num_classes=len(classes),
        class_names=tuple(classes),
        groups=groups,
        name=tree.where,
    )


def require_folder(group: str | None, where: str) -> None:
    """Raise InputError if what shall name the groups of images in folders is something else than folders."""
    if group not in (None, FOLDER):
        raise InputError(
            f"{where} has no labels.csv with a column {group!r}: add it, or set data.group=folder, if there is a "
            "folder for each group inside the class folders"
        )


def _load_listed(
    part: Chosen, split: Split, read: ReadImages, num_classes: int | None, group: str | None, where: str
) -> ImageDataset:
    """Return the images at any depth of a part, with the labels of its listing."""
    assert part.listing is not None
    assert part.listed is not None
    listed = read_listing(
        part.listing,
        part.classes,
        [f"{part.between}{name}" for name in part.tree.images()],
        elsewhere=part.listed.images(),
        split=None if part.is_part else split,
        num_classes=num_classes,
        group=group,
        where=where,
    )
    _, others = part.tree.found([])
    return ImageDataset(
        images=read([part.listed.files[name] for name in listed.images], others),
        labels=listed.labels,
        num_classes=listed.num_classes,
        class_names=listed.class_names,
        groups=listed.groups,
        name=where,
    )


def _by_class(tree: Tree, num_classes: int | None, group: str | None) -> dict[str, list[str]]:
    """Return the names of the images of each class, in the order of classes; of "" where there are no classes."""
    top, loose = tree.top(), next(filter(is_image_name, tree.loose()), None)
    if loose is not None:
        if group is not None:
            raise InputError(_in_no_group(tree.files[loose]))
        if top:
            raise InputError(
                f"{tree.where} holds images ({loose}) beside class folders ({top[0]}): "
                "move every image into a class folder, or all of them out"
            )
        return {"": tree.images()}
    above: set[str] = set()  # all folders that something lies in
    for name in (*tree.files, *tree.folders):
        folder = name.rpartition("/")[0]
        while folder and folder not in above:
            above.add(folder)
            folder = folder.rpartition("/")[0]
    for folder in sorted(tree.folders | above):
        if folder.count("/") > int(group is not None):
            raise InputError(_too_deep(f"{tree.where}/{folder}", folder))
        if folder not in above:
            raise InputError(f"{tree.where}/{folder} is empty: put images in it, or remove it")
    for folder in sorted(above):
        if num_classes is None and "/" not in folder and folder not in tree.folders:
            raise InputError(
                f"{tree.where}/{folder} has no entry of its own, and classes must not be read off the images: declare "
                "how many there are, --set data.num_classes=10, or make the archive with entries for folders (zip -r)"
            )
    names: dict[str, list[str]] = {name: [] for name in top}
    for name in tree.images():
        if group is not None and name.count("/") == 1:
            raise InputError(_in_no_group(tree.files[name]))
        names[name.partition("/")[0]].append(name)
    return names


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
