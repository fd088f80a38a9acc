"""A file beside images that says which label each one has: `dataset.json`, or `labels.csv`.

The classes themselves are declared: by their number, or by `classes.txt`, a name a line, which the labels may then be.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from dpdm.data.dataset import require_declared, require_same_num_classes
from dpdm.data.image_files import ImageFile
from dpdm.types import InputError, Labels

JSON: Final = "dataset.json"
CSV: Final = "labels.csv"
CLASSES: Final = "classes.txt"


class Listed(NamedTuple):
    """The labels of all images, in their order, or None, and the declared classes."""

    labels: Labels | None
    num_classes: int
    class_names: tuple[str, ...]


def read_listing(
    listing: ImageFile, classes: ImageFile | None, images: Sequence[str], *, num_classes: int | None
) -> Listed:
    """Return the label of each image that a listing has.

    Args:
        listing: JSON, {"labels": [["00000/img00000000.png", 3], ...]} or {"labels": null}; or CSV of two columns, the
            names of images and their labels, with one line of headings first.
        classes: A text file of class names, one a line, or None.
        images: The names of all images, relative to the listing, with / between folders.
        num_classes: The caller's declaration of how many classes there are.

    Raises:
        InputError: The listing does not give each image one label within the declared classes.
    """
    names = _class_names(classes)
    if names:
        require_same_num_classes(len(names), num_classes, str(classes))
    pairs = _pairs(listing)
    if pairs is None:
        return Listed(None, 0, ())
    count = num_classes or len(names)
    require_declared(count, str(listing))
    known, labels = set(images), {}
    if listing.name == CSV and pairs and (first := listing.read_text(encoding="utf-8-sig").split(",")[0]) in known:
        raise InputError(f"{listing} begins with {first!r}, an image: put a line of headings above it, file,label")
    for name, stated in pairs:
        if name not in known:
            raise InputError(f"{listing} has a label for {name!r}, which is no image there: remove it")
        if name in labels:
            raise InputError(f"{listing} has two labels for {name!r}: remove one")
        label = names.index(stated) if stated in names else stated
        if type(label) is str and label.isdecimal() and listing.name == CSV:
            label = int(label)
        if type(label) is not int or not 0 <= label < count:
            raise InputError(
                f"{listing}: the label of {name!r} is no integer from 0 to {count - 1}"
                f"{' and no name in ' + CLASSES if names else ''}: correct it or data.num_classes"
                f"{'' if names else f', or list the names of classes, one a line, in {CLASSES} beside it'}"
            )
        labels[name] = label
    for name in images:
        if name not in labels:
            raise InputError(f"{listing} has no label for {name!r}: add it")
    return Listed(np.array([labels[name] for name in images]), count, names)


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


def _pairs(listing: ImageFile) -> list[tuple[str, Any]] | None:
    """Return names of images with what is stated as their labels, or None if it is stated that there are none."""
    if listing.name == CSV:
        try:
            heading, *rows = csv.reader(io.StringIO(listing.read_text(encoding="utf-8-sig"), newline=""))
            if len(heading) != 2:
                raise ValueError("not two columns")
            return [(name, label.strip()) for name, label in rows]
        except Exception as error:  # Damage to an archive, another encoding, or rows of another length.
            form = "two columns, file and label, with one line of headings"
            raise InputError(f"{listing} cannot be read as CSV of {form}: correct it") from error
    try:
        stated = json.loads(listing.read_bytes())["labels"]
        return None if stated is None else [(str(name), label) for name, label in stated]
    except Exception as error:  # Damage to an archive, or whatever else JSON can hold.
        form = '{"labels": [["a.png", 3], ...]} or {"labels": null}'
        raise InputError(f"{listing} cannot be read as {form}: correct it") from error


def find_listing(folder: Path) -> Path | None:
    """Return the listing in a folder, if there is one."""
    found = [folder / name for name in (JSON, CSV) if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {JSON} and {CSV}: remove one")
    return found[0] if found else None
