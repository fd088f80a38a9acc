"""The gradient of each example in one layer, from the layer's inputs and the gradients of its outputs.

Each rule takes the cheapest of several ways by counted products: Gram matrices, one matrix product, one grouped
convolution, or a call for each example.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

_CACHED = 2**20  # numbers that are read again from a cache
_SUMMED = 32  # examples summed in float32; such sums are added in float64
_NARROW = 8  # channels: below, a matrix product always beats a convolution
_WORTH_A_CALL = 150_000_000  # products in one example's gradient: from here on it is worth its own calls


@dataclass(frozen=True)
class WrittenOut:
    """One gradient of the parameter's shape for each example, in any memory layout and precision."""

    rows: Float[Tensor, "batch ..."]

    @property
    def numel(self) -> int:
        """How many numbers the parameter has."""
        return self.rows.shape[1:].numel()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its arithmetic."""
        return _accurate(self.rows)

    @cached_property
    def squared_norms(self) -> Float64[Tensor, " batch"]:
        """The squared norm of each: norms of at most 256 numbers at a time in float32, of these in float64."""
        norms = []
        for rows in _blocks(self._flat()[0]):
            whole = rows.shape[1] // 256 * 256
            parts = torch.linalg.vector_norm(rows[:, :whole].view(len(rows), -1, 256), dim=2)
            parts = torch.cat([parts, rows[:, whole:]], dim=1) if whole < rows.shape[1] else parts
            norms.append(torch.linalg.vector_norm(parts, dim=1, dtype=torch.float64))
        return torch.cat(norms).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        """Return the sum, added up in float64; rows of factor 0 become zeros, whatever they were."""
        rows, shape, order = self._flat()
        rows.index_fill_(0, (factors == 0).nonzero().flatten(), 0)
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        start = 0
        for block in _blocks(rows):
            total += factors[start : start + len(block)].to(block.dtype) @ block
            start += len(block)
        return total.view(shape).permute(order).flatten()

    def written_out(self) -> Float[Tensor, "batch numel"]:
        """Return the rows in the parameter's order."""
        return _full(self.rows).flatten(1)

    def _flat(self) -> tuple[Float[Tensor, "batch numel"], list[int], list[int]]:
        """Return the rows as they lie in memory, the shape of one there, and the order that gives the parameter's."""
        by_stride = sorted(range(1, self.rows.ndim), key=self.rows.stride, reverse=True)
        rows = self.rows.permute(0, *by_stride)
        return rows.flatten(1), list(rows.shape[1:]), [by_stride.index(d) for d in range(1, rows.ndim)]


