"""One way in: a name or a path becomes a data set."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

from dpdm.data.cifar import load_cifar_directory
from dpdm.data.dataset import ImageDataset, UndeclaredError, require_no_groups, require_same_num_classes
from dpdm.data.digits import load_digits
from dpdm.data.framing import Channels, Fit, Framing
from dpdm.data.identity import array_digests
from dpdm.data.idx import load_idx_directory
from dpdm.data.image_files import Reader, ReadImages
from dpdm.data.layout import Split, plain_name
from dpdm.data.location import BUILT_IN, found, require_there, split_of
from dpdm.data.sources import Asked, open_path
from dpdm.types import MOST_CLASSES, InputError

_SYSTEM_FOLDER: Final = Path("/usr/share/datasets")  # where Debian's data set packages put their files
_GROUPED: Final = ", in groups by "
_FASHION: Final = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


def open_dataset(
    source: str | Path,
    *,
    size: int | None = None,
    fit: Fit = "crop",
    channels: Channels | None = None,
    num_classes: int | None = None,
    group: str | None = None,
    read: ReadImages | None = None,
    public: bool = False,
) -> ImageDataset:
    """Return the images, labels and declared facts of a source.

    A built-in name goes before a path: write `./digits`, or pass a Path, for a folder of that name.

    Args:
        source: `digits`, `fashion-mnist`, `mnist`, `cifar10`, `cifar100`, or the path of a folder or .zip archive of
            images, a folder of IDX files named as those of MNIST or of CIFAR's binary version, an .npz or .npy file, a
            .parquet file or a folder of them, what Hugging Face's `datasets` saved to disk, or a folder that
            `dpdm prepare` made; `:train` (the default), `:val` or `:test` after it chooses a part. Parts are known by
            the names of folders, files or arrays (`train`, `training`, `val`, `valid`, `validation`, `test`, `testing`,
            in any case). A path that does not exist here is looked for, as a folder, file or .zip archive, in the
            folder that the environment variable DPDM_DATA names.
        size: Side of the square in pixels, >= 8; None leaves sizes as they are. A prepared folder has its own.
        fit: How images that are not square get there: "crop", "pad" or "resize" (see `Framing`).
        channels: 1 grey, 3 RGB, 4 RGBA; None leaves channels as they are.
        num_classes: How many classes there are; labels that come as numbers need it.
        group: What names the group of each image, if the unit of privacy is all images of one person, say, and not each
            image: "folder", the folders that images lie in, inside of class folders; the heading of a further column of
            a `labels.csv`; a column of a table; an array in an .npz file; "groups" for a folder prepared with groups.
        read: Reads the images of sources that consist of image files (default: into memory).
        public: Whether whoever calls this declares that the images are published already. What has to be declared of
            private ones is then read off their labels.

    Raises:
        InputError: If the source cannot be opened so.
    """
    if public:
        return _open_public(source, size=size, fit=fit, channels=channels, num_classes=num_classes, group=group)
    if group == "":
        raise InputError("data.group is empty: name what tells which images form a group, or leave it out")
    framing = Framing(size=size, fit=fit, channels=channels)
    reader = Reader(framing)
    place, split = split_of(source)
    part = "" if split == "train" else f":{split}"
    if isinstance(source, str) and place in BUILT_IN:
        dataset, name = _LOADERS[place](split), f"{place}{part}"
        location = dataset.name
        require_same_num_classes(dataset.num_classes, num_classes, place)
        require_no_groups(group, place)
    else:
        path = found(Path(place).expanduser())
        require_there(path)
        location = str(path.resolve())
        plain_name(location, "")
        dataset = open_path(path, Asked(split, read or reader, framing, num_classes, group))
        _require_levels(dataset)
        is_copy = dataset.sources is not None  # a prepared one, which keeps the name of its source
        name = dataset.name if is_copy else f"{path.resolve().name}{part}"
    sources = dataset.sources if reader.sources is None else reader.sources
    if sources is None and not framing.keeps(*dataset.images.shape[1:]):
        sources = array_digests(dataset.images)
    opened = f"{location}{part}" + ("" if group is None else f"{_GROUPED}{group}")
    return replace(
        dataset,
        public=dataset.public or (isinstance(source, str) and place in BUILT_IN),
        sources=sources,
        images=framing.frame_all(dataset.images),
        name=name,
        location=opened if size is None else f"{opened}, {fit} to {size}",
    )


def _open_public(source: str | Path, *, num_classes: int | None, **how: Any) -> ImageDataset:  # noqa: ANN401
    """Return images that are public, with as many classes as their labels tell where nobody has declared them."""
    try:
        opened = open_dataset(source, num_classes=num_classes, **how)
    except UndeclaredError:
        opened = open_dataset(source, num_classes=MOST_CLASSES, **how)
        assert opened.labels is not None
        opened = replace(opened, num_classes=int(opened.labels.max()) + 1, class_names=())
    return replace(opened, public=True)


class Location(NamedTuple):
    """Where images were opened, and how."""

    source: str
    group: str | None
    size: int | None
    fit: Fit


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


def open_again(location: str, *, channels: Channels, num_classes: int) -> ImageDataset:
    """Return the data set that was opened at `location` before (`ImageDataset.location`), with its declared facts.

    Raises:
        InputError: It is not there any more, or it was given as arrays and has no location.
    """
    source, group, size, fit = read_location(location)
    return open_dataset(source, size=size, fit=fit, channels=channels, num_classes=num_classes or None, group=group)


def _require_levels(dataset: ImageDataset) -> None:
    """Raise InputError if all levels are 0 or 1, as in masks: such images are black."""
    any_zero = any_one = False
    for image in dataset.images:
        colours = image[..., :3]
        if colours.max() > 1:
            return
        any_zero, any_one = any_zero or not colours.all(), any_one or bool(colours.any())
    if any_zero and any_one:
        raise InputError(
            f"{dataset.name} has no other levels than 0 and 1 of 255, as masks do, which is black: multiply them by 255"
        )


def _fashion_mnist(split: Split) -> ImageDataset:
    folder = _installed("fashion-mnist", remedy="run apt-get install dataset-fashion-mnist, or ")
    return load_idx_directory(folder, split, num_classes=10, class_names=tuple(_FASHION.split(",")))


def _mnist(split: Split) -> ImageDataset:
    return load_idx_directory(_installed("mnist"), split, num_classes=10)


def _cifar10(split: Split) -> ImageDataset:
    return load_cifar_directory(_installed("cifar10", archive="cifar-10-batches-bin"), split, num_classes=10)


def _cifar100(split: Split) -> ImageDataset:
    return load_cifar_directory(_installed("cifar100", archive="cifar-100-binary"), split, num_classes=100)


_LOADERS: Final[dict[str, Callable[[Split], ImageDataset]]] = dict(
    zip(BUILT_IN, (load_digits, _fashion_mnist, _mnist, _cifar10, _cifar100), strict=True)
)


def _installed(name: str, *, archive: str = "", remedy: str = "") -> Path:
    """Return the folder of a data set that was put on this machine, by its name or by that in its archive."""
    own = os.environ.get("DPDM_DATA")
    for parent in [Path(own), _SYSTEM_FOLDER] if own else [_SYSTEM_FOLDER]:
        for folder in (parent / name, parent / (archive or name)):
            if folder.is_dir():
                return folder
    files = f"the files of {archive}" if archive else "its four IDX files"
    raise InputError(
        f"{name} is not on this machine: {remedy}put {files} in a folder {name}/ "
        "and set DPDM_DATA to the folder above it"
    )
