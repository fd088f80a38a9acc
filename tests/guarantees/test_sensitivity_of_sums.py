"""One record more, or one group of records, whatever they are, moves a bounded sum by at most its sensitivity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpdm.privacy import sums
from dpdm.types import InputError

DIMENSIONS, CELLS = 5, 3
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
row = hnp.arrays(np.float64, DIMENSIONS, elements=anything)
ONE = torch.ones(1, dtype=torch.float64)


def second_moment(parts, **more):
    """The second moment of records that are all in one cell."""
    parts = [(rows, torch.zeros(len(rows), dtype=torch.long), weights) for rows, weights in parts]
    return sums.second_moments(parts, cells=1, **more)


def ones(rows):
    return torch.ones(len(rows), dtype=torch.float64)


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
    without = sums.cell_sums([(rows, cells, ones(rows))], **shape)
    one = (torch.from_numpy(record)[None], torch.tensor([cell]), ONE)
    with_one = sums.cell_sums([(rows, cells, ones(rows)), one], **shape)
    assert without.sensitivity == with_one.sensitivity == math.hypot(max_norm, count_scale)
    assert distance(without, with_one) <= without.sensitivity * (1 + 1e-9)


@given(record=row, max_norm=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_one_record_moves_second_moments_by_the_sensitivity_at_most(record, max_norm):
    rows, _ = common()
    common_part, one = (rows, ones(rows)), (torch.from_numpy(record)[None], ONE)
    without = second_moment([common_part], dimensions=DIMENSIONS, max_norm=max_norm)
    with_one = second_moment([common_part, one], dimensions=DIMENSIONS, max_norm=max_norm)
    assert without.sensitivity == with_one.sensitivity == max_norm**2
    assert distance(without, with_one) <= without.sensitivity * (1 + 1e-9)


@given(
    group=st.integers(1, 6).flatmap(
        lambda m: st.tuples(
            hnp.arrays(np.float64, (m, DIMENSIONS), elements=anything),
            hnp.arrays(np.int64, m, elements=st.integers(0, CELLS - 1)),
        )
    ),
    max_norm=st.floats(1e-3, 1e3),
    count_scale=st.floats(1e-3, 1e3),
)
@settings(deadline=None)
def test_one_group_moves_every_sum_by_the_sensitivity_of_one_record_at_most(group, max_norm, count_scale):
    assert_a_group_keeps_to_the_bounds(*map(torch.from_numpy, group), max_norm=max_norm, count_scale=count_scale)


@pytest.mark.parametrize("images", [1, 3, 7, 100_000])
@pytest.mark.parametrize("spread", ["one cell", "all cells", "opposite rows", "one not finite"])
def test_a_group_of_any_size_moves_every_sum_by_the_sensitivity_of_one_record_at_most(images, spread):
    rows = torch.full((images, DIMENSIONS), 1e100, dtype=torch.float64)
    cells = torch.arange(images) % (CELLS if spread == "all cells" else 1)
    if spread == "opposite rows":
        rows[::2] *= -1
    if spread == "one not finite":
        rows[0] = math.nan
    assert_a_group_keeps_to_the_bounds(rows, cells, max_norm=2.0, count_scale=3.0)


def assert_a_group_keeps_to_the_bounds(rows, cells, *, max_norm, count_scale):
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    others, of_others = common()
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": max_norm, "count_scale": count_scale}
    parts = [(others, of_others, ones(others)), (rows, cells, weights)]
    without, with_group = sums.cell_sums(parts[:1], **shape), sums.cell_sums(parts, **shape)
    assert distance(without, with_group) <= without.sensitivity * (1 + 1e-9)
    shape = {"dimensions": DIMENSIONS, "max_norm": max_norm}
    parts = [(others, ones(others)), (rows, weights)]
    without, with_group = second_moment(parts[:1], **shape), second_moment(parts, **shape)
    assert distance(without, with_group) <= without.sensitivity * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e100])
def test_the_bounds_are_reached_so_the_noise_is_not_more_than_needed(scale):
    record = torch.full((1, DIMENSIONS), scale, dtype=torch.float64)
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    first = sums.cell_sums([(record, torch.tensor([1]), ONE)], **shape)
    assert torch.linalg.vector_norm(first.total).item() == pytest.approx(first.sensitivity, rel=1e-9)
    second = second_moment([(record, ONE)], dimensions=DIMENSIONS, max_norm=2.0)
    assert torch.linalg.vector_norm(second.total).item() == pytest.approx(second.sensitivity, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_adds_nothing_but_its_count(bad):
    record = torch.zeros(1, DIMENSIONS)
    record[0, 2] = bad
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    total = sums.cell_sums([(record, torch.tensor([0]), ONE)], **shape).total
    assert total.count_nonzero() == 1
    assert not second_moment([(record, ONE)], dimensions=DIMENSIONS, max_norm=2.0).total.any()


def test_no_records_are_a_sum_like_any_other():
    shape = {"cells": CELLS, "dimensions": DIMENSIONS, "max_norm": 2.0, "count_scale": 3.0}
    assert sums.cell_sums([], **shape).total.shape == (CELLS * (DIMENSIONS + 1),)
    assert second_moment([], dimensions=DIMENSIONS, max_norm=1.0).total.shape == (DIMENSIONS * (DIMENSIONS + 1) // 2,)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_bounds_that_are_none_are_refused(wrong):
    shape = {"cells": CELLS, "dimensions": DIMENSIONS}
    with pytest.raises(InputError, match="max_norm"):
        sums.cell_sums([], **shape, max_norm=wrong, count_scale=1.0)
    with pytest.raises(InputError, match="count_scale"):
        sums.cell_sums([], **shape, max_norm=1.0, count_scale=wrong)
    with pytest.raises(InputError, match="max_norm"):
        second_moment([], dimensions=DIMENSIONS, max_norm=wrong)


@pytest.mark.parametrize("max_norm", [0.5, 3.0])
def test_a_group_over_several_cells_moves_their_second_moments_by_the_sensitivity_at_most(max_norm):
    """Alike or opposite, in one cell or in many: weights that add up to one keep it within what one record may do."""
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2, 7):
        rows = 100 * torch.randn(number, DIMENSIONS, generator=generator, dtype=torch.float64)
        rows[-1] = rows[0]
        weights = torch.full((number,), 1 / number, dtype=torch.float64)
        for cells in (torch.zeros(number, dtype=torch.long), torch.arange(number) % 3):
            moved = sums.second_moments([(rows, cells, weights)], cells=3, dimensions=DIMENSIONS, max_norm=max_norm)
            assert moved.sensitivity == max_norm**2
            assert moved.total.norm() <= moved.sensitivity * (1 + 1e-9)
    one = sums.second_moments(
        [(rows[:1], torch.tensor([2]), torch.ones(1).double())], cells=3, dimensions=DIMENSIONS, max_norm=max_norm
    )
    assert one.total.norm() == pytest.approx(one.sensitivity), "the bound is met"


@given(record=row, max_norm=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_one_record_moves_a_clipped_sum_by_the_sensitivity_at_most(record, max_norm):
    rows, _ = common()
    parts = [(rows, ones(rows)), (torch.from_numpy(record)[None], ONE)]
    shape = {"dimensions": DIMENSIONS, "max_norm": max_norm}
    without, with_one = sums.clipped_sum(parts[:1], **shape), sums.clipped_sum(parts, **shape)
    assert without.sensitivity == with_one.sensitivity == max_norm
    assert distance(without, with_one) <= max_norm


@given(
    choices=st.lists(st.integers(-2, 12), min_size=1, max_size=9),
    weight=st.floats(0, 1),
    members=st.integers(1, 3),
)
@settings(deadline=None)
def test_one_record_moves_votes_by_one_at_most_whatever_it_votes_for(choices, weight, members):
    """Votes that coincide, none, or for no bin there is; and a group whose members share its weight."""
    others = (torch.randint(10, (20, 3), generator=torch.Generator().manual_seed(0)), torch.ones(20).double())
    one = (torch.tensor([choices] * members), torch.full((members,), weight / members, dtype=torch.float64))
    without, with_one = sums.votes([others], bins=10), sums.votes([others, one], bins=10)
    assert without.sensitivity == with_one.sensitivity == 1.0
    assert distance(without, with_one) <= 1.0


def test_distinct_votes_reach_the_bound_and_each_bin_counts_its_records():
    votes = sums.votes([(torch.tensor([[0, 1, 2, 3]]), ONE)], bins=6)
    assert torch.linalg.vector_norm(votes.total).item() == pytest.approx(1, rel=1e-9)
    single = sums.votes([(torch.tensor([[4], [4], [0]]), torch.ones(3).double())], bins=6)
    torch.testing.assert_close(single.total, torch.tensor([1.0, 0, 0, 0, 2, 0]).double(), rtol=1e-9, atol=0)


def test_the_order_of_records_does_not_move_votes():
    choices = torch.randint(10, (50, 3), generator=torch.Generator().manual_seed(1))
    weights = torch.ones(50).double()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    one, other = (sums.votes([(choices[o], weights)], bins=10).total for o in (torch.arange(50), order))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
