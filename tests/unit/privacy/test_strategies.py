"""Every way of computing clipped gradients gives the same sum: a loop of single examples, and Opacus, agree."""

import pytest
import torch
from torch import nn

from dpdm.privacy import OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.privacy.rehearsal import MadeUp, require_same_gradients


class Net(nn.Module):
    """Image and label in, four numbers out."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.label = nn.Embedding(3, 36)
        self.body = {
            "conv": lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.GroupNorm(2, 4),
                nn.SiLU(),
                nn.Conv2d(4, 2, 3, stride=2),
                nn.Flatten(),
                nn.Linear(8, 4),
            ),
            "mlp": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(36, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4)
            ),
        }[kind]()

    def forward(self, x, labels):
        return self.body(x + self.label(labels).view(-1, 1, 6, 6))


def loss(module, batch):
    x, labels = batch
    return module(x, labels).square().mean(1)


def setting(kind, seed, dtype):
    module = Net(kind, seed).to(dtype)
    x = torch.randn(7, 1, 6, 6, dtype=dtype) * torch.logspace(-2, 2, 7, dtype=dtype)[:, None, None, None]
    return module, (x, torch.randint(3, (7,)))


def clip(module, batch):
    """Return a clipping norm between the examples' norms, so that some are clipped and some are not."""
    norms = clipped_grad_sum(loss, module, batch, max_grad_norm=1.0).grad_norms.reveal(because="test")
    return norms.median().item()


SETTINGS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
KINDS = pytest.mark.parametrize("kind", ["conv", "mlp"])


def close(a, b, tolerance):
    return (a.double() - b.double()).norm() <= tolerance * b.double().norm()


@SETTINGS
@KINDS
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_strategies_agree(kind, seed, dtype, tolerance):
    module, batch = setting(kind, seed, dtype)
    c = clip(module, batch)
    one = clipped_grad_sum(loss, module, batch, max_grad_norm=c, strategy=OneBackwardEach())
    all_ = clipped_grad_sum(loss, module, batch, max_grad_norm=c, strategy=Vectorized())
    assert one.vector.dtype == all_.vector.dtype == torch.float64
    assert one.sensitivity == all_.sensitivity == c
    assert close(all_.vector, one.vector, tolerance)
    for a, b in ((one.losses, all_.losses), (one.grad_norms, all_.grad_norms)):
        torch.testing.assert_close(a.reveal(because="test"), b.reveal(because="test"), rtol=1e-4, atol=1e-6)


@SETTINGS
@KINDS
@pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized()], ids=["one backward", "vectorized"])
def test_the_sum_is_that_of_single_examples_clipped_by_hand(kind, strategy, dtype, tolerance):
    module, batch = setting(kind, 3, dtype)
    c = clip(module, batch)
    expected = 0
    for i in range(7):
        module.zero_grad()
        loss(module, tuple(t[i : i + 1] for t in batch)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()]).double()
        expected = expected + gradient * min(1.0, c / gradient.norm().item())
    module.zero_grad()
    assert close(clipped_grad_sum(loss, module, batch, max_grad_norm=c, strategy=strategy).vector, expected, tolerance)
    assert all(p.grad is None for p in module.parameters())


@SETTINGS
@KINDS
@pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized()], ids=["one backward", "vectorized"])
@pytest.mark.filterwarnings("ignore")
def test_the_sum_is_that_of_opacus_gradients_clipped_by_hand(kind, strategy, dtype, tolerance):
    grad_sample = pytest.importorskip("opacus.grad_sample")
    module, batch = setting(kind, 4, dtype)
    c = clip(module, batch)
    ours = clipped_grad_sum(loss, module, batch, max_grad_norm=c, strategy=strategy).vector
    wrapped = grad_sample.GradSampleModule(module, loss_reduction="sum")
    loss(wrapped, batch).sum().backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], dim=1).double()
    factors = (c / rows.norm(dim=1)).clamp_max(1)
    assert 0 < (factors < 1).sum() < 7
    assert close(ours, factors @ rows, tolerance)


def test_a_named_tuple_stays_one():
    from typing import NamedTuple

    class Named(NamedTuple):
        x: torch.Tensor
        scale: torch.Tensor

    module, batch = nn.Linear(3, 1), Named(torch.randn(4, 3), torch.ones(4))
    sums = [
        clipped_grad_sum(
            lambda m, b: m(b.x)[:, 0] * b.scale, module, batch, max_grad_norm=1.0, strategy=strategy
        ).vector
        for strategy in (OneBackwardEach(), Vectorized())
    ]
    torch.testing.assert_close(sums[0], sums[1])


def test_the_module_is_left_as_it_was():
    module, batch = setting("conv", 5, torch.float32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for strategy in (OneBackwardEach(), Vectorized()):
        clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("before", [True, False])
def test_strategies_are_compared_without_the_tf32_of_a_gpus_convolutions(before, monkeypatch):
    """Rounding each operand to eleven bits, two right ways could differ by more than the comparison allows."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", before)
    seen = []

    def looking(*arguments):
        seen.append(cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32)
        return Vectorized()(*arguments)

    module, batch = setting("conv", 0, torch.float32)
    assert require_same_gradients(looking, loss, module, MadeUp(batch), otherwise="differs")
    assert seen in (["ieee"], [False])
    assert cudnn.allow_tf32 == before
