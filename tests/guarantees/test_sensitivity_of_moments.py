"""One record more, whatever it is, moves a bounded sum by at most its sensitivity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpdm.privacy import moments
from dpdm.types import InputError

DIMENSIONS, CELLS = 5, 3
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
row = hnp.arrays(np.float64, DIMENSIONS, elements=anything)


def common():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, DIMENSIONS, generator=generator, dtype=torch.float64)
    return rows, torch.randint(CELLS, (40,), generator=generator)


def distance(a, b):
    assert a.total.isfinite().all()
    assert b.total.isfinite().all()
    return torch.linalg.vector_norm(a.total - b.total).item()


@given(record=row, cell=st.integers(0, CELLS - 1), max_norm=st.floats(1e-3, 1e3), count_scale=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_one_record_moves_sums_and_counts_by_the_sensitivity_at_most(record, cell, max_norm, count_scale):
    rows, cells = common()
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": max_norm, "count_scale": count_scale}
    without = moments.cell_sums([(rows, cells)], **shape)
    one = (torch.from_numpy(record)[None], torch.tensor([cell]))
    with_one = moments.cell_sums([(rows, cells), one], **shape)
    assert without.sensitivity == with_one.sensitivity == math.hypot(max_norm, count_scale)
    assert distance(without, with_one) <= without.sensitivity * (1 + 1e-9)


@given(record=row, max_norm=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_one_record_moves_second_moments_by_the_sensitivity_at_most(record, max_norm):
    rows, _ = common()
    without = moments.second_moment([rows], dimensions=DIMENSIONS, max_norm=max_norm)
    with_one = moments.second_moment([rows, torch.from_numpy(record)[None]], dimensions=DIMENSIONS, max_norm=max_norm)
    assert without.sensitivity == with_one.sensitivity == max_norm**2
    assert distance(without, with_one) <= without.sensitivity * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e100])
def test_the_bounds_are_reached_so_the_noise_is_not_more_than_needed(scale):
    record = torch.full((1, DIMENSIONS), scale, dtype=torch.float64)
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    sums = moments.cell_sums([(record, torch.tensor([1]))], **shape)
    assert torch.linalg.vector_norm(sums.total).item() == pytest.approx(sums.sensitivity, rel=1e-9)
    second = moments.second_moment([record], dimensions=DIMENSIONS, max_norm=2.0)
    assert torch.linalg.vector_norm(second.total).item() == pytest.approx(second.sensitivity, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_adds_nothing_but_its_count(bad):
    record = torch.zeros(1, DIMENSIONS)
    record[0, 2] = bad
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    total = moments.cell_sums([(record, torch.tensor([0]))], **shape).total
    assert total.count_nonzero() == 1
    assert not moments.second_moment([record], dimensions=DIMENSIONS, max_norm=2.0).total.any()


def test_no_records_are_a_sum_like_any_other():
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    assert moments.cell_sums([], **shape).total.shape == (CELLS * (DIMENSIONS + 1),)
    assert moments.second_moment([], dimensions=DIMENSIONS, max_norm=1.0).total.shape == (
        DIMENSIONS * (DIMENSIONS + 1) // 2,
    )


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_bounds_that_are_none_are_refused(wrong):
    shape = {"cells": CELLS, "dimensions": DIMENSIONS}
    with pytest.raises(InputError, match="max_norm"):
        moments.cell_sums([], **shape, max_norm=wrong, count_scale=1.0)
    with pytest.raises(InputError, match="count_scale"):
        moments.cell_sums([], **shape, max_norm=1.0, count_scale=wrong)
    with pytest.raises(InputError, match="max_norm"):
        moments.second_moment([], dimensions=DIMENSIONS, max_norm=wrong)
