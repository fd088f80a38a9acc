"""A file beside images that says which label each one has: `dataset.json`, or `labels.csv`, which may name groups too.

The classes themselves are declared: by their number, or by `classes.txt`, a name a line, which the labels may then be.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import group_indices, require_declared, require_no_groups, require_same_num_classes
from dpdm.data.image_files import ImageFile
from dpdm.types import InputError, Labels

JSON: Final = "dataset.json"
CSV: Final = "labels.csv"
CLASSES: Final = "classes.txt"


class Listed(NamedTuple):
    """The labels of all images, in their order, or None, the declared classes, and the groups of all images."""

    labels: Labels | None
    num_classes: int
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None


def read_listing(
    listing: ImageFile,
    classes: ImageFile | None,
    images: Sequence[str],
    *,
    num_classes: int | None,
    group: str | None = None,
) -> Listed:
    """Return the label of each image that a listing has, and its group.

    Args:
        listing: JSON, {"labels": [["00000/img00000000.png", 3], ...]} or {"labels": null}; or CSV of two columns, the
            names of images and their labels, with one line of headings first.
        classes: A text file of class names, one a line, or None.
        images: The names of all images, relative to the listing, with / between folders.
        num_classes: The caller's declaration of how many classes there are; 0 leaves labels aside.
        group: The heading of a third column of a CSV, which names the group of each image.

    Raises:
        InputError: The listing does not give each image one label within the declared classes, and one group.
    """
    if listing.name != CSV:
        require_no_groups(group, str(listing))
    names = _class_names(classes) if num_classes != 0 else ()
    if names:
        require_same_num_classes(len(names), num_classes, str(classes))
    rows = _rows(listing, group)
    if rows is None:
        return Listed(None, 0, ())
    count = num_classes or len(names)
    if num_classes != 0:
        require_declared(count, str(listing))
    known, labels, members = set(images), {}, {}
    if listing.name == CSV and rows and (first := listing.read_text(encoding="utf-8-sig").split(",")[0]) in known:
        raise InputError(f"{listing} begins with {first!r}, an image: put a line of headings above it, file,label")
    for name, stated, member in rows:
        if name not in known:
            raise InputError(f"{listing} has a label for {name!r}, which is no image there: remove it")
        if name in labels:
            raise InputError(f"{listing} has two labels for {name!r}: remove one")
        label = names.index(stated) if stated in names else stated
        if type(label) is str and label.isdecimal() and listing.name == CSV:
            label = int(label)
        if num_classes != 0 and (type(label) is not int or not 0 <= label < count):
            raise InputError(
                f"{listing}: the label of {name!r} is no integer from 0 to {count - 1}"
                f"{' and no name in ' + CLASSES if names else ''}: correct it or data.num_classes"
                f"{'' if names else f', or list the names of classes, one a line, in {CLASSES} beside it'}"
            )
        if group is not None and not member:
            raise InputError(f"{listing} has no {group} for {name!r}: add it")
        labels[name], members[name] = label, member
    for name in images:
        if name not in labels:
            raise InputError(f"{listing} has no label for {name!r}: add it")
    groups = None if group is None else group_indices([members[name] for name in images], str(listing))
    if num_classes == 0:
        return Listed(None, 0, (), groups)
    return Listed(np.array([labels[name] for name in images]), count, names, groups)


def _class_names(classes: ImageFile | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    try:
        names = tuple(classes.read_text(encoding="utf-8").split("\n"))
    except (OSError, ValueError) as error:
        raise InputError(f"{classes} cannot be read as text ({type(error).__name__}): correct it") from error
    names = tuple(name.strip() for name in names if name.strip())
    if len(set(names)) != len(names) or not names:
        raise InputError(f"{classes} must have one name for each class, a line each, and none twice")
    return names


def _rows(listing: ImageFile, group: str | None) -> list[tuple[str, Any, str]] | None:
    """Return names of images with what is stated as their labels and groups, or None if there are stated to be none."""
    if listing.name == CSV:
        columns = ("file", "label") if group is None else ("file", "label", group)
        try:
            heading, *rows = csv.reader(io.StringIO(listing.read_text(encoding="utf-8-sig"), newline=""))
            if {len(row) for row in (heading, *rows)} != {len(columns)} or [*map(str.strip, heading[2:])] != [
                *columns[2:]
            ]:
                raise ValueError("other columns")
            return [(row[0], row[1].strip(), "".join(row[2:]).strip()) for row in rows]
        except Exception as error:  # Damage to an archive, another encoding, or rows of another length.
            form = f"{'two' if group is None else 'three'} columns, {', '.join(columns[:-1])} and {columns[-1]}"
            more = " or, if a third one names groups, set data.group to its heading" if group is None else ""
            raise InputError(
                f"{listing} cannot be read as CSV of {form}, with one line of headings: correct it{more}"
            ) from error
    try:
        stated = json.loads(listing.read_bytes())["labels"]
        return None if stated is None else [(str(name), label, "") for name, label in stated]
    except Exception as error:  # Damage to an archive, or whatever else JSON can hold.
        form = '{"labels": [["a.png", 3], ...]} or {"labels": null}'
        raise InputError(f"{listing} cannot be read as {form}: correct it") from error


def find_listing(folder: Path) -> Path | None:
    """Return the listing in a folder, if there is one."""
    found = [folder / name for name in (JSON, CSV) if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {JSON} and {CSV}: remove one")
    return found[0] if found else None
