import gzip
import struct

import numpy as np
import pytest

from dpdm.data import open_dataset
from dpdm.data.binary import read_idx

IMAGES = np.arange(3 * 8 * 9, dtype=np.uint8).reshape(3, 8, 9)
LABELS = np.array([0, 1, 1], np.uint8)


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, compress=gzip.compress, ending=".gz"):
    folder.mkdir(exist_ok=True)
    for stem, last in (("train", 3), ("t10k", 2)):
        (folder / f"{stem}-images-idx3-ubyte{ending}").write_bytes(compress(idx(IMAGES[:last])))
        (folder / f"{stem}-labels-idx1-ubyte{ending}").write_bytes(compress(idx(LABELS[:last])))
    return folder


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzipped", "plain"])
def test_an_array_is_read_as_it_was_written(tmp_path, compress):
    file = tmp_path / "some-file"
    file.write_bytes(compress(idx(IMAGES)))
    array = read_idx(file)
    assert np.array_equal(array, IMAGES)
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (idx(IMAGES)[:-1], ["215 bytes", "216"]),
        (idx(IMAGES) + b"x", ["217 bytes"]),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], ["cannot be read"]),
        (gzip.compress(idx(IMAGES), mtime=0)[:12] + b"\xff" * 40, ["cannot be read"]),
        (idx(IMAGES)[:7], ["no IDX file"]),
        (b"", ["no IDX file"]),
        (b"\x00\x00\x08", ["no IDX file"]),
        (b"\x00\x00\x08\x41" + b"\x00\x00\x00\x01" * 65 + b"x", ["no IDX file"]),
        (b"\x00\x00\x0d" + idx(IMAGES)[3:], ["no IDX file of unsigned bytes"]),
        (b"\x89PNG\r\n\x1a\n and so on", ["no IDX file"]),
    ],
)
def test_truncated_and_foreign_files_are_refused_by_name(tmp_path, refused, content, words):
    file = tmp_path / "odd-file"
    file.write_bytes(content)
    with refused(file, *words):
        read_idx(file)


def test_a_missing_file_is_refused_by_name(tmp_path, refused):
    with refused(tmp_path / "nothing"):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize(("compress", "ending"), [(gzip.compress, ".gz"), (bytes, "")])
def test_the_parts_of_a_directory_are_told_apart(tmp_path, compress, ending):
    write_mnist(tmp_path, compress, ending)
    train = open_dataset(tmp_path, num_classes=2)
    test = open_dataset(f"{tmp_path}:test", num_classes=2)
    assert np.array_equal(train.images, IMAGES[..., np.newaxis])
    assert train.labels.tolist() == [0, 1, 1]
    assert np.array_equal(test.images, IMAGES[:2, ..., np.newaxis])
    assert test.labels.tolist() == [0, 1]


def test_a_directory_opens_by_its_path_once_its_classes_are_declared(tmp_path, refused):
    folder = write_mnist(tmp_path / "letters")
    with refused(folder, "--set data.num_classes=10"):
        open_dataset(folder)
    assert len(open_dataset(str(folder), num_classes=2)) == 3
    test = open_dataset(f"{folder}:test", num_classes=2, size=16, channels=3)
    assert (len(test), test.shape, test.name) == (2, (3, 16, 16), "letters:test")


def test_a_directory_without_one_of_its_files_is_refused_by_its_name(tmp_path, refused):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with refused(tmp_path, "t10k-labels-idx1-ubyte"):
        open_dataset(f"{tmp_path}:test", num_classes=2)


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path, refused):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(LABELS[:1]))
    with refused(tmp_path, "(1,)", "(3,)"):
        open_dataset(tmp_path, num_classes=2)