def _blocks(rows: Float[Tensor, "batch numel"]) -> Iterator[Float[Tensor, "block numel"]]:
    """Yield a few rows at a time in float32 or better, which a cache holds; valid until the next."""
    at_once = min(_SUMMED, max(1, _CACHED // max(1, rows.shape[1])))
    blocks = rows.split(at_once)  # type: ignore[no-untyped-call]
    if rows.dtype == _accurate(rows):
        yield from blocks
        return
    buffer = rows.new_empty(at_once, rows.shape[1], dtype=_accurate(rows))  # the same for all: else each would be cold
    for block in blocks:
        yield buffer[: len(block)].copy_(block)


class Factored(NamedTuple):
    """Σ_s g_s a_sᵀ for each example, not written out: cheaper while an example has few rows s for its widths."""

    a: Float[Tensor, "batch s inputs"]
    g: Float[Tensor, "batch s outputs"]

    @property
    def numel(self) -> int:
        """How many numbers the parameter has."""
        return self.a.shape[2] * self.g.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its arithmetic."""
        return self.g.dtype

    @property
    def squared_norms(self) -> Float64[Tensor, " batch"]:
        """Σ_{s,t} (a_s·a_t) (g_s·g_t) by Gram matrices, and what rounding in `weighted_sum` may add."""
        a, g = self.a.double(), self.g.double()
        exact = ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2)).clamp_min(0)
        terms = (a.square().sum(2) * g.square().sum(2)).sqrt().sum(1)
        return (exact.sqrt() + terms * 8 * torch.finfo(self.g.dtype).eps).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        """Return the sum by one product for every 32 examples, added up in float64."""
        root = factors.sqrt()[:, None, None]  # half of the factor to each side, so that neither becomes too small
        a, g = (torch.where(root != 0, t, 0) * root.to(t.dtype) for t in (self.a, self.g))
        total = torch.zeros(g.shape[2], a.shape[2], dtype=torch.float64, device=g.device)
        for start in range(0, len(g), _SUMMED):
            some = slice(start, start + _SUMMED)
            total += g[some].flatten(0, 1).mT @ a[some].flatten(0, 1)
        return total.flatten()

    def written_out(self) -> Float[Tensor, "batch numel"]:
        """Return the products."""
        return (self.g.mT @ self.a).flatten(1)


Part = WrittenOut | Factored
"""The gradients of one parameter."""


def _linear(layer: nn.Linear, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    a, g = _full(a).reshape(examples, -1, a.shape[-1]), _full(g).reshape(examples, -1, g.shape[-1])
    factored = Factored(a, g)
    few = a.shape[1] * (a.shape[2] + g.shape[2]) < a.shape[2] * g.shape[2]
    return [factored if few else WrittenOut(factored.written_out()), WrittenOut(g.sum(1))]


def _conv2d(layer: nn.Conv2d, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    a, copies = a.to(g.dtype), len(a) // examples
    products, channels = copies * g.shape[2:].numel(), min(layer.in_channels, layer.out_channels)
    channels_last = a.is_contiguous(memory_format=torch.channels_last)
    few = products <= channels * _few_products(g, channels_last=channels_last)
    if layer.groups == 1 and (few or channels < _NARROW or (channels_last and layer.kernel_size == (1, 1))):
        return _conv2d_by_patches(layer, a, g, examples)

    def backward(g: Tensor, a: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        geometry = (layer.stride, layer.padding, layer.dilation, False, (0, 0), groups)
        grads = torch.ops.aten.convolution_backward(g, a, weight, [len(weight)], *geometry, (False, True, True))
        return grads[1:]  # type: ignore[no-any-return]

    if products * layer.weight.numel() >= _WORTH_A_CALL:
        weight = layer.weight.detach().to(g.dtype)
        pairs = zip(g.split(copies), a.split(copies), strict=True)  # type: ignore[no-untyped-call]
        each = [backward(g_i, a_i, weight, layer.groups) for g_i, a_i in pairs]
        rows, biases = (torch.stack(t) for t in zip(*each, strict=True))
    else:  # the examples as groups of one convolution, their copies as its batch
        weight = g.new_empty(examples * len(layer.weight), *layer.weight.shape[1:])
        both = backward(_side_by_side(g, examples), _side_by_side(a, examples), weight, examples * layer.groups)
        rows, biases = (_by_example(t, examples) for t in both)
    return [WrittenOut(rows), WrittenOut(biases)]


def _few_products(g: Tensor, *, channels_last: bool) -> int:
    """Return up to how many products, for each channel, one weight's gradient is sooner had by a matrix product.

    As measured on a processor. With channels last, patches are copied row by row, a few examples at a time; in
    bfloat16, matrix products are as fast as convolutions.
    """
    if not channels_last or g.device.type != "cpu":
        return 3
    return 20 if g.dtype == torch.bfloat16 else 8


def _conv2d_by_patches(layer: nn.Conv2d, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    """One matrix product for each example: of its output gradients and what the kernel saw there.

    Where the outputs are few and the kernel moves by one pixel, of its inputs and the gradients they had a part in.
    """
    assert isinstance(layer.padding, tuple)
    (high, wide), (outputs, inputs, *kernel) = layer.padding, layer.weight.shape
    a = nn.functional.pad(a.permute(0, 2, 3, 1), (0, 0, wide, wide, high, high))
    g = g.permute(0, 2, 3, 1)
    biases = _full(g).reshape(examples, -1, outputs).sum(1)
    if outputs < inputs and layer.stride == layer.dilation == (1, 1):
        down, right = kernel[0] - 1, kernel[1] - 1
        g = nn.functional.pad(g, (0, 0, right, right, down, down))
        had = _windows(g, a.shape[1:3], kernel, layer.stride, layer.dilation)
        rows = _products(a.reshape(examples, -1, inputs), had).view(examples, inputs, *kernel, outputs)
        rows = rows.flip(2, 3).permute(0, 4, 1, 2, 3)
    else:
        seen = _windows(a, g.shape[1:3], kernel, layer.stride, layer.dilation)
        rows = _products(g.reshape(examples, -1, outputs), seen).view(examples, outputs, *kernel, inputs)
        rows = rows.permute(0, 1, 4, 2, 3)
    return [WrittenOut(rows), WrittenOut(biases)]


def _products(t: Float[Tensor, "batch s c"], windows: Tensor) -> Float[Tensor, "batch c patch"]:
    """Return Σ_s t_s w_sᵀ for each example, w_s being its windows: a few examples at a time, which a cache holds."""
    examples, patch = len(t), math.prod(windows.shape[3:])
    windows = _by_example(windows, examples)
    rows = t.new_empty(examples, t.shape[2], patch)
    threads = torch.get_num_threads()
    at_once = threads * max(1, _CACHED // (threads * t.shape[1] * patch)) if t.device.type == "cpu" else examples
    for start in range(0, examples, at_once):
        some = slice(start, start + at_once)
        torch.bmm(t[some].mT, windows[some].reshape(-1, t.shape[1], patch), out=rows[some])
    return rows


def _windows(
    t: Tensor, size: Sequence[int], kernel: list[int], stride: tuple[int, ...], apart: tuple[int, ...]
) -> Tensor:
    """Return what a kernel sees in `t` (n, h, w, c) at each of the places: (n, *size, *kernel, c), not copied."""
    t = t.contiguous()
    image, line, pixel, _ = t.stride()
    strides = (image, stride[0] * line, stride[1] * pixel, apart[0] * line, apart[1] * pixel, 1)
    return t.as_strided((len(t), *size, *kernel, t.shape[3]), strides)


def _side_by_side(t: Tensor, examples: int) -> Tensor:
    """Make the channels of all examples those of one image: (copies, examples · c, h, w), in the layout of `t`."""
    if t.is_contiguous(memory_format=torch.channels_last):
        return _by_example(t.permute(0, 2, 3, 1), examples).permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2)
    return _by_example(t, examples).transpose(0, 1).flatten(1, 2)


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    """Differentiate one norm of all examples' channels side by side: each example has weights of its own in it."""

    def beside(t: Tensor) -> Tensor:  # in three dimensions: with channels last, torch 2.13 crashes without a's gradient
        return t.reshape(examples, -1, t.shape[1], t.shape[2:].numel()).transpose(0, 1).flatten(1, 2)

    numel, dtype = examples * layer.num_channels, _accurate(g)
    weight, bias = (g.new_full((numel,), value, dtype=dtype, requires_grad=True) for value in (1, 0))
    with torch.enable_grad():
        out = nn.functional.group_norm(beside(a.to(g.dtype)), examples * layer.num_groups, weight, bias, layer.eps)
    both = torch.autograd.grad(out, (weight, bias), beside(g))
    return [WrittenOut(_by_example(t, examples)) for t in both]


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    normed = nn.functional.layer_norm(_full(a), layer.normalized_shape, None, None, layer.eps)
    numel = math.prod(layer.normalized_shape)
    return [WrittenOut(_full(t).reshape(examples, -1, numel).sum(1)) for t in (g * normed, g)]


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor, examples: int) -> list[Part]:
    indices = a.reshape(examples, -1, 1)
    g = _full(g).reshape(examples, indices.shape[1], -1)
    rows = g.new_zeros(examples, *layer.weight.shape).scatter_add(1, indices.expand_as(g), g)
    return [WrittenOut(rows.flatten(1))]


_Rule = Callable[[nn.Module, Tensor, Tensor, int], list[Part]]
RULES = cast(
    dict[type[nn.Module], _Rule],
    {
        nn.Linear: _linear,
        nn.Conv2d: _conv2d,
        nn.GroupNorm: _group_norm,
        nn.LayerNorm: _layer_norm,
        nn.Embedding: _embedding,
    },
)


def has_rule(layer: nn.Module) -> bool:
    """Tell whether a rule covers this layer as it is set."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.scale_grad_by_freq):
        return False
    return type(layer) in RULES


def _by_example(t: Tensor, examples: int) -> Tensor:
    """Part the first axis into examples and their copies."""
    return t.reshape(examples, -1, *t.shape[1:])


def exactly(t: Shaped[Tensor, "..."]) -> torch.autocast:
    """Return a context in which nothing is cast to bfloat16: factors never multiply rounded operands."""
    return torch.autocast(t.device.type, enabled=False)


def _full(t: Tensor) -> Tensor:
    """Return `t` in float32, or better if it is."""
    return t.to(_accurate(t))


def _accurate(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
