"""Encoded images in a table's column: parquet files, and what Hugging Face's `datasets` saves to disk.

Needs pyarrow (`pip install 'dpdm[parquet]'`). Classes are declared: by the caller, or by names in the file's schema.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpdm.data.dataset import ImageDataset, group_indices, require_declared, require_same_num_classes
from dpdm.data.image_files import EncodedImage, ReadImages, read_images
from dpdm.types import InputError

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")


def load_parquet(
    paths: Sequence[Path], read: ReadImages = read_images, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images of parquet files in their order, decoded from the column `image` (bytes, or a struct of them).

    Args:
        paths: The files, at least one.
        read: Decodes and frames the images, which must agree on size and channels.
        num_classes: How many classes there are; a column `label` of integers needs it, unless the files' schema, as
            `datasets` writes it, has class names. 0 leaves labels aside.
        group: The column, of integers or words, that says which group each image belongs to.

    Raises:
        InputError: If pyarrow is missing, a file is damaged, or its columns are others.
    """
    pyarrow = _pyarrow()

    def tables() -> Iterator[tuple[str, Any]]:
        for path in paths:
            try:
                yield str(path), pyarrow.parquet.read_table(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path} is no parquet file that can be read: make or fetch it again") from error

    return _load(tables(), read, num_classes=num_classes, group=group, where=str(paths[0]))


def is_arrow_directory(path: Path) -> bool:
    """Whether `datasets` saved one data set there (`save_to_disk`)."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def load_arrow_directory(
    path: Path, read: ReadImages = read_images, *, num_classes: int | None = None, group: str | None = None
) -> ImageDataset:
    """Return the images that `datasets` saved to disk; see `load_parquet`."""
    pyarrow = _pyarrow()

    def tables() -> Iterator[tuple[str, Any]]:
        try:
            names = [entry["filename"] for entry in json.loads((path / "state.json").read_text())["_data_files"]]
            for name in names:
                with pyarrow.memory_map(str(path / Path(name).name)) as source:
                    yield str(path / name), pyarrow.ipc.open_stream(source).read_all()
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            reason = type(error).__name__
            raise InputError(f"{path} cannot be read as a saved data set ({reason}): save it again") from error

    return _load(tables(), read, num_classes=num_classes, group=group, where=str(path))


def _load(
    tables: Iterator[tuple[str, Any]], read: ReadImages, *, num_classes: int | None, group: str | None, where: str
) -> ImageDataset:
    files: list[EncodedImage] = []
    labels: list[np.ndarray] = []
    members: list[object] = []
    names: tuple[str, ...] = ()
    labelled: bool | None = None
    for place, table in tables:
        image, label = _column(table, _IMAGES), _column(table, _LABELS)
        if image is None:
            raise InputError(f"{place} has the columns {', '.join(table.column_names)}: images must be in `image`")
        if labelled not in (None, label is not None):
            raise InputError(f"{place} has no labels, and other files have: give all of them labels, or none")
        labelled = label is not None
        if group is not None:
            if group not in table.column_names:
                columns = ", ".join(table.column_names)
                raise InputError(f"{place} has the columns {columns}, and no {group}: correct data.group")
            members += table.column(group).to_pylist()
        for row, value in enumerate(table.column(image).to_pylist()):
            encoded = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(encoded, bytes):
                raise InputError(f"{place}, row {row}, has no encoded image in `{image}`: write its bytes there")
            files.append(EncodedImage(f"{place}, row {row},", encoded))
        if label is not None and num_classes != 0:
            names = names or _class_names(table, label)
            column = table.column(label)
            if not str(column.type).lstrip("u").startswith("int") or column.null_count:
                raise InputError(f"{place}: `{label}` must hold one integer a row, not {column.type}")
            labels.append(column.to_numpy().astype(np.int64))
    if not files:
        raise InputError(f"{where} holds no images: put some in")
    groups = None if group is None else group_indices(members, f"{where}: `{group}`")
    if not labels:
        return ImageDataset(images=read(files), groups=groups, name=where)
    if names:
        require_same_num_classes(len(names), num_classes, where)
    count = num_classes or len(names)
    require_declared(count, where)
    return ImageDataset(
        images=read(files),
        labels=np.concatenate(labels),
        num_classes=count,
        class_names=names,
        groups=groups,
        name=where,
    )


def _column(table: Any, names: Sequence[str]) -> str | None:  # noqa: ANN401 (pyarrow has no types)
    return next((name for name in names if name in table.column_names), None)


def _class_names(table: Any, label: str) -> tuple[str, ...]:  # noqa: ANN401
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
