"""The residual network, and what it brings of its own: crops, flips, bfloat16 and a protocol."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.evaluation import (
    CLASSIFIERS,
    COLOUR_CLASSIFIERS,
    LogReg,
    ResidualNet,
    UtilityProtocol,
    evaluate_utility,
    residual,
)
from dpdm.evaluation.residual import CropsAndFlips
from dpdm.types import InputError

SMALL = ResidualNet(widths=(8, 16), blocks=(1, 1))
SHORT = UtilityProtocol(epochs=4, batch_size=32, learning_rate=3e-3, decay=True)


@pytest.fixture(autouse=True)
def one_thread():
    """Modules this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checked(number, *, seed, channels=3, size=8):
    """Images of which the class is how coarse their noisy pattern is, wherever it is cut and however mirrored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, number)
    images = rng.integers(0, 60, (number, size, size, channels), dtype=np.uint8)
    rows, columns = np.indices((size, size))
    for image, label in zip(images, labels, strict=True):
        image[((rows >> label) + (columns >> label)) % 2 == 0] += 150
    return images, labels


def judged(classifiers, *, data=None, **changes):
    data = data or (*checked(200, seed=0), *checked(100, seed=1))
    return evaluate_utility(*data, classifiers=classifiers, **{"num_classes": 3, "protocol": SHORT} | changes)


def test_it_is_the_fourth_classifier_of_images_in_colour():
    assert [*COLOUR_CLASSIFIERS] == [*CLASSIFIERS, "resnet"]
    assert COLOUR_CLASSIFIERS["resnet"] == ResidualNet()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_it_takes_images_of_any_shape_and_gives_a_logit_for_each_class(shape, training):
    module = ResidualNet().build(shape, 7).train(training)
    assert module(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_stem_and_each_stage_but_the_first_halve_the_image():
    _, body, last = ResidualNet().build((3, 32, 32), 10)
    x, sizes = torch.zeros(1, 3, 32, 32), []
    for layer in body:
        x = layer.eval()(x)
        sizes.append(tuple(x.shape[1:]))
    assert list(dict.fromkeys(sizes)) == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (128, 1, 1), (128,)]
    assert sum(isinstance(layer, residual.Block) for layer in body) == 5
    assert last.in_features == 128


def test_it_has_as_many_weights_as_its_convolutions_and_norms_need():
    def convolution(inputs, outputs, size=9):
        return size * inputs * outputs + 2 * outputs

    def block(inputs, outputs):
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return convolution(inputs, outputs) + convolution(outputs, outputs) + shortcut

    stages = block(32, 32) + block(32, 64) + block(64, 64) + block(64, 128) + block(128, 128)
    weights = ResidualNet().build((3, 32, 32), 10).parameters()
    assert sum(weight.numel() for weight in weights) == convolution(3, 32) + stages + 128 * 10 + 10


@pytest.mark.parametrize("channels", [1, 3])
def test_it_learns_what_can_be_learnt_and_the_same_seed_gives_the_same_score(channels):
    data = (*checked(400, seed=0, channels=channels), *checked(100, seed=1, channels=channels))
    first, again = (judged({"resnet": SMALL}, data=data, seed=2)["resnet"] for _ in range(2))
    assert first == again
    assert first.accuracy > 0.9


def test_images_stay_as_they_are_where_nothing_is_learnt():
    x = torch.rand(3, 3, 8, 8)
    assert CropsAndFlips(flips=True).eval()(x) is x


@pytest.mark.parametrize("flips", [False, True])
def test_in_training_images_are_shifted_by_up_to_an_eighth_and_in_colour_half_are_mirrored(flips):
    x = torch.arange(1.0, 16 * 24 + 1).reshape(1, 16, 24)
    margin = nn.functional.pad(x, (3, 3, 2, 2))
    windows = [margin[:, row : row + 16, column : column + 24] for row in range(5) for column in range(7)]
    expected = [*windows, *(window.flip(-1) for window in windows)] if flips else windows
    torch.manual_seed(0)
    shown = CropsAndFlips(flips=flips)(x.repeat(2000, 1, 1, 1))
    count = Counter(image.numpy().tobytes() for image in shown)
    assert count.keys() == {window.contiguous().numpy().tobytes() for window in expected}
    assert max(count.values()) < 5 * min(count.values())


@pytest.mark.parametrize(("channels", "flips"), [(1, False), (3, True), (4, True)])
def test_grey_images_are_never_mirrored(channels, flips):
    assert SMALL.build((channels, 8, 8), 3)[0].flips == flips


@pytest.mark.parametrize("size", [1, 6])
def test_a_batch_of_one_image_goes_by_the_running_statistics_and_leaves_them(size):
    module = SMALL.build((3, size, size), 3)
    module(torch.rand(9, 3, size, size))
    before = {name: value.clone() for name, value in module.named_buffers()}
    module(torch.rand(1, 3, size, size)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    assert all(weight.grad is not None for weight in module.parameters())


def test_the_last_batch_of_an_epoch_may_be_a_single_image():
    images, labels = checked(60, seed=0, size=4)
    alone = UtilityProtocol(epochs=1, batch_size=53)  # of 54
    assert judged({"resnet": SMALL}, data=(images, labels, images, labels), protocol=alone)["resnet"].num_test == 60


def test_in_bfloat16_it_gives_almost_the_same_logits_and_its_weights_stay_float32(monkeypatch):
    x = torch.rand(4, 3, 16, 16)
    logits = []
    for native in (False, True):
        monkeypatch.setattr(residual, "has_bfloat16", lambda device, native=native: native)
        torch.manual_seed(0)
        module = SMALL.build((3, 16, 16), 3).eval()
        logits.append(module(x))
        logits[-1].sum().backward()
        assert {weight.grad.dtype for weight in module.parameters()} == {torch.float32}
    exact, rounded = logits
    assert exact.dtype == rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"widths": ()}, "each stage has a width and a number of blocks"),
        ({"blocks": (1, 2)}, "each stage has a width and a number of blocks"),
        ({"widths": (32, 0, 128)}, "widths"),
        ({"blocks": (1, 2.5, 2)}, "blocks"),
    ],
)
def test_stages_that_are_none_are_refused_in_one_line(fields, said):
    with pytest.raises(InputError, match=said) as refused:
        ResidualNet(**fields)
    assert "\n" not in str(refused.value)


class Hurried(LogReg):
    """A classifier with a protocol of its own."""

    protocol = UtilityProtocol(epochs=3, batch_size=45)


def test_it_is_trained_for_15_epochs_at_a_falling_rate_and_small_sets_for_longer():
    protocol = ResidualNet().protocol
    assert (protocol.num_epochs(60_000), protocol.batch_size, protocol.decay) == (15, 128, True)
    assert protocol.num_updates(60_000) == 15 * 422
    assert protocol.num_updates(1_000) >= 500


def test_a_classifier_is_trained_by_its_own_protocol_where_none_is_asked_for():
    data = (*checked(100, seed=0), *checked(100, seed=1))
    told = []
    found = judged(
        {"hurried": Hurried(), "paper": LogReg()},
        data=data,
        protocol=None,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert {name: score.epochs for name, score in found.items()} == {"hurried": 3, "paper": 50}
    assert told == [(update, 3 * 2 + 50) for update in range(1, 57)]
    assert judged({"hurried": Hurried()}, data=data, protocol=None)["hurried"] == found["hurried"]
    assert judged({"it": LogReg()}, data=data, protocol=Hurried.protocol)["it"] == found["hurried"]
    assert judged({"hurried": Hurried()}, data=data)["hurried"].epochs == SHORT.epochs


def test_own_protocols_that_are_none_are_refused_before_anything_is_trained(monkeypatch):
    class Broken(LogReg):
        @property
        def protocol(self):
            raise RuntimeError("not\nready")

    class Named(LogReg):
        protocol = "quick"

    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("a classifier was trained"))
    for classifier, said in ((Broken(), "failed: RuntimeError: not ready"), (Named(), "must be a UtilityProtocol")):
        with pytest.raises(InputError) as refused:
            judged({"logreg": LogReg(), "own": classifier}, protocol=None)
        assert str(refused.value).startswith("protocol of classifier 'own' ")
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_classifiers_of_a_later_protocol_are_tried_before_the_first_is_trained(monkeypatch):
    class Wrong(Hurried):
        def build(self, shape, num_classes):
            return nn.Flatten()

    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("a classifier was trained"))
    with pytest.raises(InputError, match="'wrong' has no weight to be trained"):
        judged({"logreg": LogReg(), "wrong": Wrong()}, protocol=None)
