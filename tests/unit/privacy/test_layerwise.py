"""Layer by layer the gradients are those of a plain loop over examples, whatever the network; else it says so."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dpdm.privacy import LayerWise, OneBackwardEach, clipped_grad_sum, layer_rules, layerwise
from dpdm.types import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.grad_sample import GradSampleModule


pytestmark = pytest.mark.usefixtures("one_thread")
SLACK = 2**-15  # norms are a little more than true, so that rounding never lets one past the clipping norm


class Copies(nn.Module):
    """A loss per example whose K copies pass the body side by side, as `DenoisingLoss` has them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body


def loss(module, batch):
    x = batch[0]
    out = module.body(x.flatten(0, 1))
    return out.reshape(len(x), -1).square().mean(1)


def sums(module, batch, **settings):
    ways = (OneBackwardEach(), LayerWise())
    return [clipped_grad_sum(loss, module, batch, strategy=way, **settings) for way in ways]


def agree(module, batch, tolerance=1e-5):
    reference, _ = sums(module, batch, max_grad_norm=1e9)
    norms = reference.grad_norms.reveal(because="test")
    clip = max(norms.median().item(), 1e-30)
    reference, ours = sums(module, batch, max_grad_norm=clip)
    assert ours.vector.dtype == torch.float64
    assert (ours.vector - reference.vector).norm() <= max(tolerance, SLACK) * reference.vector.norm()
    found = ours.grad_norms.reveal(because="test")
    assert ((found - norms).abs() <= max(tolerance, SLACK) * norms).all()


@st.composite
def convolutions(draw):
    """A random stack of convolutions and norms, and images for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    side, width = draw(st.integers(5, 9)), 2 * draw(st.integers(1, 3))
    layers: list[nn.Module] = []
    inputs = draw(st.sampled_from([1, 2, 4]))
    images = (draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 17])), inputs, side, side)
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 2])) if inputs % 2 == 0 else 1
        kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
        bias = draw(st.booleans())
        layers.append(nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2, groups=groups, bias=bias))
        layers.append(draw(st.sampled_from([nn.GroupNorm(1, width), nn.SiLU(), nn.Tanh()])))
        inputs = width
    # float64: a norm of few, nearly equal values has a gradient that float32 does not determine
    return nn.Sequential(*layers).double(), torch.randn(images, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_random_convolutions(drawn):
    body, x = drawn
    agree(Copies(body), (x,), tolerance=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", ["patches", "call each", "groups"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "geometry"),
    [
        (6, 4, {"kernel_size": 3, "padding": 1}),
        (4, 6, {"kernel_size": 3, "padding": 1}),
        (6, 4, {"kernel_size": (3, 2), "padding": (0, 1)}),
        (4, 6, {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0)}),
        (6, 4, {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2}),
        (4, 6, {"kernel_size": 1}),
        (4, 6, {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False}),
    ],
)
def test_every_way_of_a_convolution(layout, way, inputs, outputs, geometry, monkeypatch):
    torch.manual_seed(7)
    products, narrow, worth = {"patches": (10**9, 0, 0), "call each": (0, 0, 0), "groups": (0, 0, 10**12)}[way]
    monkeypatch.setattr(layer_rules, "_few_products", lambda *_, **__: products)
    monkeypatch.setattr(layer_rules, "_NARROW", narrow)
    monkeypatch.setattr(layer_rules, "_WORTH_A_CALL", worth)
    monkeypatch.setattr(layerwise, "_LARGE", 0)  # norms at once, of each parameter by itself
    monkeypatch.setattr(layer_rules, "_CACHED", 100)  # in several blocks
    body = nn.Sequential(nn.Conv2d(2, inputs, 1), nn.Tanh(), nn.Conv2d(inputs, outputs, **geometry)).double()
    x = torch.randn(5, 3, 2, 7, 8, dtype=torch.float64)
    agree(Copies(body.to(memory_format=layout)), (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("copies", [1, 3, 17])
@pytest.mark.parametrize("grad", ["dense", "expanded", "other layout"])
def test_every_way_of_a_group_norm(layout, copies, grad):
    torch.manual_seed(8)

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6)

        def forward(self, x):
            out = self.norm(self.conv(x).contiguous(memory_format=layout))
            if grad == "expanded":
                return out.sum((2, 3)).cos()
            other = torch.channels_last if layout == torch.contiguous_format else torch.contiguous_format
            return out.cos() if grad == "dense" else (out.contiguous(memory_format=other) + 1).cos()

    agree(Copies(Body().double()), (torch.randn(3, copies, 2, 4, 5, dtype=torch.float64),))


@settings(max_examples=25, deadline=None)
@given(convolutions(), st.booleans())
def test_a_norm_is_never_below_that_of_the_gradient_that_is_summed(drawn, bfloat16):
    body, x = drawn
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        (gradients,) = LayerWise()(loss, Copies(body.float()), (x.float(),))
        exact = torch.cat([part.written_out().double() for part in gradients.parts], dim=1).norm(dim=1)
        assert (gradients.norms() >= exact).all()


@pytest.mark.filterwarnings("ignore:Full backward hook")
@settings(max_examples=15, deadline=None)
@given(convolutions())
def test_random_convolutions_against_opacus(drawn):
    """Opacus takes the copies as rows; the gradient of an example is the sum over its own."""
    body, x = drawn
    examples, copies = x.shape[:2]
    module = GradSampleModule(copy.deepcopy(body), loss_reduction="sum")
    out = module(x.flatten(0, 1))
    (out.reshape(examples, copies, -1).square().mean(2) / copies).sum().backward()
    rows = [p.grad_sample.reshape(examples, copies, -1).sum(1) for p in module.parameters()]
    norms = torch.cat(rows, dim=1).norm(dim=1)
    part = clipped_grad_sum(loss, Copies(body), (x,), max_grad_norm=1.0, strategy=LayerWise())
    expected = (norms.clamp_min(1).reciprocal()[:, None] * torch.cat(rows, dim=1)).sum(0)
    assert (part.grad_norms.reveal(because="test") - norms).abs().max() <= SLACK * norms.max()
    assert (part.vector - expected).norm() <= 2 * SLACK * expected.norm()


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    examples=st.integers(1, 4),
    copies=st.sampled_from([1, 3, 20]),
    tokens=st.sampled_from([0, 1, 5]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_linear_layers_written_out_and_by_gram_matrices(widths, examples, copies, tokens, bias, seed):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        layers += [nn.Linear(inputs, width, bias=bias), nn.LayerNorm(width), nn.Tanh()]
        inputs = width
    x = torch.randn(examples, copies, *([tokens] if tokens else []), 3)
    body = nn.Sequential(*layers, nn.Linear(inputs, 2))
    agree(Copies(body), (x,), tolerance=1e-4)  # the norm of a single feature has a tiny gradient


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.out(torch.softmax(q @ k.mT / 6**0.5, dim=-1) @ v)


class Embedded(nn.Module):
    """An embedding whose indices come from the data, repeated within an example."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.table((x[:, :7].abs() * 3).long().clamp_max(4)))


