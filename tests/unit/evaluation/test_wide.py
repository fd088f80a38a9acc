"""The wide residual network is WRN-40-4, and DPImageBench's protocol trains it as that does."""

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.evaluation import DPIMAGEBENCH, PROTOCOLS, ResidualNet, UtilityProtocol, WideResidualNet, evaluate_utility
from dpdm.evaluation.classifiers import LogReg, benchmark_classifiers
from dpdm.evaluation.pupil import Pupil
from dpdm.types import InputError

SMALL = WideResidualNet(depth=10, width=1, dropout=0.1)


@pytest.mark.parametrize(
    ("depth", "width", "classes", "millions"),
    [(40, 4, 10, 8.9), (28, 10, 10, 36.5), (16, 8, 10, 11.0), (40, 1, 10, 0.6)],
)
def test_it_has_as_many_weights_as_the_paper_counts(depth, width, classes, millions):
    """Zagoruyko & Komodakis 2016, table 4; and layer by layer."""
    with torch.device("meta"):
        module = WideResidualNet(depth=depth, width=width).build((3, 32, 32), classes)
    number = sum(weight.numel() for weight in module.parameters())
    assert round(number / 1e6, 1) == millions
    inputs, expected = 16, 9 * 3 * 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            expected += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            expected += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    assert number == expected + 2 * inputs + inputs * classes + classes


def test_wrn_40_4_of_ten_classes_has_8949210_weights():
    with torch.device("meta"):
        module = WideResidualNet().build((3, 32, 32), 10)
    assert sum(weight.numel() for weight in module.parameters()) == 8_949_210
    assert sum(isinstance(layer, nn.Conv2d) for layer in module.modules()) == 40


def test_stages_halve_images_and_the_last_layer_sees_an_average():
    module, x, sizes = SMALL.build((3, 32, 32), 5).eval(), torch.zeros(2, 3, 32, 32), []
    for layer in module:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert list(dict.fromkeys(sizes)) == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64, 1, 1), (64,), (5,)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("number", [1, 2])
def test_it_takes_images_of_any_shape_and_number(shape, number):
    module = SMALL.build(shape, 7).train()
    assert module(torch.zeros(number, *shape)).shape == (number, 7)


@pytest.mark.parametrize("wrong", [{"depth": 12}, {"depth": 4}, {"width": 0}, {"dropout": 1.0}])
def test_what_is_no_such_network_is_refused(wrong):
    with pytest.raises(InputError):
        WideResidualNet(**wrong)


def test_of_sixty_thousand_images_five_thousand_choose_the_epoch():
    assert PROTOCOLS["dpimagebench"] is DPIMAGEBENCH
    assert DPIMAGEBENCH.split(60_000) == (55_000, 5_000)
    assert DPIMAGEBENCH.num_epochs(60_000) == 50
    assert (DPIMAGEBENCH.batch_size, DPIMAGEBENCH.average) == (256, 0.9999)
    rates = [DPIMAGEBENCH.rate(215 * epoch, 60_000) for epoch in (0, 19, 20, 39, 40, 49)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])
    assert DPIMAGEBENCH.rate(215 * 20 - 1, 60_000) == 0.01


def test_what_is_trained_by_it_is_wide_on_a_gpu_alone():
    assert benchmark_classifiers(torch.device("cpu")) == {"resnet": ResidualNet()}
    assert benchmark_classifiers(torch.device("cuda")) == {"wrn": WideResidualNet()}


@pytest.mark.parametrize(
    "wrong", [{"drop": 0.0}, {"drop": 1.5}, {"drop_every": 0}, {"average": 1.0}, {"average": -0.1}]
)
def test_a_protocol_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError):
        UtilityProtocol(**wrong)


def test_the_average_of_the_weights_is_judged_and_kept_and_learning_goes_on_from_the_weights():
    torch.manual_seed(0)
    pupil = Pupil("one", LogReg(), (1, 4, 4), 3, average=0.95)
    weight, x, y = next(pupil.module.parameters()), torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    mean = weight.detach().clone()
    for update in range(1, 31):
        pupil.learn(x, y, 0.1)
        decay = min(0.95, (1 + update) / (10 + update))
        mean = decay * mean + (1 - decay) * weight.detach()
    last = weight.detach().clone()
    pupil.remember_if_best(1, np.zeros((6, 4, 4, 1), np.uint8), y.numpy())
    assert torch.equal(weight, last)
    torch.testing.assert_close(next(pupil.recall_best().module.parameters()).detach(), mean)
    assert not torch.allclose(mean, last, atol=1e-2)


@pytest.mark.parametrize("classifier", [SMALL, ResidualNet(widths=(8, 16), blocks=(1, 1))], ids=["wide", "small"])
def test_both_networks_learn_by_such_a_protocol(classifier):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    images = rng.integers(0, 120, (300, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    protocol = UtilityProtocol(
        epochs=8, batch_size=32, learning_rate=0.01, held_out=1 / 12, drop=0.2, drop_every=4, average=0.99
    )
    sides = (images[:200], labels[:200], images[200:], labels[200:])
    first, again = (
        evaluate_utility(*sides, num_classes=3, protocol=protocol, classifiers={"one": classifier})["one"]
        for _ in range(2)
    )
    assert first == again
    assert first.accuracy > 0.9
