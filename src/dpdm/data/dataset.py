"""The fixed table of records that a privacy claim is about."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from dpdm.data.layout import normal_form
from dpdm.types import (
    MOST_CLASSES,
    Images,
    InputError,
    Labels,
    Latents,
    require_counts_or_none,
    require_names_of_classes,
)

MIN_SIDE = 8
"""Pixels: the networks halve an image up to three times."""

MAX_SIDE = 4096
"""Pixels: a release states its images' size, and whoever reads it must be able to trust that there is an end."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageDataset:
    """Images, their labels, and what was declared about them.

    Args:
        images: `uint8` (number, height, width[, channel]), 1 (grey), 3 (RGB) or 4 (RGBA) channels, sides >= 8.
        labels: Integers (number,) or (number, 1), 0 <= label < num_classes, kept as `int64` (number,); None for
            unlabelled images.
        num_classes: The declared number of classes; 0 exactly when there are no labels.
        class_names: One name for each class; "0", "1", ... when undeclared.
        groups: Integers (number,): the group of each image, from 0, no group empty (`group_indices` makes them). A
            group, such as all images of one person, is then the unit of protection. None makes each image a unit.
        sources: Digests of each image before framing, `uint8` (number, 2, 32): the SHA-256 of its file, and of its
            pixels. By these digests a ledger recognises images at another size. None if nothing was framed.
        blank: Which images take no part, booleans (number,) (`blank_equal` makes them). A blank image adds zero to
            every sum, and still counts as a record of its group and of the declared number. None: all take part.
        name: What messages call this data set.
        public: Whether these images are published already, like benchmarks. A ledger then limits nothing.
        drawn: Whether a release drew these images. They are not public by themselves: a run that begins with them
            counts the cost of that release.
        unprotected: Name, SHA-256 and number of images of whatever that release, or one before it, calls public: no
            claim protects it.
        claim: The statement of the claim that its files make, if they say that a release drew them.
        location: Where the images were opened (a resolved path, or a built-in name), and how they were framed. For the
            data owner, never published.
        made_of: The whole sets that these images were joined from, or are a part of. A ledger recognises them.

    Raises:
        InputError: One of these conditions does not hold. The message says which.

    Privacy:
        `images`, `labels`, `groups`, `sources`, `blank`, `len()` and `num_units` are secret. `location` is for the data
        owner. The rest is declared, and `repr` shows nothing else.

    Example:
        >>> images, labels = np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 2
        >>> ImageDataset(images=images, labels=labels, num_classes=2, name="scans")
        ImageDataset(name='scans', shape=(1, 28, 28), num_classes=2)
    """

    images: Images
    labels: Labels | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None
    sources: NDArray[np.uint8] | None = None
    blank: NDArray[np.bool_] | None = None
    name: str
    public: bool = False
    drawn: bool = False
    unprotected: tuple[tuple[str, str, int], ...] = ()
    claim: str = ""
    location: str = ""
    made_of: tuple["ImageDataset", ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim == 3:
            self._set(images=self.images[..., np.newaxis])
        require_counts_or_none(num_classes=self.num_classes)
        self._check_images()
        self._check_labels()
        names = tuple(map(normal_form, self.class_names or range(self.num_classes)))
        self._require(
            len(names) == self.num_classes, f"{len(names)} class names for {self.num_classes} classes: give one each"
        )
        require_names_of_classes(names, f"a class of {self.name}")
        self._set(class_names=names, name=normal_form(self.name))
        if self.groups is not None:
            groups = self._one_each("groups", self.groups)
            numbered = groups.min() >= 0 and groups.max() < len(groups) and np.bincount(groups).all()
            self._require(
                bool(numbered), "groups must be numbered from 0 without a gap: dpdm.data.group_indices(...) does it"
            )
            self._set(groups=groups)
        sources, blank = self.sources, self.blank
        if sources is not None:
            self._require(
                sources.shape == (len(self), 2, 32), f"sources have shape {sources.shape}, not ({len(self)}, 2, 32)"
            )
        if blank is not None:
            self._require(
                blank.dtype == bool and blank.shape == (len(self),),
                f"blank is {blank.dtype} of shape {blank.shape}: give one boolean for each image",
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image as a network sees it: (channel, height, width)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def units(self) -> Int64[np.ndarray, " images"]:
        """The index of each image's unit of protection: of its group, or its own."""
        return np.arange(len(self)) if self.groups is None else self.groups

    @property
    def num_units(self) -> int:
        """The number of units of protection: groups, or images if there are no groups."""
        return len(self) if self.groups is None else int(self.groups.max(initial=-1)) + 1

    @property
    def weights(self) -> Float64[np.ndarray, " images"]:
        """For each image 1 ÷ the size of its unit, or 0 if it is blank: a unit's weights add up to at most one."""
        units = self.units
        weights: Float64[np.ndarray, " images"] = 1 / np.bincount(units)[units]
        return weights if self.blank is None else np.where(self.blank, 0.0, weights)

    def part(self, chosen: range | Int64[np.ndarray, " units"]) -> "ImageDataset":
        """Return the units of these indices, numbered anew in their order, with the facts declared about all.

        A range of units shares the memory of the images, except if groups are left out.
        """
        if isinstance(chosen, range) and chosen == range(self.num_units):
            return self
        part = copy.copy(self)  # possibly without images, which no whole data set may be
        images = slice(chosen.start, chosen.stop, chosen.step) if isinstance(chosen, range) else chosen
        if self.groups is not None:
            renumbered = np.full(self.num_units, -1)
            renumbered[images] = np.arange(len(chosen))
            images = np.flatnonzero(renumbered[self.groups] >= 0)
            part._set(groups=renumbered[self.groups[images]])
        for name in ("images", "labels", "sources", "blank"):
            whole = getattr(self, name)
            part._set(**{name: None if whole is None else whole[images]})
        return part

    def shown_by(self, images: Images | Latents) -> "ImageDataset":
        """Return the same records with other numbers as images, such as latents of any channels and sides."""
        self._require(images.dtype in (np.uint8, np.float16), "there must be levels, or numbers of latents")
        self._require(len(images) == len(self), "there must be levels for each image")
        shown = copy.copy(self)
        shown._set(images=images)
        return shown

    def digest(self) -> str:
        """Return a SHA-256 of images, labels, groups and blanks in their order. It is as secret as the images.

        Each process of a run opens the images by itself and keeps a part by index. If a file is added while they start,
        processes could see different images. A record could then lie in two parts, and enter a step twice: its share of
        the sum would be 2C, but the noise hides C. So all processes must have the same digest.
        """
        others = (self.labels, self.groups, self.blank)
        given = repr((self.images.shape, [numbers is not None for numbers in others]))
        found = hashlib.sha256(given.encode())
        for part in in_parts(len(self)):
            found.update(np.ascontiguousarray(self.images[part]).data)
        for numbers in others:
            found.update(b"" if numbers is None else numbers.tobytes())
        return found.hexdigest()

    def __repr__(self) -> str:
        return f"ImageDataset(name={self.name!r}, shape={self.shape}, num_classes={self.num_classes})"

    def _set(self, **fields: Any) -> None:  # noqa: ANN401
        """Set fields of a value that is frozen to everybody else."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _check_images(self) -> None:
        """Raise InputError unless there are images, and they are what the class says."""
        dtype, shape = self.images.dtype, self.images.shape
        self._require(dtype == np.uint8, f"images are {dtype}: convert them to uint8 with levels 0 to 255")
        self._require(
            len(shape) == 4 and shape[3] in (1, 3, 4),
            f"images have shape {shape}: rearrange them to (number, height, width, channel) with 1, 3 or 4 channels",
        )
        self._require(shape[0] > 0, "there are no images: give at least one")
        pixels = f"images of {shape[2]} x {shape[1]} pixels are too"
        self._require(max(shape[1:3]) <= MAX_SIDE, f"{pixels} large: choose data.size, at most {MAX_SIDE:,}")
        self._require(min(shape[1:3]) >= MIN_SIDE, f"{pixels} small: give images of at least {MIN_SIDE} x {MIN_SIDE}")

    def _check_labels(self) -> None:
        """Raise InputError unless there is one label for each image, within the declared classes, or none at all."""
        labels, count = self.labels, self.num_classes
        self._require(count <= MOST_CLASSES, f"there may be {MOST_CLASSES:,} classes at most, not {count:,}")
        if labels is None:
            self._require(
                count == 0,
                f"{count} classes are declared, but there are no labels: add labels or leave data.num_classes out",
            )
            return
        if labels.ndim == 2:
            columns = f"labels have {labels.shape[1]} columns"
            self._require(
                labels.shape[1] == 1, f"{columns}: give one label for each image, not a column for each class"
            )
            labels = labels[:, 0]  # a column, as MedMNIST has it
        self._set(labels=self._one_each("labels", labels))
        require_declared(count, self.name)
        outside = labels[(labels < 0) | (labels >= count)]
        if outside.size:
            raise InputError(
                f"{self.name}: label {outside[0]} occurs, but {count} classes are declared (labels 0 to {count - 1}): "
                "correct the labels or data.num_classes"
            )

    def _one_each(self, what: str, numbers: NDArray[Any]) -> Int64[np.ndarray, " images"]:
        """Return `numbers` as int64, or raise InputError unless they are one integer for each image."""
        self._require(
            np.issubdtype(numbers.dtype, np.integer) and numbers.shape == (len(self),),
            f"{what} are {numbers.dtype} of shape {numbers.shape}: give one integer for each image, "
            f"shape ({len(self)},)",
        )
        return numbers.astype(np.int64)

    def _require(self, fits: bool, otherwise: str) -> None:
        if not fits:
            raise InputError(f"{self.name}: {otherwise}")


def in_parts(number: int, most: int = 4096) -> Iterator[slice]:
    """Yield slices of at most `most` records that together are the first `number` of them, in order."""
    for start in range(0, number, most):
        yield slice(start, min(start + most, number))


def group_indices(names: Sequence[object] | NDArray[np.generic], where: str) -> Int64[np.ndarray, " images"]:
    """Number the groups that images are in by the names of these, in sorted order.

    Args:
        names: One for each image: all of them integers, or all of them words. Blanks around a word and different
            encodings of its letters make no difference.
        where: What gave them, for messages.

    Raises:
        InputError: They are something else.
    """
    listed = names.tolist() if isinstance(names, np.ndarray) else [*names]
    words = bool(listed) and all(isinstance(name, str) for name in listed)
    if words:
        listed = [normal_form(name).strip() for name in listed]
    if not (all(listed) if words else all(type(name) is int or isinstance(name, np.integer) for name in listed)):
        raise InputError(f"{where} must name a group for each image, all by integers or all by words: correct it")
    indices: Int64[np.ndarray, " images"] = np.unique(np.array(listed), return_inverse=True)[1].astype(np.int64)
    return indices


def require_declared(num_classes: int, where: str) -> None:
    """Raise InputError if nobody declared how many classes there are."""
    if num_classes < 1:
        raise InputError(
            f"{where}: declare the number of classes, which must not be read off private labels: "
            "--set data.num_classes=10 if there are ten (dpdm evaluate: --num-classes 10)"
        )
