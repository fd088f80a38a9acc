"""Noise on a grid: sums that are exact whatever their order, and nothing released that lies between its points."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpdm.privacy import DPSGD, OneBackwardEach, Vectorized, clipped_grad_sum, mechanism
from dpdm.privacy.noise import grid_step
from dpdm.privacy.sums import BoundedSum
from dpdm.types import InputError
from strategies import STRATEGIES, every_strategy

FIELDS = {"dataset_size": 200, "expected_batch_size": 40, "steps": 5, "noise_multiplier": 1.5, "delta": 1e-3}


class Weights(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(number))


def dot(module, batch):
    return batch[0] @ module.w


def gradients(number, dimensions, *, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(number, dimensions, generator=generator)


def whole(values, step):
    """Return whether all of `values` are whole numbers of `step`s."""
    return bool(((values / step) == (values / step).round()).all())


@pytest.mark.parametrize("clip", [1.0, 0.3, 1e-6, 1e6])
def test_the_step_is_a_power_of_two_far_below_the_clipping_norm(clip):
    step = grid_step(clip)
    assert math.log2(step) == int(math.log2(step))
    assert 2.0**24 <= clip / step < 2.0**25


@pytest.mark.parametrize("clip", [1.0, 0.37])
@every_strategy
def test_sums_are_the_same_to_the_bit_in_any_order_and_grouping(strategy, clip):
    """The gradients of a dot product are its rows, so that only the sum can differ."""
    rows, module, step = gradients(50, 301), Weights(301), grid_step(clip)

    def total(*parts):
        sums = [
            clipped_grad_sum(dot, module, (rows[p],), max_grad_norm=clip, strategy=strategy, grid=step).vector
            for p in parts
        ]
        return sum(sums[1:], start=sums[0])

    expected = total(torch.arange(50))
    assert whole(expected, step)
    generator = torch.Generator().manual_seed(1)
    for size in (1, 7, 16):
        shuffled = torch.randperm(50, generator=generator)
        assert torch.equal(total(*shuffled.split(size)), expected)
    assert torch.equal(total(torch.arange(30)) + total(torch.arange(30, 50)), expected)
    exact = clipped_grad_sum(dot, module, (rows,), max_grad_norm=clip, strategy=strategy).vector
    assert (exact - expected).abs().max() <= 50 * step * 2  # truncated by less than a step each, and scaled by 2^-22


@given(
    exponent=st.integers(-30, 30),
    clip=st.floats(1e-3, 1e3),
    dimensions=st.integers(1, 400),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_truncation_never_lengthens_a_gradient(exponent, clip, dimensions, seed):
    rows = gradients(1, dimensions, seed=seed, scale=10.0**exponent)
    for strategy in STRATEGIES.values():
        part = clipped_grad_sum(
            dot, Weights(dimensions), (rows,), max_grad_norm=clip, strategy=strategy, grid=grid_step(clip)
        ).vector
        assert torch.linalg.vector_norm(part) <= clip
        assert whole(part, grid_step(clip))


@every_strategy
def test_an_example_that_is_not_finite_contributes_nothing(strategy):
    rows = gradients(6, 20)
    module, step = Weights(20), grid_step(1.0)
    clean = clipped_grad_sum(dot, module, (rows[1:],), max_grad_norm=1.0, strategy=strategy, grid=step).vector
    for value in (float("nan"), float("inf"), -float("inf")):
        rows[0, 3] = value
        found = clipped_grad_sum(dot, module, (rows,), max_grad_norm=1.0, strategy=strategy, grid=step).vector
        assert torch.equal(found, clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized()], ids=["one", "vectorized"])
def test_half_precision_does_not_lengthen_a_gradient(strategy, dtype):
    module, rows = Weights(500).to(dtype), gradients(40, 500).to(dtype)
    for row in rows:
        part = clipped_grad_sum(
            dot, module, (row[None],), max_grad_norm=1.0, strategy=strategy, grid=grid_step(1.0)
        ).vector
        assert torch.linalg.vector_norm(part) <= 1
        assert whole(part, grid_step(1.0))
        assert torch.linalg.vector_norm(part) > 0.99


@pytest.mark.parametrize("clip", [1e-30, 1e30])
def test_a_clipping_norm_beyond_the_grids_arithmetic_is_refused(clip):
    with pytest.raises(InputError, match="max_grad_norm must be from 2"):
        DPSGD(**FIELDS | {"max_grad_norm": clip, "noise": "grid"})


@pytest.mark.parametrize("clip", [1.0, 0.7])
def test_every_released_value_is_a_whole_number_of_steps(clip):
    plan = DPSGD(**FIELDS | {"max_grad_norm": clip, "noise": "grid"}, releases={"first": 2.0})
    run, module, rows = plan.start(), Weights(64), gradients(200, 64)
    total = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e5
    released = run.release("first", BoundedSum(total, math.pi), num_records=200).values
    inflated = math.pi / (1 - math.sqrt(500) * 2.0**-24)
    assert whole(released, grid_step(inflated))
    assert not whole(total, grid_step(inflated))
    inner, steps = run._release, []

    def recorded(total, *, sensitivity):
        steps.append(inner(total, sensitivity=sensitivity))
        return steps[-1]

    run._release = recorded
    while not run.finished:
        run.backward(dot, module, num_records=200, load=lambda i, _: (rows[i],))
        assert whole(steps[-1], grid_step(clip))
        assert torch.equal(module.w.grad, (steps[-1] / 40).float())
    assert len(steps) == 5


def test_low_order_bits_of_what_is_released_are_fair():
    """Whatever the records are: the last bit of a rounded Gaussian of many steps is a coin."""
    plan = DPSGD(**FIELDS | {"steps": 20, "noise": "grid"})
    run, module = plan.start(), Weights(5000)
    bits = []
    while not run.finished:
        noisy = run._release(torch.zeros(5000, dtype=torch.float64), sensitivity=1.0)
        bits.append((noisy / grid_step(1.0)).long() & 1)
    share = torch.cat(bits).double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(1e5)
    assert module.w.grad is None


def test_noise_on_the_grid_has_the_standard_deviation_that_is_accounted():
    plan = DPSGD(**FIELDS | {"steps": 1, "noise": "grid", "noise_multiplier": 1.7, "max_grad_norm": 0.3})
    noise = plan.start()._release(torch.zeros(1_000_000, dtype=torch.float64), sensitivity=0.3).numpy()
    assert np.std(noise) == pytest.approx(0.51, rel=5e-3)
    assert np.mean(noise) == pytest.approx(0, abs=5 * 0.51 / 1000)


def test_the_grid_is_part_of_the_claim_and_changes_no_number_of_it():
    plain, grid = DPSGD(**FIELDS), DPSGD(**FIELDS, noise="grid")
    assert plain.events() == grid.events()
    assert grid.epsilon() == plain.epsilon()
    from dpdm.privacy import OperatingSystemEntropy

    assert grid.claim(entropy=OperatingSystemEntropy())["noise"] == "grid"
    with pytest.raises(InputError, match="noise must be one of continuous, grid"):
        DPSGD(**FIELDS, noise="gird")  # type: ignore[arg-type]


def test_rounding_noise_beside_a_whole_number_is_rounding_their_sum(monkeypatch):
    """Ties included: 1 + 1/2 and 0 + 3/2 are one outcome of the Gaussian mechanism, and must stay one."""
    step = grid_step(1.0)
    released = []
    for whole_steps, noise in ((1.0, 0.5), (0.0, 1.5), (-1.0, 2.5), (3.0, -1.5)):
        drawn = torch.tensor([noise * step], dtype=torch.float64)
        monkeypatch.setattr(mechanism, "gaussian", lambda number, drawn=drawn, **_: drawn)
        run = DPSGD(**FIELDS, noise="grid").start()
        released.append(run._release(torch.full((1,), whole_steps * step, dtype=torch.float64), sensitivity=1.0))
    assert len(set(map(float, released))) == 1


def test_rounding_is_by_the_whole_part_and_what_is_left():
    values = torch.tensor([0.5, -0.5, 1.5, 0.49999999999999994, 2.0**52 + 1, -3.2], dtype=torch.float64)
    assert mechanism.rounded(values).tolist() == [1, 0, 2, 0, 2.0**52 + 1, -3]
