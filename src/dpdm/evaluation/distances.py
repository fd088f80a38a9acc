"""How far two sets of feature vectors are from one another: five published ways, each with its own blind spot.

Fréchet and kernel distance mix quality and variety into one number. Precision and density ask whether synthetic images
look like real ones. Recall and coverage ask whether all real images have something like them. All are pure functions.
"""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dpdm.evaluation.checks import check_features
from dpdm.types import InputError, require_counts, require_counts_or_none, require_seed

FEWEST_IMAGES = 50
"""Fewer images, of a set or of a class, have no Fréchet distance worth the name."""

_ROWS = 500  # of a matrix of distances at once: 40 MB for 10,000 columns in float64


def frechet_distance(a: Float[Tensor, "images features"], b: Float[Tensor, "others features"]) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians with the moments of both sets of features.

    The distance is biased: smaller sets are farther from one another. Compare only sets of the same size.

    Raises:
        InputError: A set is too small, or the sets do not fit together.

    Source:
        Heusel et al. 2017, eq. 6, computed by torchmetrics.

    Example:
        >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 1), 3)  # the means are (1, 1, 1, 1) apart
        4.0
    """
    check_features(a, b, fewest=1)
    if min(len(a), len(b)) < FEWEST_IMAGES:
        raise InputError(f"a Fréchet distance of fewer than {FEWEST_IMAGES} images says nothing")
    return frechet_distance_of_any_number(a, b)


def frechet_distance_of_any_number(a: Float[Tensor, "images features"], b: Float[Tensor, "others features"]) -> float:
    """Return `frechet_distance`, of two images or more: for spreads, to which its bias does not matter."""
    # Alone, where there are several processes too: whoever calls has the features of all.
    metric = torchmetrics("fid").FrechetInceptionDistance(feature=_Given(a.shape[1]), sync_on_compute=False)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())


def torchmetrics(module: str) -> Any:  # noqa: ANN401 (a module)
    """Return a module of torchmetrics' metrics of images; raise InputError if it is not installed."""
    try:
        return importlib.import_module(f"torchmetrics.image.{module}")
    except ImportError:
        raise InputError("distances of features need torchmetrics: pip install 'dpdm[fidelity]'") from None


class _Given(nn.Module):
    """Takes features for features, where torchmetrics wants a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def kernel_distance(
    a: Float[Tensor, "images features"],
    b: Float[Tensor, "others features"],
    *,
    subsets: int = 10,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """Return the squared maximum mean discrepancy under the kernel (xᵀy / d + 1)³, unbiased, so it may be negative.

    It is the mean over random subsets of each side. No image enters another subset before all have had their turn (but
    for a remainder): 10 subsets of 1000 use each of 10,000 images once, where independent ones would leave out a third.

    Args:
        a: One set, at least 2.
        b: The other.
        subsets: Number of subsets; one where a subset is all of both sets.
        subset_size: Images of each set in a subset; all of the smaller set if it has fewer.
        seed: Of the choice of subsets.

    Raises:
        InputError: A set is too small, or the sets do not fit together.

    Source:
        Bińkowski et al. 2018 (the kernel Inception distance), each subset computed by torchmetrics.
    """
    require_counts(subsets=subsets, subset_size=subset_size)
    require_seed(seed=seed)
    if subset_size < 2:
        raise InputError(f"subset_size must be 2 or more, not {subset_size}")
    check_features(a, b, fewest=2)
    rng, size = np.random.default_rng(seed), min(subset_size, len(a), len(b))
    subsets = 1 if size == len(a) == len(b) else subsets
    of_a, of_b = _subsets(len(a), size, rng), _subsets(len(b), size, rng)
    discrepancy = torchmetrics("kid").poly_mmd
    return sum(float(discrepancy(a[next(of_a)].double(), b[next(of_b)].double())) for _ in range(subsets)) / subsets


def _subsets(number: int, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Cut one random order of the images after another into subsets."""
    while True:
        order = torch.from_numpy(rng.permutation(number))
        for start in range(0, number - size + 1, size):
            yield order[start : start + size]


def precision_recall(
    made: Float[Tensor, "images features"], real: Float[Tensor, "others features"], *, neighbours: int = 3
) -> tuple[float, float]:
    """Return the share of synthetic images among the real ones, and the share of real images among the synthetic.

    An image is among others if it is as near to one of these as that one's `neighbours`-th nearest of its own kind, or
    nearer. One outlier thus claims much room for its kind: `density_coverage` is less easily misled.

    Raises:
        InputError: A set has no more images than `neighbours`, or the sets do not fit together.

    Source:
        Kynkäänniemi et al. 2019.
    """
    return neighbourhood_scores(made, real, support=neighbours, density=neighbours)[:2]