class Shared(nn.Module):
    """One layer called twice, two layers with one weight, a frozen layer, a bare parameter, an unused layer."""

    def __init__(self):
        super().__init__()
        self.twice, self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.partly = nn.Linear(4, 4)
        self.partly.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(4) * 1.5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.twice(self.twice(self.frozen(x)).tanh()).tanh()
        return self.partly(self.other(self.one(x)) * self.scale)


class Unruly(nn.Module):
    """Layers that no rule covers."""

    def __init__(self):
        super().__init__()
        self.wrapped = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(2, 2, 3, padding="same")
        self.up = nn.ConvTranspose2d(2, 2, 2)

    def forward(self, x):
        return self.up(self.same(self.wrapped(x[:, None])))


@pytest.mark.parametrize(("body", "shape"), [(Attention, (3, 6)), (Embedded, (9,)), (Shared, (4,)), (Unruly, (6, 6))])
@pytest.mark.parametrize("copies", [1, 4])
def test_attention_embeddings_tied_frozen_and_unknown_layers(body, shape, copies):
    torch.manual_seed(1)
    agree(Copies(body()), (torch.randn(5, copies, *shape),))


def test_no_parameter_left_and_none_forgotten():
    torch.manual_seed(2)
    module = Copies(Shared())
    part = clipped_grad_sum(loss, module, (torch.randn(3, 2, 4),), max_grad_norm=1.0, strategy=LayerWise())
    assert len(part.vector) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert all(p.grad is None for p in module.parameters())
    assert not any(layer._forward_hooks for layer in module.modules())


class PastItsLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) + functional.linear(x, self.layer.weight)


