"""One step: one selection, one clipping, one noise, one constant divisor; and never a step beyond the plan."""

import dataclasses
import threading

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from dpdm.privacy import (
    DPSGD,
    FullSum,
    InsecureSeededEntropy,
    MechanismRun,
    NonPrivate,
    OneBackwardEach,
    OperatingSystemEntropy,
    Plan,
    PoissonSums,
    ShardSums,
    Vectorized,
)
from dpdm.privacy.batch_selection import one_ahead
from dpdm.privacy.sums import BoundedSum
from dpdm.types import InputError
from plans import changed

FIELDS = {"dataset_size": 100, "expected_batch_size": 10, "steps": 4, "noise_multiplier": 3.0, "delta": 1e-3}


class Dot(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))


def dot(module, batch):
    return (module.w * batch[0]).sum(1)


def rows(data):
    return lambda indices, draws: (data[torch.from_numpy(indices)],)


class Silent(MechanismRun):
    """A run without noise that keeps the sums it is given."""

    def _release(self, total, *, sensitivity):
        super()._release(total, sensitivity=sensitivity)
        self.totals = [*getattr(self, "totals", []), total]
        self.sensitivities = [*getattr(self, "sensitivities", []), sensitivity]
        return total


class Zero(MechanismRun):
    """A run that releases nothing of the sum."""

    def _release(self, total, *, sensitivity):
        return torch.zeros_like(super()._release(total, sensitivity=sensitivity))


def start(run_class, plan, **settings):
    settings = {"entropy": InsecureSeededEntropy(0), "strategy": None} | settings
    return run_class(plan, None, **settings)


@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_the_divisor_is_the_constant_whatever_the_batch_size(size):
    v = torch.tensor([0.3, -0.4], dtype=torch.float64)
    plan = DPSGD(**FIELDS | {"dataset_size": 4, "expected_batch_size": 4})  # q = 1: everybody is selected
    module = Dot(2)
    start(Silent, plan).backward(dot, module, num_records=size, load=rows(v.expand(size, 2)))
    torch.testing.assert_close(module.w.grad, size * v / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("number", [99, 100, 101, 5])
def test_no_constant_of_the_plan_comes_from_the_records(number):
    plan = DPSGD(**FIELDS)
    before = dataclasses.asdict(plan)
    run = plan.start()
    run.backward(dot, Dot(2), num_records=number, load=rows(torch.ones(number, 2)))
    assert dataclasses.asdict(run.plan) == before
    assert plan.sample_rate == 0.1
    assert run.plan.noise_std(0, 1.0) == 3.0


def test_empty_batches_are_steps_of_pure_noise():
    plan = DPSGD(
        dataset_size=10**6, expected_batch_size=1, steps=50, noise_multiplier=3.0, max_grad_norm=0.7, delta=1e-7
    )
    module, run, gradients = Dot(2000), plan.start(), []
    while not run.finished:
        module.w.grad = None
        run.backward(dot, module, num_records=5, load=rows(torch.zeros(5, 2000)))
        gradients.append(module.w.grad.clone())
    assert len(gradients) == run.steps_spent == 50
    z = torch.cat(gradients).numpy() / (3.0 * 0.7)
    low, high = scipy.stats.chi2.ppf([5e-6, 1 - 5e-6], len(z)) / len(z)
    assert low < np.square(z).mean() < high
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-5


def test_the_step_after_the_last_is_refused_and_changes_nothing(tmp_path):
    plan, module = DPSGD(**FIELDS), Dot(3)
    run = plan.start(tmp_path / "journal")
    for taken in range(4):
        assert run.steps_spent == taken
        assert not run.finished
        run.backward(dot, module, num_records=5, load=rows(torch.ones(5, 3)))
    assert run.finished
    before = module.w.grad.clone()
    for _ in range(2):
        with pytest.raises(InputError, match="all 4 releases of this plan are spent") as caught:
            run.backward(dot, module, num_records=5, load=rows(torch.ones(5, 3)))
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="are spent"):
            run._release(torch.zeros(3, dtype=torch.float64), sensitivity=1.0)
    assert torch.equal(module.w.grad, before)
    assert run.steps_spent == 4
    run.close()
    again = plan.start(tmp_path / "journal")
    assert again.finished
    with pytest.raises(InputError, match="are spent"):
        again._release(torch.zeros(3, dtype=torch.float64), sensitivity=1.0)
    again.close()


def test_stopping_early_costs_less():
    plan = DPSGD(**FIELDS)
    assert plan.epsilon(made=0) == 0
    assert 0 < plan.epsilon(made=1, accountant="rdp") < plan.epsilon(accountant="rdp")


@pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized()])
def test_physical_batches_give_the_same_sum_and_one_noise(strategy):
    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = DPSGD(**FIELDS | {"dataset_size": 40, "expected_batch_size": 20, "steps": 3})
    sums, made = [], []
    for size in (1, 3, 7, 1000):
        run = start(Silent, plan, strategy=strategy)
        loads = []

        def load(indices, draws, loads=loads):
            loads.append(len(indices))
            return (data[torch.from_numpy(indices)],)

        for _ in range(3):
            run.backward(dot, Dot(6), num_records=40, load=load, physical_batch_size=size)
        assert max(loads) <= size
        sums.append(torch.stack(run.totals))
        made.append(run.steps_spent)
    assert made == [3, 3, 3, 3]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-12, atol=1e-13)


def test_a_step_is_told_the_same_examples_whatever_the_physical_batch():
    plan, seen = DPSGD(**FIELDS | {"expected_batch_size": 50}), []
    for size in (1, 7, 100):
        told = []
        start(MechanismRun, plan).backward(
            dot,
            Dot(1),
            num_records=100,
            load=lambda indices, draws, told=told: (
                told.extend((int(i), draws(16)) for i in indices),
                (torch.zeros(len(indices), 1),),
            )[1],
            physical_batch_size=size,
        )
        seen.append(told)
    assert len(seen[0]) > 20
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_nothing_but_the_release_moves_the_parameters(optimizer):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
    settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {"weight_decay": 0.0}
    steps = optimizer(module.parameters(), lr=0.1, **settings)
    x = torch.randn(30, 4)
    module(x).sum().backward()  # what an ordinary backward left behind must not survive
    before = [p.detach().clone() for p in module.parameters()]
    run = start(Zero, DPSGD(**FIELDS | {"dataset_size": 30, "expected_batch_size": 15}))
    while not run.finished:
        diagnostics = run.backward(lambda m, b: m(b[0])[:, 0].square(), module, num_records=30, load=rows(x))
        assert len(diagnostics.losses.reveal(because="test")) > 0
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def test_frozen_parameters_get_no_gradient():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    DPSGD(**FIELDS).start().backward(lambda m, b: m(b[0])[:, 0], module, num_records=50, load=rows(torch.ones(50, 2)))
    assert all(p.grad is None for p in module[0].parameters())
    assert all(p.grad.abs().min() > 0 for p in module[1].parameters())


def test_a_network_with_batch_statistics_is_refused_before_anything_is_spent():
    run = DPSGD(**FIELDS).start()
    with pytest.raises(InputError, match="mixes examples"):
        run.backward(dot, nn.Sequential(nn.BatchNorm1d(2)), num_records=5, load=rows(torch.ones(5, 2)))
    assert run.steps_spent == 0


def test_earlier_releases_come_first_each_once():
    plan = DPSGD(**FIELDS, releases={"first": 2.0, "second": 5.0})
    run, module = plan.start(), Dot(2)
    for _ in range(2):
        with pytest.raises(InputError, match="the plan's next release is"):
            run.backward(dot, module, num_records=5, load=rows(torch.ones(5, 2)))
        assert module.w.grad is None
        assert run.steps_spent == 0
        run._release(torch.zeros(2, dtype=torch.float64), sensitivity=1.0)
    for _ in range(4):
        run.backward(dot, module, num_records=5, load=rows(torch.ones(5, 2)))
    assert run.finished


def test_earlier_releases_are_part_of_the_claim():
    plain = DPSGD(**FIELDS)
    plan = changed(plain, before={"first": 5.0})
    assert plan.epsilon() > plain.epsilon()
    assert "1 Gaussian release" in plan.statement
    assert plan.claim(entropy=OperatingSystemEntropy())["events"] == [
        {"type": "GaussianRelease", "noise_multiplier": 5.0},
        {"type": "PoissonGaussianSteps", "noise_multiplier": 3.0, "sample_rate": 0.1, "steps": 4},
    ]


def test_a_size_that_is_claimed_as_exact_must_be_exact():
    plan = DPSGD(**FIELDS, relation="replace_special")
    for number in (99, 101):
        with pytest.raises(InputError, match="claimed as exact"):
            plan.start().backward(dot, Dot(1), num_records=number, load=rows(torch.ones(number, 1)))
    plan.start().backward(dot, Dot(1), num_records=100, load=rows(torch.ones(100, 1)))


def test_the_claim_carries_the_declared_size_only(tmp_path):
    plan = DPSGD(**FIELDS | {"dataset_size": 1200, "expected_batch_size": 6, "delta": 1e-4})
    entropy = OperatingSystemEntropy()
    run, module = plan.start(tmp_path / "journal"), Dot(1)
    before = plan.claim(entropy=entropy), plan.statement
    while not run.finished:
        run.backward(dot, module, num_records=1237, load=rows(torch.ones(1237, 1)))
    run.close()
    assert (run.plan.claim(entropy=entropy), run.plan.statement) == before
    claim, statement = before
    assert claim["dataset_size"] == 1200
    assert claim["private"] is True
    assert claim["statement"] == statement
    assert plan.epsilon() <= claim["epsilon"] <= plan.epsilon() + 1e-4
    assert "1237" not in f"{claim} {statement} {run.disclosures}"


