import os
import zipfile

import numpy as np
import pytest

from dpdm.data import open_dataset, save_npz

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0])


def npz(folder, **arrays):
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def test_grey_images_need_no_channel_axis(tmp_path):
    opened = open_dataset(npz(tmp_path, images=COLOUR[..., 0]))
    assert np.array_equal(opened.images, COLOUR[..., :1])
    assert (opened.labels, opened.num_classes) == (None, 0)


def test_labels_need_a_declared_number_of_classes(tmp_path, refused):
    path = npz(tmp_path, images=COLOUR, labels=LABELS)
    with refused(path, "--set data.num_classes=10"):
        open_dataset(path)
    assert open_dataset(path, num_classes=5).class_names == ("0", "1", "2", "3", "4")


def test_the_file_may_declare_the_classes_and_the_caller_goes_before_it(tmp_path):
    path = npz(tmp_path, images=COLOUR, labels=LABELS, num_classes=7)
    assert open_dataset(path).num_classes == 7
    assert open_dataset(path, num_classes=3).num_classes == 3


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": COLOUR / 255.0}, ["float64", "uint8"]),
        ({"images": COLOUR.astype(np.int64)}, ["int64", "uint8"]),
        ({"images": COLOUR[0, 0]}, ["(9, 3)"]),
        ({"pictures": COLOUR}, ["pictures", "must hold images"]),
        ({"images": COLOUR, "label": LABELS}, ["label", "nothing else"]),
        ({"images": COLOUR, "labels": LABELS / 2, "num_classes": 3}, ["labels are float64"]),
        ({"images": COLOUR, "labels": LABELS, "num_classes": 2}, ["label 2", "2 classes"]),
        ({"images": COLOUR, "labels": LABELS, "num_classes": [3]}, ["num_classes", "one integer"]),
        ({"images": COLOUR, "labels": LABELS, "num_classes": 3.0}, ["num_classes", "one integer"]),
        ({"images": COLOUR, "num_classes": 3}, ["no labels"]),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, refused, arrays, words):
    path = npz(tmp_path, **arrays)
    with refused(path, *words):
        open_dataset(path)


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def test_pickled_objects_are_refused_and_never_run(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    path = npz(tmp_path, images=np.array([Trap()], object))
    with refused(path, "no .npz file of plain arrays"):
        open_dataset(path)
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_npz_are_refused(tmp_path, refused):
    path = tmp_path / "images.npz"
    with refused(path):
        open_dataset(path)
    for content in (b"", b"no zip at all", npz(tmp_path, images=COLOUR).read_bytes()[:-30]):
        path.write_bytes(content)
        with refused(path, "no .npz file"):
            open_dataset(path)
    with path.open("wb") as file:
        np.save(file, COLOUR)
    with refused(path, "no .npz file"):
        open_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"raw bytes")
    with refused(path, "uint8"):
        open_dataset(path)


