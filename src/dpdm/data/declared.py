"""From what a source holds and what was declared of it to a data set: one guard behind all loaders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, group_indices, require_declared
from dpdm.data.framing import Fit, Framing
from dpdm.data.image_files import FilesByKind, ReadImages
from dpdm.data.layout import NoSuchPart, Split, normal_form
from dpdm.types import Images, InputError, Labels

_MOST_DIGITS = 18  # of a number that is read: longer ones are no places


@dataclass(frozen=True)
class Asked:
    """What is asked of a source, as `open_dataset` has it.

    `is_part` says that a name further up is that of the part: what lies below is its own. Labels of `public` images
    may tell how many classes there are.
    """

    split: Split
    framing: Framing
    num_classes: int | None
    group: str | None
    public: bool = False
    is_part: bool = False

    def require_whole(self, where: str | Path) -> None:
        """Refuse another part than `train` of what has no parts, which is its own train part."""
        if self.split != "train" and not self.is_part:
            raise NoSuchPart(
                f"{where} has no folders train/, val/ and test/, and so no part {self.split}: "
                f"give the path of the {self.split} images themselves"
            )


class Records(NamedTuple):
    """What a loader finds of the part that is asked for, in the source `where`.

    Files in `images` are read once all else is right. `labels` are integers in an array, or words (and integers) in a
    list. Classes are known by their names, or their number alone, if the source declares them; `names_in` says where
    the names are or would be. `groups` name the group of each image, if groups are asked for. `name` is what the data
    set is called, if the source says so; `sources`, `public` and `claim` are as in `ImageDataset`. `framed` is the side
    that images have been brought to, and how, if they were before.
    """

    where: str
    images: Images | FilesByKind
    labels: NDArray[Any] | list[Any] | None = None
    class_names: tuple[str, ...] = ()
    num_classes: int = 0
    groups: Sequence[object] | NDArray[Any] | None = None
    names_in: str = ""
    name: str = ""
    sources: NDArray[np.uint8] | None = None
    public: bool = False
    claim: str = ""
    framed: tuple[int, Fit] | None = None


def declare(records: Records, asked: Asked, read: ReadImages) -> ImageDataset:
    """Return the data set of these records; files are read by `read`, once what is declared fits."""
    where, labels, names, groups = records.where, records.labels, records.class_names, None
    if asked.group is not None:
        if records.groups is None:
            raise InputError(f"{where} does not say which images form a group: leave data.group out")
        groups = group_indices(records.groups, f"{where}: {asked.group}")
    if asked.num_classes == 0:
        labels, names, count = None, (), 0
    else:
        if labels is None:
            require_same_num_classes(0, asked.num_classes, where)
        count = count_classes(names, asked.num_classes or records.num_classes, where)
        if isinstance(labels, list):
            labels = read_labels(labels, names, count, where=where, named_in=records.names_in)
        elif labels is not None and labels.dtype.kind in "iu":
            count = count or (int(labels.max(initial=0)) + 1 if asked.public else 0)
            require_declared(count, where)
    return ImageDataset(
        images=read(*records.images) if isinstance(records.images, FilesByKind) else records.images,
        labels=labels,
        num_classes=count,
        class_names=names,
        groups=groups,
        sources=records.sources,
        name=records.name or where,
        public=records.public,
        claim=records.claim,
    )


def count_classes(names: Sequence[str], declared: int | None, where: str) -> int:
    """Return how many classes there are: as many as have names, if any have, or as many as are declared."""
    if names:
        require_same_num_classes(len(names), declared or None, where)
    return declared or len(names)


def require_same_num_classes(actual: int, declared: int | None, where: str) -> None:
    """Raise InputError if the caller declares another number of classes than the source itself does."""
    if declared not in (None, actual):
        raise InputError(f"{where} has {actual} classes, but {declared} are declared: leave data.num_classes out")


def read_labels(
    stated: Sequence[object],
    names: tuple[str, ...],
    num_classes: int,
    *,
    where: str,
    named_in: str,
    images: Sequence[str] = (),
) -> Labels:
    """Return the class of each label, which all are names of classes, or all places from 0.

    `names` and `num_classes` are declared; `named_in` has or would have the names, and `images` are the names of the
    images, if they have any: both are for messages.

    Raises:
        InputError: A label is neither. Or some labels are names and some are places. Or all labels are both, and mean
            different classes, as grades 1, 2 and 3 would.
    """
    if num_classes < 1:
        raise InputError(
            f"{where}: list the names of all classes in {named_in}: they must not be read off private labels"
        )
    places = [_place(label, num_classes) for label in stated]
    index = {normal_form(name): place for place, name in enumerate(names)}
    by_name = [index.get(_text(label)) for label in stated]
    for row, label in enumerate(stated):
        if places[row] is None and by_name[row] is None:
            whose = f"the label of {images[row]!r}" if images else f"the label of row {row}"
            beside = f" and no name in {named_in}" if names else ""
            else_list = "" if names else f", or list the names of all classes in {named_in}"
            raise InputError(
                f"{where}: {whose}, {_shown(label)}, is no integer from 0 to {num_classes - 1}{beside}: "
                f"correct it or data.num_classes{else_list}"
            )
    if None in by_name and None in places:
        no_name, no_place = stated[by_name.index(None)], stated[places.index(None)]
        raise InputError(
            f"{where}: {_shown(no_place)} is the name of a class, and {_shown(no_name)} a number from 0 to "
            f"{num_classes - 1}: give names only, or numbers only"
        )
    if None not in by_name and None not in places and by_name != places:
        raise InputError(
            f"{where}: the labels are names of classes ({_shown(stated[0])} is number {by_name[0]}), and may be their "
            f"numbers from 0 to {num_classes - 1} as well: name the classes otherwise"
        )
    return np.array(places if None in by_name else by_name, np.int64)


def _text(label: object) -> str:
    return normal_form(label) if type(label) in (str, int) else ""


def _place(label: object, num_classes: int) -> int | None:
    text = _text(label)
    short = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if short and int(text) < num_classes else None


def _shown(label: object) -> str:
    return repr(label)[:40]
