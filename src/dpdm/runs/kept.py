"""Rows of numbers about single private images that take long to make, kept in `private/`: features, say."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from dpdm.data import pixel_digests
from dpdm.data.procedural import tell_progress
from dpdm.files import write_atomically
from dpdm.types import Images, InputError

_PART = 256  # images at once; a last part is filled up, so that each row comes of a computation of one shape
_KEY = 64  # bytes: the digest of an image's pixels, and that of its row


class KeptRows:
    """One row for each image. Images that are equal share one."""

    def __init__(self, rows: Float32[ndarray, "kept columns"], index: Int64[ndarray, " images"]) -> None:
        self._rows, self._index = rows, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, images: slice) -> Float32[ndarray, "images columns"]:
        """Return the rows of some images."""
        rows: Float32[ndarray, "images columns"] = self._rows[self._index[images]]
        return rows


def keep_rows(
    folder: Path | None,
    images: Images,
    make: Callable[[Images], Float32[Tensor, "images columns"]],
    *,
    made_by: str,
    name: str = "rows",
) -> KeptRows:
    """Return one row for each image: those in `folder` that `made_by` made before, and new ones, which are kept there.

    A row goes by the digest of its image. So it is found again in any order of images. The rows of images that are gone
    are removed. What an interrupted call has made is not made again.

    Args:
        folder: Where rows lie; None keeps them in memory.
        images: All images.
        make: Returns rows (number, columns) for 256 images.
        made_by: What `make` is: rows of another one are made anew.
        name: What the rows are called, for whoever watches: of private images only a part of all is told.

    Raises:
        InputError: `make` returns something else than one row of float32 for each image.
    """
    keys = [digest.tobytes() for digest in pixel_digests(images)]
    first = dict(reversed([(key, number) for number, key in enumerate(keys)]))
    store = _Store(folder, made_by, first.keys())
    missing = [number for key, number in first.items() if key not in store.places]
    told = 0
    for start in range(0, len(missing), _PART):
        part = missing[start : start + _PART]
        filled = np.zeros((_PART, *images.shape[1:]), dtype=np.uint8)
        filled[: len(part)] = images[part]
        rows = make(filled).numpy()
        if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != _PART:
            raise InputError(f"{made_by} does not make one row of float32 for each image")
        # A row that is not finite counts as zero: no image may stop a run, nor what the last part is filled up with.
        rows = np.where(np.isfinite(rows).all(1, keepdims=True), rows, np.float32(0))
        store.append([keys[number] for number in part], rows[: len(part)])
        done = 100 * (start + len(part)) // len(missing)
        for percent in range(told + 1, done + 1):  # as many for any number of images, which may be a secret
            tell_progress(f"{name}, in percent", percent, 100)
        told = done
    return KeptRows(store.rows(), np.array([store.places[key] for key in keys], dtype=np.int64))


class _Store:
    """Rows and the keys of their images, in two files that only grow; or in memory."""

    def __init__(self, folder: Path | None, made_by: str, wanted: Collection[bytes]) -> None:
        self._folder, self._made_by = folder, made_by
        self._columns = 0
        self._new: list[Float32[ndarray, "rows columns"]] = []
        self.places: dict[bytes, int] = {}
        if folder is None:
            return
        kept, rows = self._read(folder)
        if any(key not in wanted for key in kept):  # images that are gone, whose rows go too
            stay = [number for number, key in enumerate(kept) if key in wanted]
            left = np.array(rows[stay])
            shutil.rmtree(folder)
            self._columns = 0
            self.append([kept[number] for number in stay], left)
        else:
            self.places = {key: number for number, key in enumerate(kept)}

    def _read(self, folder: Path) -> tuple[list[bytes], Float32[ndarray, "rows columns"]]:
        """Return whole rows, and cut off what was written when a process was killed."""
        try:
            about = json.loads((folder / "about.json").read_text())
            columns, whole = int(about["columns"]), 0
            if about["made_by"] == self._made_by and columns > 0:
                sizes = (folder / "keys").stat().st_size // _KEY, (folder / "rows").stat().st_size // (4 * columns)
                whole = min(sizes)
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
            whole = 0
        if whole:
            os.truncate(folder / "keys", whole * _KEY)
            os.truncate(folder / "rows", whole * 4 * columns)
            content = (folder / "keys").read_bytes()
            rows = np.memmap(folder / "rows", np.float32, "r", shape=(whole, columns))
            entries = [content[start : start + _KEY] for start in range(0, len(content), _KEY)]
            if [*map(_digest_of, rows)] == [entry[_KEY // 2 :] for entry in entries]:
                self._columns = columns
                return [entry[: _KEY // 2] for entry in entries], rows
        shutil.rmtree(folder, ignore_errors=True)  # of another maker, or damaged: all are made anew
        return [], np.zeros((0, 0), dtype=np.float32)

    def append(self, keys: Iterable[bytes], rows: Float32[ndarray, "rows columns"]) -> None:
        """Keep rows: first they, then the keys by which they count."""
        keys = list(keys)
        if not keys:
            return
        if self._folder is None:
            self._new.append(rows)
        else:
            if not self._columns:
                self._begin(self._folder, rows.shape[1])
            entries = [key + _digest_of(row) for key, row in zip(keys, rows, strict=True)]
            for name, content in (("rows", rows.tobytes()), ("keys", b"".join(entries))):
                with (self._folder / name).open("ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        self.places |= {key: len(self.places) + number for number, key in enumerate(keys)}

    def _begin(self, folder: Path, columns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._columns = columns
        about = json.dumps({"made_by": self._made_by, "columns": columns})
        for name in ("rows", "keys"):
            (folder / name).touch()
        write_atomically(folder / "about.json", lambda path: path.write_text(about))

    def rows(self) -> Float32[ndarray, "rows columns"]:
        """Return all rows; those of a file are read from it when they are needed."""
        if not self.places:
            return np.zeros((0, 0), dtype=np.float32)
        if self._folder is None:
            return np.concatenate(self._new)
        return np.memmap(self._folder / "rows", np.float32, "r", shape=(len(self.places), self._columns))


def _digest_of(row: Float32[ndarray, " columns"]) -> bytes:
    return hashlib.sha256(row.tobytes()).digest()
