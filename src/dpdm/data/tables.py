"""Encoded images in a table's column: parquet files, and what Hugging Face's `datasets` saves to disk.

Needs pyarrow (`pip install 'dpdm[parquet]'`). Classes are declared: by the caller, or by names in the file's schema.
Labels are read at once; encoded images a few at a time, as they are asked for.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from dpdm.data.dataset import ImageDataset, group_indices, require_declared, require_same_num_classes
from dpdm.data.image_files import EncodedImage, ReadImages, read_images
from dpdm.data.labels import read_labels
from dpdm.data.listing import CLASSES, read_class_names
from dpdm.types import InputError, explained

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_OTHER_LABELS: Final = ("target", "class", "class_name", "category", "coarse_label", "y")  # which may be meant
_BATCH: Final = 64  # rows of a parquet file that are read at a time
_BUFFER: Final = 2**20  # bytes of a column that are read ahead: pyarrow would read a whole row group


class _Part(NamedTuple):
    """Rows that can be read from their first one on: a row group of a parquet file, or a whole arrow file.

    `column` yields a column of them in pieces, which are arrays of pyarrow.
    """

    where: str
    first: int
    rows: int
    schema: Any
    column: Callable[[str], Iterator[Any]]


def load_parquet(
    paths: Sequence[Path], read: ReadImages = read_images, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images of parquet files in their order, decoded from the column `image` (bytes, or a struct of them).

    Args:
        paths: The files, at least one.
        read: Decodes and frames the images, which must agree on size and channels.
        num_classes: How many classes there are; a column `label` of integers needs it, unless the files' schema, as
            `datasets` writes it, has class names, or a `classes.txt` beside them, whose names the labels may then be.
            0 leaves labels aside.
        group: The column, of integers or words, that says which group each image belongs to.

    Raises:
        InputError: If pyarrow is missing, a file is damaged, or its columns are others.
    """
    pyarrow = _pyarrow()
    parts = [part for path in paths for part in _row_groups(pyarrow, path)]
    return _load(parts, read, num_classes=num_classes, group=group, where=str(paths[0]), folder=paths[0].parent)


def is_arrow_directory(path: Path) -> bool:
    """Whether `datasets` saved one data set there (`save_to_disk`)."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def load_arrow_directory(
    path: Path, read: ReadImages = read_images, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images that `datasets` saved to disk; see `load_parquet`."""
    pyarrow = _pyarrow()
    with _readable(pyarrow, path):
        names = [Path(entry["filename"]).name for entry in json.loads((path / "state.json").read_text())["_data_files"]]
    parts = [_arrow_file(pyarrow, path / name) for name in names]
    return _load(parts, read, num_classes=num_classes, group=group, where=str(path), folder=path)


def _row_groups(pyarrow: Any, path: Path) -> Iterator[_Part]:  # noqa: ANN401 (pyarrow has no types)
    def column(group: int, name: str) -> Iterator[Any]:
        with _readable(pyarrow, path), pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[name]):
                yield batch.column(0)

    with _readable(pyarrow, path), pyarrow.parquet.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        yield _Part(str(path), first, rows, schema, partial(column, group))
        first += rows


def _arrow_file(pyarrow: Any, path: Path) -> _Part:  # noqa: ANN401
    def batches() -> Iterator[Any]:
        with _readable(pyarrow, path), pyarrow.memory_map(str(path)) as source:
            yield from pyarrow.ipc.open_stream(source)

    with _readable(pyarrow, path), pyarrow.memory_map(str(path)) as source:
        schema = pyarrow.ipc.open_stream(source).schema
    rows = sum(batch.num_rows for batch in batches())
    return _Part(str(path), 0, rows, schema, lambda name: (batch.column(name) for batch in batches()))


def _readable(pyarrow: Any, path: Path) -> AbstractContextManager[None]:  # noqa: ANN401
    """Turn what pyarrow and json answer damaged files with into one line."""
    damage = (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError)
    return explained(lambda e: f"{path} cannot be read ({type(e).__name__}): save or fetch it again", *damage)


