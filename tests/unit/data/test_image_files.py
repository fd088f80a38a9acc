"""Image files that cameras, scanners and old data sets have: read as they are meant, or refused with the cause."""

import struct
import zlib

import numpy as np
import pytest
from made_sources import encoded, picture, shown, write, zipped
from PIL import Image

from dpdm.data import Framing, inspect, open_dataset, prepare
from dpdm.data.identity import file_digests
from dpdm.data.image_files import decode_image

DEEP = np.full((8, 8, 4), 4095, np.uint16)


def chunk(tag, content):
    return struct.pack(">I", len(content)) + tag + content + struct.pack(">I", zlib.crc32(tag + content))


def deep_png(colour_type, channels):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP[..., :channels])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(bits):
    """RGB whose samples have more than eight bits, not compressed."""
    pixels = DEEP[..., :3].astype("<u2").tobytes()
    tags = [
        (256, 3, 8),
        (257, 3, 8),
        (258, 3, None),
        (259, 3, 1),
        (262, 3, 2),
        (273, 4, None),
        (277, 3, 3),
        (278, 3, 8),
    ]
    tags += [(279, 4, len(pixels)), (284, 3, 1)]
    end = 8 + 2 + 12 * len(tags) + 4
    directory = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        count, value = (3, end) if tag == 258 else (1, end + 6 if tag == 273 else value)
        packed = struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value)
        directory += struct.pack("<HHI", tag, kind, count) + packed
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<HHH", bits, bits, bits) + pixels


@pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("grey.png", deep_png(0, 1)),
        ("colour.png", deep_png(2, 3)),
        ("alpha.png", deep_png(4, 2)),
        ("all.png", deep_png(6, 4)),
        ("colour.tif", deep_tiff(16)),
        ("grey.pgm", b"P5\n# a scanner\n8 8\n4095\n" + DEEP[..., 0].astype(">u2").tobytes()),
        ("colour.ppm", b"P6 8 8 65535\n" + DEEP[..., :3].astype(">u2").tobytes()),
    ],
)
def test_more_than_eight_bits_are_refused_whatever_pillow_makes_of_them(tmp_path, refused, form, name, content):
    source = form(write(tmp_path / "photos", {"1.png": 1, name: content}))
    with refused(name, "more than 8 bits of grey or of each colour", "one fixed scale"):
        open_dataset(source, channels=3)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [*((name, "JPEG") for name in ("JPG", "jpe", "jfif", "JFIF")), *((name, "PPM") for name in ("pgm", "pnm", "PGM"))],
)
def test_other_endings_of_known_formats_are_read(tmp_path, ending, kind):
    data = open_dataset(write(tmp_path / "photos", {f"1.{ending}": encoded(90, kind)}))
    assert np.abs(data.images[0, ..., 0].astype(int) - 90).max() <= 2


def test_maps_of_one_bit_and_of_few_levels_are_read_at_full_scale(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture(1) > 80).save(tmp_path / "photos" / "1.pbm")
    write(tmp_path / "photos", {"2.pgm": b"P5 8 8 15\n" + bytes([15]) * 64})
    assert open_dataset(tmp_path / "photos").images.reshape(2, -1)[:, -1].tolist() == [255, 255]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("1.dcm", "PNG of 8 bits, all by one fixed window"),
        ("1.NII.GZ", "PNG of 8 bits, all by one fixed window"),
        ("1.heic", "convert it to PNG or JPEG"),
        ("1.mat", "numpy.savez"),
        ("1.tar.gz", "unpack it"),
        ("1.txt", "move it elsewhere"),
    ],
)
def test_files_of_well_known_other_kinds_are_told_what_to_do(tmp_path, refused, name, said):
    source = write(tmp_path / "photos", {"ant/1.png": 1, f"bee/{name}": "x", "bee/2.png": 2})
    for path in (source, zipped(source)):
        with refused(name, "is no image", said):
            open_dataset(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photos.tar", "unpack"),
        ("photos.h5", "numpy.savez"),
        ("photos.rar", "unpack"),
        ("a.PNG", "folder of all images"),
    ],
)
def test_a_path_of_another_kind_is_told_what_to_do(tmp_path, refused, name, said):
    (tmp_path / name).write_bytes(bytes(1024))
    with refused(name, "neither a folder nor a .zip, .npz, .npy or .parquet file", said):
        open_dataset(tmp_path / name)


