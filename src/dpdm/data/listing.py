"""A file beside images that says which label each one has: `dataset.json`, or `labels.csv`, which may name groups too.

The classes themselves are declared: by their number, or by `classes.txt`, a name a line, which the labels may then be.
"""

import json
from collections.abc import Sequence

from dpdm.data.csv_rows import Row, is_csv, read_csv, read_text, says_parts
from dpdm.data.dataset import require_declared
from dpdm.data.declared import Records, count_classes, read_labels
from dpdm.data.image_files import FilesByKind, ImageFile
from dpdm.data.layout import CLASSES, PARTS, Split, choose_part, normal_form
from dpdm.data.tree import Chosen
from dpdm.files import damaged
from dpdm.types import MOST_CLASSES, InputError, Labels


def load_listed(part: Chosen) -> Records:
    """Return the images at any depth of a part, with the label that its listing has for each, and its group.

    The listing, in the part or above, is JSON, {"labels": [["00000/img00000000.png", 3], ...]} or {"labels": null}; or
    CSV with one line of headings first, separated by commas, semicolons or tabs: of two columns, the names of images
    and their labels, or of any that are called `file` and `label`. A column `split` says which part each image is in,
    a further one, that `group` names, its group. Names of images are relative to the listing, with / between folders.
    """
    listing, listed, asked = part.listing, part.listed, part.asked
    assert listing is not None
    images = [f"{part.between}{name}" for name in part.tree.images()]
    known = {*listed.images()}
    if asked.group is not None and not is_csv(listing):
        raise InputError(f"{listing} does not say which images form a group: leave data.group out")
    in_parts = not asked.is_part and is_csv(listing) and says_parts(listing)
    if not in_parts:
        asked.require_whole(part.where)
    rows: Sequence[Row] | None = None
    if asked.num_classes != 0 or asked.group is not None or in_parts:
        rows = read_csv(listing, asked.group, known) if is_csv(listing) else _from_json(listing)
    if rows is None:
        return Records(part.where, FilesByKind([listed.files[name] for name in images], part.tree.others()))
    index = _rows_of_images(rows, known, listing)
    labels, names = _labels(rows, part) if asked.num_classes != 0 else (None, ())
    for name in images:
        if name not in index:
            raise InputError(f"{listing} has no label for {name!r}: add it")
    if in_parts:
        parts = {name: _part(rows[row], listing) for name, row in index.items()}
        choose_part(parts.values(), asked.split, part.where)
        images = [name for name in images if parts[name] == asked.split]
    chosen = [index[name] for name in images]
    groups = None if asked.group is None else [rows[row].group for row in chosen]
    if groups and "" in groups:
        nameless = rows[chosen[groups.index("")]].name
        raise InputError(f"{listing} has no {asked.group} for {nameless!r}: add it")
    files = FilesByKind([listed.files[name] for name in images], part.tree.others())
    return Records(part.where, files, None if labels is None else labels[chosen], names, groups=groups)


def _labels(rows: Sequence[Row], part: Chosen) -> tuple[Labels, tuple[str, ...]]:
    """Return the labels of all rows, so that they mean the same in every part, and the names of the classes."""
    names, listing = read_class_names(part.classes), str(part.listing)
    count = count_classes(names, part.asked.num_classes, str(part.classes)) or MOST_CLASSES * part.asked.public
    require_declared(count, listing)
    stated, images = [row.label for row in rows], [row.name for row in rows]
    beside = f"{CLASSES} beside it"
    return read_labels(stated, names, count, where=listing, named_in=beside, images=images), names


def read_class_names(classes: ImageFile | None) -> tuple[str, ...]:
    """Return the names in a text file, one a line; none if there is no file."""
    if classes is None:
        return ()
    names = tuple(normal_form(line).strip() for line in read_text(classes).split("\n") if line.strip())
    if len(set(names)) != len(names) or not names:
        raise InputError(f"{classes} must have one name for each class, a line each, and none twice")
    return names


def _from_json(listing: ImageFile) -> list[Row] | None:
    form = '{"labels": [["a.png", 3], ...]} or {"labels": null}'
    with damaged(listing, "correct it", what=f"cannot be read as {form}"):
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
