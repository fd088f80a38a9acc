"""One way in: a name or a path becomes a data set."""

from dataclasses import replace
from pathlib import Path

from dpdm.data.built_in import load_built_in
from dpdm.data.claims import claim_among
from dpdm.data.dataset import ImageDataset
from dpdm.data.declared import Asked, declare
from dpdm.data.framing import Channels, Fit, Framing
from dpdm.data.identity import array_digests
from dpdm.data.image_files import FilesByKind, Reader, ReadImages
from dpdm.data.layout import plain_name
from dpdm.data.location import BUILT_IN, found, require_there, split_of
from dpdm.data.opened import read_location, say_location
from dpdm.data.sources import open_path
from dpdm.types import InputError


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
        source: `digits`, `fashion-mnist`, `mnist`, `cifar10`, `cifar100`, or a path. The path is that of a folder or
            .zip archive of images, or of a folder of MNIST's IDX or CIFAR's binary files. Or it is that of an .npz or
            .npy file, of a .parquet file, or of a folder of .parquet files. Or it is that of a data set that Hugging
            Face's `datasets` saved, or of a folder that `dpdm prepare` made. A suffix `:train` (default), `:val` or
            `:test` chooses a part. Folders, files or arrays of such names are the parts: `train`, `training`, `val`,
            `valid`, `validation`, `test`, `testing`, in any case. The environment variable DPDM_DATA names a folder to
            look in for a path that does not exist here.
        size: Side of the square in pixels, >= 8; None leaves sizes as they are. A prepared folder has its own.
        fit: How images that are not square become square: "crop", "pad" or "resize" (see `Framing`).
        channels: 1 grey, 3 RGB, 4 RGBA; None leaves channels as they are.
        num_classes: Number of classes. Labels that come as numbers need it.
        group: Where the group of each image stands, if the unit of privacy is a group such as one person. "folder"
            takes the folders inside class folders. Other names are a further column of `labels.csv`, a column of a
            table, or an array of an .npz file. A folder that was prepared with groups needs "groups".
        read: The reader of image files (default: into memory).
        public: Whether the caller declares that the images are published already. Facts that private images need
            declared then come from the labels.

    Raises:
        InputError: The source cannot be opened so. The message says what to do.

    Example:
        >>> open_dataset("digits:test").shape
        (1, 8, 8)
    """
    if group == "":
        raise InputError("data.group is empty: name what tells which images form a group, or leave it out")
    framing = Framing(size=size, fit=fit, channels=channels)
    reader = Reader(framing)
    place, split = split_of(source)
    part = "" if split == "train" else f":{split}"
    asked = Asked(split, framing, num_classes, group, public=public)
    if isinstance(source, str) and place in BUILT_IN:
        records = load_built_in(place, asked)
        name, location = f"{place}{part}", records.where
    else:
        path = found(Path(place).expanduser())
        require_there(path)
        location = str(path.resolve())
        plain_name(location, "")
        records = open_path(path, asked)
        name = records.name or f"{path.resolve().name}{part}"
    if public and isinstance(records.images, FilesByKind) and (carried := claim_among(records.images.images)):
        raise InputError(
            f"{carried[0]} was drawn from a private release ({carried[1]}): its images are not public data"
        )
    size, fit = records.framed or (size, fit)
    dataset = declare(records, asked, read or reader)
    _require_levels(dataset)
    sources = dataset.sources if reader.sources is None else reader.sources
    if sources is None and not framing.keeps(*dataset.images.shape[1:]):
        sources = array_digests(dataset.images)
    return replace(
        dataset,
        public=dataset.public or public,
        sources=sources,
        claim=reader.claim or dataset.claim,
        images=framing.frame_all(dataset.images),
        name=name,
        location=say_location(f"{location}{part}", group, size, fit),
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
    colours = dataset.images[..., :3]
    if all(image.max() <= 1 for image in colours) and colours.any() and not colours.all():
        raise InputError(
            f"{dataset.name} has no other levels than 0 and 1 of 255, as masks do, which is black: multiply them by 255"
        )
