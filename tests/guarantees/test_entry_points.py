"""Where noise is added and where gradients are clipped, nothing gets in that the claim does not describe.

Each test names the kind of fault that it closes.
"""

import copy
import functools
import math
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import strategies
from dpdm.diffusion import EDM, DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import (
    DPSGD,
    FullSum,
    GaussianRelease,
    LayerWise,
    MechanismRun,
    NonPrivate,
    OneBackwardEach,
    Plan,
    Vectorized,
    clipped_grad_sum,
    mechanism,
)
from dpdm.privacy.accounting import PoissonGaussianSteps, epsilon
from dpdm.privacy.clipping import Rows, clip_factors
from dpdm.privacy.sums import BoundedSum, cell_sums, second_moments
from dpdm.types import InputError

STRATEGIES = pytest.mark.parametrize("strategy", [*map(type, strategies.STRATEGIES.values())])
FIELDS = {"dataset_size": 100, "expected_batch_size": 10, "steps": 4, "noise_multiplier": 3.0, "delta": 1e-3}
RELEASES = {"dataset_size": 100, "expected_batch_size": 10, "steps": 0, "delta": 1e-3}


def released(total, *, noise="continuous", sensitivity=1.0):
    plan = DPSGD(**RELEASES, noise=noise, releases={"first": 5.0})
    return plan.start().release("first", BoundedSum(total, sensitivity), num_records=100).values


def squares(module, batch):
    return module(batch[0]).square().flatten(1).mean(1)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a shape in a signature that nothing enforces, and broadcasting ---


@pytest.mark.parametrize("noise", ["continuous", "grid"])
@pytest.mark.parametrize("shape", [(4, 4), (1, 5), (5, 1), (), (2, 2, 2), (1, 1)])
def test_broadcasting_a_sum_that_is_no_vector_is_refused_and_not_spent(noise, shape):
    plan = DPSGD(**RELEASES, noise=noise, releases={"first": 5.0})
    run = plan.start()
    total = torch.arange(float(math.prod(shape)), dtype=torch.float64).view(shape)
    with pytest.raises(InputError, match="must be a float64 vector") as caught:
        run.release("first", BoundedSum(total, 1.0), num_records=100)
    assert "flatten" in one_line(caught)
    assert run.spent == 0
    assert run.release("first", BoundedSum(total.flatten(), 1.0), num_records=100).values.shape == (total.numel(),)


@pytest.mark.parametrize(
    "total",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.complex128),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.float64, requires_grad=True),
        np.zeros(3),
        [0.0, 0.0],
        0.0,
    ],
    ids=lambda total: f"{type(total).__name__} {getattr(total, 'dtype', '')}",
)
def test_what_is_no_float64_vector_is_refused(total):
    with pytest.raises(InputError, match="must be a float64 vector") as caught:
        released(total)
    one_line(caught)


@pytest.mark.parametrize("sensitivity", [torch.ones(3), torch.tensor([1.0]), np.ones(2), "1", None])
def test_a_sensitivity_is_one_number(sensitivity):
    with pytest.raises(InputError, match="sensitivity must be one number"):
        released(torch.zeros(3, dtype=torch.float64), sensitivity=sensitivity)


@pytest.mark.usefixtures("unchecked")
def test_the_last_line_of_defence_stands_beside_the_noise(monkeypatch):
    """Even with nothing refused before, noise is never broadcast."""
    monkeypatch.setattr(mechanism, "_require_vector", lambda total, sensitivity: None)
    with pytest.raises(AssertionError, match="noise of shape"):
        released(torch.zeros(4, 4, dtype=torch.float64))


def test_every_number_of_a_sum_has_noise_of_its_own():
    total = torch.zeros(10_000, dtype=torch.float64).expand(10_000)
    assert len(released(total).unique()) == 10_000
    assert len(released(torch.zeros(1, dtype=torch.float64).expand(10_000)).unique()) == 10_000


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (), (1,)])
def test_broadcasting_a_strategys_sum_is_refused(shape):
    class Misshapen(Rows):
        def weighted_sum(self, factors):
            return super().weighted_sum(factors).sum() * torch.ones(shape, dtype=torch.float64)

    def strategy(loss, module, batch):
        yield Misshapen(torch.ones(len(batch[0]), 3), torch.ones(len(batch[0])))

    with pytest.raises(InputError, match="gives a sum of shape") as caught:
        clipped_grad_sum(squares, nn.Linear(2, 1), (torch.ones(4, 2),), max_grad_norm=1.0, strategy=strategy)
    one_line(caught)


@pytest.mark.parametrize("rows", [3, 5, 8])
def test_a_strategy_with_more_or_fewer_gradients_than_rows_is_refused(rows):
    def strategy(loss, module, batch):
        yield Rows(torch.ones(rows, 3), torch.ones(rows))

    with pytest.raises(InputError, match="one gradient"):
        clipped_grad_sum(squares, nn.Linear(2, 1), (torch.ones(4, 2),), max_grad_norm=1.0, strategy=strategy)


