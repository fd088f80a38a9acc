"""Encoded images in a table's column: parquet files, and what Hugging Face's `datasets` saves to disk.

Needs pyarrow (`pip install 'dpdm[parquet]'`). Classes are declared: by the caller, or by names in the file's schema.
Labels are read at once; encoded images a few at a time, as they are asked for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from dpdm.data.declared import Asked, Records
from dpdm.data.image_files import EncodedImage, FilesByKind
from dpdm.data.layout import CLASSES
from dpdm.data.listing import read_class_names
from dpdm.files import damaged
from dpdm.types import InputError

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_OTHER_LABELS: Final = ("target", "class", "class_name", "category", "coarse_label", "y")  # which may be meant
_BATCH: Final = 64  # rows of a parquet file that are read at a time
_BUFFER: Final = 2**20  # bytes of a column that are read ahead: pyarrow would read a whole row group
_REMEDY = "save or fetch it again"


class _Table(NamedTuple):
    """One file: its rows, and the columns that matter; `pieces` yields a column in arrays of pyarrow."""

    where: str
    rows: int
    schema: Any
    pieces: Callable[[str], Iterator[Any]]

    def first_of(self, names: Sequence[str]) -> str | None:
        """Return the first of these columns that is there."""
        return next((name for name in names if name in self.schema.names), None)

    def values(self, column: str) -> list[Any]:
        """Return a whole column."""
        return [value for piece in self.pieces(column) for value in piece.to_pylist()]

    def refusal(self, what: str) -> InputError:
        """Return an error that says which columns there are."""
        return InputError(f"{self.where} has the columns {', '.join(self.schema.names)}{what}")


class _EncodedImages:
    """The images of all tables, a batch at a time; `columns` are those that have them."""

    def __init__(self, tables: Sequence[_Table], columns: Sequence[str]) -> None:
        self._tables, self._columns = tables, columns

    def __len__(self) -> int:
        return sum(table.rows for table in self._tables)

    def __iter__(self) -> Iterator[EncodedImage]:
        for table, column in zip(self._tables, self._columns, strict=True):
            values = (value.as_py() for piece in table.pieces(column) for value in piece)
            for row, value in enumerate(values):
                encoded = value.get("bytes") if isinstance(value, dict) else value
                yield EncodedImage(f"{table.where}, row {row},", encoded if isinstance(encoded, bytes) else None)


def load_parquet(paths: Sequence[Path], asked: Asked) -> Records:
    """Return the images of parquet files in their order, from the column `image` (bytes, or a struct of them).

    A column `label` of integers needs a number of classes, unless there are class names. The files' schema has them, as
    `datasets` writes it, or a `classes.txt` beside the files. Labels may then be the names in this `classes.txt`. The
    group that is asked for is a column of integers or words. It says which group each image belongs to.
    """
    pyarrow = _pyarrow()
    return _load([_parquet_file(pyarrow, path) for path in paths], asked, str(paths[0]), paths[0].parent)


def is_arrow_directory(path: Path) -> bool:
    """Whether `datasets` saved one data set there (`save_to_disk`)."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def load_arrow_directory(path: Path, asked: Asked) -> Records:
    """Return the images that `datasets` saved to disk; see `load_parquet`."""
    asked.require_whole(path)
    pyarrow = _pyarrow()
    with damaged(path, _REMEDY):
        names = [Path(entry["filename"]).name for entry in json.loads((path / "state.json").read_text())["_data_files"]]
    return _load([_arrow_file(pyarrow, path / name) for name in names], asked, str(path), path)


def _parquet_file(pyarrow: Any, path: Path) -> _Table:  # noqa: ANN401 (pyarrow has no types)
    def pieces(column: str) -> Iterator[Any]:
        with damaged(path, _REMEDY), pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=[column]):
                yield batch.column(0)

    with damaged(path, _REMEDY), pyarrow.parquet.ParquetFile(path) as file:
        return _Table(str(path), file.metadata.num_rows, file.schema_arrow, pieces)


def _arrow_file(pyarrow: Any, path: Path) -> _Table:  # noqa: ANN401
    def pieces(column: str) -> Iterator[Any]:
        with damaged(path, _REMEDY), pyarrow.memory_map(str(path)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                yield batch.column(column)

    with damaged(path, _REMEDY), pyarrow.memory_map(str(path)) as source:
        stream = pyarrow.ipc.open_stream(source)
        return _Table(str(path), sum(batch.num_rows for batch in stream), stream.schema, pieces)


def _load(tables: Sequence[_Table], asked: Asked, where: str, folder: Path) -> Records:
    """Return the records of tables that are one data set."""
    images: list[str] = []
    labels: list[Any] = []
    groups: list[object] = []
    named: set[tuple[str, ...]] = set()
    labelled = [table.first_of(_LABELS) if asked.num_classes != 0 else None for table in tables]
    for table, label in zip(tables, labelled, strict=True):
        image = table.first_of(_IMAGES)
        if image is None:
            raise table.refusal(": images must be in `image`")
        images.append(image)
        if (label is None) != (labelled[0] is None):
            raise InputError(
                f"of {tables[0].where} and {table.where} only one has labels: give all of them labels, or none"
            )
        if label is not None:
            named.add(_class_names(table, label))
            labels += _labels(table, label)
        elif asked.num_classes != 0 and (meant := table.first_of(_OTHER_LABELS)) is not None:
            raise table.refusal(f": if {meant} has the labels, rename it to label; else set data.num_classes=0")
        if asked.group is not None:
            if asked.group not in table.schema.names:
                raise table.refusal(f", and no {asked.group}: correct data.group")
            groups += table.values(asked.group)
        if len(named - {()}) > 1:
            raise InputError(f"{table.where} has other class names than {tables[0].where}: open them one by one")
    files, beside = _EncodedImages(tables, images), folder / CLASSES
    if not len(files):
        raise InputError(f"{where} holds no images: put some in")
    names: tuple[str, ...] = next(iter(named - {()}), ())
    if labels and not names:
        names = read_class_names(beside if beside.is_file() else None)
    are_words = any(isinstance(label, str) for label in labels)
    return Records(
        where,
        FilesByKind(files),
        labels=None if not labels else labels if are_words else np.array(labels),
        class_names=names,
        groups=groups if asked.group is not None else None,
        names_in=str(beside),
    )


def _labels(table: _Table, label: str) -> list[Any]:
    """Return the integers or words of a column."""
    kind, found = str(table.schema.field(label).type), table.values(label)
    if not (kind.lstrip("u").startswith("int") or "string" in kind) or None in found:
        raise InputError(f"{table.where}: `{label}` must hold one integer a row, or one word, not {kind}")
    return found


def _class_names(table: _Table, label: str) -> tuple[str, ...]:
    """Return the names that `datasets` keeps in the schema: a declaration by whoever wrote it."""
    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
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
