"""Per-example gradients layer by layer, from one ordinary backward pass over the whole batch.

The pass leaves each layer's input a and the gradient g of its output, for all rows: K noisy copies of each example,
side by side. The gradient of an example's weights is a sum over its own rows. So the work for this sum grows with
examples and not with copies. The pass itself runs at the speed of training without privacy.
"""

import math
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

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
from dpdm.privacy.layer_rules import RULES, Part, WrittenOut, exactly, has_rule
from dpdm.privacy.rehearsal import CannotRun, MadeUp, made_up, moved_copy, require_same_gradients
from dpdm.types import InputError, is_of_memory

_LARGE = 2**11  # numbers in a parameter from which on it is worth its own calls
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


@dataclass(frozen=True)
class _ByParameter:
    """The gradients of a group of examples, parameter by parameter; the last rows of each part are padding."""

    parts: list[Part]
    losses: Float[Tensor, " batch"]
    padding: int
    layout: "list[_Called]"

    def norms(self) -> Float64[Tensor, " batch"]:
        with exactly(self.losses):
            squared = torch.stack([part.squared_norms for part, _ in self._joined]).sum(dim=0)
        # The factor pays for rounding, here and in the sums below (2^-16 in float32); the term for squares that vanish.
        numel, eps = (sum(p.numel for p in self.parts), max(torch.finfo(p.dtype).eps for p in self.parts))
        return (squared.sqrt() * (1 + 128 * eps) + math.sqrt(numel) * 2.0**-63)[: len(self.losses)]

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " parameters"]:
        factors = self._of_rows(factors)
        with exactly(self.losses):
            return self._in_order(part.weighted_sum(factors) for part, _ in self._joined)

    def grid_sum(self, factors: Float64[Tensor, " batch"], step: float) -> Float64[Tensor, " parameters"]:
        factors = self._of_rows(factors)
        with exactly(self.losses):
            return self._in_order(truncated_sum(part.written_out(), factors, step) for part, _ in self._joined)

    def _of_rows(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " rows"]:
        """Leave out padding, and what would have to shrink by more than float32 holds."""
        return pad(torch.where(factors < 2.0**-100, 0, factors), (0, self.padding))

    @cached_property
    def _joined(self) -> list[tuple[Part, list[int]]]:
        """The parts with their places, small ones as one: their calls would cost more than the copy."""
        joined = [(part, [i]) for i, part in enumerate(self.parts) if not _is_small(part)]
        if small := [i for i, part in enumerate(self.parts) if _is_small(part)]:
            joined.append((WrittenOut(torch.cat([self.parts[i].written_out() for i in small], dim=1)), small))
        return joined

    def _in_order(self, sums: Iterable[Float64[Tensor, " numel"]]) -> Float64[Tensor, " parameters"]:
        """Put sums over the joined parts where the parameters have their places."""
        placed: dict[int, Tensor] = {}
        for total, (_, places) in zip(sums, self._joined, strict=True):
            numels = [self.parts[i].numel for i in places]
            placed |= dict(zip(places, total.split(numels), strict=True))  # type: ignore[no-untyped-call]
        return torch.cat([placed[i] for i in range(len(self.parts))])


def _is_small(part: Part) -> bool:
    return isinstance(part, WrittenOut) and part.numel < _LARGE


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

    def squared_norms(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> list[Float64[Tensor, " batch"]]:
        """Return the squared norm of each example's gradient in each of `trainable_parameters`, before clipping."""
        (gradients,) = self(loss, module, batch)
        with exactly(gradients.losses):
            return [part.squared_norms[: len(gradients.losses)] for part in gradients.parts]

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
        made = _Pass(module, len(batch[0]), layout)
        with made.watching():
            losses = loss(module, batch)
            made.ended = True
            if made.roots and losses.requires_grad:
                torch.autograd.grad(losses.sum(), made.roots, allow_unused=True)
        if layout is not None and len(made.called) < len(layout):
            raise InputError(_ROUTED)
        parameters, parts = trainable_parameters(module), made.parts
        if rest := [p for p in parameters if p not in parts]:
            rows = torch.split(vectorized_rows(loss, module, batch, rest).rows, [p.numel() for p in rest], dim=1)
            parts |= {p: WrittenOut(part) for p, part in zip(rest, rows, strict=True)}
        losses = losses.detach()[: len(losses) - padding]
        return _ByParameter([parts[p] for p in parameters], losses, padding, made.called)


class _Pass:
    """One pass over a batch, whose hooks turn each output gradient into the parameters' parts and drop it.

    Args:
        module: The network, or the denoiser around it.
        examples: How many the batch has.
        layout: How layers must be called; None if that is to be found out.
    """

    def __init__(self, module: nn.Module, examples: int, layout: Sequence[_Called] | None) -> None:
        self._examples, self._layout = examples, layout
        self._wanted = dict.fromkeys(trainable_parameters(module))
        self._places = {layer: place for place, layer in enumerate(module.modules())}
        self.parts: dict[nn.Parameter, Part] = {}
        self.roots: list[Tensor] = []
        self.called: list[_Called] = []
        self.ended = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Freeze the weights within, so that output gradients alone are computed; first outputs are leaves."""
        hooks = [
            layer.register_forward_hook(self._remember, with_kwargs=True) for layer in self._places if has_rule(layer)
        ]
        for p in self._wanted:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for p in self._wanted:
                p.requires_grad_()

    def _remember(
        self, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> Tensor | None:
        both = layer.weight, getattr(layer, "bias", None)
        own = {i: cast(nn.Parameter, p) for i, p in enumerate(both) if p in self._wanted}
        if not own or not torch.is_grad_enabled():
            return None
        if self.ended:  # a block that keeps nothing computes again what its own backward pass needs
            return None if output.requires_grad else output.detach().requires_grad_().clone()
        rows, left_over = divmod(len(output), self._examples) if output.ndim else (0, 1)
        call, number = _Called(self._places[layer], rows), len(self.called)
        self.called.append(call)
        if left_over or (self._layout is not None and [*self._layout[number : number + 1]] != [call]):
            raise InputError(_NOT_LAYER_WISE if self._layout is None else _ROUTED)
        if not output.requires_grad:
            self.roots.append(output.detach().requires_grad_())
            output = self.roots[-1].clone()  # what a module may change in place
        a = (*inputs, *named.values())[0].detach()
        output.register_hook(lambda g: self._collect(layer, a, g, own))  # type: ignore[no-untyped-call]
        return output

    def _collect(self, layer: nn.Module, a: Tensor, g: Tensor, own: dict[int, nn.Parameter]) -> None:
        with exactly(g):
            found = RULES[type(layer)](layer, a, g, self._examples)
            for i, parameter in own.items():
                part, before = found[i], self.parts.get(parameter)
                part = part if before is None else WrittenOut(before.written_out() + part.written_out())
                self.parts[parameter] = part
                if isinstance(part, WrittenOut) and not _is_small(part):
                    _ = part.squared_norms  # now, while it is in a cache


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
