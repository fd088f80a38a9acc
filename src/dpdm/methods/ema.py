"""The exponential moving average of the weights: post-processing of private gradients, and what is released."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dpdm.networks import TextNetwork
from dpdm.networks.low_rank import merged
from dpdm.types import InputError, is_of_memory, one_line

M = TypeVar("M", bound=nn.Module)


def start(module: M) -> M:
    """Return a frozen copy of `module` that will hold the average; public weights that stay as they are, they share.

    Raises:
        InputError: It cannot be copied.
    """
    shared = [p for part in module.modules() if isinstance(part, TextNetwork) for p in part.kept()]
    try:
        average = copy.deepcopy(module, {id(p): p for p in shared})
    except Exception as error:  # whatever a network of one's own does
        if is_of_memory(error):
            raise
        raise InputError(f"the network cannot be copied, as its average must be: {one_line(error)}") from error
    average.requires_grad_(False)
    return average


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, *, updates: int, decay: float) -> None:
    """Move `average` towards `module` after its update number `updates`.

    The weight of the past is min(decay, (1 + n) / (10 + n)), so that the first, random weights are soon forgotten.
    Where a matrix trains as W + B A, `average` has that alone, under the name of W.
    """
    weight = min(decay, (1 + updates) / (10 + updates))
    pairs: Iterable[tuple[nn.Parameter, Tensor]]
    if changed := list(merged(module)):
        pairs = ((average.get_parameter(name), fast) for name, fast in changed)
    else:
        both = zip(average.parameters(), module.parameters(), strict=True)
        pairs = ((slow, fast) for slow, fast in both if fast.requires_grad)  # a frozen one stays, whole numbers too
    for slow, fast in pairs:
        slow.lerp_(fast, 1 - weight)
