import io
import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpdm.data import open_dataset, save_folder
from dpdm.data.framing import to_pillow
from dpdm.types import InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (4, 9, 8, 3), dtype=np.uint8)
NAMES = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png", "00001/img00001001.png"]
LABELS = [[NAMES[2], 0], [NAMES[0], 3], [NAMES[3], 1], [NAMES[1], 2]]


def encoded(image=COLOUR[0], ending="png", **options):
    file = io.BytesIO()
    to_pillow(image).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending), **options)
    return file.getvalue()


def write_zip(folder, members, compression=zipfile.ZIP_STORED):
    """An archive of these members in this order; bytes for a file, None for a folder."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "photos.zip", "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, b"" if content is None else content)
    return folder / "photos.zip"


def write_listed(folder, listing, names=NAMES):
    """An archive in the form of StyleGAN's and EDM's tools."""
    images = {name: encoded(image) for name, image in zip(names, COLOUR, strict=True)}
    return write_zip(folder, images | {"dataset.json": listing if isinstance(listing, bytes) else json.dumps(listing)})


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_loose_images_have_no_labels_and_the_order_of_their_names(tmp_path, compression):
    members = {f"{index}.png": encoded(COLOUR[index]) for index in (2, 0, 3, 1)}
    opened = open_dataset(write_zip(tmp_path, members, compression))
    assert np.array_equal(opened.images, COLOUR)
    assert (opened.labels, opened.num_classes) == (None, 0)


@pytest.mark.parametrize("class_names", [(), ("a-b", "a", "cat")])
def test_a_zipped_folder_is_the_folder(tmp_path, class_names):
    labels = np.array([2, 0, 1, 0]) if class_names else None
    save_folder(tmp_path / "photos", COLOUR, labels, sorted(class_names))
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    one, other = open_dataset(tmp_path / "photos"), open_dataset(tmp_path / "photos.zip")
    assert np.array_equal(one.images, other.images)
    assert one.class_names == other.class_names == tuple(sorted(class_names))
    assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tif"])
def test_every_format_is_decoded_as_from_a_folder(tmp_path, ending):
    content = encoded(ending=ending, **({"compression": "tiff_lzw"} if ending == "tif" else {}))
    path = write_zip(tmp_path / "zipped", {f"a.{ending}": content}, zipfile.ZIP_DEFLATED)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / f"a.{ending}").write_bytes(content)
    assert np.array_equal(open_dataset(path).images, open_dataset(tmp_path / "photos").images)


def test_images_come_into_one_frame(tmp_path, refused):
    path = write_zip(tmp_path, {"a.png": encoded(COLOUR[0]), "b.png": encoded(COLOUR[1][:, :, :1])})
    assert open_dataset(path, size=8, channels=1).images.shape == (2, 8, 8, 1)
    assert open_dataset(path, size=16, fit="pad", channels=3).shape == (3, 16, 16)
    with refused(f"{path}/b.png has 1 channels, but {path}/a.png has 3", "--set data.channels=3"):
        open_dataset(path)


def test_a_listing_gives_each_image_its_label(tmp_path, refused):
    path = write_listed(tmp_path, {"labels": LABELS})
    with refused(path, "--set data.num_classes=10"):
        open_dataset(path)
    opened = open_dataset(path, num_classes=5)
    assert np.array_equal(opened.images, COLOUR)
    assert opened.labels.tolist() == [3, 2, 0, 1]
    assert (opened.num_classes, opened.name) == (5, "photos.zip")


@pytest.mark.parametrize("names", [NAMES, ["0.png", "a/1.png", "a/b/2.png", "c.png"]])
def test_a_listing_without_labels_leaves_images_at_any_depth_unlabelled(tmp_path, refused, names):
    path = write_listed(tmp_path, {"labels": None}, names)
    opened = open_dataset(path)
    assert np.array_equal(opened.images, COLOUR)
    assert (opened.labels, opened.num_classes) == (None, 0)
    with refused(path, "0 classes", "10 are declared"):
        open_dataset(path, num_classes=10)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:3], [f"photos.zip/dataset.json has no label for '{NAMES[1]}'"]),
        ([], [f"photos.zip/dataset.json has no label for '{NAMES[0]}'"]),
        ([*LABELS, ["00002/img.png", 0], ["x", 0]], ["dataset.json", "'00002/img.png'", "no image there"]),
        ([*LABELS, [3, 0]], ["dataset.json", "'3'", "no image there"]),
        ([*LABELS, [NAMES[0], 3]], ["dataset.json", f"two labels for '{NAMES[0]}'"]),
        ([[NAMES[0], 5]], ["dataset.json", NAMES[0], "no integer from 0 to 4", "data.num_classes"]),
        ([[NAMES[0], -1]], [NAMES[0], "no integer from 0 to 4"]),
        ([[NAMES[0], 1.0]], [NAMES[0], "no integer from 0 to 4"]),
        ([[NAMES[0], True]], [NAMES[0], "no integer from 0 to 4"]),
        ([[NAMES[0], [0.0, 1.0]]], [NAMES[0], "no integer from 0 to 4"]),
        ([[NAMES[0], 10**30]], [NAMES[0], "no integer from 0 to 4"]),
    ],
)
def test_a_listing_that_is_not_one_label_for_each_image_is_refused_by_the_first_offender(
    tmp_path, refused, labels, words
):
    path = write_listed(tmp_path, {"labels": labels})
    with refused(path, *words):
        open_dataset(path, num_classes=5)


@pytest.mark.parametrize(
    "listing",
    [b"", b"{", b"\xff", b"[]", b"[" * 100_000, {}, {"labels": 3}, {"labels": [["a", 1, 2]]}, {"labels": [None]}],
    ids=lambda listing: str(listing)[:12],
)
def test_a_listing_of_another_form_is_refused(tmp_path, refused, listing):
    path = write_listed(tmp_path, listing)
    with refused(f"{path}/dataset.json", '{"labels": null}'):
        open_dataset(path, num_classes=5)


def test_folders_train_and_test_are_the_parts(tmp_path, refused):
    members = {"train/cat/a.png": encoded(COLOUR[0]), "test/cat/a.png": encoded(COLOUR[1]), "README.md": b"hello"}
    members |= {"train/cat/": None, "test/cat/": None, "train/dog/b.png": encoded(), "test/dog/b.png": encoded()}
    members |= {"train/dog/": None, "test/dog/": None}
    path = write_zip(tmp_path, members)
    for part, index, name in (("", 0, "photos.zip"), (":train", 0, "photos.zip"), (":test", 1, "photos.zip:test")):
        opened = open_dataset(f"{path}{part}")
        assert np.array_equal(opened.images[:1], COLOUR[index : index + 1])
        assert (opened.class_names, opened.name) == (("cat", "dog"), name)
    with refused(write_zip(tmp_path, {"train/a.png": encoded()}), "has no part test, only train"):
        open_dataset(f"{path}:test")
    with refused(write_zip(tmp_path, {"a.png": encoded()}), "no folders train/, val/ and test/"):
        open_dataset(f"{path}:test")


def test_a_part_may_have_a_listing_of_its_own(tmp_path):
    listing = json.dumps({"labels": [["0/a.png", 1]]})
    path = write_zip(tmp_path, {"train/b.png": encoded(), "test/0/a.png": encoded(), "test/dataset.json": listing})
    assert open_dataset(path).labels is None
    assert open_dataset(f"{path}:test", num_classes=2).labels.tolist() == [1]


def test_hidden_files_and_folders_are_ignored(tmp_path):
    hidden = ["__MACOSX/cat/._a.png", ".DS_Store", "cat/._a.png", ".thumbnails/a.png", "cat/.git/a.png"]
    path = write_zip(tmp_path, {"cat/": None, "cat/a.png": encoded()} | dict.fromkeys(hidden, b"x"))
    opened = open_dataset(path)
    assert (len(opened), opened.labels) == (1, None)


@pytest.mark.parametrize("name", ["notes.txt", "cat/notes.txt", "cat/dataset.json", "cat/a"])
@pytest.mark.parametrize("listed", [False, True])
def test_any_other_file_is_refused_by_name(tmp_path, refused, name, listed):
    listing = {"dataset.json": b'{"labels": null}'} if listed else {}
    classes = {"cat/": None, "cat/a.png": encoded(), "dog/": None, "dog/a.png": encoded()}
    path = write_zip(tmp_path, classes | {name: b"hello"} | listing)
    with refused(f"{path}/{name}", "is no image"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, ["photos.zip holds no images"]),
        ({"dataset.json": b'{"labels": []}', "cat/": None}, ["photos.zip holds no images"]),
        ({"b.png": encoded(), "cat/a.png": encoded()}, ["b.png", "beside class folders", "cat"]),
        ({"cat/": None, "cat/a.png": encoded(), "dog/": None}, ["photos.zip/dog is empty"]),
        (
            {"cat/": None, "cat/a.png": encoded(), "dog/pup/a.png": encoded()},
            ["photos.zip/dog/pup is a folder inside a class folder"],
        ),
        (
            {"cat/a.png": encoded(), "cat/kitten/": None, "dog/a.png": encoded()},
            ["photos.zip/cat/kitten is a folder inside a class folder"],
        ),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, refused, members, words):
    path = write_zip(tmp_path, members)
    with refused(path.parent, *words):
        open_dataset(path)


def test_classes_are_not_read_off_the_images(tmp_path, refused):
    """Without an entry for its folder, one image more would be one class more."""
    path = write_zip(tmp_path, {"cat/a.png": encoded(), "dog/a.png": encoded()})
    with refused(f"{path}/cat has no entry of its own", "data.num_classes"):
        open_dataset(path)
    assert open_dataset(path, num_classes=2).class_names == ("cat", "dog")


@pytest.mark.parametrize("listing", [{}, {"dataset.json": json.dumps({"labels": [["x/y/a.png", 3], ["x/b.png", 0]]})}])
def test_no_classes_declared_takes_images_at_any_depth_and_leaves_labels_aside(tmp_path, listing):
    path = write_zip(tmp_path, {"x/y/a.png": encoded(), "x/b.png": encoded()} | listing)
    opened = open_dataset(path, num_classes=0)
    assert (len(opened), opened.labels, opened.num_classes) == (2, None, 0)


def test_a_declared_number_of_classes_must_be_that_of_the_folders(tmp_path, refused):
    path = write_zip(tmp_path, {"cat/a.png": encoded(), "dog/a.png": encoded()})
    assert open_dataset(path, num_classes=2).labels.tolist() == [0, 1]
    with refused(path, "has 2 classes", "10 are declared"):
        open_dataset(path, num_classes=10)


@pytest.mark.parametrize(
    "name", ["../a.png", "/a.png", "cat/../../a.png", "./a.png", "cat\\a.png", "cat//a.png", "a\nb.png"]
)
def test_names_that_are_no_plain_path_are_refused_and_nothing_is_written(tmp_path, refused, name):
    path = write_zip(tmp_path / "in", {"b.png": encoded(), name: encoded()})
    with refused(path, "no plain path", repr(name)):
        open_dataset(path)
    open_dataset(write_zip(tmp_path / "in", {"b.png": encoded()}))
    assert [file.name for file in tmp_path.rglob("*")] == ["in", "photos.zip"]


def test_two_files_of_one_name_are_refused(tmp_path, refused):
    path = write_zip(tmp_path, {"a.png": encoded()})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.png", encoded(COLOUR[1]))
    with refused(path, "two files of one name", "a.png"):
        open_dataset(path)


def test_a_broken_archive_is_refused_in_one_line(tmp_path, refused):
    path = write_zip(tmp_path, {"a.png": encoded()})
    whole = path.read_bytes()
    for content in (b"", b"PK", b"no zip at all", whole[: len(whole) // 2], whole[:-5]):
        path.write_bytes(content)
        with refused(path, "no .zip archive"):
            open_dataset(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_whatever_byte_is_damaged_the_images_or_one_line_come_back(tmp_path, compression):
    members = {"a.png": encoded(), "dataset.json": json.dumps({"labels": [["a.png", 0]]})}
    path = write_zip(tmp_path, members, compression)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        line, images = "", COLOUR[:1]
        try:
            images = open_dataset(path, num_classes=1).images
        except InputError as error:
            line = str(error)
        assert "\n" not in line
        assert np.array_equal(images, COLOUR[:1])


def test_files_that_only_look_like_images_are_refused_by_name(tmp_path, refused):
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    for content in (b"", b"text", encoded()[:-40], eps.getvalue()):
        path = write_zip(tmp_path, {"a.png": content})
        with refused(f"{path}/a.png", "is no image"):
            open_dataset(path)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    path = write_zip(tmp_path, {"a.png": encoded()})
    with refused(f"{path}/a.png has more than 60 pixels", "scale it down"):
        open_dataset(path)


def test_opening_says_nothing(tmp_path, capfd):
    path = write_listed(tmp_path, {"labels": LABELS})
    with warnings.catch_warnings(record=True) as spoken:
        open_dataset(path, num_classes=4)
    assert not spoken
    assert capfd.readouterr() == ("", "")
