"""The three classifiers by which synthetic images are judged useful: logistic regression, an MLP, a small CNN.

Each is a frozen value that builds its own untrained module for a shape of images. They are fixed and small on
purpose: utility compares sets of images, so the classifier must never be the thing that was tuned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn

from dpdm.types import require_counts

ImageShape = tuple[int, int, int]
"""(channel, height, width), as a network sees an image."""


class Classifier(Protocol):
    """A recipe for a module from images to logits: any object that has this one method will do.

    The module is tried on a few synthetic images before anything is trained, and refused in one line if it is not what
    is said here.
    """

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return a new untrained module each time; its initial weights come from torch's global random state.

        It takes float32 images (batch, channel, height, width) in [-1, 1], of `shape` each and of any number, and gives
        floating-point logits (batch, num_classes). It is trained by Adam on the cross entropy, in training mode, and
        asked in evaluation mode; the last batch of an epoch can be a single image.
        """
        ...


@dataclass(frozen=True)
class LogReg:
    """Logistic regression: one linear layer on the pixels."""

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return the untrained module."""
        channels, height, width = shape
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


@dataclass(frozen=True)
class MLP:
    """One hidden layer of `width` ReLU units."""

    width: int = 100

    def __post_init__(self) -> None:
        require_counts(width=self.width)

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return the untrained module."""
        channels, height, width = shape
        hidden = nn.Linear(channels * height * width, self.width)
        return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(self.width, num_classes))


@dataclass(frozen=True)
class CNN:
    """Three 3 × 3 convolutions with ReLU and, while the image can be halved, max-pool; dropout; a linear layer."""

    widths: tuple[int, ...] = (32, 64, 128)
    dropout: float = 0.5

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return the untrained module, its weights laid out channels-last (the faster layout on a CPU)."""
        channels, height, width = shape
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((channels, *self.widths)):
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1))
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            # after the max-pool, with which ReLU commutes: the same result for a quarter of the work
            layers.append(nn.ReLU())
        layers += [nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(outputs * height * width, num_classes)]
        module = nn.Sequential(*layers)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return module


CLASSIFIERS: Mapping[str, Classifier] = MappingProxyType({"logreg": LogReg(), "mlp": MLP(), "cnn": CNN()})
"""The paper's three, by the names under which their scores are reported."""
