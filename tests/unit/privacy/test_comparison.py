"""What a comparison of strategies needs of the machine."""

import pytest
import torch
from torch import nn

from dpdm.privacy import Vectorized
from dpdm.privacy.rehearsal import MadeUp, require_same_gradients


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