@STRATEGIES
@pytest.mark.parametrize(
    "loss",
    [
        lambda module, batch: module(batch[0]).square().mean(),
        lambda module, batch: module(batch[0]).square(),
        lambda module, batch: module(torch.cat([batch[0], -batch[0]])).square().mean(1),
    ],
    ids=["a mean", "a matrix", "two an example"],
)
def test_a_loss_that_is_not_one_number_for_each_example_is_refused(strategy, loss):
    run = DPSGD(**FIELDS).start(strategy=strategy())
    module, batch = nn.Linear(3, 2), (torch.randn(4, 3),)
    with pytest.raises(InputError) as caught:
        run.rehearse(loss, module, batch)
    assert "one number for each example" in one_line(caught)


@pytest.mark.parametrize(
    ("rows", "cells", "weights"),
    [
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(1).double()),
        (torch.ones(1, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4).double()),
        (torch.ones(8, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4).double()),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4, 1).double()),
        (torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), torch.ones(4).double()),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), 2 * torch.ones(4).double()),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), -torch.ones(4).double()),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.full((4,), torch.nan).double()),
    ],
)
def test_broadcasting_in_the_sums_of_a_prior_is_refused(rows, cells, weights):
    for build in (cell_sums, second_moments):
        settings = {"count_scale": 1.0} if build is cell_sums else {}
        with pytest.raises(InputError, match=r"one row|from 0 to 1"):
            build([(rows, cells, weights)], cells=2, dimensions=3, max_norm=1.0, **settings)


# --- the record is defined by the caller twice ---


@STRATEGIES
@pytest.mark.parametrize("rows", [2, 3])
def test_more_rows_than_records_are_refused_before_noise(strategy, rows):
    plan = DPSGD(dataset_size=1, expected_batch_size=1, steps=10, noise_multiplier=1e-9, delta=1e-3)
    x, module, run = torch.tensor([[1.0, 2, 3]]), nn.Linear(3, 1), plan.start(strategy=strategy())
    with pytest.raises(InputError, match=rf"a batch of 1 records came with {rows} rows") as caught:
        run.backward(
            lambda m, b: 100 * m(b[0])[:, 0],
            module,
            num_records=1,
            load=lambda i, r: (torch.cat([x[i] + k for k in range(rows)]),),
        )
    one_line(caught)
    assert run.spent == 0
    assert module.weight.grad is None


def test_a_second_tensor_with_more_rows_is_refused():
    x = torch.randn(6, 3)
    with pytest.raises(InputError, match="have 3, 6 rows"):
        clipped_grad_sum(lambda m, b: m(b[1]).sum(1)[:3], nn.Linear(3, 1), (x[:3], x), max_grad_norm=1.0)
    for batch in ((), (None,), (torch.tensor(1.0),), ([1.0],)):
        with pytest.raises(InputError, match="a tuple of tensors"):
            clipped_grad_sum(squares, nn.Linear(3, 1), batch, max_grad_norm=1.0)


def test_fewer_rows_than_records_are_records_that_contribute_nothing():
    plan, x = DPSGD(**FIELDS | {"dataset_size": 4, "expected_batch_size": 4}), torch.randn(4, 3)
    diagnostics = plan.start().backward(
        squares, nn.Linear(3, 1), num_records=4, load=lambda indices, draws: (x[indices][1:],)
    )
    assert len(diagnostics.losses.reveal(because="test")) == 3


# --- a check on one point stands for a property of all inputs ---


class Experts(nn.Module):
    """Rows above a noise level go to one layer, the others to another: no row sees any other."""

    def __init__(self, threshold=0.25) -> None:
        super().__init__()
        self.low, self.high, self.threshold = nn.Linear(64, 64), nn.Linear(64, 64), threshold

    def forward(self, x, c_noise, labels):
        x, noisy = x.flatten(1), c_noise > self.threshold
        out = torch.zeros_like(x)
        out[noisy], out[~noisy] = self.high(x[noisy]), self.low(x[~noisy])
        return out.unflatten(1, (1, 8, 8))


class HeadOfClass(nn.Module):
    """Each class has a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x, c_noise, labels):
        x = x.flatten(1)
        out = torch.zeros_like(x)
        for label, head in enumerate(self.heads):
            out[labels == label] = head(x[labels == label])
        return out.unflatten(1, (1, 8, 8))


class Sorted(nn.Module):
    """Rows are put in another order by their content, and back: as many pass the layer as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x, c_noise, labels):
        x = x.flatten(1)
        order = x.mean(1).argsort(stable=True)
        return self.layer(x[order])[order.argsort()].unflatten(1, (1, 8, 8))