class Interleaved(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        half = len(x) // 2
        shuffled = torch.cat([x[0::2], x[1::2]])
        out = self.layer(shuffled)
        return torch.stack([out[:half], out[half:]], dim=1).flatten(0, 1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).mul_(3.0)


def test_an_output_changed_in_place():
    torch.manual_seed(3)
    agree(Copies(InPlace()), (torch.randn(4, 2, 4),))


@pytest.mark.parametrize("body", [PastItsLayer, Interleaved])
def test_what_would_be_wrong_is_refused_and_not_computed(body):
    torch.manual_seed(3)
    with pytest.raises(InputError, match="LayerWise computes wrong"):
        clipped_grad_sum(loss, Copies(body()), (torch.randn(4, 2, 4),), max_grad_norm=1.0, strategy=LayerWise())


@pytest.mark.parametrize("clip", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("exponent", [-20, -5, 0, 5, 12])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_one_example_never_exceeds_the_norm(clip, exponent, bfloat16):
    for seed in range(5):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 40)
        )
        x = torch.randn(1, 1 if seed % 2 else 20, 1, 4, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            part, reference = (
                clipped_grad_sum(
                    lambda module, batch: loss(module, batch) * 10.0**exponent,
                    Copies(body),
                    (x,),
                    max_grad_norm=clip,
                    strategy=strategy,
                )
                for strategy in (LayerWise(), OneBackwardEach())
            )
        raw = reference.grad_norms.reveal(because="test").item()
        assert 0 < part.vector.norm().item() <= clip
        assert part.vector.norm().item() >= min(raw, clip) * (1 - (0.02 if bfloat16 else 1e-4))


def test_copies_that_cancel_do_not_slip_past_the_norm():
    """Two copies whose gradients are huge and nearly opposite: what remains is rounding, and is bounded too."""
    module = Copies(nn.Linear(40, 40, bias=False))
    x = torch.randn(1, 2, 40, generator=torch.Generator().manual_seed(0)) * 1e4
    x[0, 1] = x[0, 0]

    def opposed(module, batch):
        out = module.body(batch[0].flatten(0, 1)).reshape(len(batch[0]), 2, -1)
        return (out[:, 0] - out[:, 1] * (1 + 1e-7)).sum(1)

    part = clipped_grad_sum(opposed, module, (x,), max_grad_norm=1.0, strategy=LayerWise())
    assert part.vector.norm().item() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_example_that_is_not_finite_contributes_zero_and_changes_nothing_else(value):
    torch.manual_seed(4)
    module = Copies(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(64, 4)))
    x = torch.randn(5, 2, 1, 4, 4)
    without = clipped_grad_sum(loss, module, (x[:4],), max_grad_norm=0.1, strategy=LayerWise()).vector
    x[4] = value
    with_it = clipped_grad_sum(loss, module, (x,), max_grad_norm=0.1, strategy=LayerWise())
    assert with_it.vector.isfinite().all()
    assert (with_it.vector - without).norm() <= 1e-6 * without.norm() + (0.1 if value == 1e30 else 0)
    if value != 1e30:
        assert torch.equal(with_it.vector, without)


@pytest.mark.parametrize("clip", [1e-6, 1.0])
@pytest.mark.parametrize("size", [1e10, 1e15, 2e20, 6e21, 2.5e22, 1e24, 1e30, 1.7e36])
@pytest.mark.parametrize("bias", [False, True])
def test_inputs_of_any_size_leave_at_most_the_norm(size, clip, bias):
    torch.manual_seed(5)
    module, x = Copies(nn.Linear(40, 40, bias=bias)), torch.randn(1, 1, 40) * size
    for slope in (1e-20, 1.0, 1e18):

        def linear(module, batch, slope=slope):
            return module.body(batch[0].flatten(0, 1)).sum(1) * slope

        for of in (loss, linear):
            vector = clipped_grad_sum(of, module, (x,), max_grad_norm=clip, strategy=LayerWise()).vector
            assert vector.norm() <= clip


@pytest.mark.parametrize("width", [8, 200])
def test_one_example_more_among_many_moves_the_sum_by_at_most_the_norm(width):
    """Equal gradients, so that all rounding goes one way."""
    module, x = Copies(nn.Linear(width, width, bias=False)), torch.full((2048, 1, width), 0.37)
    for clip in (0.5375, 1.0):
        sums = [
            clipped_grad_sum(loss, module, (x[:n],), max_grad_norm=clip, strategy=LayerWise()).vector
            for n in (2047, 2048)
        ]
        assert (sums[1] - sums[0]).norm() <= clip


def mixing(module, batch):
    """Copies first: what `loss` expects side by side lies apart."""
    x = batch[0].transpose(0, 1)
    return module.body(x.flatten(0, 1)).reshape(x.shape[0], x.shape[1], -1).square().mean((0, 2))


