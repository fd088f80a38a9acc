"""Sums over all records that tell what images are like on average: sums and counts of cells, second moments.

Each comes as a `BoundedSum`, with the most that one record can move it. `MechanismRun.release` adds the noise; what is
computed from the noisy sum after that is post-processing.

Where the unit of protection is a group of m images, each of them is a record of weight 1 / m. What a group adds is then
the average of what its images would add alone. A ball is convex: an average of vectors no longer than S is no longer
than S. So the sensitivity is that of one image, whatever m, and however the images of a group lie among the cells.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dpdm.types import InputError, require_positive


class BoundedSum(NamedTuple):
    """A sum over all records, as one vector, and how far one record more or fewer can move it."""

    total: Float64[Tensor, " coordinates"]
    sensitivity: float


class Cells(NamedTuple):
    """Means and counts of the cells that rows lie in; a cell with too small a count has the mean of all."""

    means: Float64[Tensor, "cell dimension"]
    counts: Float64[Tensor, " cell"]


def cell_sums(
    parts: Iterable[tuple[Float[Tensor, "records dimension"], Int[Tensor, " records"], Float64[Tensor, " records"]]],
    *,
    cells: int,
    dimensions: int,
    max_norm: float,
    count_scale: float,
) -> BoundedSum:
    """Return the weighted sum of the rows of each cell, and the cells' counts, as one vector.

    A record is one row of one cell. Its row is clipped to `max_norm`, so it moves one cell's sum by at most that,
    and the same cell's count, which enters times `count_scale`, by one: both together by √(max_norm² + count_scale²).

    Args:
        parts: All records, part by part: rows, cells and weights. A record's row and cell may depend on this record and
            on what was released before, on nothing else. A row that is not finite counts as zero. Weights are not
            negative and add up to one at most for each unit of protection: a blank record's is zero.
        cells: Number of cells; each index lies in [0, cells).
        dimensions: Length of a row.
        max_norm: R, the L2 norm that rows are clipped to.
        count_scale: s, by which counts are multiplied: the larger, the less noise they get, and the more the sums do.

    Guarantees:
        * One record of weight one more or fewer, or one group of them, moves the vector by at most `sensitivity`.

    Raises:
        InputError: `max_norm` or `count_scale` is not positive; or a part has not one row, one cell and one weight of
            at most 1 for each of its records.
    """
    require_positive(max_norm=max_norm, count_scale=count_scale)
    sums = torch.zeros(cells, dimensions, dtype=torch.float64)
    counts = torch.zeros(cells, dtype=torch.float64)
    for rows, cell, weights in parts:
        _require_one_row_each(rows, cell, weights, dimensions)
        sums.index_add_(0, cell, weights[:, None] * _clip(rows, max_norm))
        counts += torch.bincount(cell, weights, minlength=cells)
    return BoundedSum(torch.cat([sums.flatten(), count_scale * counts]), math.hypot(max_norm, count_scale))


def cell_means(
    released: Float64[Tensor, " coordinates"], *, cells: int, count_scale: float, least_count: float
) -> Cells:
    """Return means and counts from a released `cell_sums`.

    Args:
        released: The noisy vector.
        cells: As it was summed.
        count_scale: As it was summed.
        least_count: A public number; a smaller count is raised to it, and its cell gets the mean of all.
    """
    dimensions = len(released) // cells - 1
    sums = released[: cells * dimensions].view(cells, dimensions)
    counts = released[cells * dimensions :] / count_scale
    of_all = sums.sum(0) / counts.sum().clamp(min=least_count)
    thin = counts < least_count
    counts = counts.clamp(min=least_count)
    return Cells(torch.where(thin[:, None], of_all, sums / counts[:, None]), counts)


def second_moments(
    parts: Iterable[tuple[Float[Tensor, "records dimension"], Int[Tensor, " records"], Float64[Tensor, " records"]]],
    *,
    cells: int,
    dimensions: int,
    max_norm: float,
) -> BoundedSum:
    """Return Σ w v vᵀ of each cell as its upper triangle, off-diagonal entries times √2, all as one vector.

    So the Euclidean norm of the vector is that of all matrices' entries, and one row, clipped to `max_norm`, which
    belongs to one cell, moves it by at most max_norm².

    Args:
        parts: All records' rows, cells and weights, part by part; row and cell may depend on the record and on what was
            released before. Weights are not negative and add up to one at most for each unit of protection.
        cells: Number of cells; each index lies in [0, cells).
        dimensions: Length of a row.
        max_norm: The L2 norm that rows are clipped to.

    Guarantees:
        * One record of weight one more or fewer, or one group of them, moves the vector by at most `sensitivity`.

    Raises:
        InputError: `max_norm` is not positive; or a part has not one row, one cell and one weight of at most 1 for each
            of its records.
    """
    require_positive(max_norm=max_norm)
    total = torch.zeros(cells, dimensions, dimensions, dtype=torch.float64)
    for rows, cell, weights in parts:
        _require_one_row_each(rows, cell, weights, dimensions)
        clipped = _clip(rows, max_norm)
        weighted = weights[:, None] * clipped
        for index in range(cells):
            inside = cell == index
            total[index].addmm_(weighted[inside].T, clipped[inside])
    row, column = torch.triu_indices(dimensions, dimensions)
    return BoundedSum((total[:, row, column] * _isometry(row, column)).flatten(), max_norm**2)


def symmetric_matrices(
    released: Float64[Tensor, " coordinates"], *, cells: int
) -> Float64[Tensor, "cell dimension dimension"]:
    """Return the matrices of a released `second_moments`.

    Noise of standard deviation s on the vector has this much on the diagonals, and s / √2 on each off-diagonal entry.
    """
    dimensions = (math.isqrt(8 * (len(released) // cells) + 1) - 1) // 2
    row, column = torch.triu_indices(dimensions, dimensions)
    matrices = released.new_zeros(cells, dimensions, dimensions)
    matrices[:, row, column] = matrices[:, column, row] = released.view(cells, -1) / _isometry(row, column)
    return matrices


def shrunk_towards(
    matrix: Float64[Tensor, "cell dimension dimension"],
    target: Float64[Tensor, "dimension dimension"],
    *,
    noise_std: Float64[Tensor, " cell"],
) -> Float64[Tensor, "cell dimension dimension"]:
    """Return noisy symmetric matrices, each moved to `target` by the part of their difference that is noise.

    Args:
        matrix: From `symmetric_matrices`.
        target: What all of them are compared with.
        noise_std: s of each, in units of `matrix`.

    Source:
        The positive-part rule of James & Stein 1961, in the form of empirical Bayes: 1 − noise / all of the energy.
    """
    dimensions = len(target)
    noise = noise_std**2 * dimensions * (dimensions + 1) / 2
    difference = matrix - target
    energy = difference.square().sum((1, 2))
    signal = (1 - noise / energy.clamp(min=1e-300)).clamp(min=0)  # no difference is no signal
    return target + signal[:, None, None] * difference


class Spectrum(NamedTuple):
    """A covariance as a few directions and a floor: V diag(variances) Vᵀ + floor (I − V Vᵀ)."""

    vectors: Float64[Tensor, "dimension kept"]
    variances: Float64[Tensor, " kept"]
    floor: float


def denoised_spectrum(
    matrix: Float64[Tensor, "dimension dimension"], *, noise_std: float, least_variance: float
) -> Spectrum:
    """Return the part of a noisy covariance that stands out of the noise, and the mean variance of the rest.

    The leading direction is always kept. The noise matrix has its eigenvalues within ±2τ, τ = noise_std √(d/2). An
    observed λ above 2τ belongs to a direction that is partly noise; the variance along the direction that is seen is
    √(λ² − 4τ²).

    Args:
        matrix: Symmetric, from `symmetric_matrices`.
        noise_std: s, the standard deviation of the noise on the released vector, in units of `matrix`.
        least_variance: A public number, below which no variance is believed.

    Source:
        Spiked Wigner matrices: Benaych-Georges & Nadakuditi 2011, section 3.1, for the spike θ = (λ + √(λ² − 4τ²)) / 2
        and the overlap 1 − τ²/θ² of its direction with the observed one: their product is θ − τ²/θ = √(λ² − 4τ²).
    """
    dimensions = len(matrix)
    edge = noise_std * math.sqrt(2 * dimensions)
    values, vectors = torch.linalg.eigh(matrix)
    standing_out = values > edge
    standing_out[-1] = True
    variances = (values[standing_out] ** 2 - edge**2).clamp(min=least_variance**2).sqrt()
    rest = dimensions - len(variances)
    floor = (float(matrix.trace()) - float(variances.sum())) / rest if rest else least_variance
    return Spectrum(vectors[:, standing_out].flip(1), variances.flip(0), max(floor, least_variance))


def _require_one_row_each(rows: Tensor, cell: Tensor, weights: Tensor, dimensions: int) -> None:
    """Raise InputError where broadcasting, or a weight, could give a record more than its share of a sum."""
    if rows.shape != (len(weights), dimensions) or cell.shape != weights.shape or weights.ndim != 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in (rows, cell, weights))
        raise InputError(
            f"rows, cells and weights of shapes {shapes}: give each record one row of {dimensions} numbers"
        )
    if not ((weights >= 0) & (weights <= 1)).all():
        raise InputError("a weight must be from 0 to 1: those of a unit of protection add up to at most one")


def _clip(rows: Float[Tensor, "records dimension"], max_norm: float) -> Float64[Tensor, "records dimension"]:
    """Return the rows in float64, none longer than `max_norm`, those that are not finite as zero."""
    rows = rows.double()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # A little short of max_norm: a sum of d squares may lose d · 2^-53 of itself, and products are rounded.
    factors = (max_norm * (1 - 2.0**-40 - rows.shape[1] * 2.0**-53) / norms).clamp(max=1)
    return torch.where(norms.isfinite(), rows * factors, 0)


def _isometry(row: Tensor, column: Tensor) -> Float64[Tensor, " coordinates"]:
    return (1 + (row != column).double()).sqrt()
