"""The same images are the same data set from every kind of source: a new kind is added to TOYS, and to nothing else.

`tests/unit/data/test_same_everywhere.py` asks the containers of parts and class folders for more, by random trees.
"""

import io
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpdm.data import Framing, built_in, open_dataset, prepare, save_folder, save_npz, sources
from dpdm.data.location import BUILT_IN

NUMBER = 10  # one of each class, five files of CIFAR-10 with two each
IMAGES = np.random.default_rng(0).integers(0, 256, (NUMBER, 32, 32), np.uint8)
LABELS = np.arange(NUMBER, dtype=np.uint8)
NAMES = tuple(map(str, LABELS))
FRAMED = {"channels": 1, "size": 32}


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path):
    save_folder(path, IMAGES, LABELS, class_names=NAMES)
    return path


def archive(path):
    return Path(shutil.make_archive(path, "zip", folder(path)))


def listed(path):
    path.mkdir()
    for name, image in zip(NAMES, IMAGES, strict=True):
        (path / f"{name}.png").write_bytes(png(image))
    (path / "labels.csv").write_text("file,label\n" + "".join(f"{name}.png,{name}\n" for name in NAMES))
    return path


def npz(path):
    save_npz(path.with_suffix(".npz"), IMAGES, LABELS, num_classes=NUMBER)
    return path.with_suffix(".npz")


def npy(path):
    np.save(path.with_suffix(".npy"), IMAGES)
    return path.with_suffix(".npy")


def table():
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({"image": [{"bytes": png(image), "path": None} for image in IMAGES], "label": LABELS})


def parquet(path):
    made = table()
    import pyarrow.parquet

    pyarrow.parquet.write_table(made, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def saved_to_disk(path):
    """What `Dataset.save_to_disk` of Hugging Face writes."""
    made = table()
    import pyarrow

    path.mkdir()
    with pyarrow.OSFile(str(path / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (path / "dataset_info.json").write_text("{}")
    return path


def idx(path):
    path.mkdir()
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (path / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    return path


def cifar10(path):
    path.mkdir()
    for part in range(5):
        rows = [bytes([label]) + 3 * image.tobytes() for label, image in zip(LABELS, IMAGES, strict=True)]
        (path / f"data_batch_{part + 1}.bin").write_bytes(b"".join(rows[2 * part : 2 * part + 2]))
    (path / "batches.meta.txt").write_text("\n".join(NAMES))
    return path


def cifar100(path):
    path.mkdir()
    rows = [bytes([0, label]) + 3 * image.tobytes() for label, image in zip(LABELS, IMAGES, strict=True)]
    (path / "train.bin").write_bytes(b"".join(rows))
    (path / "fine_label_names.txt").write_text("\n".join(map(str, range(100))))
    return path


def prepared(path):
    source = folder(path.with_name("source"))
    prepare(path, lambda read: open_dataset(source, read=read, **FRAMED), Framing(**FRAMED))
    return path


TOYS = {
    make.__name__: make for make in (folder, archive, listed, npz, npy, parquet, saved_to_disk, idx, cifar10, prepared)
}
NO_LABELS = {"npy"}
OF_BUILT_IN = {"fashion-mnist": idx, "mnist": idx, "cifar10": cifar10, "cifar100": cifar100, "digits": None}


def called(function):
    """Return the names of all functions that are called within this one."""
    names = set()
    sys.setprofile(lambda frame, event, argument: names.add(frame.f_code.co_name))
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_every_kind_of_source_is_among_the_toys(tmp_path):
    pytest.importorskip("pyarrow")
    places = [make(tmp_path / name) for name, make in TOYS.items()]
    loaders = {name for name in vars(sources) if name.startswith("load_")}
    seen = set.union(*(called(lambda place=place: open_dataset(place, num_classes=0)) for place in places))
    assert loaders <= seen
    assert {place.suffix for place in places if place.suffix} == {*sources._OPENED}
    assert set(OF_BUILT_IN) == set(BUILT_IN)


@pytest.mark.parametrize("name", TOYS)
def test_the_same_images_are_the_same_data_set(name, tmp_path):
    labels = None if name in NO_LABELS else LABELS
    declared = {} if name in NO_LABELS else {"num_classes": NUMBER}
    opened = open_dataset(TOYS[name](tmp_path / "x"), **declared, **FRAMED)
    assert np.array_equal(opened.images[..., 0], IMAGES)
    assert np.array_equal(opened.labels, labels) if labels is not None else opened.labels is None
    assert opened.class_names == (NAMES if labels is not None else ())
    assert not opened.public
    reference = open_dataset(folder(tmp_path / "reference"), num_classes=0 if labels is None else NUMBER, **FRAMED)
    assert opened.digest() == reference.digest()


@pytest.mark.parametrize("name", [name for name, make in OF_BUILT_IN.items() if make is not None])
def test_a_built_in_data_set_holds_what_its_files_do_and_is_public(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_DATA", str(tmp_path))
    OF_BUILT_IN[name](tmp_path / name)
    opened = open_dataset(name, channels=1)
    assert opened.public
    assert np.array_equal(opened.images[..., 0], IMAGES)
    assert np.array_equal(opened.labels, LABELS)
    assert opened.num_classes == len(opened.class_names) == (100 if name == "cifar100" else NUMBER)
    assert built_in.load_built_in.__name__ in called(lambda: open_dataset(name))
