"""A classifier trained on real images by DP-SGD: what a generator has to be compared with, at the same ε."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.evaluation import confusion_of
from dpdm.methods import ema
from dpdm.methods.classifier import LabelLoader, LabelLoss, small_cnn
from dpdm.privacy import DPSGD, LayerWise
from dpdm.types import InputError, images_to_tensor, require_counts, require_seed

_PART = 1000


@dataclass(frozen=True)
class PrivateClassifier:
    """A classifier and its claim.

    Args:
        module: From images (batch, channel, height, width) in [-1, 1] to logits.
        statement: The claim in one line.
    """

    module: nn.Module
    statement: str

    @torch.inference_mode()
    def confusion(self, test: ImageDataset) -> tuple[tuple[int, ...], ...]:
        """Count the answers on other images, a row for each true class: the data owner's, if these are private."""
        assert test.labels is not None
        answers = [
            self.module(images_to_tensor(test.images[start : start + _PART])).argmax(1).numpy()
            for start in range(0, len(test), _PART)
        ]
        return confusion_of(test.labels, np.concatenate(answers), test.num_classes)

    def accuracy(self, test: ImageDataset) -> float:
        """Return the share of right answers on other images, as private as these."""
        return float(np.trace(self.confusion(test))) / len(test)


def train_private_classifier(
    data: ImageDataset,
    *,
    epsilon: float,
    delta: float | None = None,
    steps: int = 400,
    expected_batch_size: int = 4096,
    learning_rate: float = 1e-2,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda total: None,
) -> PrivateClassifier:
    """Train a small CNN on labelled images by DP-SGD.

    The averaged weights are what is returned. The number of images is taken as public. The defaults were chosen on
    Fashion-MNIST (docs/results.md); shifted copies of each image, averaged before clipping, made it worse there.

    Args:
        data: Labelled images: secret.
        epsilon: ε of the claim.
        delta: δ of the claim (default: 1e-5, or half of one in the number of images if that is less).
        steps: Noisy gradients.
        expected_batch_size: Images in a step on average; a quarter of the images if that is less.
        learning_rate: Adam's.
        seed: Of the initial weights.
        on_step: Called after each step with their number.

    Raises:
        InputError: The images have no labels, or are in groups, or the target cannot be met.

    Source:
        Abadi et al. 2016; averaged weights: De et al. 2022.
    """
    require_counts(steps=steps, expected_batch_size=expected_batch_size)
    require_seed(seed=seed)
    if data.labels is None:
        raise InputError(f"{data.name} has no labels: a classifier needs them")
    if data.groups is not None:
        raise InputError(f"{data.name} has groups of images: this classifier could claim something of one image only")
    plan = DPSGD(
        dataset_size=len(data),
        expected_batch_size=min(expected_batch_size, max(1, len(data) // 4)),
        steps=steps,
        delta=min(1e-5, 0.5 / len(data)) if delta is None else delta,
        relation="replace_special",
    ).calibrate(epsilon=epsilon)
    module = small_cnn(data.shape[0], data.num_classes, seed=seed)
    average, optimizer = ema.start(module), torch.optim.Adam(module.parameters(), lr=learning_rate)
    load, loss = LabelLoader(data, torch.device("cpu")), LabelLoss()
    run = plan.start(strategy=LayerWise())
    while not run.finished:
        run.backward(loss, module, num_records=len(data), load=load, physical_batch_size=512)
        optimizer.step()
        ema.update(average, module, updates=run.steps_spent, decay=0.98)
        on_step(steps)
    return PrivateClassifier(average.eval(), plan.statement)
