"""A classifier that private steps train: its network, its loss of one image, and what loads a batch."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss
from dpdm.methods.loader import UnitLoader
from dpdm.types import RandomBytes


class Labelled(NamedTuple):
    """What a classifier takes, and the classes of it."""

    x: Float[Tensor, "batch ..."]
    labels: Int[Tensor, " batch"]


@dataclass(frozen=True)
class LabelLoss:
    """ℓ = −log p(y | x): one number, and one clipped gradient, of a private image."""

    def __call__(self, classifier: nn.Module, batch: Labelled) -> Float[Tensor, " batch"]:
        """Return the loss of each image."""
        return cross_entropy(classifier(batch.x), batch.labels, reduction="none")


class LabelLoader(UnitLoader):
    """Maps the indices of units to images and their classes: of a group, to one of its images, chosen at random."""

    def __init__(self, data: ImageDataset, device: torch.device) -> None:
        super().__init__(data, DenoisingLoss(noise_multiplicity=1), device)

    def _draw(
        self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch one"], random_bytes: RandomBytes
    ) -> Labelled:
        return Labelled(*self._clean(images.reshape(len(images))))


def small_cnn(channels: int, num_classes: int, *, width: int = 16, seed: int = 0) -> nn.Sequential:
    """Return an untrained CNN for images of any size, with as many parameters for each: noise falls on all of them.

    No norm takes part in it: of a batch it would let examples meet, and of groups it made it worse on MNIST.

    Args:
        channels: Of the images.
        num_classes: How many logits there are.
        width: Channels of the first layer.
        seed: Of the first weights.

    Source:
        Papernot et al. 2021 (tanh, which keeps gradients small), but for padding and pooling.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(channels, width, 8, stride=2, padding=3),
            nn.Tanh(),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 4, 2 * width),
            nn.Tanh(),
            nn.Linear(2 * width, num_classes),
        )
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # stubs lack it
