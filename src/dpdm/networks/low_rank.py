"""Matrices W that train as W + B A: W stays as it is, and B A has a low rank.

A matrix is the weight of a Linear or of an ungrouped Conv2d layer. Of a convolution, it has one row for each channel
that comes out.
"""

import copy
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

Matrix = nn.Linear | nn.Conv2d


def matrices(network: nn.Module) -> dict[str, Matrix]:
    """Return the layers that have a matrix, by name, in the order of the network."""
    return {name: cast(Matrix, layer) for name, layer in network.named_modules() if _has_matrix(layer)}


class LowRank(nn.Module):
    """A layer with the weight W + B A, of which A and B alone are parameters of training.

    B is zero at first, so the layer begins as it was. The rows of A are at right angles and of length one, so the
    gradient of B is never longer than that of W.

    Args:
        layer: The layer with W, which it shares.
        rank: Rows of A; no more than W has rows or columns.
        random: What A is drawn from.

    Source:
        Hu et al. 2022 (LoRA), with a scale of one; private: Tsai et al. 2025 (DP-LoRA).
    """

    def __init__(self, layer: Matrix, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        weight = layer.weight
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.a, self.b = _pair(layer, rank)
        drawn = torch.randn(columns, rank, generator=random, dtype=torch.float64, device="cpu")
        across = torch.linalg.qr(drawn).Q.T.to(weight)
        with torch.no_grad():
            self.a.weight.copy_(across.reshape(self.a.weight.shape))
            self.b.weight.zero_()

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return (W + B A) x, and the layer's bias."""
        answer: Tensor = self.layer(x) + self.b(self.a(x))
        return answer

    def merged(self) -> Float[Tensor, "row ..."]:
        """Return W + B A."""
        weight = self.layer.weight
        return weight + (self.b.weight.flatten(1) @ self.a.weight.flatten(1)).view(weight.shape)


def _pair(layer: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return layers for A and for B whose weights nobody has drawn: of a convolution, A has its kernel, B a pixel."""
    weight = layer.weight
    a: Matrix
    b: Matrix
    if isinstance(layer, nn.Linear):
        a = nn.Linear(layer.in_features, rank, bias=False, device="meta", dtype=weight.dtype)
        b = nn.Linear(rank, layer.out_features, bias=False, device="meta", dtype=weight.dtype)
    else:
        a = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            device="meta",
            dtype=weight.dtype,
        )
        b = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta", dtype=weight.dtype)
    a, b = (each.to_empty(device=weight.device) for each in (a, b))
    if weight.is_contiguous(memory_format=torch.channels_last):
        a, b = (each.to(memory_format=torch.channels_last) for each in (a, b))  # type: ignore[call-overload]
    return a, b


def low_rank(network: nn.Module, rank: int, *, seed: int) -> nn.Module:
    """Return the network with B A beside each matrix; it shares all tensors with `network`, and trains A and B alone.

    Args:
        network: It stays as it is, but for what trains of it: nothing.
        rank: Of B A, where the matrix is not smaller.
        seed: Of A, which is public.
    """
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    adapted = copy.deepcopy(network, shared).requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name, layer in matrices(adapted).items():
        above, _, own = name.rpartition(".")
        adapted.get_submodule(above).register_module(own, LowRank(layer, rank, random))
    return adapted


def merged(network: nn.Module) -> Iterator[tuple[str, Float[Tensor, "row ..."]]]:
    """Yield each W + B A that trains, with the name that W has in the network without A and B."""
    for name, layer in network.named_modules():
        if isinstance(layer, LowRank) and layer.b.weight.requires_grad:
            yield f"{name}.weight", layer.merged()


def _has_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
