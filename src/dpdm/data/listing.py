"""A file beside images that says which label each one has: `dataset.json`, or `labels.csv`, which may name groups too.

The classes themselves are declared: by their number, or by `classes.txt`, a name a line, which the labels may then be.
"""

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpdm.data.csv_rows import CSV, Row, is_csv, read_csv, read_text, says_parts
from dpdm.data.dataset import group_indices, require_declared, require_no_groups, require_same_num_classes
from dpdm.data.image_files import ImageFile
from dpdm.data.labels import read_labels
from dpdm.data.layout import PARTS, Split, choose_part, normal_form, require_whole
from dpdm.types import InputError, Labels, explained

JSON: Final = "dataset.json"
CLASSES: Final = "classes.txt"


class Listed(NamedTuple):
    """The names of images, with their labels, if any, the declared classes, and their groups, if any."""

    images: list[str]
    labels: Labels | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None


def find_listing(names: Sequence[str], where: str) -> tuple[str | None, str | None]:
    """Return which of the files in a folder is its listing, and which has its class names."""
    found = [name for name in names if name.lower() in (JSON, *CSV)]
    if len(found) > 1:
        raise InputError(f"{where} has both {found[0]} and {found[1]}: remove one")
    return found[0] if found else None, next((name for name in names if name.lower() == CLASSES), None)


def read_listing(
    listing: ImageFile,
    classes: ImageFile | None,
    images: Sequence[str],
    *,
    elsewhere: Sequence[str] = (),
    split: Split | None = None,
    num_classes: int | None,
    group: str | None = None,
    where: str,
) -> Listed:
    """Return the label of each image that a listing has, and its group.

    Args:
        listing: JSON, {"labels": [["00000/img00000000.png", 3], ...]} or {"labels": null}; or CSV with one line of
            headings first, separated by commas, semicolons or tabs: of two columns, the names of images and their
            labels, or of any that are called `file` and `label`. A column `split` says which part each image is in.
        classes: A text file of class names, one a line, or None.
        images: The names of all images, relative to the listing, with / between folders.
        elsewhere: Those of images in other parts, which a listing of all parts has as well.
        split: Which part is asked for; None if its images were chosen by their names.
        num_classes: The caller's declaration of how many classes there are; 0 leaves labels aside.
        group: The heading of a further column of a CSV, which names the group of each image.
        where: The source, for messages.

    Raises:
        InputError: The listing does not give each image one label within the declared classes, and one group.
    """
    if not is_csv(listing):
        require_no_groups(group, str(listing))
    known = {*images, *elsewhere}
    in_parts = split is not None and is_csv(listing) and says_parts(listing)
    if split is not None and not in_parts:
        require_whole(split, where)
    if num_classes == 0 and group is None and not in_parts:
        return Listed([*images])
    rows = read_csv(listing, group, known) if is_csv(listing) else _from_json(listing)
    if rows is None:
        require_same_num_classes(0, num_classes, str(listing))
        return Listed([*images])
    names = read_class_names(classes) if num_classes != 0 else ()
    if names:
        require_same_num_classes(len(names), num_classes, str(classes))
    count = num_classes or len(names)
    if num_classes != 0:
        require_declared(count, str(listing))
    at = _rows_of_images(rows, known, listing)
    labels = None
    if num_classes != 0:  # of all rows, so that they mean the same in every part
        stated = [row.label for row in rows]
        labels = read_labels(
            stated,
            names,
            count,
            of=lambda row: f"{listing}: the label of {rows[row].name!r}",
            where=str(listing),
            named_in=f"{CLASSES} beside it",
        )
    for name in images:
        if name not in at:
            raise InputError(f"{listing} has no label for {name!r}: add it")
    kept = [*images]
    if in_parts and split is not None:
        parts = {name: _part(rows[row], listing) for name, row in at.items()}
        choose_part(parts.values(), split, where)
        kept = [name for name in images if parts[name] == split]
    chosen = [at[name] for name in kept]
    if group is not None:
        for row in chosen:
            if not rows[row].group:
                raise InputError(f"{listing} has no {group} for {rows[row].name!r}: add it")
    groups = None if group is None else group_indices([rows[row].group for row in chosen], str(listing))
    if labels is None:
        return Listed(kept, groups=groups)
    return Listed(kept, labels[chosen], count, names, groups)


def read_class_names(classes: ImageFile | None) -> tuple[str, ...]:
    """Return the names in a text file, one a line; none if there is no file."""
    if classes is None:
        return ()
    with explained(lambda e: f"{classes} cannot be read as text ({type(e).__name__}): correct it", OSError, ValueError):
        lines = read_text(classes).split("\n")
    names = tuple(normal_form(line).strip() for line in lines if line.strip())
    if len(set(names)) != len(names) or not names:
        raise InputError(f"{classes} must have one name for each class, a line each, and none twice")
    return names


def _from_json(listing: ImageFile) -> list[Row] | None:
    form = '{"labels": [["a.png", 3], ...]} or {"labels": null}'
    # Damage to an archive, or whatever else JSON can hold.
    with explained(lambda _: f"{listing} cannot be read as {form}: correct it", Exception):
        stated = json.loads(listing.read_bytes())["labels"]
        return None if stated is None else [Row(str(name), label) for name, label in stated]


def _rows_of_images(rows: Sequence[Row], known: set[str], listing: ImageFile) -> dict[str, int]:
    """Return the row of each image, whose name may begin with ./ there, and have backslashes between folders."""
    found: dict[str, int] = {}
    unknown: Row | None = None
    for row, stated in enumerate(rows):
        name = normal_form(stated.name)
        if name not in known:
            name = name.replace("\\", "/").removeprefix("./")
        if name in found:
            raise InputError(f"{listing} has two labels for {name!r}: remove one")
        if name in known:
            found[name] = row
        else:
            unknown = unknown or stated
    if unknown is not None:
        if not found:
            raise InputError(f"{listing} names no image that is there: {_difference(rows[0], known)}")
        raise InputError(f"{listing} has a label for {unknown.name!r}, which is no image there: remove it")
    return found


def _difference(row: Row, known: set[str]) -> str:
    """Say in what the names of a listing differ from those of images, none of which it has."""
    name = normal_form(row.name).replace("\\", "/")
    if normal_form(row.label) in known:
        return f"its first column has {row.name!r}, and its second {row.label!r}: head the columns label and file"
    last = name.rpartition("/")[2]
    for image in sorted(known):
        at_end = image.rpartition("/")[2]
        if last == at_end:
            return f"it has {row.name!r} for {image!r}: give paths from the list's own folder"
        if last == at_end.rpartition(".")[0]:
            return f"it has {row.name!r} for {image!r}: give names with their endings"
    return f"it begins with {row.name!r}, and images are called {min(known)!r}: give the names of images"


def _part(row: Row, listing: ImageFile) -> Split:
    """Return the part that a row is of."""
    part = PARTS.get(row.part.casefold())
    if part is None:
        raise InputError(f"{listing}: {row.part!r} is no part of {row.name!r}: say train, val or test for each image")
    return part