class Capacity(nn.Module):
    """Experts that each take half of the rows: always as many."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, x, c_noise, labels):
        x = x.flatten(1)
        order, out = x.std(1).argsort(stable=True), torch.zeros_like(x)
        for expert, chosen in zip(self.experts, order.chunk(2), strict=True):
            out[chosen] = expert(x[chosen])
        return out.unflatten(1, (1, 8, 8))


class InChunks(nn.Module):
    """A large batch passes the layer in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x, c_noise, labels):
        return torch.cat([self.layer(part) for part in x.flatten(1).split(16)]).unflatten(1, (1, 8, 8))


def noisy(examples, copies, *, seed=0):
    """Return a batch in which noise levels, labels and signs differ, within examples and between them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(examples, 1, 8, 8, generator=generator) * 2 - 1
    drawn = DenoisingLoss(noise_multiplicity=copies, label_dropout=0.0).draw(
        x, torch.arange(examples) % 3, null_label=3, noise_levels=EDM().noise_levels, random_bytes=os.urandom
    )
    everywhere = torch.linspace(0.001, 0.999, examples * copies, dtype=torch.float64)
    order = torch.randperm(examples * copies, generator=generator)
    return drawn._replace(sigma=EDM().noise_levels.quantile(everywhere)[order].view(examples, copies).float())


ROUTED = pytest.mark.parametrize("network", [Experts, HeadOfClass, Sorted, Capacity])


@ROUTED
def test_rows_that_go_to_different_layers_are_refused_by_layer_wise_in_rehearsal(network):
    denoiser, loss = PreconditionedDenoiser(network(), EDM()), DenoisingLoss(noise_multiplicity=4, label_dropout=0.0)
    run = DPSGD(**FIELDS).start(strategy=LayerWise())
    with pytest.raises(InputError, match="gives a layer some rows") as caught:
        run.rehearse(loss, denoiser, noisy(5, 4))
    assert "one-backward-each" in one_line(caught)
    DPSGD(**FIELDS).start(strategy=OneBackwardEach()).rehearse(loss, denoiser, noisy(5, 4))


@pytest.mark.parametrize("network", [Experts, lambda: Experts(-0.6), HeadOfClass, Sorted, Capacity, InChunks])
def test_rows_that_go_to_different_layers_never_reach_a_sum(network):
    """Without a rehearsal too, and where made-up examples all go one way: counts are compared at every call."""
    torch.manual_seed(0)
    denoiser, loss = PreconditionedDenoiser(network(), EDM()), DenoisingLoss(noise_multiplicity=4, label_dropout=0.0)
    sigma = torch.tensor([[4.0] * c + [1e-3] * (4 - c) for c in (1, 2, 2, 2, 2, 2, 2, 3)])  # 16 of 32 rows are above
    noise = torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(3)).expand(8, 4, 1, 8, 8)
    x = torch.full((8, 1, 8, 8), 0.3)
    x[3] = -1.0
    batch = NoisyBatch(x, (torch.arange(32) % 3).view(8, 4), sigma, noise)
    with pytest.raises(InputError, match=r"some rows|some of them") as caught:
        clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1e-3, strategy=LayerWise())
    one_line(caught)
    one = clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1e-3, strategy=OneBackwardEach())
    fewer = NoisyBatch(*(torch.cat([t[:3], t[4:]]) for t in batch))
    without = clipped_grad_sum(loss, denoiser, fewer, max_grad_norm=1e-3, strategy=OneBackwardEach())
    assert (one.vector - without.vector).norm() <= 1e-3


def test_a_network_that_learns_to_route_is_found_later():
    """A gate that is closed at first opens as the network learns, with as many rows in every layer as before."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 4), nn.Parameter(torch.tensor(-10.0))

        def forward(self, x):
            key = torch.relu(self.gate) * x.mean(1)
            order = key.argsort(stable=True)
            return self.layer(x[order])[order.argsort()] + self.gate * 0

    module, strategy, x = Gated(), LayerWise(), torch.randn(6, 4)
    for _ in range(6):
        clipped_grad_sum(squares, module, (x,), max_grad_norm=1.0, strategy=strategy)
    module.gate.data.fill_(10.0)
    strategy._case(squares, module).calls = 8**4  # instead of so many calls
    with pytest.raises(InputError, match="mixes examples"):
        clipped_grad_sum(squares, module, (x,), max_grad_norm=1.0, strategy=strategy)


@pytest.mark.parametrize(
    "network", [CompactUNet(), UNet(width=32, multipliers=(1, 1), blocks=1, attention=(4,)), MLP(width=16)]
)
@STRATEGIES
def test_the_packages_own_networks_pass_the_rehearsal(network, strategy):
    denoiser = PreconditionedDenoiser(network.build((1, 8, 8), num_classes=3), EDM())
    run = DPSGD(**FIELDS).start(strategy=strategy())
    run.rehearse(DenoisingLoss(noise_multiplicity=2), denoiser, noisy(5, 2))
    assert run.spent == 0
    assert all(p.grad is None for p in denoiser.parameters())


