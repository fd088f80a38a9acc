"""Random projections of images, in whole numbers: in which bin an image lies, no image beside it can change."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.privacy.sums import Choices

_GRID = 2.0**20  # of weights: sums of pixels times weights are whole numbers below 2⁵³
_MOST_BLOBS = 3
_PART = 2**22  # bins of images at a time
SHAPE = tuple[int, int, int]


def directions(shape: SHAPE, number: int, *, seed: int) -> Float64[Tensor, "pixels number"]:
    """Return weights of pixels, as whole numbers of 1/_GRID, whose sizes add up to one at most.

    Each direction is a sum of one to three soft spots of random place, size and sign. So a projection is about how
    bright some places of an image are, and of images in [-1, 1] lies in [-1, 1].
    """
    random = np.random.default_rng(seed)
    channels, height, width = shape
    weights = np.zeros((number, *shape))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    for one in weights:
        for _ in range(random.integers(1, _MOST_BLOBS + 1)):
            place = random.uniform(-0.5, 0.5, 2) + random.integers((height, width))
            radius = math.exp(random.uniform(0, math.log(max(2, min(height, width) / 4))))
            distances = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
            colour = random.normal(size=(channels, 1, 1))
            one += colour / np.linalg.norm(colour) * np.exp(-distances / (2 * radius**2))
    flat = torch.from_numpy(weights).flatten(1)
    return (flat / flat.abs().sum(1, keepdim=True) * _GRID).trunc().T.contiguous()


def as_floats(weights: Float64[Tensor, "pixels number"]) -> Float32[Tensor, "pixels number"]:
    """Return weights by which images in [-1, 1] are multiplied."""
    return (weights / _GRID).float()


def bins_of(
    data: ImageDataset, weights: Float64[Tensor, "pixels number"], *, bins: int
) -> Iterator[tuple[Int64[Tensor, "images number"], Int64[Tensor, " images"], Float64[Tensor, " images"]]]:
    """Yield in which bin of [-1, 1] each projection of some images lies, their labels and their weights."""
    labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
    step = max(1, _PART // weights.shape[1])
    for start in range(0, len(data), step):
        part = slice(start, start + step)
        levels = np.ascontiguousarray(data.images[part].transpose(0, 3, 1, 2))
        whole = (2 * torch.from_numpy(levels).flatten(1).double() - 255) @ weights  # exact, in any order
        places = ((whole / (255 * _GRID) + 1) * (bins / 2)).floor().clamp(0, bins - 1).long()
        yield places, torch.from_numpy(labels[part]), torch.from_numpy(data.weights[part])


def choices(data: ImageDataset, weights: Float64[Tensor, "pixels number"], *, bins: int) -> Iterator[Choices]:
    """Yield the bins that images vote for, one for each direction, in the histograms of their class."""
    number = weights.shape[1]
    first = torch.arange(number) * bins
    for places, labels, shares in bins_of(data, weights, bins=bins):
        yield labels[:, None] * (number * bins) + first + places, shares


def on_simplex(
    counts: Float64[Tensor, "*histograms bins"], total: Float64[Tensor, "*histograms"]
) -> Float64[Tensor, "*histograms bins"]:
    """Return the nearest shares of each histogram that are not negative and add up to one.

    Source:
        Duchi, Shalev-Shwartz, Singer & Chandra 2008.
    """
    shares = counts / total[..., None]
    ordered = shares.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, shares.shape[-1] + 1, dtype=shares.dtype)
    kept = (ordered > excess).sum(-1, keepdim=True).clamp(min=1)
    return (shares - excess.gather(-1, kept - 1)).clamp(min=0)


def quantiles(shares: Float64[Tensor, "*histograms bins"], number: int) -> Float64[Tensor, "*histograms number"]:
    """Return so many quantiles of histograms of [-1, 1], at equal distances, as if each bin were filled evenly."""
    bins = shares.shape[-1]
    above = shares.cumsum(-1)
    above = above / above[..., -1:]
    levels = ((torch.arange(number, dtype=shares.dtype) + 0.5) / number).expand(*shares.shape[:-1], number)
    place = torch.searchsorted(above, levels.contiguous()).clamp(max=bins - 1)
    filled = (above - shares / shares.sum(-1, keepdim=True)).gather(-1, place)
    within = (levels - filled) / (above.gather(-1, place) - filled).clamp(min=1e-12)
    return (place + within.clamp(0, 1)) * (2 / bins) - 1
