"""Names are read in one spelling, and numbers in their order; what cannot be written is refused."""

import os
import unicodedata
import zipfile

import numpy as np
import pytest
from made_sources import classes, encoded, picture, shown, write, zipped

from dpdm.data import Framing, open_dataset, prepare, require_outside
from dpdm.data.layout import plain_name

FORMS = pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])


def decomposed(text):
    return unicodedata.normalize("NFD", text)


@FORMS
@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([*map(str, range(12))], [*map(str, range(12))]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["001", "2", "10"], ["001", "2", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1_a", "10_b", "2_c"], ["10_b", "1_a", "2_c"]),
    ],
)
def test_classes_that_are_numbers_are_in_their_order(tmp_path, form, names, order):
    files = {f"{name}/a.png": number for number, name in enumerate(names)}
    data = open_dataset(form(write(tmp_path / "photos", files)))
    assert data.class_names == tuple(order)
    assert shown(data) == [names.index(name) for name in order]


def test_numbered_folders_and_arrays_mean_the_same_classes(tmp_path):
    write(tmp_path / "photos", {f"{number}/a.png": number for number in range(12)})
    images = np.stack([picture(number) for number in range(12)])
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(12), num_classes=12)
    assert classes(open_dataset(tmp_path / "photos")) == classes(open_dataset(tmp_path / "test.npz"))


@FORMS
def test_names_from_macos_are_those_in_a_list(tmp_path, form):
    rows = "file,label\ngröße_1.png,b\n" + decomposed("größe_2.png,ä\n")
    files = {decomposed("größe_1.png"): 1, "größe_2.png": 2, "labels.csv": rows, "classes.txt": decomposed("ä\nb\n")}
    assert classes(open_dataset(form(write(tmp_path / "photos", files)))) == {1: "b", 2: "ä"}


@FORMS
@pytest.mark.parametrize("folder", [("café/1.png", "café/2.png"), ("x/é.png", "x/é.png")])
def test_two_of_one_name_are_refused(tmp_path, refused, form, folder):
    one, other = folder
    source = form(write(tmp_path / "photos", {one: 1, decomposed(other): 2, "y/3.png": 3}))
    with refused("of one name"):
        open_dataset(source)


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"b/caf\xe9.png"])
def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path, refused, name):
    write(tmp_path / "photos", {"a/1.png": 1, "b/2.png": 2})
    path = os.fsencode(tmp_path / "photos") + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(encoded(3))
    with refused(r"caf\xe9", "not UTF-8: rename it"):
        open_dataset(tmp_path / "photos")


def test_a_data_set_of_such_a_name_is_refused_before_a_folder_is_made(tmp_path, refused):
    source = write(tmp_path / os.fsdecode(b"caf\xe9"), {"a/1.png": 1, "b/2.png": 2})
    with refused(r"caf\xe9", "not UTF-8"):
        prepare(tmp_path / "ready", lambda read: open_dataset(source, read=read), Framing(size=8, channels=1))
    assert not (tmp_path / "ready").exists()


def test_a_locale_that_reads_no_utf8_is_named(refused):
    """As under LC_ALL=C: the bytes are right, and Python was told to read them as ASCII."""
    with refused("photos/aä.png", "this locale cannot read", "PYTHONUTF8=1"):
        plain_name(b"a\xc3\xa4.png".decode("ascii", "surrogateescape"), "photos")


def test_names_in_an_archive_of_macos_are_utf8(tmp_path):
    """Its flag is not set, so that `zipfile` reads them as a DOS name."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("größe/", "größe/1.png", "kleine/", "kleine/2.png"):
            entry = Dos(decomposed(name).encode())
            archive.writestr(entry, b"" if name[-1] == "/" else encoded(1))
    assert open_dataset(path).class_names == ("größe", "kleine")


class Dos(zipfile.ZipInfo):
    """A member whose name is written as these bytes, without a word about their encoding."""

    def __init__(self, raw):
        super().__init__(raw.decode("cp437"))
        self.raw = raw

    def _encodeFilenameFlags(self):
        return self.raw, self.flag_bits & ~0x800


def test_a_link_that_leads_back_is_refused_and_one_that_leads_elsewhere_is_followed(tmp_path, refused):
    photos = write(tmp_path / "photos", {"ant/1.png": 1})
    write(tmp_path / "other", {"2.png": 2})
    (photos / "bee").symlink_to("../other", target_is_directory=True)
    assert classes(open_dataset(photos)) == {1: "ant", 2: "bee"}
    (tmp_path / "other" / "loop").symlink_to("../photos", target_is_directory=True)
    with refused("loop is a link to a folder that it lies in"):
        open_dataset(photos)


def test_outputs_lie_outside_of_the_images(tmp_path, refused, monkeypatch):
    write(tmp_path / "photos", {"train/1.png": 1, "test/2.png": 2})
    monkeypatch.chdir(tmp_path / "photos")
    for output, source in (("runs/x", "."), (".", "."), ("ready", "../photos:train"), ("train/x", tmp_path / "photos")):
        with refused("the folder of images", "outside of it"):
            require_outside(type(tmp_path)(output), source)
    require_outside(tmp_path / "photos2", tmp_path / "photos")
    require_outside(tmp_path / "runs", "digits")
    with refused("1.png", "ready"):
        prepare(
            tmp_path / "photos" / "train" / "ready",
            lambda read: open_dataset(tmp_path / "photos", read=read),
            Framing(size=8, channels=1),
        )
    assert not (tmp_path / "photos" / "train" / "ready").exists()
