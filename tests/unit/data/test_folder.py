import warnings

import numpy as np
import pytest
from made_sources import zipped
from PIL import Image

from dpdm.data import open_dataset, save_folder

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)
RED = (200, 10, 20)


def picture(file, mode="RGB", size=(8, 9), colour=RED, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(file, **options)
    return file


def test_class_folders_in_sorted_order_are_the_classes(tmp_path):
    for index, (folder, file) in enumerate([("10", "b.png"), ("10", "a.png"), ("2", "z.png"), ("cat", "c.PNG")]):
        picture(tmp_path / folder / file, colour=(index, 0, 0))
    opened = open_dataset(tmp_path)
    assert opened.class_names == ("10", "2", "cat")
    assert opened.labels.tolist() == [0, 0, 1, 2]
    assert opened.images[:, 0, 0, 0].tolist() == [1, 0, 2, 3]


def test_a_flat_folder_has_no_labels(tmp_path):
    picture(tmp_path / "one.png")
    opened = open_dataset(tmp_path)
    assert (opened.labels, opened.num_classes, opened.class_names) == (None, 0, ())
    assert opened.shape == (3, 9, 8)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff"])
def test_every_format_keeps_its_colours(tmp_path, ending):
    picture(tmp_path / f"one.{ending}")
    image = open_dataset(tmp_path).images[0]
    assert np.abs(image.astype(int) - RED).max() <= 6


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("RGB", 3), ("P", 3), ("LA", 4), ("RGBA", 4)])
def test_the_kind_of_file_decides_the_channels(tmp_path, mode, channels):
    picture(tmp_path / "one.png", mode)
    assert open_dataset(tmp_path).shape[0] == channels


def test_a_palette_with_a_transparent_colour_counts_as_rgba(tmp_path):
    palette = Image.new("P", (8, 9))
    palette.putpalette([200, 10, 20, 0, 255, 0])
    palette.putpixel((3, 0), 1)
    palette.save(tmp_path / "one.png", transparency=b"\x00\xff")
    image = open_dataset(tmp_path).images[0]
    assert image[0, 3].tolist() == [0, 255, 0, 255]
    assert image[0, 0, 3] == 0
    assert open_dataset(tmp_path, channels=3).images[0, 0, 0].tolist() == [0, 0, 0]


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    picture(tmp_path / "one.jpg", "CMYK", colour=(255, 255, 255))
    assert (open_dataset(tmp_path).images >= 250).all()


def test_a_photo_is_turned_upright(tmp_path):
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: left becomes top
    image.save(tmp_path / "one.jpg", exif=exif)
    upright = open_dataset(tmp_path).images[0, ..., 0]
    assert upright.shape == (16, 8)
    assert upright[:6].min() > 240
    assert upright[-6:].max() < 15


def test_files_of_any_size_and_channels_come_into_one_frame(tmp_path):
    picture(tmp_path / "a.png", "L", (20, 30))
    picture(tmp_path / "b.png", "RGBA", (9, 8))
    picture(tmp_path / "c.jpg", "RGB", (40, 11))
    opened = open_dataset(tmp_path, size=16, fit="pad", channels=3)
    assert opened.images.shape == (3, 16, 16, 3)


def test_another_size_is_refused_by_the_first_file_that_has_it(tmp_path, refused):
    for name, size in (("a", (8, 9)), ("b", (8, 9)), ("c", (9, 9)), ("d", (10, 9))):
        picture(tmp_path / f"{name}.png", size=size)
    with refused(tmp_path / "c.png", "9 x 9", "8 x 9", "--set data.size=28"):
        open_dataset(tmp_path)


def test_another_number_of_channels_is_refused_by_the_first_file_that_has_it(tmp_path, refused):
    for name, mode in (("a", "RGB"), ("b", "L"), ("c", "RGBA")):
        picture(tmp_path / f"{name}.png", mode)
    with refused(tmp_path / "b.png", "has 1 channels", "has 3", "--set data.channels=3"):
        open_dataset(tmp_path)


def test_more_than_eight_bits_of_grey_are_refused(tmp_path, refused):
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "one.png")
    with refused(tmp_path / "one.png", "8 bits"):
        open_dataset(tmp_path)
    (tmp_path / "one.png").unlink()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "one.tif")
    with refused(tmp_path / "one.tif", "8 bits"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["one.gif", "one.tif"])
def test_files_of_several_pictures_are_refused(tmp_path, refused, name):
    frames = [Image.new("L", (8, 8), level) for level in (0, 99, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with refused(tmp_path / name, "3 pictures"):
        open_dataset(tmp_path)


def test_the_preview_in_a_cameras_file_is_no_second_picture(tmp_path):
    preview = Image.new("L", (8, 8), 9)
    Image.new("L", (8, 8), 200).save(tmp_path / "one.jpg", "MPO", save_all=True, append_images=[preview])
    assert (open_dataset(tmp_path).images == 200).all()


def test_images_beside_class_folders_are_refused(tmp_path, refused):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "b.png")
    with refused(tmp_path, "b.png", "beside class folders", "cat"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("where", [".", "cat"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, refused, where):
    picture(tmp_path / where / "a.png")
    (tmp_path / where / "notes.txt").write_text("hello")
    with refused(tmp_path / where / "notes.txt", "is no image"):
        open_dataset(tmp_path)


def test_files_that_only_look_like_images_are_refused_by_name(tmp_path, refused):
    file = picture(tmp_path / "a.png", size=(40, 40))
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:40] + b"\xff" * 60):
        file.write_bytes(content)
        with refused(file, "is no image"):
            open_dataset(tmp_path)


def test_a_format_that_starts_other_programs_is_not_decoded_under_an_innocent_name(tmp_path, refused):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")
    with refused(tmp_path / "a.png", "is no image", "unknown format"):
        open_dataset(tmp_path)


def test_hidden_files_and_folders_are_ignored(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / ".thumbnails" / "a.png")
    picture(tmp_path / "__MACOSX" / "a.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cat" / "._a.png").write_bytes(b"x")
    assert open_dataset(tmp_path, num_classes=1).class_names == ("cat",)


def test_nothing_to_read_is_refused(tmp_path, refused):
    with refused(tmp_path / "nowhere", "neither a path that exists"):
        open_dataset(tmp_path / "nowhere")
    with refused(tmp_path, "is empty"):
        open_dataset(tmp_path)
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    with refused(tmp_path / "dog", "is empty"):
        open_dataset(tmp_path)
    picture(tmp_path / "dog" / "puppies" / "a.png")
    with refused(tmp_path / "dog" / "puppies", "inside a class folder"):
        open_dataset(tmp_path)


def test_a_declared_number_of_classes_must_be_that_of_the_folders(tmp_path, refused):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "a.png")
    assert open_dataset(tmp_path, num_classes=2).num_classes == 2
    with refused(tmp_path, "has 2 classes", "10 are declared", "data.num_classes"):
        open_dataset(tmp_path, num_classes=10)
    with refused(tmp_path / "cat", "has 0 classes"):
        open_dataset(tmp_path / "cat", num_classes=10)


