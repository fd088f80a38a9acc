"""Per-example gradients layer by layer, from one ordinary backward pass over the whole batch.

The pass leaves each layer's input a and the gradient g of its output, for all rows: K noisy copies of each example,
side by side. The gradient of an example's weights is a sum over its own rows, so this work grows with examples and not
with copies, while the pass itself runs at the speed of training without privacy.
"""

import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import pad

from dpdm.privacy.clipping import (
    Batch,
    PerExampleLoss,
    map_batch,
    trainable_parameters,
    truncated_sum,
    vectorized_rows,
)
from dpdm.privacy.rehearsal import CannotRun, MadeUp, made_up, moved_copy, require_same_gradients
from dpdm.types import InputError, is_of_memory

_LARGE = 2**11  # numbers in a parameter from which on it is worth its own calls
_CACHED = 2**20  # numbers that are read again from a cache
_SUMMED = 32  # examples summed in float32; such sums are added in float64
_NARROW = 8  # channels: below, a matrix product always beats a convolution
_WORTH_A_CALL = 150_000_000  # products in one example's gradient: from here on it is worth its own calls


class _Part(Protocol):
    """The gradients of one parameter."""

    @property
    def numel(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype:
        """That of its arithmetic."""
        ...

    def squared_norms(self) -> Float64[Tensor, " batch"]: ...

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]: ...

    def written_out(self) -> Float[Tensor, "batch numel"]: ...


@dataclass(frozen=True)
class _WrittenOut:
    """One gradient of the parameter's shape for each example, in any memory layout and precision."""

    rows: Float[Tensor, "batch ..."]

    @property
    def numel(self) -> int:
        return self.rows.shape[1:].numel()

    @property
    def dtype(self) -> torch.dtype:
        return _accurate(self.rows)

    def squared_norms(self) -> Float64[Tensor, " batch"]:
        return self._squared_norms

    @cached_property
    def _squared_norms(self) -> Float64[Tensor, " batch"]:
        """Norms of at most 256 numbers at a time in float32, of these norms in float64."""
        norms = []
        for rows in _blocks(self._flat()[0]):
            whole = rows.shape[1] // 256 * 256
            parts = torch.linalg.vector_norm(rows[:, :whole].view(len(rows), -1, 256), dim=2)
            parts = torch.cat([parts, rows[:, whole:]], dim=1) if whole < rows.shape[1] else parts
            norms.append(torch.linalg.vector_norm(parts, dim=1, dtype=torch.float64))
        return torch.cat(norms).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        rows, shape, order = self._flat()
        rows.index_fill_(0, (factors == 0).nonzero().flatten(), 0)
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        start = 0
        for block in _blocks(rows):
            total += factors[start : start + len(block)].to(block.dtype) @ block
            start += len(block)
        return total.view(shape).permute(order).flatten()

    def written_out(self) -> Float[Tensor, "batch numel"]:
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


class _Factored(NamedTuple):
    """Σ_s g_s a_sᵀ for each example, not written out: cheaper while an example has few rows s for its widths."""

    a: Float[Tensor, "batch s inputs"]
    g: Float[Tensor, "batch s outputs"]

    @property
    def numel(self) -> int:
        return self.a.shape[2] * self.g.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    def squared_norms(self) -> Float64[Tensor, " batch"]:
        """Return Σ_{s,t} (a_s·a_t) (g_s·g_t) by Gram matrices, and what rounding in `weighted_sum` may add."""
        a, g = self.a.double(), self.g.double()
        exact = ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2)).clamp_min(0)
        terms = (a.square().sum(2) * g.square().sum(2)).sqrt().sum(1)
        return (exact.sqrt() + terms * 8 * torch.finfo(self.g.dtype).eps).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        root = factors.sqrt()[:, None, None]  # half of the factor to each side, so that neither becomes too small
        a, g = (torch.where(root != 0, t, 0) * root.to(t.dtype) for t in (self.a, self.g))
        total = torch.zeros(g.shape[2], a.shape[2], dtype=torch.float64, device=g.device)
        for start in range(0, len(g), _SUMMED):
            some = slice(start, start + _SUMMED)
            total += g[some].flatten(0, 1).mT @ a[some].flatten(0, 1)
        return total.flatten()

    def written_out(self) -> Float[Tensor, "batch numel"]:
        return (self.g.mT @ self.a).flatten(1)