# --- hidden state shared by examples ---


class Drawing(nn.Module):
    """A network that draws without a layer that says so."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.layer, self.draw = nn.Linear(6, 6), draw

    def forward(self, x):
        return self.layer(x) * self.draw(x)


DRAWS = pytest.mark.parametrize(
    "draw",
    [
        lambda x: functional.dropout(torch.ones_like(x), 0.5),
        lambda x: torch.rand_like(x),
        lambda x: torch.bernoulli(torch.full((len(x), 1), 0.999)),
        lambda x: torch.from_numpy(np.random.rand(*x.shape)).to(x),
        lambda x: random.random() * x,
    ],
    ids=["functional dropout", "rand", "stochastic depth that hardly ever drops", "numpy", "python"],
)


@STRATEGIES
@DRAWS
def test_networks_that_draw_from_a_generator_that_examples_share_are_refused(strategy, draw):
    module, x = Drawing(draw), torch.randn(9, 6)
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=strategy())
    for call in (
        lambda: run.rehearse(squares, module, (x,)),
        lambda: run.backward(squares, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],)),
    ):
        with pytest.raises(InputError, match=r"draws|is random") as caught:
            call()
        one_line(caught)
        assert run.spent == 0
    with pytest.raises(InputError, match=r"draws|is random"):
        clipped_grad_sum(squares, module, (x,), max_grad_norm=0.1, strategy=strategy())


def test_a_generator_of_its_own_is_found_in_rehearsal():
    generator = torch.Generator().manual_seed(0)
    module = Drawing(lambda x: torch.rand(x.shape, generator=generator))
    with pytest.raises(InputError, match="it draws"):
        DPSGD(**FIELDS).start().rehearse(squares, module, (torch.randn(5, 6),))


def test_what_loads_a_batch_may_not_draw_from_shared_generators_either():
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start()
    with pytest.raises(InputError, match="what loads its batches draws"):
        run.backward(squares, nn.Linear(6, 1), num_records=9, load=lambda i, r: (torch.randn(len(i), 6),))
    assert run.spent == 0


@STRATEGIES
@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.Dropout1d(0.5),
        nn.Dropout2d(0.5),
        nn.Dropout3d(0.5),
        nn.AlphaDropout(0.5),
        nn.FeatureAlphaDropout(0.5),
        nn.RReLU(),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(4, 4, num_layers=2, dropout=0.1),
        nn.TransformerEncoderLayer(4, 2, 8),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_known_layers_that_draw_are_refused_by_name(strategy, layer):
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(InputError, match=r"'1.*draws by the place in a batch") as caught:
        clipped_grad_sum(squares, module, (torch.randn(3, 4),), max_grad_norm=1.0, strategy=strategy())
    assert ".eval()" in one_line(caught)


@STRATEGIES
def test_checked_in_eval_and_used_in_train_is_refused(strategy):
    """A remembered check is of the mode that it was made in."""
    torch.manual_seed(0)
    strategy, x = strategy(), torch.randn(9, 6)
    module = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 6)).eval()
    first = clipped_grad_sum(squares, module, (x,), max_grad_norm=0.1, strategy=strategy)
    assert first.vector.norm() > 0
    module.train()
    with pytest.raises(InputError, match=r"'2' \(Dropout\) draws"):
        clipped_grad_sum(squares, module, (x,), max_grad_norm=0.1, strategy=strategy)

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(x - x.mean(0)) if self.training else self.layer(x)

    switched = Switched().eval()
    clipped_grad_sum(squares, switched, (x,), max_grad_norm=0.1, strategy=strategy)
    if isinstance(strategy, LayerWise):
        with pytest.raises(InputError, match="mixes examples"):
            clipped_grad_sum(squares, switched.train(), (x,), max_grad_norm=0.1, strategy=strategy)


class Keeping(nn.Module):
    """A network that keeps something of its input."""

    def __init__(self, how) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(6, 6), how
        self.register_buffer("kept", torch.zeros(6))

    def forward(self, x):
        self.how(self, x.detach())
        return self.layer(x)


def in_place(module, x):
    module.kept += x.mean(0)


def replaced(module, x):
    module.kept = x.mean(0)


def replaced_again(module, x):
    for _ in range(1000):  # sooner or later one lies where the first one lay
        module.kept = x.mean(0)


def one_more(module, x):
    module.register_buffer("another", x[0].clone(), persistent=True)


def a_weight(module, x):
    with torch.no_grad():
        module.layer.bias += x.mean(0)


@pytest.mark.parametrize("how", [in_place, replaced, replaced_again, one_more, a_weight])
def test_buffers_and_weights_that_are_filled_from_records_are_refused(how):
    x = torch.randn(9, 6)
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start()
    with pytest.raises(InputError, match=r"changes '.*' as it is called"):
        run.rehearse(squares, Keeping(how), (x,))
    with pytest.raises(InputError, match=r"changes '.*' as it is called"):
        run.backward(squares, Keeping(how), num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    assert run.spent == 0


# --- norms that are a little too short ---


@pytest.mark.parametrize("numel", [10**3, 2**22])
def test_norms_are_paid_for_where_small_squares_are_lost(numel):
    """Large numbers first: each lane then loses the small squares that follow."""
    row = torch.full((numel,), 2.0**-27 * 0.999, dtype=torch.float64)
    row[:64] = 1.0
    exact = math.fsum(v * v for v in row.tolist())
    factor = clip_factors(torch.linalg.vector_norm(row)[None], 1.0, numel)
    assert exact * float(factor) ** 2 <= 1.0
    assert float(factor) ** 2 * exact >= 1 - 1e-7
    norm = math.sqrt(exact) * (1 - numel * 2.0**-53)  # as much too short as a sum of so many squares may be
    assert exact * float(clip_factors(torch.tensor([norm], dtype=torch.float64), 1.0, numel)) ** 2 <= 1.0


@pytest.mark.parametrize("dimensions", [10, 200_000])
def test_rows_of_a_priors_sums_are_never_longer_than_their_bound(dimensions):
    row = torch.full((1, dimensions), 0.999, dtype=torch.float64)
    one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    sums = cell_sums([(row, *one)], cells=1, dimensions=dimensions, max_norm=0.1, count_scale=0.1)
    assert math.fsum(v * v for v in sums.total[:-1].tolist()) <= 0.1**2


SETTINGS = pytest.mark.parametrize(
    "change",
    [
        lambda patch: torch.set_float32_matmul_precision("high"),
        lambda patch: torch.set_float32_matmul_precision("medium"),
        lambda patch: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda patch: patch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"),
        lambda patch: patch.setenv("NVIDIA_TF32_OVERRIDE", "1"),
        lambda patch: patch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        lambda patch: patch.setenv("DNNL_DEFAULT_FPMATH_MODE", "any"),
    ],
    ids=["high", "medium", "allow_tf32", "NVIDIA's containers", "the driver's variable", "oneDNN", "oneDNN, older"],
)


@SETTINGS
def test_products_that_are_set_to_be_rounded_are_refused(change, monkeypatch):
    module, x = nn.Linear(6, 6), torch.randn(9, 6)
    try:
        change(monkeypatch)
        run = DPSGD(**FIELDS).start(strategy=LayerWise())
        with pytest.raises(InputError, match="could be too long") as caught:
            run.rehearse(squares, module, (x,))
        one_line(caught)
        with pytest.raises(InputError, match="could be too long"):
            clipped_grad_sum(squares, module, (x,), max_grad_norm=1.0, strategy=LayerWise())
        clipped_grad_sum(squares, module, (x,), max_grad_norm=1.0, strategy=OneBackwardEach())  # sums in float64
    finally:
        torch.set_float32_matmul_precision("highest")
        monkeypatch.undo()
    clipped_grad_sum(squares, module, (x,), max_grad_norm=1.0, strategy=LayerWise())


# --- what no private gradient exists of ---


class Spectral(nn.Module):
    """A layer in frequencies, as Fourier neural operators have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight)