def test_odd_metadata_is_no_reason_to_say_anything(tmp_path, capfd):
    file = picture(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x40\x00\x12\x01\x03\x00")
    with pytest.warns(UserWarning, match="EXIF"), Image.open(file) as image:
        image.getexif().get(0x0112)
    with warnings.catch_warnings(record=True) as spoken:
        open_dataset(tmp_path)
    assert not spoken
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_saved_images_are_read_back_exactly(tmp_path, channels):
    images = RNG.integers(0, 256, (12, 8, 9, channels), dtype=np.uint8)
    save_folder(tmp_path / "new" / "flat", images)
    opened = open_dataset(tmp_path / "new" / "flat")
    assert np.array_equal(opened.images, images)
    assert opened.labels is None


@pytest.mark.parametrize(
    ("class_names", "folders"),
    [
        (["cat", "dog", "eel"], ["cat", "dog", "eel"]),
        (["T-shirt/top", "Ankle boot", ".."], ["0_T-shirt-top", "1_Ankle boot", "2_--"]),
        (["a/b", "a\\b", "a:b"], ["0_a-b", "1_a-b", "2_a-b"]),
        (["b", "b", ""], ["0_b", "1_b", "2_"]),
        (["Ant", "ant", "bee"], ["0_Ant", "1_ant", "2_bee"]),  # one folder, to many file systems
        (["__MACOSX", "ant", "bee"], ["0___MACOSX", "1_ant", "2_bee"]),  # a system's own, to whoever reads it
        (["ü" * 127, "b", "a"], ["0_" + "ü" * 126, "1_b", "2_a"]),  # no name is longer than 255 bytes
    ],
)
def test_saved_labels_are_read_back_whatever_the_classes_are_called(tmp_path, class_names, folders):
    labels = np.array([2, 0, 1, 2, 0])
    save_folder(tmp_path / "synthetic", COLOUR, labels, class_names)
    opened = open_dataset(tmp_path / "synthetic")
    order = np.argsort(labels, kind="stable")
    assert list(opened.class_names) == folders
    assert np.array_equal(opened.labels, labels[order])
    assert np.array_equal(opened.images, COLOUR[order])


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *((name, name) for name in ("cat", "0", "1", "a, b", "ü", "Ankle boot")),
        ("train", "0_train"),
        ("T-shirt/top", "0_T-shirt-top"),
        ('a "b"', "0_a -b-"),
        (".hidden", "0_-hidden"),
        ("", "0_"),
    ],
)
def test_one_class_is_read_back_as_one(tmp_path, name, folder):
    """A single folder is looked through and names no class, so a list beside it does."""
    save_folder(tmp_path / "synthetic", COLOUR, np.zeros(5, int), [name])
    for path in (tmp_path / "synthetic", zipped(tmp_path / "synthetic")):
        opened = open_dataset(path)
        assert opened.class_names == (folder,)
        assert np.array_equal(opened.labels, np.zeros(5))
        assert np.array_equal(opened.images, COLOUR)
    assert open_dataset(tmp_path / "synthetic", num_classes=0).labels is None


def test_the_labels_of_many_numbered_classes_keep_their_order(tmp_path):
    names = [str(label) for label in range(11)]
    save_folder(tmp_path / "synthetic", COLOUR[np.zeros(11, int)], np.arange(11), names)
    assert open_dataset(tmp_path / "synthetic").class_names == tuple(names)


def test_a_folder_that_holds_something_is_never_written_to(tmp_path, refused):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for path in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with refused(path, "exists"):
            save_folder(path, COLOUR)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_folder(tmp_path / "empty", COLOUR)
    assert len(open_dataset(tmp_path / "empty")) == 5


def test_a_failed_save_leaves_no_folder(tmp_path, monkeypatch):
    saved = []

    def disk_full_at_the_third(self, file, **options):
        saved.append(file)
        if len(saved) == 3:
            raise OSError("disk full")
        file.touch()

    monkeypatch.setattr(Image.Image, "save", disk_full_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        save_folder(tmp_path / "synthetic", COLOUR)
    assert list(tmp_path.iterdir()) == []


def test_labels_beyond_the_class_names_are_not_saved(tmp_path, refused):
    with refused("label 2", "2 classes"):
        save_folder(tmp_path / "synthetic", COLOUR, np.array([0, 1, 2, 0, 1]), ["a", "b"])
    assert list(tmp_path.iterdir()) == []