def test_diagnostics_show_nothing_until_revealed():
    run = DPSGD(**FIELDS).start()
    diagnostics = run.backward(dot, Dot(1), num_records=50, load=rows(torch.full((50, 1), 7.0)))
    assert "7." not in repr(diagnostics)
    assert run.disclosures == []
    norms = diagnostics.grad_norms.reveal(because="a person asked")
    assert (norms == 7).all()
    assert run.disclosures == ["a person asked"]


def test_the_null_object_makes_no_claim_and_no_noise():
    plan = NonPrivate.dp_sgd(dataset_size=10, expected_batch_size=10, steps=2)
    module, run = Dot(1), plan.start()
    run.backward(dot, module, num_records=10, load=rows(torch.full((10, 1), 1e3)))
    assert module.w.grad.item() == pytest.approx(1e3)  # neither clipped nor noisy
    assert plan.epsilon() == float("inf")
    claim = plan.claim(entropy=OperatingSystemEntropy())
    assert claim["private"] is False
    assert claim["epsilon"] is None
    assert claim["statement"].startswith("NOT PRIVATE")
    run.backward(dot, module, num_records=10, load=rows(torch.zeros(10, 1)))
    with pytest.raises(InputError, match="are spent"):
        run.backward(dot, module, num_records=10, load=rows(torch.zeros(10, 1)))


def test_a_sum_that_no_random_batch_was_selected_for_is_refused_as_a_step():
    plan = DPSGD(
        dataset_size=100,
        expected_batch_size=10,
        steps=5,
        noise_multiplier=1.0,
        delta=1e-3,
        releases={"first": 4.0},
    )
    run = plan.start()
    total = torch.zeros(3, dtype=torch.float64)
    run.release("first", BoundedSum(total, 1.0), num_records=100)
    with pytest.raises(InputError, match="next release is 'steps', a sum over a random batch, and not 'first'"):
        run.release("first", BoundedSum(total, 1.0), num_records=100)
    assert run.steps_spent == 0


def test_a_relation_that_the_accounting_does_not_know_is_refused():
    with pytest.raises(InputError, match="relation must be one of"):
        DPSGD(dataset_size=100, expected_batch_size=10, steps=5, delta=1e-3, relation="replace_one")  # type: ignore[arg-type]


@pytest.mark.parametrize("sensitivity", [0.0, -1.0, float("nan"), float("inf")])
def test_a_release_without_a_sensitivity_is_refused_and_not_counted(sensitivity):
    plan = DPSGD(
        dataset_size=100,
        expected_batch_size=10,
        steps=5,
        noise_multiplier=4.0,
        delta=1e-3,
        releases={"first": 3.0},
    )
    run = plan.start()
    with pytest.raises(InputError, match="sensitivity must be"):
        run.release("first", BoundedSum(torch.ones(3, dtype=torch.float64), sensitivity), num_records=100)
    ones = torch.ones(3, dtype=torch.float64)
    assert not torch.equal(run.release("first", BoundedSum(ones, 1.0), num_records=100).values, ones)


@pytest.mark.proof
def test_the_statement_names_the_accountant_whose_bound_it_is():
    plan = DPSGD(dataset_size=1000, expected_batch_size=100, steps=50, delta=1e-4)
    assert plan.calibrate(epsilon=3.0).statement.endswith("PLD accountant")
    large = plan.calibrate(epsilon=150.0)
    assert large.statement.endswith("RDP accountant")
    assert "Rényi" in large.claim(entropy=OperatingSystemEntropy())["accountant"]


def test_the_next_batch_is_loaded_while_this_one_is_worked_on():
    loaded, next_began = [], threading.Event()

    def load(item):
        if item == 1:
            next_began.set()
        loaded.append(item)
        return item

    batches = one_ahead(load, range(3))
    assert next(batches) == 0
    assert next_began.wait(timeout=10)
    assert list(batches) == [1, 2]
    assert loaded == [0, 1, 2]
    assert list(one_ahead(load, [])) == []


