"""A data set prepared once: every image decoded and framed, in one file that training maps into memory.

The folder holds `images.bin` (the pixels, one image after the other) and `sources.bin` (digests of what each image was
before). It holds `labels.npy`, and `groups.npy` if there are groups. It holds `prepared.json` with the source's name,
the shape, what was declared, and digests. This file is written last: until then `progress.json` says how far the work
is. All of the folder is as private as the images are: whoever has an image can see in `sources.bin` whether it is among
them.
"""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from dpdm.data.claims import PREPARED, claim_among, find_claim
from dpdm.data.dataset import ImageDataset, group_indices, in_parts
from dpdm.data.declared import Asked, Records
from dpdm.data.framing import Fit, Framing
from dpdm.data.identity import DIGEST, array_digests
from dpdm.data.image_files import EncodedImage, ImageFile, ImageFiles, ReadImages, read_image, why_no_image
from dpdm.data.layout import is_hidden
from dpdm.data.location import split_of
from dpdm.data.opened import read_location
from dpdm.files import damaged, digest, held, read_json, write_atomically, write_json
from dpdm.types import Images, InputError

_DONE: Final = PREPARED
_PROGRESS: Final = "progress.json"
_IMAGES, _SOURCES, _LABELS, _GROUPS = "images.bin", "sources.bin", "labels.npy", "groups.npy"
_REFUSED = "refused.txt"
_OURS: Final = {_DONE, _PROGRESS, _IMAGES, _SOURCES, _LABELS, _GROUPS, _REFUSED}
_LOCK = ".lock"
_SCHEMA: Final = 2
_NOTHING: Final[dict[str, Any]] = {"source": "", "done": 0, "refused": []}  # progress when nothing is done
_SECONDS_BETWEEN_SAVES = 2.0
_OF_ONE: Final = 2, DIGEST  # shape of the digests of one image
_Mapped = np.memmap[Any, np.dtype[np.uint8]]

OnProgress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""


class Prepared(NamedTuple):
    """A prepared folder: how many images it holds, and which records were left out, each with the reason."""

    num_images: int
    left_out: list[str]