def test_each_loss_and_each_choice_of_parameters_is_checked():
    torch.manual_seed(6)
    module, batch, strategy = Copies(nn.Linear(4, 4)), (torch.randn(4, 2, 4),), LayerWise()
    clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy)
    with pytest.raises(InputError, match="reorders an example's copies"):
        clipped_grad_sum(mixing, module, batch, max_grad_norm=1.0, strategy=strategy)
    body = PastItsLayer()
    body.layer.weight.requires_grad_(False)
    clipped_grad_sum(loss, Copies(body), batch, max_grad_norm=1.0, strategy=strategy)
    body.layer.weight.requires_grad_()
    with pytest.raises(InputError, match="uses a parameter outside its layer"):
        clipped_grad_sum(loss, Copies(body), batch, max_grad_norm=1.0, strategy=strategy)


class SmallAndWrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.side = nn.Linear(4, 4), Interleaved()

    def forward(self, x):
        return 100 * self.main(x) + 0.1 * self.side(x)


class Padded(Embedded):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4, padding_idx=3)


class Named(nn.Module):
    """A layer called by keyword, and without gradients before; a result that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        with torch.no_grad():
            before = self.layer(x)
        return self.layer(input=x + before) * self.scale + self.layer(x).detach()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layer(x).detach() * self.scale


def test_a_small_gradient_that_is_wrong_is_refused():
    with pytest.raises(InputError, match="LayerWise computes wrong"):
        clipped_grad_sum(
            loss, Copies(SmallAndWrong()), (torch.randn(4, 2, 4),), max_grad_norm=1.0, strategy=LayerWise()
        )


@pytest.mark.parametrize(("body", "shape"), [(Padded, (9,)), (Named, (4,)), (Detached, (4,))])
def test_unusual_calls(body, shape):
    torch.manual_seed(9)
    agree(Copies(body()), (torch.randn(5, 2, *shape),))


def test_what_cannot_run_layer_by_layer_is_refused_in_one_line():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 4)

        def forward(self, x):
            return x + self.table(torch.arange(4)).mean(0)

    with pytest.raises(InputError, match="LayerWise computes wrong"):
        clipped_grad_sum(loss, Copies(Positions()), (torch.randn(5, 2, 4),), max_grad_norm=1.0, strategy=LayerWise())


@pytest.mark.parametrize("examples", [31, 33, 70, 129])
@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("grid", [None, 2.0**-20])
def test_rows_that_fill_a_batch_up_take_no_part(examples, spoiled, grid):
    """A few sizes stand for all; the rows that are added are copies of the last example, whatever that is."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 1, 3))
    x = torch.randn(examples, 2, 1, 6, 6)
    if spoiled:
        x[-1] = torch.nan
    seen = []

    def watched(module, batch):
        seen.append(len(batch[0]))
        return loss(module, batch)

    way = LayerWise()
    ours = clipped_grad_sum(watched, Copies(body), (x,), max_grad_norm=0.1, strategy=way, grid=grid)
    assert seen[-1] == {31: 31, 33: 34, 70: 72, 129: 136}[examples]
    reference = clipped_grad_sum(loss, Copies(body), (x,), max_grad_norm=0.1, strategy=OneBackwardEach(), grid=grid)
    assert len(ours.losses.reveal(because="test")) == len(ours.grad_norms.reveal(because="test")) == examples
    step = 0 if grid is None else grid * examples * len(ours.vector) ** 0.5
    assert (ours.vector - reference.vector).norm() <= SLACK * reference.vector.norm() + step


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_those_of_what_is_written_out_whatever_the_blocks(dtype, monkeypatch):
    """Large parameters of more examples than one block holds, widened in one buffer."""
    torch.manual_seed(3)
    monkeypatch.setattr(layer_rules, "_CACHED", 20_000)
    body = nn.Sequential(
        nn.Conv2d(16, 24, 3), nn.GroupNorm(2, 24), nn.Conv2d(24, 16, 3), nn.Flatten(), nn.Linear(256, 40)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        (gradients,) = LayerWise()(loss, Copies(body), (torch.randn(70, 2, 16, 8, 8),))
        factors = torch.rand(70, dtype=torch.float64)
        summed = gradients.weighted_sum(factors)
    rows = torch.cat([part.written_out().double() for part in gradients.parts], dim=1)[:70]
    expected = factors @ rows
    assert (summed - expected).norm() <= 1e-6 * expected.norm()
    assert (gradients.norms() >= rows.norm(dim=1)).all()
    assert (gradients.norms() <= rows.norm(dim=1) * (1 + 1e-4)).all()


def test_what_falls_back_keeps_no_graph():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.layer(x) * self.scale

    (gradients,) = LayerWise()(loss, Copies(Body()), (torch.randn(4, 2, 3),))
    assert not gradients.weighted_sum(torch.ones(4, dtype=torch.float64)).requires_grad
