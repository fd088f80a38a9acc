"""Activation checkpointing: what a block computes is computed again in the backward pass, and not kept until then.

Source:
    Chen et al. 2016 (sublinear memory cost).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpdm.types import InputError

_BLOCKS = frozenset({"ResnetBlock2D", "Attention", "BasicTransformerBlock"})  # of `diffusers`, the outermost ones


def compute_again(module: nn.Module) -> None:
    """Let the blocks of a network of `diffusers` keep nothing but their inputs for the backward pass.

    Raises:
        InputError: There are no such blocks.
    """
    blocks = [*_outermost(module)]
    if not blocks:
        raise InputError("machine.checkpointing is for a network of diffusers, and there is none: leave it out")
    for block in blocks:
        block.forward = functools.partial(_twice, type(block).forward, block)


@contextmanager
def keeping_all(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the blocks that compute again, which do not, within."""
    blocks = [layer for layer in module.modules() if "forward" in vars(layer)]
    own = [vars(block).pop("forward") for block in blocks]
    try:
        yield blocks
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.forward = forward


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in _BLOCKS:
            yield child
        else:
            yield from _outermost(child)


def _twice(forward: Callable[..., Any], block: nn.Module, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 (of any block)
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():  # torch.func keeps all
        return forward(block, *inputs, **named)
    return checkpoint(forward, block, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