def prepare(
    folder: Path,
    open_source: Callable[[ReadImages], ImageDataset],
    framing: Framing,
    *,
    leave_out: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Prepared:
    """Decode and frame all images of a source into a folder that `open_dataset` opens.

    The same call goes on where an earlier one was interrupted, unless the source's files are others by then.

    Args:
        folder: The folder to make.
        open_source: Opens the source, given what is to read its image files.
        framing: Size and channels of all images.
        leave_out: Whether records that cannot be used are left out and listed, rather than end it.
        on_progress: Called after each image.

    Raises:
        InputError: The folder holds something else, or another process prepares it; or records cannot be used, which
            `refused.txt` then lists.

    Guarantees:
        * A folder that opens is whole, and its bytes are those that were written: digests are checked.
        * It opens under the name of its source, and a ledger knows its images as those of the source.
        * What is left out is decided for each record by itself: one record never changes another.
    """
    if leave_out and None in (framing.size, framing.channels):
        # Else the first record would decide which others are left out.
        both = "--set data.size=32 --set data.channels=3"
        raise InputError(f"to leave records out, declare both size and channels, such as {both}")
    if folder.exists() and (not folder.is_dir() or not _ours(folder)):
        raise InputError(f"{folder} holds something else: choose another folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder} is being prepared by another process: wait for it, or end it"
    with held(folder / _LOCK, otherwise=busy), _removing_unless_begun(folder) if is_new else nullcontext():
        if (folder / _DONE).exists():
            raise InputError(f"{folder} is prepared already: use it, or remove it first")
        writer = _Writer(folder, framing, on_progress)
        data = open_source(writer)
        if not writer.arrays:
            writer.copy(data)
        refused = [*writer.not_images, *(reason for _, reason in sorted(writer.refused.items()))]
        _list_refused(folder, refused)
        if refused and not leave_out:
            raise InputError(
                f"{len(refused)} of the records cannot be used, the first one because {refused[0]}; "
                f"{folder / _REFUSED} lists all: mend them, or leave them out with --leave-out"
            )
        kept = np.setdiff1d(np.arange(len(data.images)), list(writer.refused))
        if not len(kept):
            raise InputError(f"{data.name}: no record can be used")
        _finish(folder, writer, kept, data)
        return Prepared(len(kept), refused)


@contextmanager
def _removing_unless_begun(folder: Path) -> Iterator[None]:
    """Remove a folder that was made for a source that does not open: it may lie in this source."""
    try:
        yield
    finally:
        if {entry.name for entry in folder.iterdir()} <= {_LOCK}:
            shutil.rmtree(folder)


def is_prepared(path: Path) -> bool:
    """Whether `prepare` wrote this folder, to the end or not."""
    return path.is_dir() and ((path / _DONE).is_file() or (path / _PROGRESS).is_file()) and _ours(path)


def load_prepared(path: Path, asked: Asked) -> Records:
    """Return the images and labels of a prepared folder; the images stay on disk, and are read as they are needed.

    The framing that is asked for must be that of the images: to frame them anew would take them all into memory.
    """
    asked.require_whole(path)
    if not (path / _DONE).is_file():
        raise InputError(f"{path} is not prepared to the end: repeat its dpdm prepare command")
    facts: dict[str, Any] = read_json(path / _DONE)
    if facts.get("schema") != _SCHEMA:
        raise InputError(f"{path} was prepared by another version of dpdm: prepare it again")
    with damaged(path, "prepare it again", what="is damaged"):
        number, height, width, channels = map(int, facts["shape"])
        if not asked.framing.keeps(height, width, channels):
            raise InputError(
                f"{path} was prepared at {width} x {height} with {channels} channels: "
                "leave data.size and data.channels out, or prepare it again with them"
            )
        for name, stated in facts["sha256"].items():
            if digest(path / name) != stated:
                raise InputError(f"{path / name} is damaged, its digest differs: prepare the folder again")
        has_groups = _GROUPS in facts["sha256"]
        if has_groups and asked.group != "groups":
            raise InputError(f"{path} was prepared with groups of images, the units of privacy: set data.group=groups")
        return Records(
            str(path),
            np.memmap(path / _IMAGES, np.uint8, "r", shape=(number, height, width, channels)),
            labels=np.load(path / _LABELS, allow_pickle=False) if facts["class_names"] else None,
            class_names=tuple(map(str, facts["class_names"])),
            groups=np.load(path / _GROUPS, allow_pickle=False) if has_groups else None,
            name=str(facts["name"]),
            sources=np.memmap(path / _SOURCES, np.uint8, "r", shape=(number, *_OF_ONE)),
            public=facts["public"] is True,
            claim=str(facts.get("claim", "")),
            framed=_framed(facts),
        )


def _framed(facts: dict[str, Any]) -> tuple[int, Fit] | None:
    """Return the side that images were brought to, and how; None where nothing was said of it."""
    fit = facts.get("fit")
    if fit is not None and fit not in get_args(Fit):
        raise ValueError(fit)
    return None if fit is None else (int(facts["shape"][1]), cast(Fit, fit))


class _Writer:
    """Reads images into `images.bin` and `sources.bin`, from where an earlier process stopped.

    `arrays` are these two files, once they are written, and `refused` has the reason for each image that cannot be
    used.
    """

    def __init__(self, folder: Path, framing: Framing, on_progress: OnProgress) -> None:
        self._folder, self.framing, self._on_progress = folder, framing, on_progress
        self.arrays: dict[str, _Mapped] = {}
        self.refused: dict[int, str] = {}
        self.not_images: list[str] = []
        self.claim: tuple[str, str] | None = None

    def __call__(self, files: ImageFiles, others: Sequence[ImageFile] = ()) -> Images:
        """Return the images of all files; those that cannot be used are noted, and what is in their place is not."""
        self.not_images, self.claim = [*map(why_no_image, others)], claim_among(files)
        size, channels, first, like = self.framing.size, self.framing.channels, next(iter(files)), None
        if size is None or channels is None:
            like = read_image(first, self.framing).image
        shape = (size, size, channels) if like is None else like.shape
        return self._write(
            files, lambda file: read_image(file, self.framing, like=like, which=first)[:2], shape, _digest_of(files)
        )

    def copy(self, data: ImageDataset) -> None:
        """Write images that come as an array."""

        def read(index: int) -> tuple[Images, NDArray[np.uint8]]:
            image = data.images[index : index + 1]
            source = array_digests(image)[0] if data.sources is None else data.sources[index]
            return self.framing.frame_all(image)[0], source

        self._write(range(len(data)), read, read(0)[0].shape, data.digest())

    def _write(
        self,
        items: ImageFiles | range,
        read: Callable[[Any], tuple[Images, NDArray[np.uint8]]],
        shape: tuple[Any, ...],
        digest_of_items: str,
    ) -> Images:
        """Write what is read of all items; digest and framing must be the same to go on."""
        source = hashlib.sha256(f"{self.framing} {digest_of_items}".encode()).hexdigest()
        shapes = {_IMAGES: (len(items), *shape), _SOURCES: (len(items), *_OF_ONE)}
        progress = self._folder / _PROGRESS
        known: dict[str, Any] = read_json(progress) if progress.exists() else _NOTHING
        if known.get("source") != source or any(_size(self._folder / n) != math.prod(of) for n, of in shapes.items()):
            known = _NOTHING
            write_json(progress, known)
        done, saved, self.refused = int(known["done"]), time.monotonic(), dict(known["refused"])
        self.arrays = {name: _mapped(self._folder / name, of, fresh=done == 0) for name, of in shapes.items()}
        images, sources = self.arrays.values()
        for index, item in enumerate(islice(items, done, None), done):
            try:
                images[index], sources[index] = read(item)
            except InputError as error:
                self.refused[index] = str(error)
            done = index + 1
            self._on_progress(done, len(items))
            if done == len(items) or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                saved = time.monotonic()
                images.flush()
                sources.flush()
                write_json(progress, {"source": source, "done": done, "refused": [*self.refused.items()]})
        return images


def _size(path: Path) -> int:
    """Return the bytes of a file; -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def _mapped(path: Path, shape: tuple[int, ...], *, fresh: bool) -> _Mapped:
    """Return a file as an array that is written through."""
    if fresh:
        with path.open("wb") as file:
            file.truncate(math.prod(shape))
    return np.memmap(path, np.uint8, "r+", shape=shape)


def _finish(folder: Path, written: _Writer, kept: NDArray[np.int64], data: ImageDataset) -> None:
    """Close the gaps that refused records leave, and write labels, groups and, last, facts and digests."""
    if written.refused:
        write_json(folder / _PROGRESS, _NOTHING)  # what is moved must not be taken for what stood there before
        for name, array in written.arrays.items():
            for part in in_parts(len(kept)):
                array[part] = array[kept[part]]
            array.flush()
            os.truncate(folder / name, len(kept) * math.prod(array.shape[1:]))
    names = [*written.arrays]
    if data.labels is not None:
        np.save(folder / _LABELS, data.labels[kept], allow_pickle=False)
        names.append(_LABELS)
    if data.groups is not None:  # of which one vanishes if all of its images are refused
        np.save(folder / _GROUPS, group_indices(data.groups[kept], data.name), allow_pickle=False)
        names.append(_GROUPS)
    facts = {
        "schema": _SCHEMA,
        "name": data.name,
        "public": data.public,
        "shape": [len(kept), *written.arrays[_IMAGES].shape[1:]],
        "class_names": list(data.class_names),
        "sha256": {name: digest(folder / name) for name in names},
    }
    opened = read_location(data.location) if data.location else None
    if written.framing.size is not None:
        facts["fit"] = written.framing.fit
    elif opened is not None and opened.size is not None:  # of a folder that was prepared from a prepared one
        facts["fit"] = opened.fit
    place = None if opened is None else Path(split_of(opened.source)[0])
    below = find_claim(place) if place is not None and place.is_absolute() else None  # else drawn, or built in
    carried = written.claim or below
    write_json(folder / _DONE, facts if carried is None else facts | {"claim": carried[1]})
    (folder / _PROGRESS).unlink()


def _list_refused(folder: Path, refused: Sequence[str]) -> None:
    """Write which records are refused, and why; nothing if none are."""
    if refused:
        write_atomically(folder / _REFUSED, lambda path: path.write_text("\n".join(refused) + "\n", encoding="utf-8"))
    else:
        (folder / _REFUSED).unlink(missing_ok=True)


def _ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what `prepare` writes."""
    return {entry.name for entry in folder.iterdir() if not is_hidden(entry.name)} <= _OURS


def _digest_of(files: ImageFiles) -> str:
    """Return a digest of names, sizes and times of all files."""
    found = hashlib.sha256()
    for file in files:
        if isinstance(file, Path):
            status = file.stat() if file.exists() else None  # a link may lead nowhere
            state = "" if status is None else f"{status.st_size} {status.st_mtime_ns}"
        elif isinstance(file, EncodedImage):
            state = hashlib.sha256(file.encoded or b"").hexdigest()
        else:
            state = str(file.root.getinfo(file.at).CRC)
        found.update(f"{file}\0{state}\n".encode(errors="surrogateescape"))
    return found.hexdigest()
