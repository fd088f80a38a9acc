"""The classifier that DP-SGD trains on real images: it learns, at any size of image, and says what it claims."""

import numpy as np
import pytest

from dpdm.data import ImageDataset
from dpdm.runs import train_private_classifier
from dpdm.types import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def shaded(height, width, channels, number=400):
    """Noise of which the class is the brightness."""
    labels = np.arange(number) % 2
    noise = np.random.default_rng(0).integers(0, 120, (number, height, width, channels))
    images = (noise + 120 * labels[:, None, None, None]).astype(np.uint8)
    return ImageDataset(images=images, labels=labels, num_classes=2, name="shaded")


@pytest.mark.parametrize("shape", [(8, 8, 1), (33, 17, 3)])
@pytest.mark.proof
def test_it_learns_whatever_the_size_and_states_its_claim(shape):
    data, totals = shaded(*shape), []
    trained = train_private_classifier(data, epsilon=8, steps=30, on_step=totals.append)
    assert trained.accuracy(data) > 0.95
    assert totals == [30] * 30
    assert trained.statement.startswith(("(7.99", "(8.0, 1e-05)"))
    assert "blank out one image, 30 Poisson steps at q = 0.25" in trained.statement


@pytest.mark.proof
def test_the_defaults_beat_guessing_by_far_where_images_are_few():
    trained = train_private_classifier(shaded(8, 8, 1, number=100), epsilon=10, steps=100)
    assert trained.accuracy(shaded(8, 8, 1)) > 0.9


def test_images_without_labels_are_refused():
    data = shaded(8, 8, 1)
    with pytest.raises(InputError, match="shaded has no labels"):
        train_private_classifier(ImageDataset(images=data.images, name="shaded"), epsilon=1)
