"""What is found in a source of images before anything private is spent on it; nothing is stored."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpdm.data.dataset import ImageDataset
from dpdm.data.framing import Framing
from dpdm.data.identity import file_digests, pixel_digests
from dpdm.data.image_files import ImageFile, ImageFiles, decode_image, why_no_image
from dpdm.data.layout import NoSuchPart, Split
from dpdm.data.location import split_of
from dpdm.data.open import open_dataset
from dpdm.types import Images, InputError

_CHANNELS = {1: "grey", 3: "colour", 4: "colour with transparency"}
_SMALL = Framing(size=8, fit="resize", channels=1)  # what is kept of an image, for its levels


class PartFound(NamedTuple):
    """What one part of a source holds. All numbers are of private records: for the data's owner alone.

    Attributes:
        images: How many can be used.
        classes: Images of each class, by its name, in the order of labels; empty without labels.
        groups: Images of each group, where a group is the unit.
        sizes: Images of each (width, height) in pixels.
        channels: Images that are grey, colour, or colour with transparency.
        refused: One line for each file that cannot be used.
        equal: How many images equal an earlier one in every pixel.
        public: Whether the source is a built-in data set.
    """

    images: int
    classes: dict[str, int]
    groups: list[int] | None
    sizes: Counter[tuple[int, int]]
    channels: Counter[str]
    refused: list[str]
    equal: int
    public: bool


def inspect(
    source: str | Path,
    *,
    num_classes: int | None = None,
    group: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Split, PartFound]:
    """Return what each part of a source holds, as `open_dataset` reads it; of `photos:test`, this part alone.

    All that is given is as in `open_dataset`. `on_progress` is called after each image with the number of images so
    far, and the number of all in this part.

    Raises:
        InputError: The source cannot be opened, whatever its images are.
    """
    place, asked = split_of(source)
    splits: tuple[Split, ...] = ("train", "val", "test") if place == str(source) else (asked,)
    found: dict[Split, PartFound] = {}
    missing: NoSuchPart | None = None
    for split in splits:
        looked = _Look(on_progress)
        part = str(source) if split == "train" and place == str(source) else f"{place}:{split}"
        named = part if isinstance(source, str) else Path(part)
        try:
            opened = open_dataset(named, num_classes=num_classes, group=group, read=looked)
        except NoSuchPart as error:
            missing = missing or error
            continue
        found[split] = looked.found(opened)
    if not found and missing is not None:
        raise missing
    return found


class _Seen(NamedTuple):
    """What an image is that can be used."""

    size: tuple[int, int]
    channels: int
    digest: bytes


class _Look:
    """Looks at image files, keeps what they are, and returns stand-ins of 8 x 8 pixels for them."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self._on_progress = on_progress
        self._seen: dict[int, _Seen] | None = None  # None: the source does not consist of image files
        self._refused: list[str] = []

    def __call__(self, files: ImageFiles, others: Sequence[ImageFile] = ()) -> Images:
        """Return an image for each file, black for those that cannot be used."""
        self._seen, self._refused = {}, [*map(why_no_image, others)]
        images = np.zeros((len(files), 8, 8, 1), np.uint8)
        for index, file in enumerate(files):
            try:
                decoded, encoded = decode_image(file)
                images[index] = _SMALL.frame(decoded)
                digest = file_digests(encoded, decoded)[-1].tobytes()
                self._seen[index] = _Seen(decoded.size, len(decoded.getbands()), digest)
            except InputError as error:
                self._refused.append(str(error))
            self._on_progress(index + 1, len(files))
        return images

    def found(self, opened: ImageDataset) -> PartFound:
        """Return what was found, of a part that was opened with this to read its files."""
        seen = self._seen
        if seen is None:
            height, width, channels = opened.images.shape[1:]
            digests = enumerate(pixel_digests(opened.images))
            seen = {index: _Seen((width, height), channels, digest.tobytes()) for index, digest in digests}
        labels, groups = (None if of is None else of[[*seen]] for of in (opened.labels, opened.groups))
        counts = np.bincount([] if labels is None else labels, minlength=opened.num_classes)
        return PartFound(
            images=len(seen),
            classes={name: int(count) for name, count in zip(opened.class_names, counts, strict=True)},
            groups=None if groups is None else [int(count) for count in np.bincount(groups) if count],
            sizes=Counter(image.size for image in seen.values()),
            channels=Counter(_CHANNELS[image.channels] for image in seen.values()),
            refused=self._refused,
            equal=len(seen) - len({image.digest for image in seen.values()}),
            public=opened.public,
        )
