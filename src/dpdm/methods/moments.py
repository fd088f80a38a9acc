"""Moments of layers: what a record adds to the one released vector, and the Gaussians that the noisy vector tells.

A record is one vector: for each layer what the record is there, z, and z zᵀ. For the last layers the vector has the
same once more, in the block of the record's class. It also has a one in the count of that class. The vector is clipped
as a whole: one record is one row, never one of each layer, and never one of each position.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion.spectrum import eigen, shrunk_towards, symmetric_matrices
from dpdm.methods.interface import Kept
from dpdm.privacy.sums import Rows

_COUNT_NOISE = 7.0  # norm ÷ what a count enters with: counts get the noise of a sum, divided by it
_LEAST_COUNT = 20.0  # records by which a sum is divided at least
_PART = 1024  # images looked at at a time
_NUMBERS = 2**22  # of rows at a time: 32 MiB
_VARIANCE = 0.15  # that public images have about in each direction
_LEAST_VARIANCE = 1e-2  # of a direction, in which public images have about a fifth

Look = Callable[[Float32[Tensor, "images features"]], Float64[Tensor, "images directions"]]
"""Makes z of kept rows."""


class Gaussians(NamedTuple):
    """Mean of one layer, and covariance in its leading directions, of all images or of each class."""

    means: Float64[Tensor, "*class direction"]
    covariances: Float64[Tensor, "*class pair pair"]


class Statistics(NamedTuple):
    """What a noisy vector tells: each layer's Gaussian, those of each class in the last layers, and its count."""

    layers: list[Gaussians]
    own: list[Gaussians]
    counts: Float64[Tensor, " class"]

    def to(self, device: torch.device) -> "Statistics":
        """Return the same on a device."""
        layers, own = ([Gaussians(*(t.to(device) for t in each)) for each in of] for of in self[:2])
        return Statistics(layers, own, self.counts.to(device))


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a record are in its vector.

    Args:
        sizes: Directions of each layer.
        pairs: In how many of these, from the first on, second moments are taken, at most.
        own: Of how many of the last layers each class has moments.
        own_pairs: In how many directions a class has second moments, at most.
        classes: How many there are, at least one.
    """

    sizes: tuple[int, ...]
    pairs: int
    own: int
    own_pairs: int
    classes: int

    @property
    def own_sizes(self) -> list[int]:
        """Directions of each of the last layers, of which a class has moments of its own."""
        return [*self.sizes[len(self.sizes) - self.own :]]

    @property
    def common(self) -> int:
        """How many numbers of a vector are those of all classes together."""
        return sum(self._numbers)

    @property
    def of_class(self) -> int:
        """How many numbers of a vector are those of one class, its count aside."""
        return sum(self._own_numbers)

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        return self.common + self.classes * (self.of_class + 1)

    @property
    def _numbers(self) -> list[int]:
        return [_numbers_of(size, self.pairs) for size in self.sizes]

    @property
    def _own_numbers(self) -> list[int]:
        return [_numbers_of(size, self.own_pairs) for size in self.own_sizes]

    @property
    def _own_scale(self) -> float:
        """What own moments are multiplied by: classes share the records, and their noise is to be as small."""
        return math.sqrt(self.classes)

    def norm(self, seen: Float64[Tensor, "images directions"]) -> float:
        """Return the norm that most of these public images have: that to which vectors are clipped."""
        parts = [self._moments(seen[start : start + _PART]) for start in range(0, len(seen), _PART)]
        square = torch.cat([common.square().sum(1) + own.square().sum(1) for common, own in parts])
        return math.sqrt(max(float(square.median()), 1e-6) * (1 + _COUNT_NOISE**-2))

    def rows(
        self,
        seen: Float64[Tensor, "images directions"],
        labels: Int[Tensor, " images"],
        weights: Float64[Tensor, " images"],
        norm: float,
    ) -> Iterator[Rows]:
        """Yield the vectors of images and their weights, few at a time."""
        step = max(1, _NUMBERS // self.dimensions)
        for start in range(0, len(seen), step):
            part = slice(start, start + step)
            common, own = self._moments(seen[part])
            blocks = common.new_zeros(len(common), self.classes, self.of_class + 1)
            one = common.new_full((len(common), 1), norm / math.hypot(1, _COUNT_NOISE))
            blocks[torch.arange(len(common)), labels[part]] = torch.cat([own, one], dim=1)
            yield torch.cat([common, blocks.flatten(1)], dim=1), weights[part]

    def vectors(self, kept: Kept, data: ImageDataset, look: Look, norm: float) -> Iterator[Rows]:
        """Yield the vectors of private images and their weights, whose rows are kept: `look` makes z of these."""
        labels = torch.zeros(len(data), dtype=torch.long) if data.labels is None else torch.from_numpy(data.labels)
        for part in (slice(start, start + _PART) for start in range(0, len(data), _PART)):
            seen = look(torch.from_numpy(np.array(kept[part])))
            yield from self.rows(seen, labels[part], torch.from_numpy(data.weights[part]), norm)

    def _moments(self, seen: Tensor) -> tuple[Float64[Tensor, "images common"], Float64[Tensor, "images of_class"]]:
        layers = torch.split(seen, [*self.sizes], dim=1)
        common = [_of_layer(layer, self.pairs) for layer in layers]
        own = [_of_layer(layer, self.own_pairs) for layer in layers[len(layers) - self.own :]]
        return torch.cat(common, dim=1), self._own_scale * torch.cat([seen[:, :0], *own], dim=1)

    def statistics(self, released: Float64[Tensor, " numbers"], *, noise_std: float, norm: float) -> Statistics:
        """Return what a noisy vector tells: moments divided by noisy counts, variances no less than noise leaves."""
        common, blocks = released[: self.common], released[self.common :].view(self.classes, -1)
        counts = (blocks[:, -1] * math.hypot(1, _COUNT_NOISE) / norm).clamp(min=_LEAST_COUNT)
        of_layers = torch.split(common, self._numbers)
        layers = [
            _gaussian(part[None], counts.sum()[None], size, self.pairs, noise_std)
            for part, size in zip(of_layers, self.sizes, strict=True)
        ]
        of_own = torch.split(blocks[:, :-1] / self._own_scale, self._own_numbers, dim=1)
        own = [
            _gaussian(part, counts, size, self.own_pairs, noise_std / self._own_scale)
            for part, size in zip(of_own, self.own_sizes, strict=True)
        ]
        return Statistics([Gaussians(mean[0], covariance[0]) for mean, covariance in layers], own, counts)


def _numbers_of(size: int, pairs: int) -> int:
    pairs = min(size, pairs)
    return size + pairs * (pairs + 1) // 2


def _first_scale(size: int, pairs: int) -> float:
    """What z is multiplied by: about the length of its leading part x, so that it is about as long as x xᵀ."""
    return math.sqrt(0.2 * min(size, pairs))


def _of_layer(z: Float64[Tensor, "images directions"], pairs: int) -> Float64[Tensor, "images numbers"]:
    """Return z, and the upper triangle of x xᵀ, x its leading part: other entries count twice in its length."""
    x = z[:, :pairs]
    row, column = torch.triu_indices(x.shape[1], x.shape[1])
    second = x[:, row] * x[:, column] * (1 + (row != column).double()).sqrt()
    return torch.cat([_first_scale(z.shape[1], pairs) * z, second], dim=1)


def _gaussian(
    sums: Float64[Tensor, "class numbers"], counts: Float64[Tensor, " class"], size: int, pairs: int, noise_std: float
) -> Gaussians:
    """Return means and covariances of classes; what of a covariance is noise is that within all classes instead."""
    means = (sums[:, :size] / _first_scale(size, pairs) / counts[:, None]).clamp(-1, 1)
    leading = means[:, :pairs]
    second = symmetric_matrices(sums[:, size:].flatten(), cells=len(sums)) / counts[:, None, None]
    covariances = second - leading[:, :, None] * leading[:, None]
    noise = noise_std / counts
    if len(sums) > 1:
        shared = torch.einsum("c,cij->ij", counts / counts.sum(), covariances)
        covariances = shrunk_towards(covariances, shared, noise_std=noise)
    values, axes = eigen(covariances)
    # The noise of one matrix has its eigenvalues within twice this; what is averaged over classes has less of it.
    edge = noise_std / float(counts.sum()) * math.sqrt(values.shape[1] * len(sums) / 2)
    values = values.clamp(min=max(_LEAST_VARIANCE, min(edge, 1.0)), max=values.shape[1])
    return Gaussians(means, axes * values[:, None] @ axes.mT)


def gaussian_of(z: Float64[Tensor, "*class images direction"], pairs: int) -> Gaussians:
    """Return the mean of these, and their covariance in the leading directions."""
    mean = z.mean(-2)
    apart = (z - mean[..., None, :])[..., :pairs]
    return Gaussians(mean, apart.mT @ apart / z.shape[-2])


def divergence(of: Gaussians, target: Gaussians) -> Float64[Tensor, "*class"]:
    """Return KL(N(m, S) ‖ N(μ, Σ)) = ½ (tr Σ⁻¹S + (μ − m)ᵀ Σ⁻¹ (μ − m) − d + ln det Σ − ln det S), of each class.

    S gets the least variance added, as few images have none in many directions. Other directions than the leading ones
    have means alone: there both have the same variance, about that of public images.
    """
    pairs = target.covariances.shape[-1]
    few = of.covariances + _LEAST_VARIANCE * torch.eye(pairs, dtype=of.means.dtype, device=of.means.device)
    apart = target.means - of.means
    both = torch.linalg.solve(target.covariances, torch.cat([few, apart[..., :pairs, None]], dim=-1))
    trace = both[..., :pairs].diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (apart[..., :pairs] * both[..., pairs]).sum(-1) + apart[..., pairs:].square().sum(-1) / _VARIANCE
    divergences: Tensor = (trace + distance - pairs + target.covariances.logdet() - few.logdet()) / 2
    return divergences


def log_density(z: Float64[Tensor, "images direction"], gaussian: Gaussians) -> Float64[Tensor, " images"]:
    """Return the logarithm of a Gaussian's density at each z, but for a number that all Gaussians share."""
    pairs, apart = gaussian.covariances.shape[-1], z - gaussian.means
    lengths = (apart[:, :pairs] @ torch.linalg.inv(gaussian.covariances) * apart[:, :pairs]).sum(1)
    lengths = lengths + apart[:, pairs:].square().sum(1) / _VARIANCE
    density: Tensor = -(lengths + gaussian.covariances.logdet()) / 2
    return density