@STRATEGIES
def test_parameters_that_are_not_real_numbers_are_refused_in_one_line(strategy):
    run = DPSGD(**FIELDS).start(strategy=strategy())
    for call in (
        lambda: run.rehearse(squares, Spectral(), (torch.randn(5, 6),)),
        lambda: run.backward(squares, Spectral(), num_records=3, load=lambda i, r: (torch.randn(len(i), 6),)),
        lambda: clipped_grad_sum(squares, Spectral(), (torch.randn(5, 6),), max_grad_norm=1.0, strategy=strategy()),
    ):
        with pytest.raises(InputError, match=r"'weight' is torch.complex64") as caught:
            call()
        one_line(caught)


@STRATEGIES
def test_frozen_parameters_of_any_kind_are_left_alone(strategy):
    module = nn.Linear(6, 6)
    module.register_parameter("levels", nn.Parameter(torch.arange(3), requires_grad=False))
    module.register_parameter("phases", nn.Parameter(torch.ones(3, dtype=torch.complex64), requires_grad=False))
    DPSGD(**FIELDS).start(strategy=strategy()).rehearse(squares, module, (torch.randn(5, 6),))
    clipped_grad_sum(squares, module, (torch.randn(5, 6),), max_grad_norm=1.0, strategy=strategy())
    with pytest.raises(InputError, match="no trainable parameter"):
        clipped_grad_sum(squares, module.requires_grad_(False), (torch.randn(5, 6),), max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 3)), "fails on a made-up batch"),
        (nn.Bilinear(6, 6, 6), "fails on a made-up batch"),
        (nn.BatchNorm1d(6), "mixes examples"),
    ],
)
def test_a_network_that_cannot_take_a_batch_is_refused_in_one_line(module, said):
    with pytest.raises(InputError, match=said) as caught:
        DPSGD(**FIELDS).start().rehearse(squares, module, (torch.randn(5, 6),))
    one_line(caught)


