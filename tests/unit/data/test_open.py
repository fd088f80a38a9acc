import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dpdm.data.built_in
from dpdm.data import open_dataset, save_npz
from dpdm.types import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def write_idx(folder, label):
    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        images = struct.pack(">4I", 0x803, 2, 8, 8) + bytes(128)
        labels = struct.pack(">2I", 0x801, 2) + bytes([0, label])
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_picture(file, level=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(file)


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """A machine without installed data sets."""
    monkeypatch.setattr(dpdm.data.built_in, "_SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.delenv("DPDM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_digits_open_by_name_and_part():
    train, same, test = (open_dataset(f"digits{part}") for part in ("", ":train", ":test"))
    assert np.array_equal(train.images, same.images)
    assert (len(train), len(test)) == (1438, 359)
    assert (train.name, same.name, test.name) == ("digits", "digits", "digits:test")


def test_size_and_channels_apply_to_built_in_names():
    assert open_dataset("digits:test", size=16, channels=3).shape == (3, 16, 16)


def test_a_built_in_name_has_its_own_classes(refused):
    assert open_dataset("digits", num_classes=10).num_classes == 10
    with refused("digits", "10 classes", "11 are declared"):
        open_dataset("digits", num_classes=11)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_comes_from_debians_package(monkeypatch):
    monkeypatch.delenv("DPDM_DATA", raising=False)
    test = open_dataset("fashion-mnist:test")
    assert test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_names[9] == "Ankle boot"
    assert len(test.class_names) == 10


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_the_folder_of_dpdm_data_goes_before_the_systems(bare_machine, monkeypatch, name):
    write_idx(bare_machine / "system" / name, label=1)
    assert open_dataset(name).labels.tolist() == [0, 1]
    write_idx(bare_machine / "own" / name, label=2)
    monkeypatch.setenv("DPDM_DATA", str(bare_machine / "own"))
    assert open_dataset(name).labels.tolist() == [0, 2]
    monkeypatch.setenv("DPDM_DATA", str(bare_machine / "elsewhere"))
    assert open_dataset(name).labels.tolist() == [0, 1]


def test_a_name_that_is_not_installed_says_how_to_get_it(bare_machine, refused):
    with refused("fashion-mnist", "apt-get install dataset-fashion-mnist", "DPDM_DATA"):
        open_dataset("fashion-mnist")
    with refused("mnist", "four IDX files", "DPDM_DATA"):
        open_dataset("mnist:test")


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("fashon-mnist", "did you mean fashion-mnist?"),
        ("fashion_mnist:test", "did you mean fashion-mnist?"),
        ("digit", "did you mean digits?"),
        ("digits:tset", "did you mean digits:test?"),
        ("/no/such/photos", "check the path"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_one(bare_machine, refused, source, meant):
    with refused(source.removesuffix(":test"), meant):
        open_dataset(source)


def test_a_built_in_name_goes_before_a_folder_unless_it_is_written_as_a_path(bare_machine):
    write_picture(bare_machine / "digits" / "a.png")
    assert len(open_dataset("digits:test")) == 359
    assert len(open_dataset("./digits")) == 1
    assert len(open_dataset(Path("digits"))) == 1


def test_subfolders_train_and_test_are_the_parts(tmp_path):
    for part, level in (("train", 1), ("test", 2)):
        write_picture(tmp_path / "photos" / part / "cat" / "a.png", level)
        write_picture(tmp_path / "photos" / part / "dog" / "a.png", level)
    for source, level, name in (("", 1, "photos"), (":train", 1, "photos"), (":test", 2, "photos:test")):
        part = open_dataset(f"{tmp_path / 'photos'}{source}")
        assert (part.images == level).all()
        assert (part.class_names, part.name) == (("cat", "dog"), name)


def test_a_source_without_parts_is_its_own_train_part_and_has_no_test_part(tmp_path, refused):
    write_picture(tmp_path / "photos" / "a.png")
    save_npz(tmp_path / "photos.npz", np.zeros((1, 8, 8, 1), np.uint8))
    for source in (tmp_path / "photos", tmp_path / "photos.npz"):
        assert len(open_dataset(f"{source}:train")) == 1
        with refused(source, "train/, val/ and test/"):
            open_dataset(f"{source}:test")


def test_a_path_that_exists_as_written_is_not_parted_at_its_colon(tmp_path):
    write_picture(tmp_path / "night:test" / "a.png")
    assert open_dataset(tmp_path / "night:test").name == "night:test"


def test_a_path_may_start_at_home_and_its_name_is_what_it_is_called(tmp_path, monkeypatch):
    write_picture(tmp_path / "photos" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("~/photos").name == "photos"
    monkeypatch.chdir(tmp_path / "photos")
    assert open_dataset(".").name == "photos"


def test_a_file_of_another_kind_is_refused(tmp_path, refused):
    (tmp_path / "photos.tar").write_bytes(b"PK")
    with refused(tmp_path / "photos.tar", "neither a folder nor a .zip, .npz, .npy or .parquet file"):
        open_dataset(tmp_path / "photos.tar")


def test_size_applies_to_arrays(tmp_path):
    save_npz(tmp_path / "a.npz", np.full((2, 12, 20, 3), 50, np.uint8))
    opened = open_dataset(tmp_path / "a.npz", size=16, channels=1)
    assert opened.shape == (1, 16, 16)
    assert (opened.images == 50).all()


def test_a_data_set_knows_where_it_was_opened_but_does_not_show_it(tmp_path, monkeypatch):
    for part, level in (("train", 1), ("test", 2)):
        write_picture(tmp_path / "photos" / part / "a.png", level)
    save_npz(tmp_path / "photos.npz", np.zeros((1, 8, 8, 1), np.uint8))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    photos = str(tmp_path.resolve() / "photos")
    for source, location in (
        ("photos", photos),
        ("./link/../photos:train", photos),
        ("link:test", f"{photos}:test"),
        (Path("photos.npz"), f"{photos}.npz"),
        ("digits:train", "digits"),
        ("digits:test", "digits:test"),
    ):
        opened = open_dataset(source)
        assert opened.location == location
        assert str(tmp_path) not in repr(opened) + opened.name
        assert "location" not in repr(opened)


def test_opening_says_nothing(tmp_path, capfd, recwarn):
    write_picture(tmp_path / "cat" / "a.png")
    open_dataset(tmp_path)
    open_dataset("digits")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_name_that_does_not_exist_here_is_looked_for_where_dpdm_data_points(tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_DATA", str(tmp_path / "shelf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shelf" / "faces").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "shelf" / "faces" / "a.png")
    with zipfile.ZipFile(tmp_path / "shelf" / "cars.zip", "w") as archive:
        archive.write(tmp_path / "shelf" / "faces" / "a.png", "a.png")
    assert open_dataset("faces").location == str(tmp_path / "shelf" / "faces")
    assert open_dataset("cars").location == str(tmp_path / "shelf" / "cars.zip")
    (tmp_path / "faces").mkdir()
    with pytest.raises(InputError, match="faces"):
        open_dataset("faces")  # the empty one here goes first
    with pytest.raises(InputError, match="boats is neither a path that exists"):
        open_dataset("boats")
