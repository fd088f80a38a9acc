"""Every way of computing clipped gradients gives the same sum: a loop of single examples, and Opacus, agree.

What else a strategy promises is a guarantee of privacy: `tests/guarantees/test_clipping.py` asks every one of them for
the bound on one example, for empty batches, for the order of examples, and for copies that leave the bound alone.
"""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from dpdm import privacy
from dpdm.privacy import LayerWise, OneBackwardEach, Strategy, clipped_grad_sum
from strategies import STRATEGIES, every_strategy

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = 7
LAYER_WISE = 2**-15  # its norms are a little more than true, so that rounding never lets one past the clipping norm


class Net(nn.Module):
    """Image and label in, four numbers out: convolutions, both norms, linear layers and an embedding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.label = nn.Embedding(3, 36)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Conv2d(4, 2, 3, stride=2),
            nn.Flatten(),
            nn.Linear(8, 16),
            nn.LayerNorm(16),
            nn.Tanh(),
            nn.Linear(16, 4),
        )

    def forward(self, x, labels):
        return self.body(x + self.label(labels).view(-1, 1, 6, 6))


class Copies(NamedTuple):
    """K copies of each example, as noise multiplicity has them."""

    x: torch.Tensor
    labels: torch.Tensor
    scale: torch.Tensor


def loss(module, batch):
    """One number for each example, however many copies it has, of any size."""
    out = module(batch.x.flatten(0, 1), batch.labels.flatten())
    return out.view(*batch.x.shape[:2], 4).square().mean((1, 2)) * batch.scale


def setting(seed, dtype, copies=1):
    module, generator = Net(seed).to(dtype), torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, copies, 1, 6, 6, dtype=dtype, generator=generator)
    labels = torch.randint(3, (EXAMPLES, copies), generator=generator)
    return module, Copies(x, labels, torch.logspace(-2, 2, EXAMPLES, dtype=dtype))


def norm_in_the_middle(module, batch):
    """Return a clipping norm between the examples' norms, so that some are clipped and some are not."""
    summed = clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=OneBackwardEach())
    return summed.grad_norms.reveal(because="test").median().item()


def by_hand(module, batch, clip):
    """Return the sum, the losses and the norms of single examples."""
    losses, rows = [], []
    for i in range(EXAMPLES):
        module.zero_grad()
        losses.append(loss(module, Copies(*(part[i : i + 1] for part in batch))))
        losses[-1].sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]).double())
    module.zero_grad()
    norms = torch.stack(rows).norm(dim=1)
    return (clip / norms).clamp_max(1) @ torch.stack(rows), torch.cat(losses).detach(), norms


def close(found, expected, tolerance, strategy):
    if isinstance(strategy, LayerWise):
        tolerance = max(tolerance, LAYER_WISE)
    return (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


def test_every_strategy_is_among_them():
    public = [each for name in privacy.__all__ if isinstance(each := getattr(privacy, name), type)]
    assert {each for each in public if "__call__" in vars(each)} == {Strategy, *map(type, STRATEGIES.values())}


@every_strategy
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sum_is_that_of_single_examples_clipped_by_hand(strategy, seed, copies, dtype, tolerance):
    module, batch = setting(seed, dtype, copies)
    clip = norm_in_the_middle(module, batch)
    expected, losses, norms = by_hand(module, batch, clip)
    assert 0 < (norms > clip).sum() < EXAMPLES
    found = clipped_grad_sum(loss, module, batch, max_grad_norm=clip, strategy=strategy)
    assert found.sensitivity == clip
    assert found.vector.dtype == torch.float64
    assert close(found.vector, expected, tolerance, strategy)
    assert found.vector.norm() <= EXAMPLES * clip
    torch.testing.assert_close(found.losses.reveal(because="test").double(), losses.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.grad_norms.reveal(because="test").double(), norms, rtol=1e-4, atol=1e-6)


@every_strategy
@pytest.mark.filterwarnings("ignore")
def test_the_sum_is_that_of_opacus_gradients_clipped_by_hand(strategy):
    grad_sample = pytest.importorskip("opacus.grad_sample")
    module, batch = setting(4, torch.float64)
    clip = norm_in_the_middle(module, batch)
    ours = clipped_grad_sum(loss, module, batch, max_grad_norm=clip, strategy=strategy).vector
    wrapped = grad_sample.GradSampleModule(module, loss_reduction="sum")
    loss(wrapped, batch).sum().backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], dim=1)
    factors = (clip / rows.norm(dim=1)).clamp_max(1)
    assert 0 < (factors < 1).sum() < EXAMPLES
    assert close(ours, factors @ rows, 1e-12, strategy)


@every_strategy
@pytest.mark.parametrize("grid", [None, 2.0**-20])
def test_the_module_is_left_as_it_was(strategy, grid):
    module, batch = setting(5, torch.float32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy, grid=grid)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())


@every_strategy
def test_on_a_grid_every_number_is_a_whole_multiple_of_the_step(strategy):
    module, batch = setting(6, torch.float32)
    found = clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy, grid=2.0**-20).vector
    assert torch.equal(found, (found * 2**20).round() / 2**20)
    exact = clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy).vector
    assert (found - exact).abs().max().item() <= EXAMPLES * 2.0**-19