@dataclass(frozen=True)
class _ByParameter:
    """The gradients of a group of examples, parameter by parameter; the last rows of each part are padding."""

    parts: list[_Part]
    losses: Float[Tensor, " batch"]
    padding: int
    layout: "list[_Called]"

    def norms(self) -> Float64[Tensor, " batch"]:
        with _exactly(self.losses):
            squared = torch.stack([part.squared_norms() for part, _ in self._joined]).sum(dim=0)
        # The factor pays for rounding, here and in the sums below (2^-16 in float32); the term for squares that vanish.
        numel, eps = (sum(p.numel for p in self.parts), max(torch.finfo(p.dtype).eps for p in self.parts))
        return (squared.sqrt() * (1 + 128 * eps) + math.sqrt(numel) * 2.0**-63)[: len(self.losses)]

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " parameters"]:
        factors = self._of_rows(factors)
        with _exactly(self.losses):
            return self._in_order(part.weighted_sum(factors) for part, _ in self._joined)

    def grid_sum(self, factors: Float64[Tensor, " batch"], step: float) -> Float64[Tensor, " parameters"]:
        factors = self._of_rows(factors)
        with _exactly(self.losses):
            return self._in_order(truncated_sum(part.written_out(), factors, step) for part, _ in self._joined)

    def _of_rows(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " rows"]:
        """Leave out padding, and what would have to shrink by more than float32 holds."""
        return pad(torch.where(factors < 2.0**-100, 0, factors), (0, self.padding))

    @cached_property
    def _joined(self) -> list[tuple[_Part, list[int]]]:
        """The parts with their places, small ones as one: their calls would cost more than the copy."""
        joined = [(part, [i]) for i, part in enumerate(self.parts) if not _is_small(part)]
        if small := [i for i, part in enumerate(self.parts) if _is_small(part)]:
            joined.append((_WrittenOut(torch.cat([self.parts[i].written_out() for i in small], dim=1)), small))
        return joined

    def _in_order(self, sums: Iterable[Float64[Tensor, " numel"]]) -> Float64[Tensor, " parameters"]:
        """Put sums over the joined parts where the parameters have their places."""
        placed: dict[int, Tensor] = {}
        for total, (_, places) in zip(sums, self._joined, strict=True):
            numels = [self.parts[i].numel for i in places]
            placed |= dict(zip(places, total.split(numels), strict=True))  # type: ignore[no-untyped-call]
        return torch.cat([placed[i] for i in range(len(self.parts))])


def _is_small(part: _Part) -> bool:
    return isinstance(part, _WrittenOut) and part.numel < _LARGE