def density_coverage(
    made: Float[Tensor, "images features"], real: Float[Tensor, "others features"], *, neighbours: int = 5
) -> tuple[float, float]:
    """Return how densely synthetic images lie where real ones do, and the share of real images that have one near.

    Around each real image is an open ball that reaches to its `neighbours`-th nearest real one. Density is the number
    of balls that the synthetic images lie in, on average, divided by `neighbours`: about 1 for images of one
    distribution, but it may exceed 1. Coverage is the share of balls with a synthetic image in them; for equal numbers
    of images of one distribution it is about 1 - 2^-neighbours.

    Raises:
        InputError: There are no more real images than `neighbours`, or the sets do not fit together.

    Source:
        Naeem et al. 2020.
    """
    return neighbourhood_scores(made, real, support=0, density=neighbours)[2:]


def neighbourhood_scores(
    made: Float[Tensor, "images features"],
    real: Float[Tensor, "others features"],
    *,
    support: int = 3,
    density: int = 5,
) -> tuple[float, float, float, float]:
    """Return precision, recall, density and coverage, all from one pass over the distances.

    `support` is the number of neighbours of `precision_recall` (0 spares its work, and gives 0 for both), `density`
    that of `density_coverage`. It raises what these raise.
    """
    require_counts(neighbours=density)
    require_counts_or_none(neighbours=support)
    check_features(made, real, fewest=1)
    for what, points, need in (("real", real, max(support, density)), ("synthetic", made, support)):
        if len(points) <= need:
            raise InputError(f"{need} neighbours need more {what} images than that, not {len(points)}")
    # Centred, as squared distances come as differences of squared norms, which lose digits where these are large.
    centre = real.mean(0)
    made, real = made - centre, real - centre
    reach = _reach(real, max(support, density))
    dense = reach[:, density - 1]
    among_real, among_made = torch.zeros(len(made), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    covered, in_balls = torch.zeros(len(real), dtype=torch.bool), 0
    if support:
        real_reach, made_reach = reach[:, support - 1], _reach(made, support)[:, -1]
    for rows, squared in _squared_distances(real, made):
        inside = squared < dense[rows, None]
        in_balls += int(inside.sum())
        covered[rows] = inside.any(1)
        if support:
            among_real |= (squared <= real_reach[rows, None]).any(0)
            among_made[rows] = (squared <= made_reach).any(1)
    precision, recall, coverage = (float(yes.double().mean()) for yes in (among_real, among_made, covered))
    return precision, recall, in_balls / (density * len(made)), coverage


def nearest(
    points: Float[Tensor, "points features"], others: Float[Tensor, "others features"], *, count: int
) -> Iterator[tuple[slice, Float[Tensor, "rows count"], Int64[Tensor, "rows count"]]]:
    """Yield, for some rows of `points` at a time, squared distances and indices of the nearest of `others`, rising.

    Where `points` and `others` are one tensor, no point is its own neighbour. Distances come as differences of squared
    norms, which lose digits where these are large.
    """
    for rows, squared in _squared_distances(points, others):
        if points is others:
            squared[:, rows].fill_diagonal_(torch.inf)
        found = squared.topk(count, dim=1, largest=False)
        yield rows, found.values, found.indices


def _reach(points: Tensor, count: int) -> Float[Tensor, "points count"]:
    """Return the squared distances of each point from its nearest other ones, rising."""
    return torch.cat([squared for _, squared, _ in nearest(points, points, count=count)])


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Float[Tensor, "rows others"]]]:
    """Yield, for some rows of `a` at a time, their squared distances from all of `b`."""
    norms = b.square().sum(1)
    for start in range(0, len(a), _ROWS):
        part = a[start : start + _ROWS]
        squared = torch.addmm(norms, part, b.T, alpha=-2).add_(part.square().sum(1, keepdim=True)).clamp_min_(0)
        yield slice(start, start + len(part)), squared


def inception_score(probabilities: Float[Tensor, "images classes"]) -> float:
    """Return e to the mean divergence of each image's class probabilities from their average: 1 to number of classes.

    High if images are clear and of many classes. It sees no real image: a set of one perfect image for each class has
    the highest score. Computed on all images at once, as the score of a part is biased by its size.

    Args:
        probabilities: A classifier's, for each image; rows sum to 1.

    Raises:
        InputError: These are no probabilities.

    Source:
        Salimans et al. 2016, computed by torchmetrics.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise InputError(f"probabilities must be (images, classes), not of shape {tuple(probabilities.shape)}")
    p = probabilities.double()
    if not ((p >= 0).all() and torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-4)):
        raise InputError("each image's class probabilities must be 0 or more and sum to 1: were these logits?")
    # It warns that it keeps its features and has no spread over one part, and shuffles by torch's own generator.
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        metric = torchmetrics("inception").InceptionScore(feature=_Given(p.shape[1]), splits=1, sync_on_compute=False)
        metric.set_dtype(torch.float64).update(p.clamp_min(torch.finfo(p.dtype).tiny).log())  # 0 · log 0 counts as 0
        return float(metric.compute()[0])
