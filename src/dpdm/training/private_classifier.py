"""A classifier trained on real images by DP-SGD: what a generator has to be compared with, at the same ε."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpdm.data import ImageDataset
from dpdm.evaluation import CNN
from dpdm.privacy import DPSGD, LayerWise
from dpdm.training import ema
from dpdm.types import InputError, RandomBytes, images_to_tensor

_SHIFT = 2  # pixels by which a copy may be moved, either way
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
    def accuracy(self, test: ImageDataset) -> float:
        """Return the share of right answers on other images: of the data owner's, if these are private."""
        assert test.labels is not None
        right = 0
        for start in range(0, len(test), _PART):
            answers = self.module(images_to_tensor(test.images[start : start + _PART])).argmax(1).numpy()
            right += int((answers == test.labels[start : start + _PART]).sum())
        return right / len(test)


def train_private_classifier(
    data: ImageDataset,
    *,
    epsilon: float,
    delta: float | None = None,
    steps: int = 400,
    expected_batch_size: int = 2048,
    copies: int = 4,
    learning_rate: float = 2e-3,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda total: None,
) -> PrivateClassifier:
    """Train a CNN on labelled images by DP-SGD, each of them shifted `copies` times in a step before it is clipped.

    The averaged weights are what is returned. The number of images is taken as public.

    Args:
        data: Labelled images: secret.
        epsilon: ε of the claim.
        delta: δ of the claim; 1e-5, or half of one in the number of images if that is less, unless told.
        steps: Noisy gradients.
        expected_batch_size: Images in a step on average; a quarter of the images if that is less.
        copies: Shifted copies of an image in one step.
        learning_rate: Adam's.
        seed: Of the initial weights.
        on_step: Called after each step with their number.

    Raises:
        InputError: The images have no labels, or are in groups, or the target cannot be met.

    Source:
        Augmentation multiplicity and averaged weights: De et al. 2022.
    """
    if data.labels is None:
        raise InputError(f"{data.name} has no labels: a classifier needs them")
    if data.groups is not None:
        raise InputError(f"{data.name} has groups of images: this classifier could claim something of one image only")
    labels = torch.from_numpy(data.labels)
    batch = min(expected_batch_size, max(1, len(data) // 4))
    plan = DPSGD(
        dataset_size=len(data),
        expected_batch_size=batch,
        steps=steps,
        delta=min(1e-5, 0.5 / len(data)) if delta is None else delta,
        relation="replace_special",
    ).calibrate(epsilon=epsilon)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = CNN(dropout=0.0).build(data.shape, data.num_classes)
    average, optimizer = ema.start(module), torch.optim.Adam(module.parameters(), lr=learning_rate)

    def load(indices: Int64[np.ndarray, " batch"], random_bytes: RandomBytes) -> tuple[Tensor, Tensor]:
        images = images_to_tensor(data.images[indices])
        shifts = [np.frombuffer(random_bytes(2 * copies), np.uint8).reshape(copies, 2) for _ in indices]
        return _shifted(images, shifts), labels[indices]

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Float[Tensor, " batch"]:
        images, labels = batch
        logits = module(images.flatten(0, 1))
        return cross_entropy(logits, labels.repeat_interleave(copies), reduction="none").view(-1, copies).mean(1)

    run = plan.start(strategy=LayerWise())
    while not run.finished:
        run.backward(loss, module, num_records=len(data), load=load, physical_batch_size=256)
        optimizer.step()
        ema.update(average, module, updates=run.steps_spent, decay=0.98)
        on_step(steps)
    return PrivateClassifier(average.eval(), plan.statement)


def _shifted(images: Tensor, shifts: list[np.ndarray]) -> Float[Tensor, "batch copy channel height width"]:
    """Return copies of each image, moved by up to two pixels, by bytes of its own; what comes in is the edge."""
    padded = nn.functional.pad(images, (_SHIFT,) * 4, mode="replicate")
    height, width = images.shape[2:]
    copies = [
        torch.stack([image[:, y : y + height, x : x + width] for y, x in places % (2 * _SHIFT + 1)])
        for image, places in zip(padded, shifts, strict=True)
    ]
    return torch.stack(copies) if copies else images[:, None]
