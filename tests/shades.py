"""Images that small generators learn in seconds, and what every run on them must do that is stopped."""

import numpy as np
import torch

from dpdm.data import ImageDataset
from dpdm.privacy import InsecureSeededEntropy
from dpdm.runs import Trainer

NAMES = ("dark", "bright")


def shades(count, *, seed=0, groups=None, blank=None):
    """Return images of two classes, dark and bright ones, each of one shade with a little noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = np.where(labels == 0, 40, 210)[:, None, None, None] + random.integers(-9, 10, (count, 8, 8, 1))
    made = {"images": images.astype(np.uint8), "labels": labels, "num_classes": 2, "class_names": NAMES}
    return ImageDataset(**made, name="shades", groups=groups, blank=blank)


def assert_goes_on(method, folder, *, taken=2, public=None):
    """A run that is stopped after some of its five steps goes on as if it had not been."""
    plan = method.plan(epsilon=3.0, dataset_size=32, delta=1e-13, steps=5, expected_batch_size=8)

    def trainer(run):
        given = {"public": public, "entropy": InsecureSeededEntropy(0), "ledger": None}
        return Trainer(method=method, plan=plan, run=folder / run, **given)

    whole = trainer("whole").fit(shades(32))
    steps = trainer("parts").steps(shades(32))
    for _ in range(taken):
        next(steps)
    steps.close()
    parts = trainer("parts").fit(shades(32))
    one, other = whole.generator.state_dict(), parts.generator.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
