"""One example moves a sum by at most C, whatever its gradient, its copies, its neighbours in the batch."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from dpdm.diffusion import EDM, DenoisingLoss, LogNormal, PreconditionedDenoiser
from dpdm.privacy import InsecureSeededEntropy, LayerWise, Vectorized, clipped_grad_sum
from dpdm.privacy.clipping import reject_cross_example_layers
from dpdm.types import InputError
from strategies import every_strategy


class Dot(nn.Module):
    """loss = <w, x>: an example's gradient is the example."""

    def __init__(self, dimensions: int, dtype=torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dimensions, dtype=dtype))


def dot(module, batch):
    return (module.w * batch[0]).sum(1)


def norm(vector) -> float:
    values = vector.double().tolist()
    scale = max((abs(v) for v in values), default=0.0) or 1.0
    return scale * math.sqrt(math.fsum((v / scale) ** 2 for v in values))


def check_one_gradient(rows, clip, strategy):
    result = clipped_grad_sum(dot, Dot(rows.shape[1], rows.dtype), (rows,), max_grad_norm=clip, strategy=strategy)
    assert result.sensitivity == clip
    assert norm(result.vector) <= clip
    raw = norm(rows[0])
    if isinstance(strategy, LayerWise) and (raw > 1e18 or clip < 1e-18 * raw) and not result.vector.any():
        return  # beyond float32, in which it squares and scales: left out
    expected = rows[0].double() * min(1.0, clip / raw) if raw else rows[0].double()
    tolerance = (2e-5 if isinstance(strategy, LayerWise) else 1e-9) * max(min(raw, clip), 1e-300)
    assert (result.vector - expected).abs().max().item() <= tolerance


@every_strategy
@settings(max_examples=60, deadline=None)
@given(
    gradient=arrays.arrays(np.float32, st.integers(1, 6), elements=st.floats(-1, 1, width=32)),
    exponent=st.integers(-30, 37),
    clip=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    bfloat16=st.booleans(),
)
@example(gradient=np.zeros(3, np.float32), exponent=0, clip=1.0, bfloat16=False)
@example(gradient=np.array([1.0, 1e-30, -1e-38], np.float32), exponent=37, clip=1.0, bfloat16=False)
@example(gradient=np.ones(5, np.float32), exponent=37, clip=1e-12, bfloat16=True)
def test_one_gradient_of_any_size_keeps_its_direction_and_at_most_the_norm(
    strategy, gradient, exponent, clip, bfloat16
):
    scaled = torch.from_numpy((gradient.astype(np.float64) * 10.0**exponent).astype(np.float32))[None]
    check_one_gradient(scaled.bfloat16() if bfloat16 else scaled, clip, strategy)


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_million_coordinates_of_huge_range_stay_within_the_norm(strategy, dtype):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(2_000_000, generator=generator) * 60 - 30
    rows = (torch.randn(2_000_000, generator=generator) * 10**exponents)[None].to(dtype)
    result = clipped_grad_sum(dot, Dot(2_000_000, dtype), (rows,), max_grad_norm=1.0, strategy=strategy)
    assert norm(result.vector) <= 1
    if isinstance(strategy, LayerWise):
        assert not result.vector.any()  # 1e30 squared is beyond float32: left out
    else:
        assert norm(result.vector) > 1 - 1e-9


@every_strategy
def test_a_gradient_at_the_norm_stays_within_it(strategy):
    for seed in range(50):
        row = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        row = row / torch.linalg.vector_norm(row) * (1 + seed * 2.0**-53)
        result = clipped_grad_sum(dot, Dot(100, torch.float64), (row,), max_grad_norm=1.0, strategy=strategy)
        assert norm(result.vector) <= 1


