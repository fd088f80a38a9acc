"""From the units that a step selected to the noisy batch of its loss: secret images in, secret tensors out."""

import io
from abc import ABC, abstractmethod
from random import Random

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, NoiseLevels, NoisyBatch
from dpdm.methods.values import ImageFacts
from dpdm.privacy.clipping import Batch
from dpdm.types import RandomBytes, levels_to_tensor


def own_normals(shape: tuple[int, ...], random_bytes: RandomBytes) -> Float[Tensor, "batch ..."]:
    """Return normal numbers, each row by sixteen bytes of its own: no draw depends on who else is in the batch."""
    numbers = np.empty(shape, dtype=np.float32)
    for row in numbers:
        own = np.random.Philox(key=int.from_bytes(random_bytes(16), "little"))
        np.random.Generator(own).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(numbers)


def random_images(
    number: int, facts: ImageFacts, numbers: int, device: torch.device
) -> tuple[Float[Tensor, "batch channel height width"], Int[Tensor, " batch"], Float[Tensor, "batch numbers"]]:
    """Return random pixels, all classes in turn, and normal numbers, drawn row by row as in a run."""
    images = torch.rand(number, *facts.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    labels = torch.arange(number) % max(1, facts.num_classes)
    return images.to(device), labels.to(device), own_normals((number, numbers), Random(0).randbytes).to(device)


class UnitLoader(ABC):
    """Maps the indices of units, images or groups of them, to the examples of a loss.

    Args:
        data: The images.
        loss: Its number of copies is how many images of a group an example shows.
        device: Where the loss is computed.

    Guarantees:
        * A unit is one example, whatever the number of its images, and depends on no other unit.
        * A unit whose images are all blank is an example that is not finite, whose gradient counts as zero: no other
          code runs for it. Of a group that has others, these alone are drawn.
    """

    def __init__(self, data: ImageDataset, loss: DenoisingLoss, device: torch.device) -> None:
        self._data, self._loss, self._device = data, loss, device
        self._labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
        self._blank = np.zeros(len(data), dtype=bool) if data.blank is None else data.blank
        if data.groups is not None:
            sizes, shown = (np.bincount(data.groups[of], minlength=data.num_units) for of in (..., ~self._blank))
            self._firsts = np.cumsum(sizes) - sizes
            self._sizes = np.where(shown == 0, sizes, shown)
            # Those of one group beside one another, blank ones last.
            self._members = np.lexsort((self._blank, data.groups))

    def __call__(self, units: Int64[ndarray, " batch"], random_bytes: RandomBytes) -> Batch:
        """Return one example for each unit; sixteen random bytes are read for each."""
        if self._data.groups is None:
            return self._draw(units, random_bytes)
        own = random_bytes(16 * len(units))
        chosen = self._loss.choose(self._sizes[units], random_bytes=io.BytesIO(own).read)
        return self._draw(self._members[self._firsts[units, None] + chosen], io.BytesIO(own).read)

    @abstractmethod
    def _draw(self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch K"], random_bytes: RandomBytes) -> Batch:
        """Return one example for each image, or for each row of them."""

    def _clean(
        self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch K"]
    ) -> tuple[Float[Tensor, "*images channel height width"], Int[Tensor, "*images"]]:
        """Return images, NaN where they are blank, and their labels."""
        x = levels_to_tensor(self._data.images[images.ravel()])
        x[torch.from_numpy(self._blank[images.ravel()])] = torch.nan
        labels = torch.from_numpy(self._labels[images]).to(self._device)
        return x.view(*images.shape, *x.shape[1:]).to(self._device), labels


class Loader(UnitLoader):
    """Maps the indices of units to their noisy copies: of a group, each of one of its images, with that image's label.

    Args:
        data: The images.
        loss: Draws the copies.
        noise_levels: Distribution of σ.
        device: Where the loss is computed.
    """

    def __init__(
        self, data: ImageDataset, loss: DenoisingLoss, noise_levels: NoiseLevels, device: torch.device
    ) -> None:
        super().__init__(data, loss, device)
        self._noise_levels = noise_levels

    def _draw(
        self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch K"], random_bytes: RandomBytes
    ) -> NoisyBatch:
        x, labels = self._clean(images)
        null, levels = self._data.num_classes, self._noise_levels
        return self._loss.draw(x, labels, null_label=null, noise_levels=levels, random_bytes=random_bytes)
