"""A data set prepared once: every image decoded and framed, in one file that training maps into memory.

The folder holds `images.bin` (the pixels, one image after the other), `sources.bin` (digests of what each was before),
`labels.npy`, `groups.npy` if there are groups, and `prepared.json` with the source's name, the shape, what was
declared, and digests; that last file is written last. Until then `progress.json` says how far it is. All of it is as
private as the images are: whoever has an image can see in `sources.bin` whether it is among them.
"""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset, group_indices, require_no_groups, require_same_num_classes
from dpdm.data.framing import Framing
from dpdm.data.identity import DIGEST, array_digests
from dpdm.data.image_files import EncodedImage, ImageFile, ReadImages, read_image, why_no_image
from dpdm.data.layout import is_hidden
from dpdm.files import digest, held, read_json, write_json
from dpdm.types import Images, InputError, is_of_memory

_DONE: Final = "prepared.json"
_PROGRESS: Final = "progress.json"
_IMAGES, _SOURCES, _LABELS, _GROUPS = "images.bin", "sources.bin", "labels.npy", "groups.npy"
_REFUSED = "refused.txt"
_LOCK = ".lock"
_SCHEMA: Final = 2
_NOTHING: Final[dict[str, Any]] = {"source": "", "done": 0, "refused": []}  # progress when nothing is done
_SECONDS_BETWEEN_SAVES = 2.0
_PART = 4096  # images copied at a time
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
        raise InputError("to leave records out, declare data.size and data.channels: --set data.size=32")
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
        if writer.images is None:
            writer.copy(data)
        assert writer.images is not None
        refused = [*writer.not_images, *(reason for _, reason in sorted(writer.refused.items()))]
        if refused and not leave_out:
            (folder / _REFUSED).write_text("\n".join(refused) + "\n", encoding="utf-8")
            raise InputError(
                f"{len(refused)} of the records cannot be used, the first one because {refused[0]}; "
                f"{folder / _REFUSED} lists all: mend them, or leave them out with --leave-out"
            )
        kept = np.setdiff1d(np.arange(len(data.images)), list(writer.refused))
        if not len(kept):
            raise InputError(f"{data.name}: no record can be used")
        _finish(folder, writer, kept, data, refused)
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


