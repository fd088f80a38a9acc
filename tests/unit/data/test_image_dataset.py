import numpy as np
import pytest

from dpdm.data import ImageDataset, in_parts

GREY = np.zeros((3, 8, 10, 1), np.uint8)


def dataset(images=GREY, **fields):
    return ImageDataset(images=images, name="toy", **fields)


def test_the_shape_is_channel_height_width_and_the_length_counts_images():
    assert dataset().shape == (1, 8, 10)
    assert len(dataset()) == 3


def test_undeclared_class_names_are_numbers_and_labels_become_int64():
    labelled = dataset(labels=np.array([0, 2, 1], np.uint8), num_classes=3)
    assert labelled.class_names == ("0", "1", "2")
    assert labelled.labels.dtype == np.int64
    assert labelled.labels.tolist() == [0, 2, 1]


def test_a_declared_class_may_have_no_images():
    assert dataset(labels=np.array([0, 0, 0]), num_classes=5).num_classes == 5


def test_a_data_set_made_from_arrays_has_no_location():
    assert dataset().location == ""


def test_the_repr_is_the_same_whatever_the_records_are():
    one = dataset(labels=np.array([0, 1, 1]), num_classes=2, location="/home/someone/toy")
    other = dataset(np.full((7, 8, 10, 1), 9, np.uint8), labels=np.array([0] * 7), num_classes=2)
    assert repr(one) == repr(other) == "ImageDataset(name='toy', shape=(1, 8, 10), num_classes=2)"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GREY.astype(np.float32), ["float32", "uint8"]),
        (GREY[..., None], ["(3, 8, 10, 1, 1)", "(number, height, width, channel)"]),
        (np.zeros((3, 8, 8, 2), np.uint8), ["(3, 8, 8, 2)", "1, 3 or 4 channels"]),
        (GREY[:0], ["no images"]),
        (np.zeros((3, 7, 9, 1), np.uint8), ["9 x 7", "at least 8"]),
    ],
)
def test_images_of_another_form_are_refused(refused, images, words):
    with refused("toy", *words):
        dataset(images)


def test_images_without_an_axis_of_channels_are_grey():
    assert dataset(GREY[..., 0]).images.shape == GREY.shape


@pytest.mark.parametrize(
    ("labels", "num_classes", "words"),
    [
        ([0, 12, 1], 10, ["label 12", "10 classes", "0 to 9", "data.num_classes"]),
        ([0, 10, 1], 10, ["label 10"]),
        ([0, -1, 1], 10, ["label -1"]),
        ([0, 1, 1], 0, ["--set data.num_classes=10"]),
        ([0.0, 1.0, 1.0], 2, ["float64", "integer"]),
        ([0, 1], 2, ["(2,)", "(3,)"]),
        ([[1, 0], [0, 1], [0, 1]], 2, ["2 columns", "one label for each image"]),
    ],
)
def test_labels_that_are_no_declared_class_of_each_image_are_refused(refused, labels, num_classes, words):
    with refused("toy", *words):
        dataset(labels=np.array(labels), num_classes=num_classes)


def test_classes_without_labels_are_refused(refused):
    with refused("toy", "no labels", "data.num_classes"):
        dataset(num_classes=10)


def test_there_is_one_class_name_for_each_class(refused):
    with refused("toy", "1 class names", "2 classes"):
        dataset(labels=np.array([0, 1, 1]), num_classes=2, class_names=("cat",))


def test_names_of_classes_are_text():
    images = np.zeros((2, 8, 8, 1), dtype=np.uint8)
    data = ImageDataset(images=images, labels=np.array([0, 1]), num_classes=2, class_names=(3, 7), name="two")
    assert data.class_names == ("3", "7")


def test_parts_are_all_records_once_and_in_order():
    for number in (0, 1, 4, 5, 9):
        parts = [[*range(9)[part]] for part in in_parts(number, 4)]
        assert [at for part in parts for at in part] == [*range(number)]
        assert all(0 < len(part) <= 4 for part in parts)
