"""Whatever takes images takes grey ones with and without an axis of channels, alike, and refuses others in one line."""

import numpy as np
import pytest
from PIL import Image

from dpdm.data import (
    Framing,
    ImageDataset,
    find_duplicates,
    open_dataset,
    pixel_digests,
    save_folder,
    save_npz,
)
from dpdm.evaluation import (
    Pixels,
    UtilityProtocol,
    evaluate_fidelity,
    evaluate_utility,
    image_features,
    image_grid,
    one_row_per_class,
    refuse_same_images,
    require_testable,
    save_grid,
    side_by_side,
    train_classifier,
)
from dpdm.evaluation.classifiers import LogReg
from dpdm.types import InputError, images_to_tensor

LABELS = np.arange(12) % 2
BRIEF = UtilityProtocol(epochs=2)


def images(seed=0, number=12):
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 9), dtype=np.uint8)


def written(save, path):
    save(path)
    with Image.open(path) as picture:
        return np.asarray(picture)


def classifier(x):
    return train_classifier(x, LABELS, num_classes=2, classifier=LogReg(), protocol=BRIEF).state_dict()


def in_folder(x, path):
    save_folder(path / "folder", x)
    return open_dataset(path / "folder").images


def in_file(x, path):
    save_npz(path / "a.npz", x)
    with np.load(path / "a.npz") as archive:
        assert archive["images"].ndim == 4
    return open_dataset(path / "a.npz").images


TAKES = {
    "ImageDataset": lambda x, path: ImageDataset(images=x, name="x").images,
    "save_folder": in_folder,
    "save_npz": in_file,
    "find_duplicates": lambda x, path: find_duplicates(x),
    "pixel_digests": lambda x, path: pixel_digests(x),
    "frame_all": lambda x, path: Framing(size=8).frame_all(x),
    "frame_all, as they are": lambda x, path: Framing().frame_all(x),
    "images_to_tensor": lambda x, path: images_to_tensor(x).numpy(),
    "image_grid": lambda x, path: image_grid(x, columns=3),
    "one_row_per_class": lambda x, path: one_row_per_class(x, LABELS, num_classes=2, per_class=3),
    "save_grid": lambda x, path: written(lambda file: save_grid(file, x, LABELS, num_classes=2), path / "a.png"),
    "side_by_side": lambda x, path: written(lambda file: side_by_side(file, x, x[:5]), path / "a.png"),
    "image_features": lambda x, path: image_features(x, Pixels()).numpy(),
    "evaluate_fidelity": lambda x, path: str(
        evaluate_fidelity(np.tile(x, (5, *[1] * (x.ndim - 1))), images(1, 60), features=Pixels())
    ),
    "evaluate_utility": lambda x, path: str(
        evaluate_utility(x, LABELS, images(1), LABELS, num_classes=2, classifiers={"LogReg": LogReg()}, protocol=BRIEF)
    ),
    "require_testable": lambda x, path: require_testable(x, LABELS, images(1), LABELS, num_classes=2),
    "refuse_same_images": lambda x, path: refuse_same_images(x, images(1)),
    "train_classifier": lambda x, path: str(classifier(x)),
}
ANY_SHAPE = ("find_duplicates",)  # which compares bytes


@pytest.mark.parametrize("name", TAKES)
def test_grey_images_may_come_without_an_axis_of_channels(name, tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "4").mkdir()
    flat, whole = TAKES[name](images(), tmp_path / "3"), TAKES[name](images()[..., np.newaxis], tmp_path / "4")
    assert np.array_equal(flat, whole)


WRONG = {
    "floats": images() / 255,
    "one image": images()[0],
    "one image in colour": np.zeros((8, 9, 3), np.uint8),
    "channels in front": np.zeros((12, 3, 8, 9), np.uint8),
    "two channels": np.zeros((12, 8, 9, 2), np.uint8),
    "five axes": np.zeros((1, 12, 8, 9, 3), np.uint8),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", [name for name in TAKES if name not in ANY_SHAPE])
def test_other_arrays_are_refused_in_one_line_that_names_the_shapes(name, wrong, tmp_path):
    with pytest.raises(InputError) as caught:
        TAKES[name](WRONG[wrong], tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert "number, height, width" in said or "uint8" in said or "pixels" in said
    assert not [*tmp_path.iterdir()]
