"""Mean features of each class, as a noisy sum tells them, and how far a generator's images are from these."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.feature_maps import AnyFeatures, FeatureMap
from dpdm.methods.interface import Run
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import ImageFacts
from dpdm.privacy.sums import BoundedSum, cell_sums
from dpdm.types import InputError, require_at_most

_COUNT_SCALE = 0.3  # of counts beside rows of length one: the sums get 4 % more noise for them
_MOST_NUMBERS = 10**8  # of all sums
_JUDGED = 2000  # images by which a generator is judged
_FEWEST_JUDGED = 2  # of each class


class ClassMeans(NamedTuple):
    """What one noisy sum of features tells of each class."""

    features: FeatureMap
    means: Float32[Tensor, "class features"]
    shares: Float64[Tensor, " class"]

    def discrepancy_of(self, generator: SmallGenerator, *, seed: int) -> float:
        """Return how far a generator is from all classes, by images of the same random numbers whenever it is asked."""
        device, classes = self.means.device, len(self.means)
        each = max(_FEWEST_JUDGED, _JUDGED // classes)
        latent = torch.randn(classes, each, generator.latent, generator=torch.Generator().manual_seed(seed))
        total = 0.0
        with torch.no_grad():
            for label, share in enumerate(self.shares.tolist()):
                labels = torch.full((each,), label, device=device)
                made = self.features.means(generator(latent[label].to(device), labels)[None])
                total += share * float(discrepancies(made, self.means[label : label + 1], each))
        return total


def released(name: str, of: AnyFeatures, run: Run, data: ImageDataset, facts: ImageFacts, *, seed: int) -> ClassMeans:
    """Release the sum of the rows of each class, with its count, under a name of the plan.

    Args:
        name: Of the planned sum.
        of: The features; `seed` draws what is random of them.
        run: The run that adds up.
        data: The private images, of this process.
        facts: Of all of them.
        seed: A public one.
    """
    features = of.built(facts, seed, run.device)
    cells, dimensions = max(1, facts.num_classes), of.dimensions(facts.shape)
    noisy, noise_std = run.once(name, lambda: _sums(features, run, data, cells=cells, dimensions=dimensions))
    least = max(1.0, 2 * noise_std / _COUNT_SCALE)  # a count that is not told from none
    counts = (noisy[-cells:] / _COUNT_SCALE).clamp(min=least)
    means = (noisy[:-cells].view(cells, dimensions) / counts[:, None]).float().to(run.device)
    return ClassMeans(features, means, counts / counts.sum())


def require_summed(features: tuple[AnyFeatures, ...], facts: ImageFacts) -> None:
    """Raise InputError if the sums need too much memory."""
    for each in features:
        each.require_images(facts.shape)
    numbers = sum(each.dimensions(facts.shape) for each in features) * max(1, facts.num_classes)
    require_at_most(_MOST_NUMBERS, **{"the number of features × classes": numbers})


def require_gradients(
    of: AnyFeatures, images: Float32[Tensor, "images channel height width"], facts: ImageFacts, *, seed: int
) -> None:
    """Raise InputError unless made-up images, that follow from something, have finite features and a gradient."""
    means = of.built(facts, seed, images.device).means(images[None])
    if not means.requires_grad or means.shape != (1, of.dimensions(facts.shape)) or not means.isfinite().all():
        raise InputError("these features give no finite numbers, or no gradient, for such images: choose others")


def discrepancies(
    made: Float32[Tensor, "class features"], released: Float32[Tensor, "class features"], images: int
) -> Float32[Tensor, " class"]:
    """Return ‖E made - released‖² of each class, but for a constant, estimated without bias from means of so many rows.

    Rows have length one. So the mean of n of them has the expected square length ‖E‖² + (1 - ‖E‖²) / n. To make that
    small would reward images that are alike; n / (n - 1) times as much is ‖E‖² + 1 / (n - 1).
    """
    return made.square().sum(1) * (images / (images - 1)) - 2 * (made * released).sum(1)


def _sums(features: FeatureMap, run: Run, data: ImageDataset, *, cells: int, dimensions: int) -> BoundedSum:
    """Return the sums of the rows of each class, and its counts."""
    labels = torch.zeros(len(data), dtype=torch.long) if data.labels is None else torch.from_numpy(data.labels)
    weights = torch.from_numpy(data.weights)
    parts = ((rows, labels[part], weights[part]) for part, rows in features.rows(run, data))
    return cell_sums(parts, cells=cells, dimensions=dimensions, max_norm=1.0, count_scale=_COUNT_SCALE)
