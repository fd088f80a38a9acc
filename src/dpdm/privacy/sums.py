"""Sums over all records, each with the most that one record can move it: the one place that states sensitivities.

Each comes as a `BoundedSum`, to which `MechanismRun.release` adds the noise. What is computed from the noisy sum after
that is post-processing (`diffusion.spectrum`).

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

from dpdm.types import InputError, require_counts, require_positive


class BoundedSum(NamedTuple):
    """A sum over all records, as one vector, and how far one record more or fewer can move it."""

    total: Float64[Tensor, " coordinates"]
    sensitivity: float


Rows = tuple[Float[Tensor, "records dimension"], Float64[Tensor, " records"]]
"""Rows of some records, and the weight of each."""

Choices = tuple[Int[Tensor, "records choices"], Float64[Tensor, " records"]]
"""The bins that some records vote for, and the weight of each record."""

CellRows = tuple[Float[Tensor, "records dimension"], Int[Tensor, " records"], Float64[Tensor, " records"]]
"""Rows of some records, the cell that each lies in, and its weight."""


def clipped_sum(parts: Iterable[Rows], *, dimensions: int, max_norm: float) -> BoundedSum:
    """Return the weighted sum of all records' rows, each clipped to `max_norm`.

    Args:
        parts: All records, part by part: a row depends on its record and on what was released before, on nothing else.
            A row that is not finite counts as zero. Weights are those of `cell_sums`.
        dimensions: Length of a row.
        max_norm: The L2 norm that rows are clipped to.

    Guarantees:
        * One record of weight one more or fewer, or one group of them, moves the vector by at most `sensitivity`.

    Raises:
        InputError: `max_norm` is not positive. Or a part has not one row and one weight of at most 1 for each record.
    """
    require_positive(max_norm=max_norm)
    total = torch.zeros(dimensions, dtype=torch.float64)
    for rows, weights in parts:
        _require_one_row_each(rows, torch.zeros(weights.shape, dtype=torch.long), weights, dimensions)
        total += weights @ _clip(rows, max_norm)
    return BoundedSum(total, max_norm)


def votes(parts: Iterable[Choices], *, bins: int) -> BoundedSum:
    """Return how many votes each bin gets, where every record has k votes of weight 1/√k.

    Args:
        parts: All records, part by part: the bins that each record votes for, and its weight. A vote outside
            [0, bins) counts for nothing. Two votes of one record for one bin are one.
        bins: Number of bins.

    Guarantees:
        * One record of weight one more or fewer, or one group of them, moves the vector by at most `sensitivity`, 1.

    Raises:
        InputError: A part has not one row of choices and one weight of at most 1 for each record.
    """
    require_counts(bins=bins)
    total = torch.zeros(bins + 1, dtype=torch.float64)
    for choices, weights in parts:
        _require_one_row_each(choices, weights.long(), weights, choices.shape[-1])
        choices = torch.where((choices >= 0) & (choices < bins), choices, bins).sort(dim=1).values
        repeated = torch.zeros_like(choices, dtype=torch.bool)
        repeated[:, 1:] = choices[:, 1:] == choices[:, :-1]
        weight = (weights * (1 - 2.0**-40) / math.sqrt(choices.shape[1]))[:, None].expand(choices.shape)
        total += torch.bincount(choices[~repeated], weight[~repeated], minlength=bins + 1)
    return BoundedSum(total[:bins], 1.0)


def cell_sums(
    parts: Iterable[CellRows], *, cells: int, dimensions: int, max_norm: float, count_scale: float
) -> BoundedSum:
    """Return the weighted sum of the rows of each cell, and the cells' counts, as one vector.

    A record is one row of one cell. Its row is clipped to `max_norm`, so the record moves one cell's sum by at most
    `max_norm`. It moves the same cell's count, which enters times `count_scale`, by one. Both together move by at most
    √(max_norm² + count_scale²).

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
        InputError: `max_norm` or `count_scale` is not positive. Or a part has not one row, one cell and one weight of
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


def second_moments(parts: Iterable[CellRows], *, cells: int, dimensions: int, max_norm: float) -> BoundedSum:
    """Return Σ w v vᵀ of each cell as its upper triangle, off-diagonal entries times √2, all as one vector.

    So the Euclidean norm of the vector is that of all matrices' entries. So one row, which is clipped to `max_norm` and
    belongs to one cell, moves the vector by at most max_norm².

    Args:
        parts: All records' rows, cells and weights, part by part; row and cell may depend on the record and on what was
            released before. Weights are not negative and add up to one at most for each unit of protection.
        cells: Number of cells; each index lies in [0, cells).
        dimensions: Length of a row.
        max_norm: The L2 norm that rows are clipped to.

    Guarantees:
        * One record of weight one more or fewer, or one group of them, moves the vector by at most `sensitivity`.

    Raises:
        InputError: `max_norm` is not positive. Or a part has not one row, one cell and one weight of at most 1 for each
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
