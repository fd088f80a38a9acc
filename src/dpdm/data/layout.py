"""What names mean in any source: which are a system's own, which are parts, and in what order classes come."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from dpdm.types import InputError

Split = Literal["train", "val", "test"]

_NAMES_OF_PARTS: Final[tuple[tuple[Split, str], ...]] = (
    ("train", "train training"),
    ("val", "val valid validation"),
    ("test", "test testing"),
)
PARTS: Final = {name: part for part, names in _NAMES_OF_PARTS for name in names.split()}
"""The names of parts, in lower case: they count in any case."""

LISTINGS: Final = ("labels.csv", "metadata.csv", "dataset.json")
"""What a list of labels may be called; the second name is that of Hugging Face's `imagefolder`."""

CLASSES: Final = "classes.txt"
"""What a list of the names of classes is called."""

_LEFT_BY_SYSTEMS: Final = frozenset(
    [
        *("__macosx", "icon\r", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "@tmp", "#recycle", "#snapshot"),
    ]
)


def normal_form(name: object) -> str:
    """Return a name as a release writes it: one spelling of letters that have several, as file systems do."""
    return unicodedata.normalize("NFC", str(name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is a system's own and no record."""
    return name.startswith(".") or name.casefold() in _LEFT_BY_SYSTEMS


def plain_name(name: str, where: str | Path) -> str:
    """Return a name, or path, in a folder `where` as text in Unicode's form NFC, however a file system spells it.

    Raises:
        InputError: Its bytes are not UTF-8, or are not read so: it could be written into no list and no release.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(Path(where) / name).decode(errors="backslashreplace")
        try:
            os.fsencode(name).decode()
        except UnicodeDecodeError:
            raise InputError(f"{shown} has a name that is not UTF-8: rename it (convmv renames many at once)") from None
        raise InputError(f"{shown} has a name that this locale cannot read: set PYTHONUTF8=1") from None
    return normal_form(name)


def part_in(name: str) -> Split | None:
    """Return the part that one of the words of a name says, as in `train-00000-of-00001` or `seg_test`."""
    kinds = {PARTS[word] for word in re.split("[^a-z]+", name.casefold()) if word in PARTS}
    return kinds.pop() if len(kinds) == 1 else None


def find_parts(names: Collection[str], where: str, *, classes_if: bool = False) -> dict[Split, str]:
    """Return which of the folders at the top of a source is which part; empty if they are no parts.

    They are parts if all of them are called so, or two of different parts are; what lies beside these is in no part.
    Names of several words are those of parts only if all of them have one of these words, and not the same.
    `classes_if` says that one that is called like a part, among others that are not, is known to be a class.
    """
    called = {name: PARTS[name.casefold()] for name in names if name.casefold() in PARTS}
    alike = {name: part for name in names if (part := part_in(name)) is not None}  # seg_train and seg_test, say
    known = called or (alike if len({*alike.values()}) > 1 else {})
    if known and len(known) < len(names) and len({*called.values()}) < 2:
        if classes_if:
            return {}
        other = min({*names} - {*known})
        raise InputError(
            f"{where} holds {min(known)} beside {other}: if {min(known)} is a part, only train, val and test may lie "
            f"beside it; if it is a class, declare how many there are, --set data.num_classes={len(names)}"
        )
    return one_of_each(known, where)


def find_listing(names: Iterable[str], where: str) -> tuple[str | None, str | None]:
    """Return which of the files in a folder is its list of labels, and which has its class names."""
    found = {name: name.lower() for name in names}
    listings = [name for name, lower in found.items() if lower in LISTINGS]
    if len(listings) > 1:
        raise InputError(f"{where} has both {listings[0]} and {listings[1]}: remove one")
    return next(iter(listings), None), next((name for name, lower in found.items() if lower == CLASSES), None)


def one_of_each(parts: Mapping[str, Split], where: str) -> dict[Split, str]:
    """Return the name of each part, or raise InputError if two have the same."""
    found: dict[Split, str] = {}
    for name, part in sorted(parts.items()):
        if part in found:
            raise InputError(f"{where} has two parts {part}, {found[part]} and {name}: remove one, or rename it")
        found[part] = name
    return found


class NoSuchPart(InputError):
    """A source has no part of this name."""


def choose_part(parts: Iterable[Split], split: Split, where: str) -> Split:
    """Return the part that is asked for, or raise NoSuchPart if a source does not have it."""
    known = [part for part in ("train", "val", "test") if part in {*parts}]
    if split not in known:
        raise NoSuchPart(
            f"{where} has no part {split}, only {' and '.join(known)}: say {' or '.join(f'{where}:{p}' for p in known)}"
        )
    return split


def in_order_of_classes(names: Iterable[str]) -> list[str]:
    """Return the names of classes in the order of their labels: numbers as numbers, if all of them are numbers."""
    listed = [*names]
    if all(name.isdecimal() for name in listed):
        return sorted(listed, key=lambda name: (int(name), name))
    return sorted(listed)