def test_what_is_saved_is_read_back_with_its_declaration(tmp_path):
    path = tmp_path / "new" / "synthetic.npz"
    save_npz(path, COLOUR, LABELS, num_classes=4)
    opened = open_dataset(path)
    assert np.array_equal(opened.images, COLOUR)
    assert opened.labels.tolist() == LABELS.tolist()
    assert opened.num_classes == 4
    save_npz(path, COLOUR[:1])
    assert open_dataset(path).labels is None
    assert [file.name for file in path.parent.iterdir()] == ["synthetic.npz"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "synthetic.npz"
    save_npz(path, COLOUR)
    before = path.read_bytes()

    def half_a_file(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        save_npz(path, COLOUR[:1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_that_could_not_be_read_back_are_not_saved(tmp_path, refused):
    path = tmp_path / "synthetic.npz"
    with refused(path, "float64"):
        save_npz(path, COLOUR / 255.0)
    with refused(path, "num_classes"):
        save_npz(path, COLOUR, LABELS)
    with refused(path, "(3,)"):
        save_npz(path, COLOUR, LABELS[:3], num_classes=3)
    assert not path.exists()


GREY = COLOUR[..., 0]


def medmnist(folder, train="train", images="{}_images", labels="{}_labels"):
    """Arrays as MedMNIST has them: parts, and labels in a column."""
    arrays = {}
    for part, chosen in ((train, slice(0, 2)), ("val", slice(2, 3)), ("test", slice(1, 4))):
        arrays |= {images.format(part): GREY[chosen], labels.format(part): LABELS[chosen, None].astype(np.uint8)}
    return npz(folder, **arrays)


@pytest.mark.parametrize("names", [{}, {"images": "x_{}", "labels": "y_{}"}, {"train": "TRAINING"}])
def test_arrays_of_parts_are_opened_part_by_part(tmp_path, refused, names):
    path = medmnist(tmp_path, **names)
    with refused(path, "--set data.num_classes=10"):
        open_dataset(path)
    for part, chosen in (("", slice(0, 2)), (":val", slice(2, 3)), (":test", slice(1, 4))):
        opened = open_dataset(f"{path}{part}", num_classes=3)
        assert np.array_equal(opened.images[..., 0], GREY[chosen])
        assert opened.labels.tolist() == LABELS[chosen].tolist()
        assert opened.name == f"images.npz{part}"
    assert open_dataset(path, num_classes=0).labels is None


def test_arrays_of_parts_may_have_groups_and_names(tmp_path, refused):
    parts = {f"{part}_{what}": GREY[:2] if what == "images" else [1, 0] for part in ("train", "test") for what in
             ("images", "labels")}  # fmt: skip
    path = npz(tmp_path, **parts, train_patients=["a", "a"], test_patients=["b", "c"], class_names=["ant", "bee"])
    opened = open_dataset(path, group="patients")
    assert (opened.groups.tolist(), opened.class_names) == ([0, 0], ("ant", "bee"))
    assert open_dataset(f"{path}:test", group="patients").groups.tolist() == [0, 1]
    with refused("no array person"):
        open_dataset(path, group="person")
    with refused("train_patients", "nothing else"):
        open_dataset(path)
    with refused("has no part val, only train and test"):
        open_dataset(f"{path}:val", group="patients")
    with refused("for one part"):
        open_dataset(npz(tmp_path, train_images=GREY, training_images=GREY))


def test_names_of_classes_declare_them_and_labels_may_be_names(tmp_path, refused):
    names = ["ant", "bee", "cat"]
    opened = open_dataset(npz(tmp_path, images=GREY, labels=LABELS, class_names=names, num_classes=3, claim="eps"))
    assert (opened.class_names, opened.labels.tolist()) == (tuple(names), LABELS.tolist())
    words = np.array(names)[LABELS]
    opened = open_dataset(npz(tmp_path, images=GREY, labels=words[:, None], class_names=names))
    assert (opened.class_names, opened.labels.tolist()) == (tuple(names), LABELS.tolist())
    with refused("has 3 classes, but 4 are declared"):
        open_dataset(npz(tmp_path, images=GREY, labels=LABELS, class_names=names, num_classes=4))
    for wrong in ([1, 2, 3], [["ant"], ["bee"], ["cat"]], "ant"):
        with refused("class_names is", "one word for each class"):
            open_dataset(npz(tmp_path, images=GREY, labels=LABELS, class_names=wrong))
    with refused("the label of row 0, 'ant'", "an array class_names"):
        open_dataset(npz(tmp_path, images=GREY, labels=words), num_classes=3)
    with refused("must not be read off private labels", "an array class_names"):
        open_dataset(npz(tmp_path, images=GREY, labels=words))


def test_one_column_of_labels_is_read_and_one_for_each_class_is_refused(tmp_path, refused):
    assert open_dataset(npz(tmp_path, images=GREY, labels=LABELS[:, None]), num_classes=3).labels.shape == (4,)
    with refused("3 columns", "one label for each image"):
        open_dataset(npz(tmp_path, images=GREY, labels=np.eye(3, dtype=int)[LABELS]), num_classes=3)


@pytest.mark.parametrize("shape", [(16, 16, 60), (28, 30, 600), (8, 200, 9)])
def test_an_array_whose_last_axis_is_the_number_of_images_is_refused(tmp_path, refused, shape):
    images = np.zeros(shape, np.uint8)
    np.save(tmp_path / "last.npy", images)
    for path in (tmp_path / "last.npy", npz(tmp_path, images=images)):
        with refused(path, f"{shape[0]} images of {shape[2]} x {shape[1]} pixels", "to the front", "axis of channels"):
            open_dataset(path)
    np.save(tmp_path / "right.npy", images[..., None])
    assert len(open_dataset(tmp_path / "right.npy")) == shape[0]
