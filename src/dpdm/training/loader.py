"""From the units that a step selected to the noisy batch of its loss: secret images in, secret tensors out."""

import io

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, NoiseLevels, NoisyBatch
from dpdm.types import RandomBytes, images_to_tensor


class Loader:
    """Maps the indices of units, images or groups of them, to their noisy copies.

    Args:
        data: The images.
        loss: Draws the copies: of a group, each of one of its images, with that image's label.
        noise_levels: Distribution of σ.
        device: Where the loss is computed.

    Guarantees:
        * A unit is one example, whatever the number of its images, and depends on no other unit.
    """

    def __init__(
        self, data: ImageDataset, loss: DenoisingLoss, noise_levels: NoiseLevels, device: torch.device
    ) -> None:
        self._data, self._loss, self._noise_levels, self._device = data, loss, noise_levels, device
        self._labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
        if data.groups is not None:
            self._sizes = np.bincount(data.groups, minlength=data.num_units)
            self._firsts = np.cumsum(self._sizes) - self._sizes
            self._members = np.argsort(data.groups, kind="stable")  # those of one group beside one another

    def __call__(self, units: Int64[ndarray, " batch"], random_bytes: RandomBytes) -> NoisyBatch:
        """Return one example for each unit; sixteen random bytes are read for each."""
        if self._data.groups is None:
            return self._draw(units, random_bytes)
        own = random_bytes(16 * len(units))
        chosen = self._loss.choose(self._sizes[units], random_bytes=io.BytesIO(own).read)
        return self._draw(self._members[self._firsts[units, None] + chosen], io.BytesIO(own).read)

    def _draw(
        self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch K"], random_bytes: RandomBytes
    ) -> NoisyBatch:
        x = images_to_tensor(self._data.images[images.ravel()])
        return self._loss.draw(
            x.view(*images.shape, *x.shape[1:]).to(self._device),
            torch.from_numpy(self._labels[images]).to(self._device),
            null_label=self._data.num_classes,
            noise_levels=self._noise_levels,
            random_bytes=random_bytes,
        )
