"""How a classifier is trained on synthetic images: the paper's way, and a quick one."""

import math
from dataclasses import dataclass

from dpdm.types import InputError, require_counts, require_counts_or_none, require_positive


@dataclass(frozen=True)
class UtilityProtocol:
    """How a classifier is trained: Adam, on a random part of the synthetic images.

    Args:
        epochs: Passes over the training part, >= 1.
        batch_size: Images per update, >= 1.
        learning_rate: Adam's, > 0.
        held_out: Share of the synthetic images on which the best epoch is chosen, in (0, 1).
        min_updates: Raises the number of epochs until there are this many updates, for small sets.
        decay: Whether the learning rate falls linearly to 0, which is what makes very few epochs reliable.

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

    def __post_init__(self) -> None:
        require_counts(epochs=self.epochs, batch_size=self.batch_size)
        require_counts_or_none(min_updates=self.min_updates)
        require_positive(learning_rate=self.learning_rate)
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, not {self.held_out}")

    def split(self, num_images: int) -> tuple[int, int]:
        """Return how many of `num_images` >= 2 are trained on, and how many are held out; neither is 0."""
        num_held_out = min(max(1, round(self.held_out * num_images)), num_images - 1)
        return num_images - num_held_out, num_held_out

    def num_epochs(self, num_images: int) -> int:
        """Return the number of epochs for `num_images` synthetic images."""
        return max(self.epochs, math.ceil(self.min_updates / self._updates_per_epoch(num_images)))

    def num_updates(self, num_images: int) -> int:
        """Return the number of updates for `num_images` synthetic images."""
        return self.num_epochs(num_images) * self._updates_per_epoch(num_images)

    def _updates_per_epoch(self, num_images: int) -> int:
        return math.ceil(self.split(num_images)[0] / self.batch_size)


QUICK = UtilityProtocol(epochs=2, batch_size=200, learning_rate=4e-3, min_updates=500, decay=True)
"""A look on two CPU cores: all images, but fewer epochs, with larger batches at a higher, falling learning rate.

It can compare two sets of images with each other; its scores are not comparable with the paper's.
"""
