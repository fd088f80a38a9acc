"""How a classifier is trained on synthetic images: the paper's way, a quick one, and that of DPImageBench."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dpdm.types import InputError, require_counts, require_counts_or_none, require_positive


@dataclass(frozen=True)
class UtilityProtocol:
    """How a classifier is trained: Adam, on a random part of the synthetic images.

    Args:
        epochs: Passes over the training part, >= 1.
        batch_size: Images per update, >= 1.
        learning_rate: Learning rate of Adam, > 0.
        held_out: Share of the synthetic images that choose the best epoch, in (0, 1).
        min_updates: Least number of updates: small sets get more epochs.
        decay: Whether the learning rate falls linearly to 0, which makes very few epochs reliable.
        drop: Factor on the learning rate after every `drop_every` epochs, in (0, 1].
        drop_every: Epochs between two drops, >= 1.
        average: Decay of a running average of the weights, in [0, 1); 0 is none. The average is judged in place of the
            last weights. It starts with a shorter memory: the decay of update n is at most (1 + n) / (10 + n).

    Source:
        Dockhorn et al. 2023, section 5; the 90/10 split as in Cao et al. 2021 (DP-Sinkhorn).

    Example:
        >>> UtilityProtocol(epochs=10).batch_size
        128
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 3e-4
    held_out: float = 0.1
    min_updates: int = 0
    decay: bool = False
    drop: float = 1.0
    drop_every: int = 20
    average: float = 0.0

    def __post_init__(self) -> None:
        require_counts(epochs=self.epochs, batch_size=self.batch_size, drop_every=self.drop_every)
        require_counts_or_none(min_updates=self.min_updates)
        require_positive(learning_rate=self.learning_rate)
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, not {self.held_out}")
        if not 0 < self.drop <= 1:
            raise InputError(f"drop must be above 0 and at most 1, not {self.drop}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must be from 0 to below 1, not {self.average}")

    def split(self, num_images: int) -> tuple[int, int]:
        """Return how many of `num_images` >= 2 images to train on, and how many to hold out; neither is 0."""
        num_held_out = min(max(1, round(self.held_out * num_images)), num_images - 1)
        return num_images - num_held_out, num_held_out

    def num_epochs(self, num_images: int) -> int:
        """Return the number of epochs for `num_images` synthetic images."""
        return max(self.epochs, math.ceil(self.min_updates / self._updates_per_epoch(num_images)))

    def num_updates(self, num_images: int) -> int:
        """Return the number of updates for `num_images` synthetic images."""
        return self.num_epochs(num_images) * self._updates_per_epoch(num_images)

    def rate(self, update: int, num_images: int) -> float:
        """Return the learning rate of an update; the first update has number 0."""
        left = 1 - update / self.num_updates(num_images) if self.decay else 1.0
        drops = update // self._updates_per_epoch(num_images) // self.drop_every
        return self.learning_rate * left * self.drop**drops

    def _updates_per_epoch(self, num_images: int) -> int:
        return math.ceil(self.split(num_images)[0] / self.batch_size)


QUICK = UtilityProtocol(epochs=2, batch_size=200, learning_rate=4e-3, min_updates=500, decay=True)
"""A look on two CPU cores: all images, but fewer epochs, with larger batches at a higher, falling learning rate.

It can compare two sets of images with each other; its scores are not comparable with the paper's.
"""

DPIMAGEBENCH = UtilityProtocol(
    epochs=50, batch_size=256, learning_rate=0.01, held_out=1 / 12, drop=0.2, drop_every=20, average=0.9999
)
"""DPImageBench's protocol: of 60,000 synthetic images 55,000 train, and 5,000 choose the epoch.

There it is for a wide residual network, `WideResidualNet()`, with dropout of 0.3 and without augmentation. Its code
takes the first 55,000 images; a random part of that size is ours. For CIFAR its code trains a larger network for 200
epochs by SGD, which is not done here. No epoch is ever chosen on real images.

Source:
    Gong et al. 2025 (arXiv 2503.14681), and its code: Adam, batches, drops, average.
"""

PROTOCOLS: Mapping[str, UtilityProtocol | None] = MappingProxyType(
    {"paper": None, "quick": QUICK, "dpimagebench": DPIMAGEBENCH}
)
"""By the names that people give; by `paper`'s, each classifier is trained by its own protocol."""
