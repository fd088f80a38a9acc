"""The rows of a listing as CSV: which column is which, and how its text is encoded."""

import csv
import io
from collections.abc import Sequence, Set
from typing import Any, Final, NamedTuple

from dpdm.data.image_files import ImageFile
from dpdm.data.layout import normal_form
from dpdm.files import damaged
from dpdm.types import InputError

_FILES = ("file", "filename", "file_name", "filepath", "image", "image_name", "image_path", "img", "name", "path")
_LABELS = ("label", "labels", "class", "class_name", "target")
_PARTS = ("split", "subset")
_NO_RECORD = ("", "index", "unnamed: 0")  # headings of the numbers of rows, as pandas writes them
_MARKS: Final = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Row(NamedTuple):
    """What a listing says of one image."""

    name: str
    label: Any
    group: str = ""
    part: str = ""


def is_csv(listing: ImageFile) -> bool:
    """Whether a listing is CSV, by its name."""
    return listing.name.lower().endswith(".csv")


def read_text(file: ImageFile) -> str:
    """Return what a text file holds, which is UTF-8 unless a mark at its beginning says otherwise."""
    with damaged(file, "correct it", what="cannot be read as text"):
        content = file.read_bytes()
        encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8")
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            raise InputError(f"{file} is not encoded as UTF-8: save it as UTF-8") from None


def read_csv(listing: ImageFile, group: str | None, images: Set[str]) -> list[Row]:
    """Return the rows of a CSV with one line of headings, of which `group` is that of the column of groups."""
    heading, rows = _cells(listing)
    if (image := next((name for name in heading if name in images), None)) is not None:
        raise InputError(f"{listing} begins with {image!r}, an image: put a line of headings above it, file,label")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(heading):
            said = f"{len(heading)} headings, and {len(row)} columns in row {number}"
            raise InputError(f"{listing} has {said}: correct it")
    name, *others = _columns(heading, None if group is None else normal_form(group), listing)
    return [Row(row[name], *("" if at is None else row[at].strip() for at in others)) for row in rows]


def says_parts(listing: ImageFile) -> bool:
    """Whether a CSV has a column that says which part each image is in."""
    return any(name.casefold() in _PARTS for name in _cells(listing)[0])


def _cells(listing: ImageFile) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows that are not empty."""
    with damaged(listing, "correct it", what="cannot be read as CSV with one line of headings"):
        text = read_text(listing)
        first = text.lstrip("\r\n").partition("\n")[0]
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
        heading, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row)
    return [normal_form(name).strip() for name in heading], rows


def _columns(heading: Sequence[str], group: str | None, listing: ImageFile) -> tuple[int, int, int | None, int | None]:
    """Return the columns of names, labels, groups and parts, by the headings, or by their order if there are two."""
    columns = f"{listing} has the columns {', '.join(heading)}"
    if group is not None and group not in heading:
        raise InputError(f"{columns}, and no {group}: correct data.group")
    in_groups = None if group is None else heading.index(group)
    left = {at: name.casefold() for at, name in enumerate(heading) if at != in_groups}
    part = _take(left, _PARTS)
    left = {at: name for at, name in left.items() if name not in _NO_RECORD}
    two = [*left] if len(left) == 2 else []
    name, label = _take(left, _FILES), _take(left, _LABELS)
    if two and name is None:
        name = next(at for at in two if at != label)
    if two and label is None:
        label = next(at for at in two if at != name)
    if name is None or label is None:
        raise InputError(
            f"{columns}: it must have two columns, file and label, or those that have the names and the labels of "
            "images must be called so"
        )
    if left and not two and group is None:
        # One of them may say whose images they are, and the claim would be about single images.
        raise InputError(
            f"{listing} has more than two columns, file and label: if one of "
            f"{', '.join(heading[at] for at in left)} names groups, as of one person's images, set data.group to its "
            "heading; else remove them"
        )
    return name, label, in_groups, part


def _take(left: dict[int, str], headings: Sequence[str]) -> int | None:
    """Return the column with the first of these headings that is there, and take it out of those left."""
    found = next((at for heading in headings for at, name in left.items() if name == heading), None)
    if found is not None:
        del left[found]
    return found