class Awkward(nn.Module):
    """A frozen, a tied, an unused parameter, and one that is used and large."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.tensor(100.0))
        self.double()

    def forward(self, x):
        return (self.scale * self.second(self.first(self.frozen(x)).tanh())).square().sum(1)


def forward(module, batch):
    return module(batch[0])


@every_strategy
def test_frozen_tied_and_unused_parameters_are_counted_right(strategy):
    torch.manual_seed(0)
    module, x = Awkward(), torch.randn(5, 4, dtype=torch.float64)
    for i in range(5):
        module.zero_grad()
        forward(module, (x[i : i + 1],)).sum().backward()
        whole = torch.cat([module.first.weight.grad.flatten(), torch.zeros(3), module.scale.grad.reshape(1)])
        one = clipped_grad_sum(forward, module, (x[i : i + 1],), max_grad_norm=2.0, strategy=strategy)
        assert one.vector.shape == (16 + 3 + 1,)
        found = {round(v, 9) for v in one.vector.tolist()}
        assert found == {round(v, 9) for v in (whole * min(1, 2 / norm(whole))).tolist()}
        assert norm(one.vector) <= 2
        assert one.grad_norms.reveal(because="test").item() == pytest.approx(norm(whole))
    assert all(p.grad is None for p in module.frozen.parameters())


def small_network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.SiLU(), nn.Flatten(), nn.Linear(108, 2)
    ).to(dtype)


def weighted(module, batch):
    """Return the squared output of each example, times its weight: weight 0 has a gradient of exactly 0."""
    x, weight = batch
    return module(x).square().sum(1) * weight


@every_strategy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("pixels", ["one", "all"])
def test_an_example_that_is_not_finite_contributes_exactly_nothing(strategy, bad, pixels):
    module = small_network()
    module[1] = nn.Identity()  # else a group norm makes 1e200 an ordinary number
    x, weight = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    without = weight.clone()
    without[3] = 0
    expected = clipped_grad_sum(weighted, module, (x, without), max_grad_norm=1.0, strategy=strategy)
    poisoned = x.clone()
    poisoned[3, 0, :, :] = bad if pixels == "all" else poisoned[3, 0]
    poisoned[3, 0, 2, 2] = bad
    result = clipped_grad_sum(weighted, module, (poisoned, weight), max_grad_norm=1.0, strategy=strategy)
    assert expected.vector.norm() > 1
    assert torch.equal(result.vector, expected.vector)
    norms = result.grad_norms.reveal(because="test")
    assert not norms[3].isfinite()
    assert norms.isfinite().sum() == 5


@every_strategy
def test_a_pixel_of_1e38_in_float32_is_clipped_or_dropped(strategy):
    module = small_network(torch.float32)
    x = torch.randn(1, 1, 6, 6)
    x[0, 0, 0, 0] = 1e38
    result = clipped_grad_sum(weighted, module, (x, torch.ones(1)), max_grad_norm=1.0, strategy=strategy)
    assert norm(result.vector) <= 1


@every_strategy
def test_a_gradient_of_exactly_zero_is_zero(strategy):
    module = small_network()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    result = clipped_grad_sum(weighted, module, (x, zero), max_grad_norm=1.0, strategy=strategy)
    assert (result.vector == 0).all()


@every_strategy
def test_no_examples_give_zeros(strategy):
    module = small_network()
    empty = (torch.zeros(0, 1, 6, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    result = clipped_grad_sum(weighted, module, empty, max_grad_norm=1.0, strategy=strategy)
    assert result.vector.shape == (sum(p.numel() for p in module.parameters()),)
    assert (result.vector == 0).all()
    assert len(result.losses.reveal(because="test")) == 0


@every_strategy
def test_an_example_does_not_see_the_others(strategy):
    module = small_network()
    x, weight = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    alone = [
        clipped_grad_sum(weighted, module, (x[i : i + 1], weight[:1]), max_grad_norm=1.0, strategy=strategy).vector
        for i in range(6)
    ]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 2, 0]):
        together = clipped_grad_sum(weighted, module, (x[order], weight[order]), max_grad_norm=1.0, strategy=strategy)
        torch.testing.assert_close(together.vector, sum(alone[i] for i in order), rtol=1e-10, atol=1e-12)


class Mixing(nn.Module):
    """Batch statistics that no check of layer types knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x - 0.5 * x.mean(0, keepdim=True)).square().sum(1)


