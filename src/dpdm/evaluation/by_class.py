"""Classes of two sides by their names, and what a classifier's answers say class by class.

Accuracy alone flatters whoever always answers the largest class.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dpdm.types import InputError, Labels

_SHOWN = 5  # names in a line


class ByClass(NamedTuple):
    """How right the answers are for each class of the test images.

    Args:
        largest_class: Share of the test images that are of the largest class: the accuracy of always answering it.
        balanced_accuracy: Mean of the recalls, each class counting the same, 0..1.
        recalls: Share of each class's test images that were classified correctly; None for a class without any.
    """

    largest_class: float
    balanced_accuracy: float
    recalls: tuple[float | None, ...]


def by_class(confusion: Sequence[Sequence[int]]) -> ByClass:
    """Return what a table of answers says; it has a row for each true class, in it a column for each answered one."""
    counts: Int64[np.ndarray, "classes classes"] = np.asarray(confusion, np.int64)
    sizes = counts.sum(1)
    recalls = [int(right) / int(size) if size else None for right, size in zip(counts.diagonal(), sizes, strict=True)]
    known = [recall for recall in recalls if recall is not None]
    return ByClass(int(sizes.max()) / max(1, int(sizes.sum())), sum(known) / max(1, len(known)), tuple(recalls))


def confusion_of(labels: Labels, answers: Labels, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """Count the images of each true class (rows) by the class that was answered (columns)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    return tuple(map(tuple, counts.tolist()))


def places_by_name(
    names: Sequence[str], reference: Sequence[str], what: str, where: str
) -> tuple[Int64[np.ndarray, " classes"], str | None]:
    """Return the place that each class of one side has on the other, and a line for people if that is not plain.

    Classes without names are called 0, 1, 2, ...; `what` and `where` are what the two sides are called.

    Raises:
        InputError: The names differ.
    """
    ours, theirs = list(names), list(reference)
    if set(ours) == set(theirs):
        remark = None if ours == theirs else f"{what} and {where} list their classes in another order: matched by name"
        return np.array([theirs.index(name) for name in ours], np.int64), remark
    nameless = [side == [str(place) for place in range(len(side))] for side in (ours, theirs)]
    numbers = all(name.isdecimal() for name in [*ours, *theirs])
    if len(ours) == len(theirs) and any(nameless) and not numbers:
        bare, named, known = (what, where, theirs) if nameless[0] else (where, what, ours)
        remark = f"{bare} names no classes: its labels 0, 1, ... are taken as the classes of {named}: {_few(known)}"
        return np.arange(len(ours)), remark
    said = " and ".join(
        f"{side} has {_few(extra)}, which {other} lacks"
        for side, other, mine, known in ((what, where, ours, theirs), (where, what, theirs, ours))
        if (extra := [name for name in mine if name not in known])
    )
    raise InputError(f"the classes differ: {said}; give images of the same classes, under the same names")


def _few(names: Sequence[str]) -> str:
    """Say some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