def test_an_error_in_loading_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(lambda item: 1 // item, [1, 0]))


TWO_SUMS = Plan(
    dataset_size=100,
    releases=(
        PoissonSums(name="means", count=2, expected_batch_size=20, max_norm=0.5, noise_multiplier=2.0),
        FullSum(name="counts", noise_multiplier=4.0),
        PoissonSums(name="others", count=1, expected_batch_size=100, max_norm=3.0, noise_multiplier=5.0),
    ),
    delta=1e-3,
)


def vectors(data):
    return lambda indices, draws: data[torch.from_numpy(indices)]


def test_a_sum_over_a_batch_clips_each_record_once_by_the_norm_of_its_own_entry():
    run, data = start(Silent, TWO_SUMS), torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) * 10
    data[3], data[4] = torch.nan, 1e30
    for _ in range(2):
        run.batch_sum("means", dimensions=7, num_records=100, load=vectors(data), physical_batch_size=9)
    run.release("counts", BoundedSum(torch.ones(2).double(), 1.0), num_records=100)
    whole, std = run.batch_sum("others", dimensions=7, num_records=100, load=vectors(data))
    assert run.finished
    assert std == 15.0
    assert (torch.linalg.vector_norm(torch.stack(run.totals[:2]), dim=1) <= 40 * 0.5).all()
    lengths = torch.linalg.vector_norm(data.double(), dim=1, keepdim=True)
    clipped = torch.where(lengths.isfinite(), data.double() * (3.0 / lengths).clamp(max=1), 0)
    torch.testing.assert_close(whole, clipped.sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("extreme", [1e30, float("nan"), float("inf"), 0.0])
def test_one_record_moves_a_sum_over_a_batch_by_its_norm_at_most(extreme):
    plan = Plan(
        dataset_size=10, delta=1e-3, releases=(dataclasses.replace(TWO_SUMS.poisson[1], expected_batch_size=10),)
    )
    data = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    others = torch.cat([data, torch.full((1, 4), extreme)])
    totals = []
    for records in (data, others):
        run = start(Silent, plan)
        run.batch_sum("others", dimensions=4, num_records=len(records), load=vectors(records))
        totals += run.totals
    assert torch.linalg.vector_norm(totals[0] - totals[1]) <= 3.0


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(200, 7), torch.zeros(1, 8), torch.zeros(1, 7, 1)])
def test_vectors_of_another_shape_are_refused_and_nothing_is_released(wrong):
    run = start(MechanismRun, TWO_SUMS)
    with pytest.raises(InputError, match="give each record one of 7 numbers"):
        run.batch_sum("means", dimensions=7, num_records=100, load=lambda indices, draws: wrong)
    assert run.spent == 0


def test_sums_are_made_under_their_names_and_in_their_order():
    run, data = TWO_SUMS.start(), torch.zeros(100, 7)
    bounded = BoundedSum(torch.zeros(2).double(), 1.0)
    said = "next release is 'means', a sum over a random batch, and not"
    with pytest.raises(InputError, match=said):
        run.release("counts", bounded, num_records=100)
    with pytest.raises(InputError, match=said):
        run.batch_sum("others", dimensions=7, num_records=100, load=vectors(data))
    with pytest.raises(InputError, match="not 'steps'"):
        run.backward(dot, Dot(7), num_records=100, load=rows(data))
    assert run.spent == 0


ONE_SHARD = Plan(
    dataset_size=1000,
    delta=1e-4,
    releases=(ShardSums(shards=10, count=2, expected_batch_size=10, max_norm=3.0, noise_multiplier=5.0),),
)


@pytest.mark.parametrize("by", ["backward", "batch_sum"])
@pytest.mark.parametrize("other", [-1e6, 0.0, float("nan"), float("inf")])
def test_a_shard_whose_vector_is_any_other_moves_a_sum_by_its_norm_at_most_and_reaches_it(other, by):
    data = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    data[7] = torch.tensor([1e6, 0.0, 0.0, 0.0])
    exchanged = data.clone()
    exchanged[7] = torch.tensor([other, 0.0, 0.0, 0.0])
    totals = []
    for vector in (data, exchanged):
        run = start(Silent, ONE_SHARD)
        if by == "backward":
            run.backward(dot, Dot(4), num_records=10, load=rows(vector))
        else:
            run.batch_sum("steps", dimensions=4, num_records=10, load=vectors(vector))
        totals += run.totals
        assert run.sensitivities == [3.0]
    moved = float(torch.linalg.vector_norm(totals[0] - totals[1]))
    assert moved <= 3.0
    assert moved == pytest.approx(3.0 if other == -1e6 else 1.5, rel=1e-6)


def test_under_a_public_number_of_records_it_is_shards_that_are_counted():
    run = start(MechanismRun, dataclasses.replace(ONE_SHARD, relation="replace_special"))
    with pytest.raises(InputError, match="dataset_size = 10 is claimed as exact, and there are 9"):
        run.batch_sum("steps", dimensions=4, num_records=9, load=vectors(torch.zeros(10, 4)))
    assert run.spent == 0
