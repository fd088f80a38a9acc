"""The rows of a listing as CSV: which column is which, and how its text is encoded."""

import csv
import io
from collections.abc import Sequence, Set
from typing import Any, Final, NamedTuple

from dpdm.data.image_files import ImageFile
from dpdm.data.layout import normal_form
from dpdm.types import InputError, explained

CSV: Final = ("labels.csv", "metadata.csv")
"""What a listing may be called; the second name is that of Hugging Face's `imagefolder`."""

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


class _Columns(NamedTuple):
    """Which column is which; None where there is none."""

    name: int
    label: int
    group: int | None
    part: int | None


def is_csv(listing: ImageFile) -> bool:
    """Whether a listing is CSV, by its name."""
    return listing.name.lower() in CSV


def read_text(file: ImageFile) -> str:
    """Return what a text file holds, which is UTF-8 unless a mark at its beginning says otherwise."""
    content = file.read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def read_csv(listing: ImageFile, group: str | None, images: Set[str]) -> list[Row]:
    """Return the rows of a CSV.

    Args:
        listing: The file: one line of headings first, separated by commas, semicolons or tabs.
        group: The heading of the column that names groups.
        images: The names of all images.

    Raises:
        InputError: It is no such file, or its headings do not say which column is which.
    """
    heading, rows = _cells(listing)
    group = None if group is None else normal_form(group)
    if (image := next((name for name in heading if name in images), None)) is not None:
        raise InputError(f"{listing} begins with {image!r}, an image: put a line of headings above it, file,label")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(heading):
            raise InputError(
                f"{listing} has {len(heading)} headings, and {len(row)} columns in row {number}: correct it"
            )
    at = _columns(heading, group, listing)
    return [
        Row(
            row[at.name],
            row[at.label].strip(),
            "" if at.group is None else row[at.group].strip(),
            "" if at.part is None else row[at.part].strip(),
        )
        for row in rows
    ]


def says_parts(listing: ImageFile) -> bool:
    """Whether a CSV has a column that says which part each image is in."""
    return any(name.casefold() in _PARTS for name in _cells(listing)[0])


def _cells(listing: ImageFile) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows that are not empty."""

    def why(error: Exception) -> str:
        if isinstance(error, UnicodeDecodeError):
            return f"{listing} is not encoded as UTF-8: save it as CSV UTF-8"
        return f"{listing} cannot be read as CSV with one line of headings: correct it"

    with explained(why, Exception):  # Damage to an archive, or no text at all.
        text = read_text(listing)
        first = text.lstrip("\r\n").partition("\n")[0]
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
        heading, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row)
    return [normal_form(name).strip() for name in heading], rows


def _columns(heading: Sequence[str], group: str | None, listing: ImageFile) -> _Columns:
    """Return which column is which, by the headings, or by their order if there are two."""
    if group is not None and group not in heading:
        raise InputError(f"{listing} has the columns {', '.join(heading)}, and no {group}: correct data.group")
    in_groups = None if group is None else heading.index(group)
    left = {at: name.casefold() for at, name in enumerate(heading) if at != in_groups}
    part = _take(left, _PARTS)
    for at in [at for at, name in left.items() if name in _NO_RECORD]:
        del left[at]
    two = [*left] if len(left) == 2 else []
    name, label = _take(left, _FILES), _take(left, _LABELS)
    if two and name is None:
        name = next(at for at in two if at != label)
    if two and label is None:
        label = next(at for at in two if at != name)
    if name is None or label is None:
        raise InputError(
            f"{listing} has the columns {', '.join(heading)}: it must have two columns, file and label, or those that "
            "have the names and the labels of images must be called so"
        )
    further = [] if two else [heading[at] for at in left]
    if further and group is None:
        # One of them may say whose images they are, and the claim would be about single images.
        raise InputError(
            f"{listing} has more than two columns, file and label: if one of {', '.join(further)} names groups, as of "
            "one person's images, set data.group to its heading; else remove them"
        )
    return _Columns(name, label, in_groups, part)


def _take(left: dict[int, str], headings: Sequence[str]) -> int | None:
    """Return the column with the first of these headings that is there, and take it out of those left."""
    for heading in headings:
        for at, name in left.items():
            if name == heading:
                del left[at]
                return at
    return None