def test_a_strategy_of_ones_own_that_is_wrong_is_refused_in_rehearsal():
    def halves(loss, module, batch):
        for group in OneBackwardEach()(loss, module, batch):
            yield group._replace(rows=group.rows / 2)

    def shuffled(loss, module, batch):
        yield from reversed([*OneBackwardEach()(loss, module, batch)])

    for strategy in (halves, shuffled):
        with pytest.raises(InputError, match="gives other gradients") as caught:
            DPSGD(**FIELDS).start(strategy=strategy).rehearse(squares, nn.Linear(6, 6), (torch.randn(5, 6),))
        one_line(caught)


# --- roundings in the unsafe direction ---


@pytest.mark.parametrize("delta", [1.2345649e-05, 9.9999949e-06, 1e-5, 1 / 3000, 1e-90])
def test_delta_is_never_stated_below_what_epsilon_was_computed_at(delta):
    plan = DPSGD(dataset_size=1000, expected_batch_size=10, steps=3, noise_multiplier=2.0, delta=delta)
    stated = plan.statement.split(", ")[1].removesuffix(")-DP")
    assert float(stated) >= delta


@pytest.mark.proof
def test_asserts_that_are_switched_off_leave_the_last_line_of_defence():
    code = (
        "import torch; from dpdm.privacy import DPSGD, mechanism; from dpdm.privacy.sums import BoundedSum\n"
        "mechanism._require_vector = lambda total, sensitivity: None\n"
        "plan = DPSGD(dataset_size=9, expected_batch_size=9, steps=0, delta=1e-3, "
        "releases={'first': 5.0})\n"
        "plan.start().release('first', BoundedSum(torch.zeros(4, 4).double(), 1.0), num_records=9)\n"
    )
    result = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert "AssertionError: noise of shape" in result.stderr


@pytest.mark.usefixtures("unchecked")
def test_the_sums_of_a_run_are_vectors_everywhere():
    """The one method that every noisy sum passes refuses too: whoever calls it, by whatever way."""
    run = DPSGD(**FIELDS).start()
    with pytest.raises(InputError, match="must be a float64 vector"):
        MechanismRun._release(run, torch.zeros(2, 2, dtype=torch.float64), sensitivity=1.0)
    assert run.spent == 0


# --- what a plan is made of, and who may take it ---


@pytest.mark.parametrize(
    "event",
    [
        PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=1e-4, steps=1),
        PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=1e-4, steps=0),
        5.0,
    ],
)
@pytest.mark.parametrize("kind", [Plan, NonPrivate])
def test_a_plan_is_made_of_full_sums_and_poisson_sums_and_nothing_else(kind, event):
    with pytest.raises(InputError, match="releases holds a"):
        kind(dataset_size=100, releases=(event,))


def test_a_plan_cannot_be_changed_through_a_list_that_made_it():
    releases = [FullSum(name="first", noise_multiplier=50.0)]
    plan = Plan(dataset_size=100, releases=releases, delta=1e-3)
    releases[0] = FullSum(name="first", noise_multiplier=0.1)
    assert plan.noise_std(0, 1.0) == 50.0


def test_threads_and_copies_make_no_release_twice():
    plan = DPSGD(**RELEASES, releases={"first": 5.0})
    run, total = plan.start(), torch.zeros(1_000_000, dtype=torch.float64)

    def release():
        try:
            return run.release("first", BoundedSum(total, 1.0), num_records=100).values
        except InputError:
            return None

    with ThreadPoolExecutor(4) as pool:
        made = [found for found in pool.map(lambda _: release(), range(8)) if found is not None]
    assert len(made) == run.spent == 1
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied"):
            copied(run)


@pytest.mark.parametrize("noise", ["continuous", "grid"])
def test_numbers_that_are_not_finite_are_zero_in_a_sum(noise):
    total = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0], dtype=torch.float64)
    assert released(total, noise=noise).isfinite().all()


@pytest.mark.parametrize("number", [5e-324, 1e-30, 1e30, 10**400], ids=["5e-324", "1e-30", "1e30", "10^400"])
def test_numbers_beyond_the_arithmetic_are_refused(number):
    with pytest.raises(InputError, match="sensitivity must be"):
        released(torch.zeros(3, dtype=torch.float64), sensitivity=number)
    with pytest.raises(InputError, match="noise_multiplier must be"):
        GaussianRelease(noise_multiplier=number)
    with pytest.raises(InputError, match="max_grad_norm must be"):
        DPSGD(**FIELDS, max_grad_norm=number)


