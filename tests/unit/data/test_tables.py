"""Parquet files and saved data sets of Hugging Face's `datasets`, written here in their format."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from dpdm.data import open_dataset

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def encoded(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(levels, labels=None, *, names=None, struct=True):
    images = [{"bytes": encoded(level), "path": None} if struct else encoded(level) for level in levels]
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    made = pyarrow.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


@pytest.mark.parametrize("struct", [True, False])
def test_a_parquet_file_of_encoded_images(tmp_path, struct):
    parquet.write_table(table([5, 6, 7], [1, 0, 1], struct=struct), tmp_path / "a.parquet")
    data = open_dataset(tmp_path / "a.parquet", num_classes=2)
    assert data.images[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert data.labels.tolist() == [1, 0, 1]
    assert open_dataset(tmp_path / "a.parquet", num_classes=0, size=16, channels=1).shape == (1, 16, 16)


def test_shards_are_one_data_set_and_names_in_the_schema_declare_classes(tmp_path):
    parquet.write_table(table([5], [1], names=["cat", "dog"]), tmp_path / "train-00000.parquet")
    parquet.write_table(table([6, 7], [0, 1], names=["cat", "dog"]), tmp_path / "train-00001.parquet")
    data = open_dataset(tmp_path)
    assert data.images[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ("cat", "dog"))


def save_to_disk(folder, *tables):
    folder.mkdir()
    for number, part in enumerate(tables):
        sink = str(folder / f"data-{number}.arrow")
        with pyarrow.OSFile(sink, "wb") as file, pyarrow.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": f"data-{number}.arrow"} for number in range(len(tables))]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_data_set_saved_to_disk(tmp_path):
    parts = table([5, 6], [0, 2], names=["a", "b", "c"]), table([7], [1], names=["a", "b", "c"])
    data = open_dataset(save_to_disk(tmp_path / "saved", *parts))
    assert data.images[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert (data.labels.tolist(), data.class_names) == ([0, 2, 1], ("a", "b", "c"))
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="save or fetch it again"):
        open_dataset(tmp_path / "saved")


@pytest.mark.parametrize(
    ("made", "declared", "said"),
    [
        (table([5], [0]), None, ["must not be read off private labels"]),
        (table([5], [3]), 2, ["label 3 occurs, but 2 classes are declared"]),
        (table([5], [0.5]), 2, ["`label` must hold one integer a row"]),
        (table([5, 6], [0, None]), 2, ["`label` must hold one integer a row"]),
        (table([5], [0], names=["a", "b"]), 3, ["has 2 classes, but 3 are declared"]),
        (pyarrow.table({"picture": [b"x"]}), None, ["the columns picture", "`image`"]),
        (pyarrow.table({"image": [1]}), None, ["row 0, has no encoded image"]),
        (pyarrow.table({"image": [encoded(5), None]}), None, ["row 1, has no encoded image"]),
        (pyarrow.table({"image": [{"bytes": None, "path": "a.png"}]}), None, ["row 0, has no encoded image"]),
        (pyarrow.table({"image": [b"x"]}), None, ["row 0,", "no image that can be decoded"]),
        (pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), None, ["holds no images"]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, refused, made, declared, said):
    parquet.write_table(made, tmp_path / "a.parquet")
    with refused("a.parquet", *said):
        open_dataset(tmp_path / "a.parquet", num_classes=declared)


def test_files_that_differ_in_having_labels_and_damaged_ones_are_refused(tmp_path, refused):
    parquet.write_table(table([5], [0]), tmp_path / "a.parquet")
    parquet.write_table(table([6]), tmp_path / "b.parquet")
    with refused("a.parquet", "b.parquet", "labels, or none"):
        open_dataset(tmp_path, num_classes=1)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with refused("b.parquet", "cannot be read", "fetch it again"):
        open_dataset(tmp_path, num_classes=1)


def write_large(form, folder, rows):
    """Write rows in two files, or in groups of 500, or all in one group."""
    made, half = pyarrow.table({"image": [{"bytes": row, "path": None} for row in rows]}), len(rows) // 2
    if form == "arrow directory":
        return save_to_disk(folder / "saved", made[:half], made[half:])
    parquet.write_table(made, folder / "a.parquet", row_group_size=500 if form == "row groups" else None)
    return folder / "a.parquet"


@pytest.mark.parametrize("form", ["row groups", "one row group", "arrow directory"])
def test_encoded_bytes_are_never_all_in_memory(form, tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.bytes(4000) for _ in range(8000)]
    path = write_large(form, tmp_path, rows)
    before, held = pyarrow.total_allocated_bytes(), []

    def read(files, others=()):
        assert len(files) == len(rows)
        for index, file in itertools.chain(itertools.islice(enumerate(files), 3), enumerate(files)):
            assert file.encoded == rows[index]
            assert f"row {index if form != 'arrow directory' else index % 4000}," in str(file)
            held.append(pyarrow.total_allocated_bytes() - before)
        return np.zeros((len(rows), 8, 8, 1), np.uint8)

    open_dataset(path, read=read)
    assert len(held) == 3 + len(rows)
    assert max(held) < sum(map(len, rows)) / 2


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, refused, monkeypatch):
    parquet.write_table(table([5]), tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with refused("pip install 'dpdm[parquet]'"):
        open_dataset(tmp_path / "a.parquet")
