"""Classifiers learn on the device, and leave its random state as it was."""

import dataclasses

import numpy as np
import pytest
import torch

from dpdm.evaluation import DPIMAGEBENCH, WideResidualNet, evaluate_utility

pytestmark = pytest.mark.gpu


def test_a_wide_residual_network_learns_on_the_device(device):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    images = rng.integers(0, 120, (300, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    protocol = dataclasses.replace(DPIMAGEBENCH, epochs=8, batch_size=32, drop_every=4, average=0.99)
    state = torch.get_rng_state if device.type == "cpu" else lambda: torch.cuda.get_rng_state(device)
    before = state()
    found = evaluate_utility(
        *(images[:200], labels[:200], images[200:], labels[200:]),
        num_classes=3,
        protocol=protocol,
        classifiers={"wrn": WideResidualNet(depth=10, width=1, dropout=0.1)},
        device=device,
    )
    assert found["wrn"].accuracy > 0.9
    assert torch.equal(state(), before)