def test_a_delta_that_pld_cannot_follow_is_claimed_by_rdp():
    """One step of these alone costs 26.3 in closed form; PLD's round-off made 18 of a million."""
    events = [PoissonGaussianSteps(noise_multiplier=0.3, sample_rate=1e-12, steps=1)]
    assert epsilon(events, delta=1e-60, relation="add_or_remove_one") >= 26.3


# --- what a step remembers, however it is written ---


class Remembering(nn.Module):
    """A network that lets each example see those before it, by a state that is written in some way."""

    def __init__(self, write) -> None:
        super().__init__()
        self.layer, self.write, self.plain = nn.Linear(6, 6), write, torch.zeros(6)
        self.register_buffer("kept", torch.zeros(6))

    def forward(self, x):
        self.write(self, x.detach())
        return self.layer(x + self.kept + self.plain)


def through_data(module, x):
    module.kept.data.add_(x.mean(0))


def through_numpy(module, x):
    module.kept.numpy()[:] += x.mean(0).numpy()


def in_training_only(module, x):
    if torch.is_grad_enabled():
        module.kept.data.add_(x.mean(0))


def an_attribute(module, x):
    module.plain = module.plain + x.mean(0)


@STRATEGIES
@pytest.mark.parametrize("write", [through_data, through_numpy, in_training_only, an_attribute])
def test_state_that_examples_share_is_refused_however_it_is_written(strategy, write):
    x = torch.randn(9, 6)
    for rehearsed in (False, True):
        run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=strategy())
        with pytest.raises(InputError) as caught:  # noqa: PT012 (the one or the other)
            if rehearsed:
                run.rehearse(squares, Remembering(write), (x,))
            run.backward(squares, Remembering(write), num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
        one_line(caught)
        assert run.spent == 0


class Plainly(nn.Module):
    """A network whose plain attributes, of which no state_dict knows, a record of its own kind changes in place."""

    def __init__(self, holder) -> None:
        super().__init__()
        self.layer, self.inside = nn.Linear(6, 6), holder(torch.ones(2))

    def forward(self, x):
        (signs,) = self.inside.values() if isinstance(self.inside, dict) else [self.inside]
        if x.max() > 1e6:
            signs.data.neg_()
        return self.layer(x) * signs[0]


@pytest.mark.parametrize("holder", [lambda t: t, lambda t: {"signs": t}], ids=["an attribute", "a table"])
def test_a_plain_attribute_that_is_written_in_place_is_seen(holder):
    x, module = torch.randn(9, 6), nn.Sequential(Plainly(holder))
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=OneBackwardEach())
    run.backward(squares, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    x[0] = 1e7
    with pytest.raises(InputError, match=r"changes '0\.inside.*' as it is called") as caught:
        run.backward(squares, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    one_line(caught)
    assert run.spent == 1


class InOrder(nn.Module):
    """A network whose buffer a record of its own kind puts into another order: the sum of its bits stays the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("signs", torch.tensor([1.0, -1.0]))

    def forward(self, x):
        if x.max() > 1e6:  # as no made-up example is
            self.signs.data.copy_(self.signs.flip(0))
        return self.layer(x) * self.signs[0]


@pytest.mark.parametrize("strategy", [OneBackwardEach, LayerWise])  # vectorized calls take no branch
def test_numbers_in_another_order_are_seen(strategy):
    x = torch.randn(9, 6)
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=strategy())
    run.rehearse(squares, module := InOrder(), (x,))
    x[0] = 1e7
    with pytest.raises(InputError, match="changes 'signs'") as caught:
        run.backward(squares, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    one_line(caught)
    assert run.spent == 0


def times(scale, module, batch):
    """The squares, times a scale that a record of its own kind writes into the tensor which holds it."""
    found = module(batch[0]).square().mean(1) * scale[0]
    if batch[0].max() > 1e6:
        scale.data.neg_()
    return found


class Holding:
    def __init__(self, scale):
        self.inside = {"scales": [scale]}

    def __call__(self, module, batch):
        return times(self.inside["scales"][0], module, batch)

    def method(self, module, batch):
        return self(module, batch)


WAYS_TO_HOLD = {
    "an attribute": Holding,
    "a method": lambda scale: Holding(scale).method,
    "a closure": lambda scale: lambda module, batch: times(scale, module, batch),
    "a default": lambda scale: lambda module, batch, scale=scale: times(scale, module, batch),
    "a bound argument": lambda scale: functools.partial(times, scale),
}


@pytest.mark.parametrize("way", WAYS_TO_HOLD)
def test_a_tensor_that_a_loss_holds_is_watched_wherever_it_is(way):
    x, module = torch.randn(9, 6), nn.Linear(6, 6)
    loss = WAYS_TO_HOLD[way](torch.ones(2))
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=OneBackwardEach())
    run.backward(loss, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    x[0] = 1e7
    with pytest.raises(InputError, match=r"changes '.*' as it is called") as caught:
        run.backward(loss, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    one_line(caught)
    assert run.spent == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_norms_that_are_rounded_are_refused(dtype):
    class Rounded(Rows):
        def norms(self):
            return torch.linalg.vector_norm(self.rows, dim=1).to(dtype)

    class Strategy(OneBackwardEach):
        def __call__(self, loss, module, batch):
            return (Rounded(*group) for group in super().__call__(loss, module, batch))

    with pytest.raises(InputError, match="give them as float64") as caught:
        clipped_grad_sum(squares, nn.Linear(6, 6), (torch.randn(3, 6),), max_grad_norm=1.0, strategy=Strategy())
    one_line(caught)


class RunningLoss(nn.Module):
    """A loss that divides by a running mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, module, batch):
        found = module(batch[0]).square().mean(1)
        self.mean.lerp_(found.detach().mean(), 0.5)
        return found / self.mean


@STRATEGIES
def test_a_loss_that_remembers_is_refused(strategy):
    x, run = (
        torch.randn(9, 6),
        DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=strategy()),
    )
    with pytest.raises(InputError):
        run.backward(RunningLoss(), nn.Linear(6, 6), num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
    assert run.spent == 0


def test_draws_by_a_seed_of_their_own_are_refused_where_rows_meet():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.layer(x) * torch.rand_like(x)

    x = torch.randn(9, 6)
    for strategy in (Vectorized(), LayerWise()):
        run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start(strategy=strategy)
        with pytest.raises(InputError):
            run.backward(squares, Forked(), num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))