class _EncodedImages(Sequence[EncodedImage]):
    """The images of all parts, read as they are asked for, a batch at a time: cheaply in their order only."""

    def __init__(self, parts: Sequence[_Part], columns: Sequence[str]) -> None:
        self._parts, self._columns = parts, columns
        self._starts = [*accumulate((part.rows for part in parts), initial=0)]
        self._number = -1  # of the part that is being read
        self._pieces: Iterator[Any] = iter(())
        self._piece: Any = ()
        self._start = 0  # the index of the first row of the piece

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> EncodedImage:  # type: ignore[override] # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        part, start = self._parts[number], self._starts[number]
        if number != self._number or index < self._start:
            self._number, self._start = number, start
            self._piece, self._pieces = (), part.column(self._columns[number])
        while index >= self._start + len(self._piece):
            self._start += len(self._piece)
            self._piece = next(self._pieces)
        value = self._piece[index - self._start].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        where = f"{part.where}, row {part.first + index - start},"
        return EncodedImage(where, encoded if isinstance(encoded, bytes) else None)


def _load(
    parts: Sequence[_Part], read: ReadImages, *, num_classes: int | None, group: str | None, where: str, folder: Path
) -> ImageDataset:
    images = [_column(part.schema, _IMAGES) for part in parts]
    label_columns = [_column(part.schema, _LABELS) for part in parts]
    labels: list[Any] = []
    members: list[object] = []
    names: tuple[str, ...] = ()
    for part, image, label in zip(parts, images, label_columns, strict=True):
        if image is None:
            raise InputError(f"{part.where} has the columns {', '.join(part.schema.names)}: images must be in `image`")
        if (label is None) != (label_columns[0] is None):
            raise InputError(
                f"of {parts[0].where} and {part.where} only one has labels: give all of them labels, or none"
            )
        if label is None and num_classes != 0 and (meant := _column(part.schema, _OTHER_LABELS)) is not None:
            raise InputError(
                f"{part.where} has the columns {', '.join(part.schema.names)}: if {meant} has the labels, rename it to "
                "label; else set data.num_classes=0"
            )
        if group is not None:
            if group not in part.schema.names:
                columns = ", ".join(part.schema.names)
                raise InputError(f"{part.where} has the columns {columns}, and no {group}: correct data.group")
            members += [member for piece in part.column(group) for member in piece.to_pylist()]
        if label is not None and num_classes != 0:
            stated = _class_names(part.schema, label)
            if names and stated not in ((), names):
                raise InputError(f"{part.where} has other class names than {parts[0].where}: open them one by one")
            names = names or stated
            labels += _labels(part, label)
    files = _EncodedImages(parts, [image for image in images if image is not None])
    if not files:
        raise InputError(f"{where} holds no images: put some in")
    groups = None if group is None else group_indices(members, f"{where}: `{group}`")
    if label_columns[0] is None or num_classes == 0:
        require_same_num_classes(0, num_classes, where)
        return ImageDataset(images=read(files), groups=groups, name=where)
    beside = folder / CLASSES
    names = names or read_class_names(beside if beside.is_file() else None)
    if names:
        require_same_num_classes(len(names), num_classes, where)
    count = num_classes or len(names)
    if any(isinstance(label, str) for label in labels):
        read_as = read_labels(
            labels, names, count, of=lambda row: f"{where}: `label` of row {row}", where=where, named_in=str(beside)
        )
    else:
        require_declared(count, where)
        read_as = np.array(labels, np.int64)
    return ImageDataset(
        images=read(files), labels=read_as, num_classes=count, class_names=names, groups=groups, name=where
    )


def _labels(part: _Part, label: str) -> list[Any]:
    """Return the integers or words of a column."""
    kind = str(part.schema.field(label).type)
    found = [value for piece in part.column(label) for value in piece.to_pylist()]
    if not (kind.lstrip("u").startswith("int") or "string" in kind) or None in found:
        raise InputError(f"{part.where}: `{label}` must hold one integer a row, or one word, not {kind}")
    return found


def _column(schema: Any, names: Sequence[str]) -> str | None:  # noqa: ANN401
    return next((name for name in names if name in schema.names), None)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:  # noqa: ANN401
    """Return the names that `datasets` keeps in the schema: a declaration by whoever wrote it."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _pyarrow() -> Any:  # noqa: ANN401
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise InputError("parquet files and saved data sets need pyarrow: pip install 'dpdm[parquet]'") from None
    return pyarrow
