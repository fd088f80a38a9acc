"""Labels from a file beside the images, in folders and archives; classes are declared and never read off labels."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpdm.data import open_dataset


def write(folder, files):
    """Write grey images of a level each (where a number is given) and texts, in this order."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            Image.fromarray(np.full((8, 8), content, dtype=np.uint8)).save(path)
    return folder


def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


IMAGES = {"b.png": 2, "x/y/a.png": 1, "x/c.png": 3}
CSV = "file,label\nx/c.png,0\nb.png,2\nx/y/a.png,1\n"
FORMS = pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])


@FORMS
@pytest.mark.parametrize(
    "listing",
    [{"labels.csv": CSV}, {"dataset.json": json.dumps({"labels": [["b.png", 2], ["x/y/a.png", 1], ["x/c.png", 0]]})}],
    ids=["csv", "json"],
)
def test_images_at_any_depth_get_the_labels_of_the_listing(tmp_path, form, listing):
    data = open_dataset(form(write(tmp_path / "photos", IMAGES | listing)), num_classes=4)
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {2: 2, 3: 0, 1: 1}
    assert data.num_classes == 4
    unlabelled = open_dataset(form(tmp_path / "photos"), num_classes=0)
    assert unlabelled.labels is None
    assert len(unlabelled) == 3


@FORMS
def test_a_file_of_classes_declares_them_and_labels_may_be_names(tmp_path, form):
    listing = {"labels.csv": "name,class\nb.png,dog\nx/y/a.png,cat\nx/c.png,cat\n", "classes.txt": "cat\ndog\nfox\n"}
    data = open_dataset(form(write(tmp_path / "photos", IMAGES | listing)))
    assert data.class_names == ("cat", "dog", "fox")
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {2: 1, 1: 0, 3: 0}


@FORMS
@pytest.mark.parametrize(
    ("files", "declared", "said"),
    [
        ({"labels.csv": CSV}, None, ["labels.csv", "must not be read off private labels", "data.num_classes"]),
        ({"labels.csv": CSV}, 2, ["labels.csv", "'b.png'", "no integer from 0 to 1"]),
        ({"labels.csv": CSV + "b.png,1\n"}, 3, ["two labels for 'b.png'"]),
        ({"labels.csv": CSV + "z.png,1\n"}, 3, ["'z.png', which is no image there"]),
        ({"labels.csv": CSV.replace("b.png,2\n", "")}, 3, ["no label for 'b.png'"]),
        ({"labels.csv": CSV + "one\n"}, 3, ["labels.csv", "2 headings", "1 columns in row 5"]),
        ({"labels.csv": "a,b,c\n"}, 3, ["labels.csv", "two columns"]),
        ({"labels.csv": CSV.replace("2", "-2")}, 3, ["no integer from 0 to 2"]),
        ({"labels.csv": CSV.replace("2", "dog")}, 3, ["no integer from 0 to 2", "classes.txt"]),
        ({"labels.csv": CSV.partition("\n")[2]}, 3, ["begins with 'x/c.png', an image", "headings"]),
        ({"labels.csv": CSV, "classes.txt": "a\nb\n"}, 3, ["has 2 classes, but 3 are declared"]),
        ({"labels.csv": CSV, "classes.txt": "a\nb\na\n"}, None, ["classes.txt", "none twice"]),
        ({"labels.csv": CSV, "classes.txt": "a\nb\n"}, None, ["no name in classes.txt"]),
        ({"labels.csv": CSV, "dataset.json": '{"labels": null}'}, 3, ["both dataset.json and labels.csv"]),
        ({"labels.csv": CSV, "notes.txt": "hello"}, 3, ["notes.txt", "no image"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_first_offender(tmp_path, refused, form, files, declared, said):
    path = form(write(tmp_path / "photos", IMAGES | files))
    with refused(*said):
        open_dataset(path, num_classes=declared)


def test_images_of_an_npy_file_stay_on_disk(tmp_path, refused):
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 10), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    data = open_dataset(tmp_path / "a.npy")
    np.testing.assert_array_equal(data.images[..., 0], images)
    base = data.images
    while not isinstance(base, np.memmap):
        base = base.base
    assert data.labels is None
    assert open_dataset(tmp_path / "a.npy", size=8).shape == (1, 8, 8)
    with refused("has 0 classes, but 3 are declared"):
        open_dataset(tmp_path / "a.npy", num_classes=3)
    (tmp_path / "b.npy").write_bytes(b"nothing")
    with refused("b.npy", "no .npy file"):
        open_dataset(tmp_path / "b.npy")