@every_strategy
def test_a_network_that_would_mix_examples_is_given_them_one_by_one(strategy):
    torch.manual_seed(2)
    module, x = Mixing().double(), torch.randn(4, 3, dtype=torch.float64)
    if isinstance(strategy, LayerWise):
        with pytest.raises(InputError, match="mixes examples"):
            clipped_grad_sum(forward, module, (x,), max_grad_norm=0.5, strategy=strategy)
        return
    few = clipped_grad_sum(forward, module, (x[:3],), max_grad_norm=0.5, strategy=strategy).vector
    outlier = torch.cat([x[:3], 1e6 * x[3:]])
    more = clipped_grad_sum(forward, module, (outlier,), max_grad_norm=0.5, strategy=strategy).vector
    assert norm(more - few) <= 0.5 * (1 + 1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.BatchNorm3d(3),
        nn.SyncBatchNorm(3),
        nn.LazyBatchNorm2d(),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_with_batch_statistics_are_refused_by_name(layer):
    with pytest.raises(InputError, match=r"inner\.0.*use GroupNorm") as caught:
        reject_cross_example_layers(nn.ModuleDict({"inner": nn.Sequential(layer)}))
    assert type(layer).__name__ in str(caught.value)


def test_layers_without_batch_statistics_are_accepted():
    reject_cross_example_layers(nn.Sequential(nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)))


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, c_noise, labels):
        return self.conv(x)


@every_strategy
@pytest.mark.parametrize("copies", [1, 4, 32])
def test_noise_multiplicity_does_not_change_the_sensitivity(strategy, copies):
    torch.manual_seed(3)
    denoiser = PreconditionedDenoiser(Raw(), EDM()).double()
    loss = DenoisingLoss(noise_multiplicity=copies)
    x = torch.full((1, 1, 4, 4), 50.0, dtype=torch.float64)
    draws = InsecureSeededEntropy(0).stream("diffusion", 0)
    batch = loss.draw(x, torch.zeros(1, dtype=torch.int64), null_label=1, noise_levels=LogNormal(), random_bytes=draws)
    result = clipped_grad_sum(loss, denoiser, batch, max_grad_norm=0.1, strategy=strategy)
    assert 0.1 * (1 - 1e-9) < norm(result.vector) <= 0.1


@every_strategy
@pytest.mark.parametrize("copies", [2, 32])
def test_copies_with_opposite_gradients_cancel_before_clipping(strategy, copies):
    signs = torch.tensor([1.0, -1.0]).repeat(copies // 2)[None, :, None]
    rows = 1e3 * torch.arange(1.0, 5.0).expand(1, copies, 4) * signs

    def mean_over_copies(module, batch):
        return (batch[0] @ module.w).mean(1)

    result = clipped_grad_sum(mean_over_copies, Dot(4), (rows,), max_grad_norm=1.0, strategy=strategy)
    assert norm(result.vector) < 1e-4


def test_a_batch_for_which_there_is_no_memory_is_done_in_halves():
    """The sum, losses and norms are those of the whole batch, in order; a single example too large is an error."""

    def short_of_memory(loss, module, batch, *, most=3):
        sizes.append(len(batch[0]))
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError("no memory")
        yield from Vectorized()(loss, module, batch)

    def loss(module, batch):
        return (batch[0] * module.weight).sum(1)

    module, x, sizes = nn.Linear(4, 1, bias=False), torch.randn(8, 4), []
    whole = clipped_grad_sum(loss, module, (x,), max_grad_norm=1.5, strategy=Vectorized())
    halves = clipped_grad_sum(loss, module, (x,), max_grad_norm=1.5, strategy=short_of_memory)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    torch.testing.assert_close(halves.vector, whole.vector)
    for name in ("losses", "grad_norms"):
        torch.testing.assert_close(*(getattr(part, name).reveal(because="test") for part in (halves, whole)))
    with pytest.raises(torch.OutOfMemoryError):
        clipped_grad_sum(loss, module, (x,), max_grad_norm=1.0, strategy=lambda *args: short_of_memory(*args, most=0))


def test_an_embedding_that_changes_its_own_weights_is_refused():
    with pytest.raises(InputError, match=r"'0' \(Embedding\) changes its weights"):
        reject_cross_example_layers(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)))
