"""A frame: what is put around an image is cut off again, to the bit."""

import numpy as np
import pytest
import torch

from dpdm.networks.frame import Frame, framed_sides
from dpdm.types import images_to_tensor


@pytest.mark.parametrize(
    ("sides", "multiple", "larger"), [((28, 28), 8, (32, 32)), ((7, 8), 4, (8, 8)), ((5, 1), 1, (5, 1))]
)
def test_sides_become_the_next_multiples(sides, multiple, larger):
    assert framed_sides(sides, multiple) == larger


@pytest.mark.parametrize("sides", [(28, 28), (27, 30), (32, 31)])
def test_an_image_comes_back_and_its_border_repeats_its_edge(sides):
    images = np.random.default_rng(0).integers(0, 256, (3, *sides, 3), dtype=np.uint8)
    frame = Frame(shape=(3, *sides), latent=(3, 32, 32))
    rows = frame.rows(images)
    assert torch.equal(rows[1:2], frame.rows(images[1:2]))
    learnt = images_to_tensor(rows.reshape(3, 32, 32, 3).numpy().astype(np.uint8))
    assert torch.equal(frame.decode(learnt), images_to_tensor(images))
    assert torch.equal(learnt[:, :, 0, 16], images_to_tensor(images)[:, :, 0, 16 - (32 - sides[1]) // 2])
