"""Which classes a release draws, and how often each."""

import difflib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dpdm.runs.release import Release
from dpdm.types import InputError, Labels, require_counts

Frequencies = Sequence[float] | Literal["equal", "released"]
"""One number for each chosen class; or all the same; or as frequent as the prior has released that they are."""


def choose_labels(
    release: Release, count: int, *, classes: Sequence[str] = (), frequencies: Frequencies = "equal"
) -> Labels:
    """Return the classes of `count` images, those of each class spread evenly over all.

    Args:
        release: Whose classes they are.
        count: How many images.
        classes: Names of classes; or places from 0, where not all of these are names. All classes, if there are none.
        frequencies: Numbers from 0 count in proportion, in the order of `classes`.

    Returns:
        (count,) integers.

    Raises:
        InputError: There is no such class, a class is there twice, or the frequencies do not fit or were not released.
    """
    require_counts(count=count)
    if not release.facts.num_classes:
        raise InputError("this run was trained without classes: leave out --classes and --frequencies")
    chosen = _places(classes, release.facts.class_names)
    weights = np.array(_weights(release, chosen, frequencies))
    exact = count * weights / weights.sum()
    numbers = np.floor(exact).astype(int)
    by_what_is_left = np.argsort(-(exact - numbers), kind="stable")
    numbers[by_what_is_left[: count - int(numbers.sum())]] += 1
    turns = np.concatenate([(np.arange(number) + 0.5) / max(1, number) for number in numbers])
    labels: Labels = np.repeat(np.array(chosen, np.int64), numbers)[np.argsort(turns, kind="stable")]
    return labels


def _places(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the places of classes that are given by names, or by places."""
    if not classes:
        return list(range(len(names)))
    by_name = all(name in names for name in classes)
    if by_name:
        places = [names.index(name) for name in classes]
    else:
        for name in classes:
            if not (name.isdecimal() and int(name) < len(names)):
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the classes are {', '.join(names[:20])}"
                raise InputError(f"{name!r} is neither a class nor a place from 0 to {len(names) - 1}: {hint}")
        places = [int(name) for name in classes]
    if len(set(places)) < len(places):
        raise InputError(f"a class is there twice among {', '.join(classes)}: name each once")
    return places


def _weights(release: Release, chosen: list[int], frequencies: Frequencies) -> list[float]:
    """Return how frequent the chosen classes are, in proportion."""
    if frequencies == "equal":
        return [1.0] * len(chosen)
    if frequencies == "released":
        if (shares := release.generator.class_shares) is None:
            raise InputError("this run released no frequencies of classes: give them as numbers")
        return [shares[place] for place in chosen]
    numbers = [float(number) for number in frequencies if not isinstance(number, str)]
    if len(numbers) != len(chosen):
        raise InputError(f"{len(numbers)} frequencies for {len(chosen)} classes: give one for each")
    if not all(0 <= number < math.inf for number in numbers) or not sum(numbers) > 0:
        raise InputError("frequencies must be numbers from 0, and not all of them 0")
    return numbers
