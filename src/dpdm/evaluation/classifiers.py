"""The classifiers by which synthetic images are judged useful: logistic regression, MLP, CNN; in colour a ResNet, too.

Each is a frozen value that builds its own untrained module for a shape of images. They are fixed and small on
purpose: utility compares sets of images, so the classifier must never be the thing that was tuned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Protocol

import torch
from torch import nn

from dpdm.evaluation.protocol import UtilityProtocol
from dpdm.evaluation.residual import Block, CropsAndFlips, InBfloat16, convolution
from dpdm.evaluation.wide import WideResidualNet
from dpdm.types import InputError, require_counts

ImageShape = tuple[int, int, int]
"""(channel, height, width), as a network sees an image."""


class Classifier(Protocol):
    """A recipe for a module from images to logits: any object with this one method.

    It may also have a `protocol`: the `UtilityProtocol` that trains it by default.

    The caller tries the module on a few synthetic images before any training, and raises InputError unless it is as
    described here.

    Example:
        >>> class Linear:
        ...     def build(self, shape, num_classes):
        ...         return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))
        >>> Linear().build((1, 28, 28), num_classes=10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return a new untrained module each time; its initial weights come from torch's global random state.

        The module takes any number of float32 images of `shape` (batch, channel, height, width) in [-1, 1], and returns
        floating-point logits (batch, num_classes). Adam trains it on the cross entropy in training mode. Scores come
        from evaluation mode. The last batch of an epoch can be a single image.
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


@dataclass(frozen=True)
class ResidualNet:
    """A small residual network: images (channels, h, w), a stem, three stages of blocks, the average of each channel.

    The stem halves the image, and each stage but the first one does: 32 × 32 becomes 16 × 16, 8 × 8 and 4 × 4. In
    training images are shifted and, if they are in colour, half of them are mirrored: a mirrored digit is none. It
    computes in bfloat16 where the processor does.

    Args:
        widths: Channels of each stage, each >= 1.
        blocks: Blocks of each stage, each >= 1, of two 3 × 3 convolutions.

    Source:
        He et al. 2016 (blocks, crops and flips); Zagoruyko & Komodakis 2016 (few blocks, of many channels). The stem
        with stride 2 is our own: with it 60,000 images of 32 × 32 take two cores about 20 minutes in float32.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 2, 2)

    protocol: ClassVar = UtilityProtocol(epochs=15, batch_size=128, learning_rate=2e-3, min_updates=500, decay=True)
    """15 epochs at a falling learning rate; more of them on fewer than 4,700 images."""

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise InputError(f"each stage has a width and a number of blocks, not {self.widths} and {self.blocks}")
        for width, blocks in zip(self.widths, self.blocks, strict=True):
            require_counts(widths=width, blocks=blocks)

    def build(self, shape: ImageShape, num_classes: int) -> nn.Module:
        """Return the untrained module, its weights laid out channels-last."""
        channels, inputs = shape[0], self.widths[0]
        layers: list[nn.Module] = [convolution(channels, inputs, stride=2), nn.ReLU()]
        for stage, (outputs, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(blocks):
                layers.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        last = nn.Linear(inputs, num_classes)
        module = nn.Sequential(CropsAndFlips(flips=_in_colour(channels)), InBfloat16(*layers), last)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return module


CLASSIFIERS: Mapping[str, Classifier] = MappingProxyType({"logreg": LogReg(), "mlp": MLP(), "cnn": CNN()})
"""The paper's three, by the names under which their scores are reported."""

COLOUR_CLASSIFIERS: Mapping[str, Classifier] = MappingProxyType({**CLASSIFIERS, "resnet": ResidualNet()})
"""The paper's three and a residual network, by which images in colour are judged."""


def benchmark_classifiers(device: torch.device) -> Mapping[str, Classifier]:
    """Return what `DPIMAGEBENCH` trains: a wide residual network on a GPU, and elsewhere the small one in its place."""
    return {"resnet": ResidualNet()} if device.type == "cpu" else {"wrn": WideResidualNet()}


def classifiers_for(channels: int) -> Mapping[str, Classifier]:
    """Return the classifiers by which images of so many channels are judged."""
    return COLOUR_CLASSIFIERS if _in_colour(channels) else CLASSIFIERS


def _in_colour(channels: int) -> bool:
    return channels >= 3
