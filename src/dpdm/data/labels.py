"""Labels as people state them, by the names of classes or by their places: one reading for all of them."""

from collections.abc import Callable, Sequence

import numpy as np

from dpdm.data.layout import normal_form
from dpdm.types import InputError, Labels

_MOST_DIGITS = 18  # of a number that is read: longer ones are no places


def read_labels(
    stated: Sequence[object],
    names: tuple[str, ...],
    num_classes: int,
    *,
    of: Callable[[int], str],
    where: str,
    named_in: str,
) -> Labels:
    """Return the class of each label, which all are names of classes, or all places from 0.

    Args:
        stated: What is written: words or integers.
        names: The names of the classes, if they are declared.
        num_classes: How many classes are declared: their names, or a number.
        of: Says whose label one is, for messages.
        where: What states them, for messages.
        named_in: What would have the names of classes, for messages: a file or an array.

    Raises:
        InputError: A label is neither, or some are names and some are places; or all of them are both, and mean
            different classes, as grades 1, 2 and 3 would.
    """
    if num_classes < 1:
        raise InputError(
            f"{where}: list the names of all classes in {named_in}: they must not be read off private labels"
        )
    places = [_place(label, num_classes) for label in stated]
    index = {normal_form(name): place for place, name in enumerate(names)}
    by_name = [index.get(_text(label)) for label in stated]
    if None not in by_name and None not in places and by_name != places:
        raise InputError(
            f"{where}: the labels are names of classes ({_shown(stated[0])} is number {by_name[0]}), and may be their "
            f"numbers from 0 to {num_classes - 1} as well: name the classes otherwise"
        )
    read = by_name if None not in by_name else places
    for row, label in enumerate(stated):
        if places[row] is None and by_name[row] is None:
            raise InputError(
                f"{of(row)}, {_shown(label)}, is no integer from 0 to {num_classes - 1}"
                f"{f' and no name in {named_in}' if names else ''}: correct it or data.num_classes"
                f"{'' if names else f', or list the names of all classes in {named_in}'}"
            )
    if None in read:
        no_name, no_place = stated[by_name.index(None)], stated[places.index(None)]
        raise InputError(
            f"{where}: {_shown(no_place)} is the name of a class, and {_shown(no_name)} a number from 0 to "
            f"{num_classes - 1}: give names only, or numbers only"
        )
    return np.array(read, np.int64)


def _text(label: object) -> str:
    return normal_form(label) if type(label) in (str, int) else ""


def _place(label: object, num_classes: int) -> int | None:
    text = _text(label)
    short = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if short and int(text) < num_classes else None


def _shown(label: object) -> str:
    return repr(label)[:40]
