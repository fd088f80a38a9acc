"""Images that are nobody's: drawn by a program, or declared public; on any machine, with or without fonts."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_sources import shown, write
from PIL import Image, ImageFont

import dpdm.data.fonts
import dpdm.data.public
from dpdm.data import Framing, ImageDataset, find_claim, open_dataset, open_public, prepare, save_npz
from dpdm.data.claims import png_with

DIGITS = tuple("0123456789")
CLAIM = {"statement": "ε = 1"}
GREY = (1, 28, 28)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that a test works in, without data sets that go by a name."""
    monkeypatch.delenv("DPDM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """A folder of one font, that which Pillow holds, on a machine that needs no more."""
    folder = tmp_path / "system" / "fonts"
    folder.mkdir(parents=True)
    (folder / "pillow.ttf").write_bytes(ImageFont.load_default(32).font_bytes)
    monkeypatch.setattr(dpdm.data.fonts, "FOLDERS", (str(folder),))
    monkeypatch.setattr(dpdm.data.fonts, "FEWEST", 1)
    return folder


def save(path, count=6, shape=(28, 28, 1), **more):
    """An .npz file of images that show their numbers."""
    images = np.full((count, *shape), 90, np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, images, **more)
    return path


def test_glyphs_of_classes_of_one_character_are_labelled_in_turn(fonts):
    data = open_public("fonts", shape=GREY, class_names=DIGITS, count=25)
    assert (data.name, data.public, data.shape, len(data)) == ("fonts", True, GREY, 25)
    assert (data.num_classes, data.class_names) == (10, DIGITS)
    assert data.labels.tolist() == [index % 10 for index in range(25)]


@pytest.mark.parametrize("class_names", [(), ("cat", "dog"), ("a", "dog")])
def test_other_glyphs_are_digits_and_letters_without_labels(fonts, class_names):
    data = open_public("fonts", shape=GREY, class_names=class_names, count=62)
    assert (data.labels, data.num_classes, data.class_names) == (None, 0, ())
    labelled = open_public("fonts", shape=GREY, class_names=DIGITS, count=10)
    assert np.array_equal(data.images[:10], labelled.images)


def test_glyphs_are_light_on_dark_and_their_mass_is_in_the_middle(fonts):
    for channels, height, width in (GREY, (1, 16, 40), (1, 40, 16)):
        images = open_public("fonts", shape=(channels, height, width), count=62).images[..., 0].astype(float)
        mass = images.sum(axis=(1, 2))
        assert (images.max(axis=(1, 2)) > 200).all()
        assert (mass > 0.01 * 255 * height * width).all()
        assert (mass < 0.5 * 255 * height * width).all()
        assert not images[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()  # the corners
        for axis, side in ((1, height), (2, width)):
            middle = (images.sum(axis=3 - axis) @ np.arange(side)) / mass
            assert np.abs(middle - (side - 1) / 2).max() < 2


def test_images_of_one_glyph_differ(fonts):
    images = open_public("fonts", shape=GREY, class_names=("a", "b"), count=20).images
    assert len({image.tobytes() for image in images}) == 20


@pytest.mark.parametrize("source", ["fonts", "shapes"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 24, 40), (3, 33, 17), (4, 16, 16)])
def test_what_is_drawn_has_any_shape_and_is_the_same_again(fonts, source, shape):
    data = open_public(source, shape=shape, count=9)
    assert (data.shape, len(data), data.public) == (shape, 9, True)
    assert (data.images[..., 3:] == 255).all()
    assert open_public(source, shape=shape, count=9).digest() == data.digest()
    assert np.array_equal(open_public(source, shape=shape, count=5).images, data.images[:5])


def test_glyphs_are_grey_and_shapes_have_colours(fonts):
    glyphs, shapes = (open_public(source, shape=(3, 16, 16), count=8).images for source in ("fonts", "shapes"))
    assert (glyphs == glyphs[..., :1]).all()
    assert all((image != image[..., :1]).any() for image in shapes)
    assert all(image.std() > 1 for image in shapes)


def test_another_process_draws_the_same(fonts):
    script = (
        "import sys, dpdm.data.fonts as fonts\n"
        "from dpdm.data import open_public\n"
        "fonts.FOLDERS, fonts.FEWEST = sys.argv[1:], 1\n"
        "print(open_public('fonts+shapes', shape=(1, 16, 16), count=20).digest())"
    )
    command = [sys.executable, "-c", script, str(fonts)]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    assert other == open_public("fonts+shapes", shape=(1, 16, 16), count=20).digest()


def test_too_few_fonts_are_one_line_that_names_packages(fonts, refused, monkeypatch):
    with refused("1 with all of ab€", "0 are on this machine", "apt-get install", "fonts-dejavu"):
        open_public("fonts", shape=GREY, class_names=tuple("ab€あ"))
    (fonts / "again.ttf").write_bytes((fonts / "pillow.ttf").read_bytes())
    (fonts / "damaged.otf").write_bytes(b"OTTO" + bytes(100))
    monkeypatch.setattr(dpdm.data.fonts, "FEWEST", 2)
    with refused("fonts: 2 with all of 0123456789 are needed, and 1 are on this machine"):
        open_public("fonts", shape=GREY, class_names=DIGITS)
    monkeypatch.setattr(dpdm.data.fonts, "FOLDERS", (str(fonts / "none"),))
    with refused("0 are on this machine", "~/.local/share/fonts"):
        open_public("fonts+shapes", shape=GREY, count=1)


def test_characters_that_look_alike_make_no_classes(fonts, refused):
    assert open_public("fonts", shape=GREY, class_names=("o", "O"), count=2).num_classes == 2
    with refused("-‐", "0 are on this machine"):  # hyphens, which fonts draw alike or lack
        open_public("fonts", shape=GREY, class_names=("-", "‐"), count=2)


@pytest.mark.parametrize(("shape", "count"), [((2, 28, 28), 1), ((1, 4, 28), 1), ((1, 28, 5000), 1), (GREY, 0)])
@pytest.mark.parametrize("source", ["fonts", "shapes", "digits"])
def test_shapes_and_counts_that_no_images_have_are_refused(refused, source, shape, count):
    with refused("count" if count == 0 else str(shape)):
        open_public(source, shape=shape, count=count)


def test_sources_joined_by_plus_are_one_after_the_other(fonts, folder):
    save(folder / "photos.npz", count=3)
    data = open_public("fonts + shapes+photos.npz", shape=GREY, class_names=DIGITS, count=5)
    assert (data.name, len(data), data.public, data.labels) == ("fonts+shapes+photos.npz", 13, True, None)
    assert np.array_equal(data.images[:5], open_public("fonts", shape=GREY, class_names=DIGITS, count=5).images)
    assert np.array_equal(data.images[5:10], open_public("shapes", shape=GREY, count=5).images)
    assert shown(data)[10:] == [0, 1, 2]


def test_a_set_of_which_some_are_taken_is_known_whole_where_it_is_joined_too(folder):
    save(folder / "photos.npz", count=6)
    data = open_public("shapes+photos.npz", shape=GREY, count=2)
    assert [(each.name, len(each)) for each in data.made_of] == [("shapes", 2), ("photos.npz", 2), ("photos.npz", 6)]


def test_another_fit_is_refused_whatever_the_source(refused):
    with refused("data.fit must be one of crop, pad, resize, not 'bend'"):
        open_public("shapes", shape=GREY, count=2, fit="bend")


def test_labels_are_kept_if_all_sources_have_the_same_classes(fonts, folder):
    labels = np.array([1, 1, 0])
    save(folder / "same.npz", count=3, labels=labels, num_classes=2, class_names=("a", "b"))
    save(folder / "other.npz", count=3, labels=labels, num_classes=2, class_names=("b", "a"))
    same = open_public("fonts+same.npz", shape=GREY, class_names=("a", "b"), count=3)
    assert (same.labels.tolist(), same.class_names) == ([0, 1, 0, 1, 1, 0], ("a", "b"))
    for source in ("fonts+other.npz", "same.npz+shapes"):
        data = open_public(source, shape=GREY, class_names=("a", "b"), count=3)
        assert (data.labels, data.num_classes, data.class_names) == (None, 0, ())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("shapes+shapes", "name shapes twice"),
        ("shapes++digits", "an empty source"),
        ("shapes+", "an empty source"),
        ("", "an empty name"),
        ("shape", "did you mean shapes?"),
        ("font", "did you mean fonts?"),
        ("shapes+digit", "did you mean digits?"),
        ("./shapes", "did you mean shapes?"),
        ("no/such/photos", "check the path"),
    ],
)
def test_a_name_of_no_source_is_refused_before_anything_is_drawn(refused, monkeypatch, source, words):
    monkeypatch.setattr(dpdm.data.public, "draw_shapes", None)
    with refused(words):
        open_public(source, shape=GREY, count=1)


def test_a_path_opens_the_folder_of_a_name(folder):
    write(folder / "fonts", {"a/1.png": 1, "b/2.png": 2})
    write(folder / "shapes+digits", {"3.png": 3})
    for source in ("./fonts", Path("fonts")):
        data = open_public(source, shape=(1, 8, 8))
        assert (shown(data), data.class_names, data.public) == ([1, 2], ("a", "b"), True)
    assert shown(open_public("shapes+digits", shape=(1, 8, 8))) == [3]


def test_images_of_another_size_are_framed(folder, refused):
    save(folder / "photos.npz", shape=(40, 60, 3))
    assert open_public("photos.npz", shape=GREY).shape == GREY
    assert open_public("photos.npz", shape=(3, 16, 16)).shape == (3, 16, 16)
    with refused("photos.npz has images of shape (1, 40, 60)", "(1, 40, 50) is needed"):
        open_public("photos.npz", shape=(1, 40, 50))
    assert open_public("photos.npz", shape=(1, 40, 60)).shape == (1, 40, 60)


def test_a_count_chooses_the_same_images_each_time(folder):
    labels = np.arange(200) % 3
    save(folder / "photos.npz", count=200, shape=(8, 8, 1), labels=labels, num_classes=3)
    data = open_public("photos.npz", shape=(1, 8, 8), count=50)
    assert data.digest() == open_public("photos.npz", shape=(1, 8, 8), count=50).digest()
    chosen = shown(data)
    assert chosen == sorted({*chosen})  # in their order
    assert len(chosen) == 50 < chosen[-1]
    assert data.labels.tolist() == labels[chosen].tolist()
    for enough in (200, 1_000, None):
        assert shown(open_public("photos.npz", shape=(1, 8, 8), count=enough)) == [*range(200)]


@pytest.mark.parametrize("source", ["made.npz", "folder", "shapes+made.npz", "shapes+folder"])
def test_images_of_a_private_release_are_not_public(folder, refused, monkeypatch, source):
    monkeypatch.setattr(dpdm.data.public, "draw_shapes", None)  # refused before anything is drawn
    for path in ("made.npz", "folder/train.npz"):
        save(folder / path, claim=CLAIM)
    save(folder / "folder" / "test.npz")
    with refused("drawn from a private release (ε = 1)", ".npz"):
        open_public(source, shape=GREY, count=1)
    assert len(open_public("folder/test.npz", shape=GREY)) == 6


def _in_a_table(files, path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [file.read_bytes() for file in files]}), path)


def _in_an_archive(files, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.name)


def _by_another_name(files, path):
    path.mkdir()
    for file in files:
        (path / f"{file.stem}.jpg").write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("put", "name"), [(_in_an_archive, "made.zip"), (_in_a_table, "made.parquet"), (_by_another_name, "made")]
)
def test_a_claim_is_found_wherever_images_are_read_from(folder, refused, put, name):
    """And whatever they are called: else what a release drew would be public, and nothing would count its cost."""
    for number, claim in enumerate((None, CLAIM)):  # not the first one
        info = None if claim is None else png_with(json.dumps(claim))
        Image.fromarray(np.full((8, 8), 9 * number, np.uint8)).save(folder / f"{number}.png", pnginfo=info)
    put(sorted(folder.glob("*.png")), folder / name)
    with refused("drawn from a private release (ε = 1)", name):
        open_public(name, shape=(1, 8, 8))
    framing = Framing(size=8, channels=1)
    prepare(folder / "ready", lambda read: open_dataset(name, num_classes=0, read=read), framing)
    with refused("drawn from a private release (ε = 1)", "prepared.json"):
        open_public("ready", shape=(1, 8, 8))


def test_a_claim_is_found_behind_a_link_and_a_link_that_leads_back_ends(tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "made").mkdir()
    images = np.zeros((2, 8, 8, 1), np.uint8)
    save_npz(tmp_path / "made" / "made.npz", images, claim={"statement": "(1, 1e-5)-DP"})
    (tmp_path / "shown" / "back").symlink_to(tmp_path / "shown")
    assert find_claim(tmp_path / "shown") is None
    (tmp_path / "shown" / "more").symlink_to(tmp_path / "made")
    assert find_claim(tmp_path / "shown") == (tmp_path / "shown" / "more" / "made.npz", "(1, 1e-5)-DP")


def test_arrays_are_prepared_without_a_look_at_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((2, 8, 8, 1), np.uint8)
    save_npz(tmp_path / "made.npz", images, claim={"statement": "(1, 1e-5)-DP"})
    prepare(tmp_path / "ready", lambda read: ImageDataset(images=images, name="arrays"), Framing(size=8, channels=1))
    assert find_claim(tmp_path / "ready") is None
