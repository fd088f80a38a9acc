"""The fixed table of records that a privacy claim is about."""

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpdm.types import Images, InputError, Labels

Split = Literal["train", "test"]

MIN_SIDE = 8
"""Pixels: the networks halve an image up to three times."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageDataset:
    """Images, their labels, and what was declared about them.

    Args:
        images: `uint8` (number, height, width, channel), 1 (grey), 3 (RGB) or 4 (RGBA) channels, sides >= 8.
        labels: Integers (number,), 0 <= label < num_classes, kept as `int64`; None for unlabelled images.
        num_classes: How many classes are declared; 0 exactly when there are no labels.
        class_names: One name for each class; "0", "1", ... when undeclared.
        name: What messages call this data set.
        public: Whether these images are published already, as benchmarks are: a ledger then counts and limits nothing.
        location: Where it was opened (the resolved path, or the built-in name) and how it was fitted; for the data
            owner, never published.

    Raises:
        InputError: For whatever of this does not hold.

    Privacy:
        `images`, `labels` and `len()` are secret, and `location` is the data owner's. The rest is declared, and
        all that `repr` draws on.
    """

    images: Images
    labels: Labels | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    name: str
    public: bool = False
    location: str = ""

    def __post_init__(self) -> None:
        self._check_images()
        if self.labels is not None:
            self._check_labels(self.labels)
            object.__setattr__(self, "labels", self.labels.astype(np.int64))
        elif self.num_classes != 0:
            raise InputError(
                f"{self.name}: {self.num_classes} classes are declared, but there are no labels: "
                "add labels or leave data.num_classes out"
            )
        names = self.class_names or tuple(str(label) for label in range(self.num_classes))
        if len(names) != self.num_classes:
            raise InputError(f"{self.name}: {len(names)} class names for {self.num_classes} classes: give one each")
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image as a network sees it: (channel, height, width)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def part(self, chosen: range) -> "ImageDataset":
        """Return the records of these indices, with the facts declared about all."""
        part, indices = copy.copy(self), slice(chosen.start, chosen.stop, chosen.step)
        object.__setattr__(part, "images", self.images[indices])  # possibly none, which no whole data set may be
        object.__setattr__(part, "labels", None if self.labels is None else self.labels[indices])
        return part

    def __repr__(self) -> str:
        return f"ImageDataset(name={self.name!r}, shape={self.shape}, num_classes={self.num_classes})"

    def _check_images(self) -> None:
        """Raise InputError unless there are images, and they are what the class says."""
        dtype, shape = self.images.dtype, self.images.shape
        if dtype != np.uint8:
            raise InputError(f"{self.name}: images are {dtype}: convert them to uint8 with levels 0 to 255")
        if len(shape) != 4 or shape[3] not in (1, 3, 4):
            raise InputError(
                f"{self.name}: images have shape {shape}: rearrange them to (number, height, width, channel) "
                "with 1, 3 or 4 channels"
            )
        if shape[0] == 0:
            raise InputError(f"{self.name}: there are no images: give at least one")
        if min(shape[1:3]) < MIN_SIDE:
            raise InputError(
                f"{self.name}: images of {shape[2]} x {shape[1]} pixels are too small: "
                f"give images of at least {MIN_SIDE} x {MIN_SIDE}"
            )

    def _check_labels(self, labels: Labels) -> None:
        """Raise InputError unless there is one label for each image, within the declared classes."""
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != self.images.shape[:1]:
            raise InputError(
                f"{self.name}: labels are {labels.dtype} of shape {labels.shape}: give one integer for each "
                f"image, shape ({len(self)},)"
            )
        require_declared(self.num_classes, self.name)
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if outside.size:
            raise InputError(
                f"{self.name}: label {outside[0]} occurs, but {self.num_classes} classes are declared "
                f"(labels 0 to {self.num_classes - 1}): correct the labels or data.num_classes"
            )


def require_declared(num_classes: int, where: str) -> None:
    """Raise InputError if nobody declared how many classes there are."""
    if num_classes < 1:
        raise InputError(
            f"{where}: private labels must not tell how many classes there are: "
            "declare it with --set data.num_classes=10 (dpdm evaluate: --num-classes 10)"
        )


def require_same_num_classes(actual: int, declared: int | None, where: str) -> None:
    """Raise InputError if the caller declares another number of classes than the source itself does."""
    if declared not in (None, actual):
        raise InputError(f"{where} has {actual} classes, but {declared} are declared: leave data.num_classes out")