def test_an_honest_scan_that_is_too_large_is_neither_damaged_nor_an_attack(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with refused("1.png has more than 62 pixels", "scale it down"):
        open_dataset(write(tmp_path / "photos", {"1.png": 1}))


def test_masks_of_zero_and_one_are_refused(tmp_path, refused):
    masks = (np.arange(64).reshape(1, 8, 8) % 2).astype(np.uint8)
    np.savez(tmp_path / "masks.npz", images=masks)
    with refused("masks.npz", "no other levels than 0 and 1 of 255", "multiply them by 255"):
        open_dataset(tmp_path / "masks.npz")
    (tmp_path / "photos").mkdir()
    Image.fromarray(masks[0]).save(tmp_path / "photos" / "1.png")
    with refused("photos", "multiply them by 255"):
        prepare(
            tmp_path / "ready", lambda read: open_dataset(tmp_path / "photos", read=read), Framing(size=8, channels=1)
        )
    Image.fromarray(masks[0] * 255).save(tmp_path / "photos" / "1.png")
    assert open_dataset(tmp_path / "photos").images.max() == 255
    np.savez(tmp_path / "black.npz", images=np.zeros((3, 8, 8), np.uint8))
    assert len(open_dataset(tmp_path / "black.npz")) == 3


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619.2.55", "DICOMDIR", "1.png"])
@pytest.mark.parametrize("archived", [False, True])
def test_dicom_is_known_by_its_content(tmp_path, refused, name, archived):
    """Scanners give their files no ending, or any."""
    dicom = bytes(128) + b"DICM" + bytes(40)
    folder = write(tmp_path / "photos", {"0.png": 1, name: dicom})
    source = zipped(folder) if archived else folder
    with refused(name, "PNG of 8 bits, all by one fixed window"):
        open_dataset(source)
    assert name in str(inspect(source)["train"].refused)
    if name != "1.png":
        with refused(name, "PNG of 8 bits, all by one fixed window"):
            open_dataset(folder / name)


def test_other_strangers_are_not_taken_for_dicom(tmp_path, refused):
    write(tmp_path / "photos", {"0.png": 1, "notes": b"DICM", "1.png": b"DICM" + bytes(200)})
    with refused("notes is no image", "move it elsewhere"):
        open_dataset(tmp_path / "photos")
    (tmp_path / "photos" / "notes").unlink()
    with refused("1.png is no image that can be decoded (unknown format)"):
        open_dataset(tmp_path / "photos")


def test_endings_of_archives_count_in_capitals(tmp_path):
    zipped(write(tmp_path / "photos", {"1.png": 1})).rename(tmp_path / "PHOTOS.ZIP")
    np.savez(tmp_path / "a.npz", images=picture(2)[None])
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    np.save(tmp_path / "b.npy", picture(3)[None])
    (tmp_path / "b.npy").rename(tmp_path / "B.NPY")
    assert [shown(open_dataset(tmp_path / name)) for name in ("PHOTOS.ZIP", "A.NPZ", "B.NPY")] == [[1], [2], [3]]


def test_the_same_pixels_are_known_in_whatever_colour_type_they_are_stored(tmp_path):
    """The kind: a data set that gets a second budget by being saved anew."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8))
    forms = {"L": grey, **{mode: grey.convert("RGB").convert(mode) for mode in ("RGB", "RGBA")}, "P": grey.convert("P")}
    known = set()
    for mode, image in forms.items():
        image.save(tmp_path / f"{mode}.png")
        decoded, encoded = decode_image(tmp_path / f"{mode}.png")
        known.add(file_digests(encoded, decoded)[1].tobytes())
    assert len(known) == 1
    seen_through = grey.convert("RGBA")
    seen_through.putalpha(7)
    assert file_digests(b"", seen_through)[1].tobytes() not in known