def load_prepared(
    path: Path, framing: Framing, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images and labels of a prepared folder; the images stay on disk, and are read as they are needed.

    Args:
        path: The folder.
        framing: The size and channels that its images must have: to frame them anew would take them all into memory.
        num_classes: If given, it must have this many classes; 0 leaves labels aside.
        group: "groups" if it was prepared with groups, None if not.

    Raises:
        InputError: It is not finished, or damaged, or was prepared at another size.
    """
    if not (path / _DONE).is_file():
        raise InputError(f"{path} is not prepared to the end: repeat its dpdm prepare command")
    facts = read_json(path / _DONE)
    if facts.get("schema") != _SCHEMA:
        raise InputError(f"{path} was prepared by another version of dpdm: prepare it again")
    try:
        shape, names, digests = _shape(facts["shape"]), facts["class_names"], facts["sha256"]
        assert isinstance(digests, dict)
        assert isinstance(names, list)
        _, height, width, channels = shape
        if not framing.keeps(height, width, channels):
            raise InputError(
                f"{path} was prepared at {width} x {height} with {channels} channels: "
                "leave data.size and data.channels out, or prepare it again with them"
            )
        for name, stated in digests.items():
            if digest(path / name) != stated:
                raise InputError(f"{path / name} is damaged, its digest differs: prepare the folder again")
        images = np.memmap(path / _IMAGES, np.uint8, "r", shape=shape)
        sources = np.memmap(path / _SOURCES, np.uint8, "r", shape=(shape[0], *_OF_ONE))
        name, public = facts["name"], facts["public"]
        assert isinstance(name, str)
        assert isinstance(public, bool)
        labels = np.load(path / _LABELS, allow_pickle=False) if names else None
        groups = np.load(path / _GROUPS, allow_pickle=False) if _GROUPS in digests else None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        if is_of_memory(error):
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}): prepare it again") from None
    if groups is None:
        require_no_groups(group, str(path))
    elif group != "groups":
        raise InputError(f"{path} was prepared with groups of images, the units of privacy: set data.group=groups")
    if num_classes == 0:
        return ImageDataset(images=images, groups=groups, sources=sources, name=name, public=public)
    require_same_num_classes(len(names), num_classes, str(path))
    return ImageDataset(
        images=images,
        labels=labels,
        num_classes=len(names),
        class_names=tuple(map(str, names)),
        groups=groups,
        sources=sources,
        name=name,
        public=public,
    )


class _Writer:
    """Reads image files into `images.bin` and `sources.bin`, from where an earlier process stopped."""

    def __init__(self, folder: Path, framing: Framing, on_progress: OnProgress) -> None:
        self._folder, self._framing, self._on_progress = folder, framing, on_progress
        self.images: _Mapped | None = None
        self.sources: _Mapped | None = None
        self.refused: dict[int, str] = {}
        self.not_images: list[str] = []

    def __call__(self, files: Sequence[ImageFile | EncodedImage], others: Sequence[ImageFile] = ()) -> Images:
        self.not_images = [*map(why_no_image, others)]
        source = _digest_of(files, self._framing)
        known: dict[str, Any] = read_json(self._folder / _PROGRESS) if (self._folder / _PROGRESS).exists() else {}
        first = files[0]
        like = read_image(first, self._framing).image if self._open_frame else None
        shape = len(files), *(self._frame if like is None else like.shape)
        if known.get("source") != source or not self._there(shape):
            known = _NOTHING
        images, sources = self._map(shape, fresh=not known["done"])
        done, saved = int(known["done"]), time.monotonic()
        self.refused = {index: reason for index, reason in known["refused"]}
        for index in range(done, len(files)):
            file = files[index]
            try:
                images[index], sources[index] = read_image(file, self._framing, like=like, which=first)
            except InputError as error:
                self.refused[index] = str(error)
            done = index + 1
            self._on_progress(done, len(files))
            if done == len(files) or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                saved = time.monotonic()
                images.flush()
                sources.flush()
                refused = list(self.refused.items())
                write_json(self._folder / _PROGRESS, {"source": source, "done": done, "refused": refused})
        return images

    def copy(self, data: ImageDataset) -> None:
        """Write images that come as an array."""
        images = data.images
        framed = self._framing.frame_all(images[:1]).shape[1:]
        copy, sources = self._map((len(images), *framed), fresh=True)
        for start in range(0, len(images), _PART):
            part = np.asarray(images[start : start + _PART])
            here = slice(start, start + len(part))
            copy[here] = self._framing.frame_all(part)
            sources[here] = array_digests(part) if data.sources is None else data.sources[here]
            self._on_progress(start + len(part), len(images))

    @property
    def _open_frame(self) -> bool:
        return None in (self._framing.size, self._framing.channels)

    @property
    def _frame(self) -> tuple[int, int, int]:
        size, channels = self._framing.size, self._framing.channels
        assert size is not None
        assert channels is not None
        return size, size, channels

    def _there(self, shape: tuple[int, ...]) -> bool:
        paths = {self._folder / _IMAGES: shape, self._folder / _SOURCES: (shape[0], *_OF_ONE)}
        return all(path.is_file() and path.stat().st_size == math.prod(of) for path, of in paths.items())

    def _map(self, shape: tuple[int, ...], *, fresh: bool) -> "tuple[_Mapped, _Mapped]":
        """Return `images.bin` and `sources.bin` as arrays that are written through."""
        if fresh:
            write_json(self._folder / _PROGRESS, _NOTHING)
        self.images = self._mapped(_IMAGES, shape, fresh=fresh)
        self.sources = self._mapped(_SOURCES, (shape[0], *_OF_ONE), fresh=fresh)
        return self.images, self.sources

    def _mapped(self, name: str, shape: tuple[int, ...], *, fresh: bool) -> "_Mapped":
        path = self._folder / name
        if fresh:
            with path.open("wb") as file:
                file.truncate(math.prod(shape))
        return np.memmap(path, np.uint8, "r+", shape=shape)


def _finish(
    folder: Path, written: _Writer, kept: NDArray[np.int64], data: ImageDataset, refused: Sequence[str]
) -> None:
    """Close the gaps that refused records leave, and write labels, list and, last, facts and digests."""
    if refused:  # what is moved now must not be taken for what stands where it was read to
        write_json(folder / _PROGRESS, _NOTHING)
    assert written.images is not None
    assert written.sources is not None
    for name, array in ((_IMAGES, written.images), (_SOURCES, written.sources)):
        for start in range(0, len(kept), _PART):
            chosen = kept[start : start + _PART]
            array[start : start + len(chosen)] = array[chosen]
        array.flush()
        os.truncate(folder / name, len(kept) * math.prod(array.shape[1:]))
    shape = len(kept), *written.images.shape[1:]
    names = [_IMAGES, _SOURCES]
    if data.labels is not None:
        np.save(folder / _LABELS, data.labels[kept], allow_pickle=False)
        names.append(_LABELS)
    if data.groups is not None:  # of which one vanishes if all of its images are refused
        np.save(folder / _GROUPS, group_indices(data.groups[kept], data.name), allow_pickle=False)
        names.append(_GROUPS)
    (folder / _REFUSED).unlink(missing_ok=True)
    if refused:
        (folder / _REFUSED).write_text("\n".join(refused) + "\n", encoding="utf-8")
    digests = {name: digest(folder / name) for name in names}
    facts = {
        "schema": _SCHEMA,
        "name": data.name,
        "public": data.public,
        "shape": list(shape),
        "class_names": list(data.class_names),
        "sha256": digests,
    }
    write_json(folder / _DONE, facts)
    (folder / _PROGRESS).unlink()


def _ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what `prepare` writes."""
    return {entry.name for entry in folder.iterdir() if not is_hidden(entry.name)} <= {
        _DONE,
        _PROGRESS,
        _IMAGES,
        _SOURCES,
        _LABELS,
        _GROUPS,
        _REFUSED,
    }


def _shape(stated: object) -> tuple[int, int, int, int]:
    number, height, width, channels = map(int, stated)  # type: ignore[call-overload]
    return number, height, width, channels


def _digest_of(files: Sequence[ImageFile | EncodedImage], framing: Framing) -> str:
    """Return a digest of names, sizes and times of all files, and of the framing: what must be the same to go on."""
    found = hashlib.sha256(repr(framing).encode())
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