def test_rows_that_are_sorted_by_a_label_are_refused():
    class ByLabel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, y):
            order = y.argsort(stable=True)
            return self.layer(x[order])[order.argsort()]

    def loss(module, batch):
        x, y = batch
        return module(x.flatten(0, 1), y.flatten()).reshape(len(x), -1).square().mean(1)

    x, y = torch.randn(9, 2, 4), torch.randint(2, (9, 2))
    with pytest.raises(InputError, match="some rows"):
        clipped_grad_sum(loss, ByLabel(), (x, y), max_grad_norm=0.1, strategy=LayerWise())


class Broken(nn.Module):
    """A network whose gradient cannot be had."""

    def __init__(self, how) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(6, 6), how

    def forward(self, x):
        out = self.layer(x)
        if self.how == "in place":
            hidden = out.sigmoid()
            out = hidden * 2
            hidden.add_(1)
            return out * hidden.detach() + out.sigmoid() * 0
        return out.detach()


@STRATEGIES
@pytest.mark.parametrize("how", ["in place", "detached"])
def test_a_network_whose_gradient_fails_is_refused_in_rehearsal(strategy, how):
    run = DPSGD(**FIELDS).start(strategy=strategy())
    with pytest.raises(InputError) as caught:
        run.rehearse(squares, Broken(how), (torch.randn(5, 6),))
    one_line(caught)


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.LazyLinear(6)), nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3))],
)
def test_layers_without_a_shape_are_refused_in_one_line(module):
    with pytest.raises(InputError, match="has no shape yet") as caught:
        DPSGD(**FIELDS).start().rehearse(squares, module, (torch.randn(5, 6),))
    one_line(caught)


def test_a_loss_that_made_up_numbers_do_not_fit_asks_for_a_rehearsal():
    """A target in [0, 1] is nothing that made-up numbers know of."""

    def loss(module, batch):
        x, target = batch
        return functional.binary_cross_entropy(module(x).sigmoid(), target, reduction="none").mean(1)

    x, target = torch.randn(9, 6), torch.rand(9, 6)
    plan, module = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}), nn.Linear(6, 6)
    run = plan.start()
    settings = {"num_records": 9, "load": lambda i, r: (x[torch.from_numpy(i)], target[torch.from_numpy(i)])}
    with pytest.raises(InputError, match=r"MechanismRun\.rehearse") as caught:
        run.backward(loss, module, **settings)
    one_line(caught)
    assert run.spent == 0
    run.rehearse(loss, module, (torch.randn(3, 6), torch.rand(3, 6)))
    run.backward(loss, module, **settings)
    assert run.spent == 1


def test_a_buffer_of_the_network_is_not_hidden_by_one_of_the_loss_of_the_same_name():
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(6))

        def forward(self, module, batch):
            return squares(module, batch)

    x, loss, module = torch.randn(9, 6), Loss(), Remembering(lambda module, x: None)
    run = DPSGD(**FIELDS | {"dataset_size": 9, "expected_batch_size": 9}).start()
    run.rehearse(loss, module, (torch.randn(3, 6),))
    module.write = through_data
    with pytest.raises(InputError, match="changes 'kept'"):
        run.backward(loss, module, num_records=9, load=lambda i, r: (x[torch.from_numpy(i)],))