def _linear(layer: nn.Linear, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    a, g = _full(a).reshape(examples, -1, a.shape[-1]), _full(g).reshape(examples, -1, g.shape[-1])
    factored = _Factored(a, g)
    few = a.shape[1] * (a.shape[2] + g.shape[2]) < a.shape[2] * g.shape[2]
    return [factored if few else _WrittenOut(factored.written_out()), _WrittenOut(g.sum(1))]


def _conv2d(layer: nn.Conv2d, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
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
    return [_WrittenOut(rows), _WrittenOut(biases)]


def _few_products(g: Tensor, *, channels_last: bool) -> int:
    """Return up to how many products, for each channel, one weight's gradient is sooner had by a matrix product.

    As measured on a processor. With channels last, patches are copied row by row, a few examples at a time; in
    bfloat16, matrix products are as fast as convolutions.
    """
    if not channels_last or g.device.type != "cpu":
        return 3
    return 20 if g.dtype == torch.bfloat16 else 8


def _conv2d_by_patches(layer: nn.Conv2d, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
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
    return [_WrittenOut(rows), _WrittenOut(biases)]


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


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    """Differentiate one norm of all examples' channels side by side: each example has weights of its own in it."""

    def beside(t: Tensor) -> Tensor:  # in three dimensions: with channels last, torch 2.13 crashes without a's gradient
        return t.reshape(examples, -1, t.shape[1], t.shape[2:].numel()).transpose(0, 1).flatten(1, 2)

    numel, dtype = examples * layer.num_channels, _accurate(g)
    weight, bias = (g.new_full((numel,), value, dtype=dtype, requires_grad=True) for value in (1, 0))
    with torch.enable_grad():
        out = nn.functional.group_norm(beside(a.to(g.dtype)), examples * layer.num_groups, weight, bias, layer.eps)
    both = torch.autograd.grad(out, (weight, bias), beside(g))
    return [_WrittenOut(_by_example(t, examples)) for t in both]


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    normed = nn.functional.layer_norm(_full(a), layer.normalized_shape, None, None, layer.eps)
    numel = math.prod(layer.normalized_shape)
    return [_WrittenOut(_full(t).reshape(examples, -1, numel).sum(1)) for t in (g * normed, g)]


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    indices = a.reshape(examples, -1, 1)
    g = _full(g).reshape(examples, indices.shape[1], -1)
    rows = g.new_zeros(examples, *layer.weight.shape).scatter_add(1, indices.expand_as(g), g)
    return [_WrittenOut(rows.flatten(1))]


_CHECKED_AGAIN = frozenset(8**i for i in range(1, 12))  # calls: what a network learns may change what it does
_NOT_LAYER_WISE = (
    "LayerWise computes wrong per-example gradients for this module: it uses a parameter outside its layer, reorders "
    "an example's copies, gives a layer some rows and not others, mixes examples, or is random. "
    "Use Vectorized or OneBackwardEach (machine.strategy=one-backward-each)"
)
_ROUTED = (
    "LayerWise needs all rows of all examples in every layer, and this module gives a layer some of them: "
    "use OneBackwardEach (machine.strategy=one-backward-each)"
)
_Rule = Callable[[nn.Module, Tensor, Tensor, int], list[_Part]]
_RULES = cast(
    dict[type[nn.Module], _Rule],
    {
        nn.Linear: _linear,
        nn.Conv2d: _conv2d,
        nn.GroupNorm: _group_norm,
        nn.LayerNorm: _layer_norm,
        nn.Embedding: _embedding,
    },
)


@dataclass
class _Seen:
    """How often a case was given to a strategy, and how it called its layers then."""

    calls: int = 0
    layout: "list[_Called]" = field(default_factory=list)


class _Called(NamedTuple):
    """One call of a layer: which of the module's it was, and how many rows each example had in it."""

    layer: int
    rows: int


@dataclass(frozen=True)
class LayerWise:
    """Known layers by their own rule, all other parameters by `torch.func`: the fastest for most networks.

    Rules exist for Linear, Conv2d, GroupNorm, LayerNorm and Embedding. A layer that is called more than once, and a
    parameter that several layers share, get the sum of their parts.

    All rows of all examples must pass every layer in the same order. An example's copies must be adjacent, as
    `DenoisingLoss` lays them out. So layers must be called alike whatever the examples are; that is checked at every
    call. The gradients are compared with those of `OneBackwardEach` on made-up examples: once for each module, loss,
    shape, mode and set of trainable parameters, and now and then again. Squares and factors are float32: an example
    too large for them contributes zero.

    Raises:
        InputError: The comparison failed; the rows of examples go different ways; or products are set to be rounded.

    Source:
        Goodfellow 2015 (arXiv 1510.01799); Gram matrices: Li et al. 2022, Section 4 ("ghost clipping").
    """

    _seen: "weakref.WeakKeyDictionary[nn.Module, dict[object, _Seen]]" = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __call__(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[_ByParameter]:
        """Yield the gradients of the whole batch as one group."""
        require_exact_products()
        seen = self._case(loss, module)
        if not seen.calls or seen.calls in _CHECKED_AGAIN:
            self.check(loss, module, *made_up(batch))
        of_shape = self._case(loss, module, batch)
        if not of_shape.layout:
            one = map_batch(lambda t: t[:1], next(made_up(batch)).batch)
            of_shape.layout = self._gradients(loss, module, one).layout
        seen.calls += 1
        padding = _padding(len(batch[0]))
        yield self._gradients(loss, module, batch, padding=padding, layout=of_shape.layout)

    def check(self, loss: PerExampleLoss, module: nn.Module, *examples: MadeUp) -> None:
        """Compare with `OneBackwardEach` on made-up examples, for a copy of the module with moved parameters.

        Args:
            loss: What steps will be given.
            module: The network, or the denoiser around it.
            examples: Batches of public content, one of which has finite gradients: what records are decides nothing.

        Raises:
            InputError: The gradients differ, or products are set to be rounded.
        """
        require_exact_products()
        moved = moved_copy(module)

        def unchecked(loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[_ByParameter]:
            yield self._gradients(loss, module, batch)

        try:
            compared = [
                require_same_gradients(unchecked, loss, moved, example, otherwise=_NOT_LAYER_WISE)
                for example in examples
            ]
        except (IndexError, RuntimeError) as error:
            if is_of_memory(error):
                raise
            raise InputError(f"{_NOT_LAYER_WISE} ({str(error).splitlines()[0]})") from error
        if not any(compared):
            raise CannotRun(f"{_NOT_LAYER_WISE} (no made-up example has a finite gradient)")
        self._case(loss, module).calls += 1

    def _case(self, loss: PerExampleLoss, module: nn.Module, batch: Batch = ()) -> _Seen:
        trained = tuple(p.requires_grad for p in module.parameters())
        mode = tuple(layer.training for layer in module.modules())
        case = loss, trained, mode, tuple((t.shape[1:], t.dtype) for t in batch)
        return self._seen.setdefault(module, {}).setdefault(case, _Seen())

    def _gradients(
        self,
        loss: PerExampleLoss,
        module: nn.Module,
        batch: Batch,
        *,
        padding: int = 0,
        layout: Sequence[_Called] | None = None,
    ) -> _ByParameter:
        batch = map_batch(lambda t: torch.cat([t, t[-1:].expand(padding, *t.shape[1:])]), batch) if padding else batch
        parameters = trainable_parameters(module)
        wanted = set(parameters)
        parts: dict[nn.Parameter, _Part] = {}
        roots: list[Tensor] = []
        places = {layer: place for place, layer in enumerate(module.modules())}
        called: list[_Called] = []

        def remember(
            layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor | None:
            own = [(i, p) for i, p in enumerate((layer.weight, getattr(layer, "bias", None))) if p in wanted]
            if not own or not torch.is_grad_enabled():
                return None
            rows, left_over = divmod(len(output), len(batch[0])) if output.ndim else (0, 1)
            called.append(_Called(places[layer], rows))
            if left_over or (layout is not None and [*layout[len(called) - 1 : len(called)]] != called[-1:]):
                raise InputError(_NOT_LAYER_WISE if layout is None else _ROUTED)
            if not output.requires_grad:
                roots.append(output.detach().requires_grad_())
                output = roots[-1].clone()  # what a module may change in place
            a = (*inputs, *named.values())[0].detach()

            def collect(g: Tensor) -> None:
                with _exactly(g):
                    found = _RULES[type(layer)](layer, a, g, len(batch[0]))
                    for i, parameter in cast(list[tuple[int, nn.Parameter]], own):
                        part, before = found[i], parts.get(parameter)
                        parts[parameter] = part = part if before is None else _sum(before, part)
                        if isinstance(part, _WrittenOut) and not _is_small(part):
                            part.squared_norms()  # now, while it is in a cache

            output.register_hook(collect)  # type: ignore[no-untyped-call]
            return output

        # The weights are frozen and the outputs of the first layers are the leaves, so that the pass computes output
        # gradients alone; each is used and dropped as it comes.
        hooks = [
            layer.register_forward_hook(remember, with_kwargs=True) for layer in module.modules() if _has_rule(layer)
        ]
        for p in parameters:
            p.requires_grad_(False)
        try:
            losses = loss(module, batch)
            if roots and losses.requires_grad:
                torch.autograd.grad(losses.sum(), roots, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
            for p in parameters:
                p.requires_grad_()
        if layout is not None and len(called) < len(layout):
            raise InputError(_ROUTED)
        if rest := [p for p in parameters if p not in parts]:
            rows = torch.split(vectorized_rows(loss, module, batch, rest).rows, [p.numel() for p in rest], dim=1)
            parts |= {p: _WrittenOut(part) for p, part in zip(rest, rows, strict=True)}
        losses = losses.detach()[: len(losses) - padding]
        return _ByParameter([parts[p] for p in parameters], losses, padding, called)


def require_exact_products() -> None:
    """Refuse settings by which torch rounds the operands of float32 products: to TF32, or to bfloat16.

    Norms and sums of one gradient are different products here. Rounding them differently would leave clipped gradients
    longer than C by up to a thousandth.

    Raises:
        InputError: Names the setting, or the environment variable, and what to do.
    """
    for variable in ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE"):
        if os.environ.get(variable, "0") not in ("", "0"):
            raise InputError(f"{variable} forces TF32, in which clipped gradients could be too long: set it to 0")
    for variable in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        if os.environ.get(variable, "STRICT").upper() not in ("", "STRICT"):
            raise InputError(f"{variable} lets products be rounded, and clipped gradients could be too long: unset it")
    matmul = {"torch.backends.cuda.matmul": torch.backends.cuda.matmul}
    if hasattr(torch.backends.mkldnn, "matmul"):  # from torch 2.9 on
        matmul["torch.backends.mkldnn.matmul"] = torch.backends.mkldnn.matmul
    found = {name: getattr(backend, "fp32_precision", "ieee") for name, backend in matmul.items()}
    found = {name: precision for name, precision in found.items() if precision not in ("ieee", "none")}
    if not found and torch.get_float32_matmul_precision() != "highest":
        found = {"torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision()}
    for name, precision in found.items():
        raise InputError(
            f"{name} is {precision!r}, by which clipped gradients could be too long: call "
            "torch.set_float32_matmul_precision('highest')"
        )


def _padding(examples: int) -> int:
    """Return how many rows to add: up to a sixteenth, so that a few sizes stand for all that Poisson batches have.

    Libraries keep what they compile for each size. For all of them that takes gigabytes in a long training, and time.
    """
    coarse = 1 << max(0, examples.bit_length() - 5)
    return -examples % coarse


def _has_rule(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.scale_grad_by_freq):
        return False
    return type(layer) in _RULES


def _sum(one: _Part, other: _Part) -> _Part:
    return _WrittenOut(one.written_out() + other.written_out())


def _by_example(t: Tensor, examples: int) -> Tensor:
    """Part the first axis into examples and their copies."""
    return t.reshape(examples, -1, *t.shape[1:])


def _exactly(t: Tensor) -> torch.autocast:
    """Return a context in which nothing is cast to bfloat16: factors never multiply rounded operands."""
    return torch.autocast(t.device.type, enabled=False)


def _full(t: Tensor) -> Tensor:
    """Return `t` in float32, or better if it is."""
    return t.to(_accurate(t))


def _accurate(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
