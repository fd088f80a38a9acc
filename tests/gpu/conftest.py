"""Tests of the device: all are marked `gpu`, and skip where there is none.

`DPDM_TEST_DEVICE=cpu` runs them on the processor, which proves their code and nothing about a GPU.
"""

import os

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset


@pytest.fixture(scope="session")
def device():
    """The device under test."""
    name = os.environ.get("DPDM_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is to be seen")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


@pytest.fixture
def full_float32(monkeypatch):
    """Convolutions of a GPU as a processor has them, without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def data():
    """24 grey images of 8 × 8 pixels in three classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = 60 * labels[:, None, None, None] + rng.integers(0, 100, (24, 8, 8, 1))
    return ImageDataset(images=pixels.astype(np.uint8), labels=labels, num_classes=3, name="made up")
