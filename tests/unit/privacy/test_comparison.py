"""What a comparison of strategies needs of the machine."""

import pytest
import torch
from torch import nn

from dpdm.methods.classifier import Labelled, LabelLoss
from dpdm.privacy import LayerWise, Vectorized
from dpdm.privacy.rehearsal import MadeUp, made_up, require_same_gradients
from dpdm.types import InputError


def loss(module, batch):
    return module(batch[0]).square().flatten(1).mean(1)


@pytest.mark.parametrize("before", [True, False])
def test_strategies_are_compared_without_the_tf32_of_a_gpus_convolutions(before, monkeypatch):
    """Rounding each operand to eleven bits, two right ways could differ by more than the comparison allows."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", before)
    seen = []

    def looking(*arguments):
        seen.append(cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32)
        return Vectorized()(*arguments)

    module, batch = nn.Conv2d(1, 2, 3), (torch.randn(7, 1, 6, 6),)
    assert require_same_gradients(looking, loss, module, MadeUp(batch), otherwise="differs")
    assert seen in (["ieee"], [False])
    assert cudnn.allow_tf32 == before


def saturated(by):
    """Return a classifier of two classes, and an image whose second logit is the higher one by `by`."""
    module = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.0], [by]]))
    return module, Labelled(torch.ones(2, 1), torch.tensor([1, 0]))


@pytest.mark.parametrize("strategy", [LayerWise(), Vectorized()])
@pytest.mark.parametrize("by", [60, 75, 88, 90, 95, 100, 103, 110])
@pytest.mark.parametrize("both", [True, False])
def test_a_gradient_that_float32_hardly_holds_refuses_no_run(strategy, by, both):
    """p(wrong) = e^-by: from 88 on, it is no normal number of float32, nor is what would make it as long as others."""
    module, batch = saturated(float(by))
    batch = batch if both else Labelled(*(t[:1] for t in batch))
    assert require_same_gradients(
        lambda *given: strategy(*given), LabelLoss(), module, MadeUp(batch, 1e-2), otherwise="differs"
    )


@pytest.mark.parametrize("by", [60, 90, 110])
def test_a_wrong_gradient_beside_one_that_vanishes_is_found(by):
    def of_other_labels(loss, module, batch):
        return Vectorized()(loss, module, batch._replace(labels=torch.tensor([1, 1])))

    module, batch = saturated(float(by))
    with pytest.raises(InputError, match="differs"):
        require_same_gradients(of_other_labels, LabelLoss(), module, MadeUp(batch, 1e-2), otherwise="differs")


def test_made_up_features_of_a_linear_classifier_refuse_no_run():
    """Their logits are thousands apart, as those of a classifier that has taken noisy steps."""
    batch = Labelled(torch.zeros(3, 512), torch.zeros(3, dtype=torch.int64))
    for seed in range(20):
        module = nn.Linear(512, 2)
        with torch.no_grad():
            module.weight.copy_(0.1 * torch.randn(2, 512, generator=torch.Generator().manual_seed(seed)))
        LayerWise().check(LabelLoss(), module, *made_up(batch))
