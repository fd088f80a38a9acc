"""A classifier trained on real images by DP-SGD: what a generator has to be compared with, at the same ε."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.evaluation import confusion_of
from dpdm.methods import ema
from dpdm.methods.classifier import LabelLoss
from dpdm.privacy import DPSGD, LayerWise, OperatingSystemEntropy
from dpdm.runs.classifier_starts import begin
from dpdm.runs.public import claim_of
from dpdm.types import InputError, images_to_tensor, require_counts, require_seed

_PART = 1000


@dataclass(frozen=True)
class PrivateClassifier:
    """A classifier and its claim.

    Args:
        module: From images (batch, channel, height, width) in [-1, 1] to logits.
        statement: The claim in one line; what is public is named in it, and not protected.
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
    learning_rate: float | None = None,
    start: str = "none",
    seed: int = 0,
    on_step: Callable[[int], None] = lambda total: None,
) -> PrivateClassifier:
    """Train a small CNN, or a linear classifier on public features, on labelled images by DP-SGD.

    The averaged weights are what is returned. The number of images is taken as public. The defaults were chosen on
    Fashion-MNIST (docs/results.md); shifted copies of each image, averaged before clipping, made it worse there. No
    ledger counts it: whoever publishes the classifier enters its (ε, δ) there (`dpdm ledger enter`).

    Args:
        data: Labelled images: secret.
        epsilon: ε of the claim.
        delta: δ of the claim (default: 1e-5, or half of one in the number of images if that is less).
        steps: Noisy gradients.
        expected_batch_size: Images in a step on average; a quarter of the images if that is less.
        learning_rate: Adam's (default: 1e-2; 2e-2 after drawn images; 0.1 on features).
        start: "none", "procedural" or "features". "procedural" is a CNN that learnt from drawn images which views are
            of one image. "features" is a linear classifier on those of EfficientNet-Lite0, or of a random network where
            that is not installed.
        seed: Of the initial weights, and of the start.
        on_step: Called after each step with their number.

    Raises:
        InputError: The images have no labels, or are in groups, or the target cannot be met, or there is no such start.

    Source:
        Abadi et al. 2016; averaged weights: De et al. 2022; linear classifiers on public features: Tramèr & Boneh 2021;
        drawn images: Tang et al. 2023.
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
    begun = begin(start, data, seed=seed)
    average = ema.start(begun.network)
    optimizer = torch.optim.Adam(begun.network.parameters(), lr=learning_rate or begun.learning_rate)
    run = plan.start(strategy=LayerWise())
    while not run.finished:
        run.backward(LabelLoss(), begun.network, num_records=len(data), load=begun.load, physical_batch_size=512)
        optimizer.step()
        ema.update(average, begun.network, updates=run.steps_spent, decay=0.98)
        on_step(steps)
    claim = claim_of(plan, begun.parts, entropy=OperatingSystemEntropy())
    return PrivateClassifier(nn.Sequential(begun.features, average).eval(), claim["statement"])
