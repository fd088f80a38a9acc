"""What a data set says of where it was opened, and how: one line, which is read again to open it again."""

from typing import Final, NamedTuple, cast, get_args

from dpdm.data.framing import Fit
from dpdm.types import InputError

_GROUPED: Final = ", in groups by "


class Location(NamedTuple):
    """Where images were opened, and how."""

    source: str
    group: str | None
    size: int | None
    fit: Fit


def say_location(source: str, group: str | None, size: int | None, fit: Fit) -> str:
    """Return what `ImageDataset.location` says: where images were opened, and how."""
    opened = source if group is None else f"{source}{_GROUPED}{group}"
    return opened if size is None else f"{opened}, {fit} to {size}"


def read_location(location: str) -> Location:
    """Return what `ImageDataset.location` says.

    Raises:
        InputError: The images were given as arrays, and have no location.
    """
    if not location:
        raise InputError("this run was trained on arrays, which cannot be opened again: pass them as data=...")
    place, comma, fitted = location.rpartition(", ")
    fit, _, size = fitted.partition(" to ")
    framed = bool(comma) and fit in get_args(Fit) and size.isdecimal()
    source, grouped, group = (place if framed else location).partition(_GROUPED)
    return Location(
        source, group if grouped else None, int(size) if framed else None, cast(Fit, fit) if framed else "crop"
    )


def fit_of(location: str) -> Fit:
    """Return how images were brought to their size, by `ImageDataset.location`; "crop" for arrays."""
    return read_location(location).fit if location else "crop"
