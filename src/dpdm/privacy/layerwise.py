"""Per-example gradients layer by layer, from one ordinary backward pass over the whole batch.

The pass leaves each layer's input a and the gradient g of its output, for all rows: K noisy copies of each example,
side by side. The gradient of an example's weights is a sum over its own rows, so this work grows with examples and not
with copies, while the pass itself runs at the speed of training without privacy.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from dpdm.privacy.clipping import (
    Batch,
    OneBackwardEach,
    PerExampleLoss,
    map_batch,
    trainable_parameters,
    vectorized_rows,
)
from dpdm.types import InputError

_MANY_COPIES = 16  # from here on one call of an operator per example is cheaper than one call with a group for each


class _Part(Protocol):
    """The gradients of one parameter."""

    def squared_norms(self) -> Float64[Tensor, " batch"]: ...

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]: ...

    def written_out(self) -> Float[Tensor, "batch numel"]: ...


class _WrittenOut(NamedTuple):
    """One row for each example."""

    rows: Float[Tensor, "batch numel"]

    def squared_norms(self) -> Float64[Tensor, " batch"]:
        return cast(Tensor, torch.linalg.vector_norm(self.rows, dim=1, dtype=torch.float64)).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        rows = torch.where(factors[:, None] != 0, self.rows, 0)
        return (factors.to(rows.dtype) @ rows).double()

    def written_out(self) -> Float[Tensor, "batch numel"]:
        return self.rows


class _Factored(NamedTuple):
    """Σ_s g_s a_sᵀ for each example, not written out: cheaper while an example has few rows s for its widths."""

    a: Float[Tensor, "batch s inputs"]
    g: Float[Tensor, "batch s outputs"]

    def squared_norms(self) -> Float64[Tensor, " batch"]:
        """Return Σ_{s,t} (a_s·a_t) (g_s·g_t) by Gram matrices, and what rounding in `weighted_sum` may add."""
        a, g = self.a.double(), self.g.double()
        exact = ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2)).clamp_min(0)
        terms = (a.square().sum(2) * g.square().sum(2)).sqrt().sum(1)
        return (exact.sqrt() + terms * 8 * torch.finfo(self.g.dtype).eps).square()

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " numel"]:
        g = torch.where(factors[:, None, None] != 0, self.g, 0) * factors[:, None, None].to(self.g.dtype)
        a = torch.where(factors[:, None, None] != 0, self.a, 0)
        return (g.flatten(0, 1).mT @ a.flatten(0, 1)).flatten().double()

    def written_out(self) -> Float[Tensor, "batch numel"]:
        return (self.g.mT @ self.a).flatten(1)


@dataclass(frozen=True)
class _ByParameter:
    """The gradients of a group of examples, parameter by parameter."""

    parts: list[_Part]
    losses: Float[Tensor, " batch"]

    def norms(self) -> Float64[Tensor, " batch"]:
        with _exactly(self.losses):
            squared = torch.stack([part.squared_norms() for part in self.parts]).sum(dim=0)
        return squared.sqrt() * (1 + 2.0**-20)  # pays for the float32 rounding of factors and sums below

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " parameters"]:
        with _exactly(self.losses):
            return torch.cat([part.weighted_sum(factors) for part in self.parts])


def _linear(layer: nn.Linear, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    a, g = _full(a).reshape(examples, -1, a.shape[-1]), _full(g).reshape(examples, -1, g.shape[-1])
    factored = _Factored(a, g)
    few = a.shape[1] * (a.shape[2] + g.shape[2]) < a.shape[2] * g.shape[2]
    return [factored if few else _WrittenOut(factored.written_out()), _WrittenOut(g.sum(1))]


def _conv2d(layer: nn.Conv2d, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    a = a.to(g.dtype)
    copies, weight = len(a) // examples, layer.weight.detach().to(g.dtype)

    def weight_grad(g: Tensor, a: Tensor, weight: Tensor, groups: int) -> Tensor:
        geometry = (layer.stride, layer.padding, layer.dilation, False, (0, 0), groups)
        return torch.ops.aten.convolution_backward(g, a, weight, None, *geometry, (False, True, False))[1]  # type: ignore[no-any-return]

    if copies >= _MANY_COPIES:
        pairs = zip(g.split(copies), a.split(copies), strict=True)  # type: ignore[no-untyped-call]
        rows = torch.stack([weight_grad(g_i, a_i, weight, layer.groups) for g_i, a_i in pairs])
    else:  # the examples as groups of one convolution, the copies as its batch
        g_wide, a_wide = (_by_example(t, examples).transpose(0, 1).flatten(1, 2) for t in (g, a))
        rows = weight_grad(g_wide, a_wide, weight.repeat(examples, 1, 1, 1), examples * layer.groups)
    return [
        _WrittenOut(_full(rows).reshape(examples, -1)),
        _WrittenOut(_by_example(_full(g), examples).sum((1, 3, 4))),
    ]


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    normed = nn.functional.group_norm(_full(a), layer.num_groups, None, None, layer.eps)
    return [_WrittenOut(_by_example(_full(t).flatten(2).sum(2), examples).sum(1)) for t in (g * normed, g)]


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    normed = nn.functional.layer_norm(_full(a), layer.normalized_shape, None, None, layer.eps)
    numel = math.prod(layer.normalized_shape)
    return [_WrittenOut(_full(t).reshape(examples, -1, numel).sum(1)) for t in (g * normed, g)]


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor, examples: int) -> list[_Part]:
    indices = a.reshape(examples, -1, 1)
    g = _full(g).reshape(examples, indices.shape[1], -1)
    rows = g.new_zeros(examples, *layer.weight.shape).scatter_add(1, indices.expand_as(g), g)
    return [_WrittenOut(rows.flatten(1))]


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


@dataclass(frozen=True)
class LayerWise:
    """Known layers by their own rule, all other parameters by `torch.func`: the fastest for most networks.

    Rules exist for Linear, Conv2d, GroupNorm, LayerNorm and Embedding. A layer that is called more than once, and a
    parameter that several layers share, get the sum of their parts. The rows of an example must lie side by side in
    every layer's batch, as `DenoisingLoss` has them. Whether they do, and whether any parameter is used past its layer,
    is found out once for each module, on made-up examples, by comparison with `OneBackwardEach`.

    Raises:
        InputError: The comparison failed.

    Source:
        Goodfellow 2015 (arXiv 1510.01799); Gram matrices: Li et al. 2022, Section 4 ("ghost clipping").
    """

    _checked: "weakref.WeakSet[nn.Module]" = field(
        default_factory=weakref.WeakSet, init=False, repr=False, compare=False
    )

    def __call__(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[_ByParameter]:
        """Yield the gradients of the whole batch as one group."""
        if module not in self._checked:
            self._check(loss, module, batch)
            self._checked.add(module)
        yield self._gradients(loss, module, batch)

    def _gradients(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> _ByParameter:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                calls.append((layer, inputs[0].detach(), output))

        hooks = [layer.register_forward_hook(remember) for layer in module.modules() if _has_rule(layer)]
        try:
            losses = loss(module, batch)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = [output for _, _, output in calls]
        output_grads = torch.autograd.grad(losses.sum(), outputs, materialize_grads=True) if outputs else ()
        parts: dict[nn.Parameter, _Part] = {}
        with _exactly(losses):
            for (layer, a, _), g in zip(calls, output_grads, strict=True):
                rule = _RULES[type(layer)](layer, a, g, len(losses))
                for parameter, part in zip((layer.weight, getattr(layer, "bias", None)), rule, strict=False):
                    if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                        before = parts.get(parameter)
                        parts[parameter] = part if before is None else _sum(before, part)
        parameters = trainable_parameters(module)
        if rest := [p for p in parameters if p not in parts]:
            rows = torch.split(_full(vectorized_rows(loss, module, batch, rest).rows), [p.numel() for p in rest], dim=1)
            parts |= {p: _WrittenOut(part) for p, part in zip(rest, rows, strict=True)}
        return _ByParameter([parts[p] for p in parameters], losses.detach())

    def _check(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Compare with the reference on two made-up examples, for a copy of the module with moved parameters.

        Both are fixed: what the records are decides nothing here.
        """

        def like(t: Tensor) -> Tensor:
            shape = (2, *t.shape[1:])
            return (1 + _wave(shape) / 2 if t.is_floating_point() else torch.zeros(shape)).to(t)

        module, example = copy.deepcopy(module), map_batch(like, batch)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.2 * _wave(p.shape).to(p))
        with _exactly(batch[0]):
            ours = torch.cat([part.written_out() for part in self._gradients(loss, module, example).parts], dim=1)
            rows = torch.cat([group.rows for group in OneBackwardEach()(loss, module, example)])
        if not (ours - rows).norm() <= 1e-3 * rows.norm():
            raise InputError(
                "layer-wise gradients of this module are not those of its examples: it uses a parameter past its "
                "layer, or moves the copies of an example apart; take the strategy Vectorized"
            )


def _has_rule(layer: nn.Module) -> bool:
    plain = not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))
    return type(layer) in _RULES and plain


def _sum(one: _Part, other: _Part) -> _Part:
    return _WrittenOut(one.written_out() + other.written_out())


def _by_example(t: Tensor, examples: int) -> Tensor:
    """Part the first axis into examples and their copies."""
    return t.reshape(examples, -1, *t.shape[1:])


def _wave(shape: tuple[int, ...]) -> Tensor:
    """Return numbers in [-1, 1] that have no pattern which a layer could keep."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64).square() * 0.7).reshape(shape)


def _exactly(t: Tensor) -> torch.autocast:
    """Return a context in which nothing is cast to bfloat16: factors never multiply rounded operands."""
    return torch.autocast(t.device.type, enabled=False)


def _full(t: Tensor) -> Tensor:
    """Return `t` in float32, or better if it is."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
