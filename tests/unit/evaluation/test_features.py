"""The feature extractors: what they see, what identifies them, what they refuse."""

import hashlib

import numpy as np
import pytest
import torch

from dpdm.evaluation import (
    CNN,
    MLP,
    ClassifierFeatures,
    EfficientNetLite0,
    Pixels,
    ResidualNet,
    TorchScriptFeatures,
    UtilityProtocol,
    features_by_name,
    frechet_distance,
    image_features,
    inception_score,
)
from dpdm.evaluation.preparation import prepared
from dpdm.types import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def grey(number=60, side=28):
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 1), dtype=np.uint8)


def striped(number=200, *, seed=0):
    """Images of which the class is the place of a bright stripe."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, number)
    images = rng.integers(0, 120, (number, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return images, labels


def classifier_features(**changes):
    images, labels = striped()
    protocol = UtilityProtocol(epochs=4, batch_size=32, learning_rate=3e-3)
    arguments = {"images": images, "labels": labels, "num_classes": 3, "protocol": protocol}
    return ClassifierFeatures(**{**arguments, **changes})


def test_preparation_repeats_grey_for_colour_only_and_leaves_levels_as_they_are():
    images = grey(3)
    levels = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    assert torch.equal(prepared(images, colour=False), levels)
    assert torch.equal(prepared(images, colour=True), levels.expand(-1, 3, -1, -1))
    assert torch.equal(prepared(images.repeat(3, axis=3), colour=True), levels.expand(-1, 3, -1, -1))


def test_preparation_averages_down_and_never_up_and_interpolates_both_ways():
    images = grey(3, side=8)
    means = torch.from_numpy(images.reshape(3, 4, 2, 4, 2).mean((2, 4))).float()[:, None]
    torch.testing.assert_close(prepared(images, side=4, how="average", colour=False), means)
    assert prepared(images[:, :, :3], side=4, how="average", colour=False).shape == (3, 1, 4, 3)
    for side in (4, 16):
        resized = prepared(images, side=side, colour=True)
        assert resized.shape == (3, 3, side, side)
        assert resized.mean().item() == pytest.approx(images.mean(), rel=0.05)
        assert not torch.equal(resized, resized.round()), "levels must not be rounded again"


@pytest.mark.parametrize("features", [EfficientNetLite0(size=32), Pixels()])
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((60, 8, 8, 4), np.uint8), "not of 4 channels"),
        (np.zeros((60, 8, 8, 1)), "uint8"),
        (np.zeros((60, 8), np.uint8), "uint8 .number, height, width.*not uint8 of shape .60, 8."),
    ],
)
def test_what_are_neither_grey_nor_colour_images_is_refused(features, images, said):
    with pytest.raises(InputError, match=said):
        image_features(images, features)


def test_efficientnet_tells_noise_from_flat_images_and_takes_grey_for_colour():
    images = grey(450)
    features = image_features(images, EfficientNetLite0(size=32))
    assert features.shape == (450, 1280)
    in_colour = image_features(images[:60].repeat(3, axis=3), EfficientNetLite0(size=32))
    torch.testing.assert_close(in_colour, features[:60], rtol=1e-3, atol=1e-3)
    flat = np.full((450, 28, 28, 1), 128, dtype=np.uint8) + (images[:, :1, :1] // 64)
    flat_features = image_features(flat, EfficientNetLite0(size=32))
    near, far = frechet_distance(features[:225], features[225:]), frechet_distance(features[:225], flat_features[:225])
    assert far > 2 * near


def test_a_part_is_reported_as_it_is_done():
    done = []
    image_features(grey(450), Pixels(), on_progress=done.append)
    assert sum(done) == 450
    assert len(done) > 1


def test_pixels_are_levels_between_0_and_1():
    images = grey(5, side=8)
    torch.testing.assert_close(
        image_features(images, Pixels()), torch.from_numpy(images.reshape(5, 64)).float() / 255, rtol=0, atol=1e-6
    )
    assert image_features(grey(5).repeat(3, axis=3), Pixels(side=7)).shape == (5, 3 * 7 * 7)


class Pooling(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        pooled = images.float().mean((2, 3))
        if return_features:
            return pooled
        return torch.zeros(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_gives_features_and_any_other_file_is_refused(tmp_path):
    torch.jit.script(Pooling()).save(tmp_path / "pooling.pt")
    features = features_by_name(str(tmp_path / "pooling.pt"))
    images = grey()
    found = image_features(images, features)
    assert features.name == "pooling.pt"
    assert hashlib.sha256((tmp_path / "pooling.pt").read_bytes()).hexdigest() in features.digest
    torch.testing.assert_close(found, torch.from_numpy(images.mean((1, 2))).float().expand(-1, 3), rtol=1e-4, atol=1e-3)
    (tmp_path / "other.pt").write_text("no TorchScript")
    for path in ("other.pt", "absent.pt"):
        with pytest.raises(InputError, match="cannot be read as a TorchScript file"):
            image_features(images, TorchScriptFeatures(tmp_path / path))
    with pytest.raises(InputError, match="cannot be read as a TorchScript file"):
        _ = TorchScriptFeatures(tmp_path / "absent.pt").digest


class Picky(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2] != 299:
            raise ValueError("give images of 299 pixels")
        return images.float()


class NoTensor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("module", "said"), [(Picky, "give images of 299 pixels"), (NoTensor, "list")])
def test_a_torchscript_file_that_does_not_take_such_images_says_so_in_one_line(tmp_path, module, said):
    torch.jit.script(module()).save(tmp_path / "other.pt")
    with pytest.raises(InputError) as refused:
        image_features(grey(1), TorchScriptFeatures(tmp_path / "other.pt"))
    assert "other.pt makes no features of uint8 images of shape (1, 3, 28, 28)" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_name_says_which():
    assert features_by_name("efficientnet-lite0") == EfficientNetLite0()
    assert features_by_name("pixels") == Pixels()
    with pytest.raises(InputError, match="size must be"):
        EfficientNetLite0(size=0)
    with pytest.raises(InputError, match="side must be"):
        Pixels(side=0)


def test_digests_tell_preparations_and_weights_apart():
    assert EfficientNetLite0().digest == EfficientNetLite0().digest
    different = [EfficientNetLite0(), EfficientNetLite0(size=32), Pixels(), Pixels(side=8), classifier_features()]
    assert len({features.digest for features in different}) == len(different)


def test_classifier_features_are_what_the_last_layer_sees_and_the_seed_repeats_them():
    images, _ = striped(30, seed=1)
    first, again, other = classifier_features(), classifier_features(), classifier_features(seed=1)
    found = image_features(images, first)
    assert found.shape == (30, 128)  # 8 × 8, halved three times, 128 wide
    assert torch.equal(found, image_features(images, again))
    assert first.digest == again.digest != other.digest
    assert not torch.equal(found, image_features(images, other))
    assert image_features(images, classifier_features(classifier=MLP(width=9))).shape == (30, 9)
    assert image_features(images, classifier_features(classifier=CNN(widths=(4, 5)))).shape == (30, 20)
    small = ResidualNet(widths=(4, 5), blocks=(1, 1))
    assert image_features(images, classifier_features(classifier=small)).shape == (30, 5)
    last = list(first._module.children())[-1]
    torch.testing.assert_close(last(found).softmax(1), first.probabilities(images).float())


def test_a_classifier_that_has_learnt_gives_the_probabilities_of_an_inception_score():
    features = classifier_features()
    images, labels = striped(90, seed=1)
    probabilities = features.probabilities(images)
    assert (probabilities.argmax(1).numpy() == labels).mean() > 0.95
    assert inception_score(probabilities) > 2
    assert inception_score(probabilities[labels == 0]) < 1.5


def test_classifier_features_refuse_images_of_another_shape_and_too_few_to_learn_from():
    with pytest.raises(InputError, match=r"\(8, 8, 1\), not \(9, 8, 1\)"):
        image_features(np.zeros((60, 9, 8, 1), np.uint8), classifier_features())
    images, labels = striped()
    with pytest.raises(InputError, match="at least 10 training images"):
        classifier_features(images=images[:9], labels=labels[:9]).build()
    with pytest.raises(InputError, match="all training images are of class 1"):
        classifier_features(labels=np.ones_like(labels)).build()
