"""The count of right answers by which a search compares its runs: an answer is of one private image alone."""

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.runs.tuning import _right_answers


def private(count, classes=3):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ImageDataset(images=images, labels=random.integers(0, classes, count), num_classes=classes, name="private")


class Meeting(nn.Module):
    """Logits at a near tie, which images of one batch decide together."""

    def forward(self, x):
        of_batch = x.double().sum() * 1e3 % 1.0 - 0.5
        return torch.stack([x.flatten(1).mean(1) * 0 + of_batch, x.flatten(1).mean(1) * 0, -torch.ones(len(x))], dim=1)


class Near(nn.Module):
    """Logits that differ in their last bits at most."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.last = nn.Conv2d(1, 16, 3), nn.Linear(16 * 36, 1)

    def forward(self, x):
        one = self.last(self.hidden(x).relu().flatten(1))
        return torch.cat([one, one.round(decimals=6), one - 1], dim=1)


@pytest.mark.parametrize("classifier", [Meeting(), Near()])
def test_an_answer_depends_on_no_other_image(classifier):
    data = private(600)
    right = _right_answers(classifier, data)
    assert 0 < right.sum() < len(data)
    for number in (1, 255, 256, 257, 599):
        fewer = ImageDataset(images=data.images[:number], labels=data.labels[:number], num_classes=3, name="fewer")
        assert (_right_answers(classifier, fewer) == right[:number]).all()
    order = np.random.default_rng(1).permutation(600)
    moved = ImageDataset(images=data.images[order], labels=data.labels[order], num_classes=3, name="moved")
    assert (_right_answers(classifier, moved) == right[order]).all()


def test_no_image_can_stop_a_score():
    class Endless(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), float("nan"))

    assert _right_answers(Endless(), private(5)).shape == (5,)
