"""The sum over examples of per-example gradients, each clipped once.

An example is one record with all of its noisy copies: the loss averages over the copies, so that an example has one
gradient and noise multiplicity never changes the sensitivity. How the gradients are computed is a strategy, which
changes time and memory only. The sum is one float64 vector over all trainable parameters: there is no parameter that
the norm could miss, and float64 keeps the rounding of 10^4 other examples far below one example's share.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dpdm.generators import no_shared_draws
from dpdm.types import InputError, Sensitive

Batch = tuple[Shaped[Tensor, "batch ..."], ...]
"""Tensors with one row for each example; a NamedTuple keeps its type."""

PerExampleLoss = Callable[[nn.Module, Any], Float[Tensor, " batch"]]
"""Maps (module, batch) to one loss for each example, (batch,). Deterministic; may not mix examples."""


class ClippedSum(NamedTuple):
    """What one batch contributes, and by how much one example can move it."""

    vector: Float64[Tensor, " parameters"]
    sensitivity: float
    losses: Sensitive[Float[Tensor, " batch"]]
    grad_norms: Sensitive[Float[Tensor, " batch"]]


class Gradients(Protocol):
    """The gradients of some examples, before clipping, in whatever form a strategy has them."""

    @property
    def losses(self) -> Float[Tensor, " batch"]:
        """The loss of each example."""
        ...

    def norms(self) -> Float64[Tensor, " batch"]:
        """Return the L2 norm of each gradient, below the true one by no more than float64 sums round.

        Not finite where the gradient is not, or where it is beyond the arithmetic of the strategy.
        """
        ...

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " parameters"]:
        """Return the sum of the gradients, each times its factor; those of factor 0 take no part, whatever they are."""
        ...

    def grid_sum(self, factors: Float64[Tensor, " batch"], step: float) -> Float64[Tensor, " parameters"]:
        """Return the same with every addend truncated towards zero to a multiple of `step`; the sum is exact."""
        ...


class Strategy(Protocol):
    """How per-example gradients are computed; affects time and memory only."""

    def __call__(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[Gradients]:
        """Yield the examples' gradients in order, in groups of any size."""
        ...


class Rows(NamedTuple):
    """Gradients written out, one row for each example."""

    rows: Float[Tensor, "batch parameters"]
    losses: Float[Tensor, " batch"]

    def norms(self) -> Float64[Tensor, " batch"]:
        """Return the L2 norm of each row."""
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=1, dtype=torch.float64)
        return norms

    def weighted_sum(self, factors: Float64[Tensor, " batch"]) -> Float64[Tensor, " parameters"]:
        """Return factors · rows, in float64."""
        return factors @ torch.where(factors[:, None] != 0, self.rows, 0).double()

    def grid_sum(self, factors: Float64[Tensor, " batch"], step: float) -> Float64[Tensor, " parameters"]:
        """Return Σ step · trunc(factor · row / step)."""
        return truncated_sum(self.rows, factors, step)


@dataclass(frozen=True)
class Vectorized:
    """All examples at once by `torch.func`: the reference. Memory grows with examples × parameters."""

    def __call__(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[Rows]:
        """Yield the gradients of the whole batch as one group."""
        yield vectorized_rows(loss, module, batch, trainable_parameters(module))


@dataclass(frozen=True)
class OneBackwardEach:
    """One ordinary backward pass for each example, over all of its copies at once. Memory holds one example.

    Cheap when an example has many copies (noise multiplicity), since the work within a pass is then well batched.
    """

    def __call__(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Iterator[Rows]:
        """Yield one gradient after the other."""
        parameters = trainable_parameters(module)
        for i in range(len(batch[0])):
            value = loss(module, map_batch(lambda t, i=i: t[i : i + 1], batch)).sum()  # type: ignore[misc]
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            yield Rows(torch.cat([g.reshape(1, -1) for g in gradients], dim=1), value.detach().reshape(1))


def clipped_grad_sum(
    loss: PerExampleLoss,
    module: nn.Module,
    batch: Batch,
    *,
    max_grad_norm: float,
    strategy: Strategy | None = None,
    grid: float | None = None,
    records: int | None = None,
) -> ClippedSum:
    """Sum over examples of the loss gradient, each clipped to an L2 norm of at most `max_grad_norm`.

    The draws of one example are averaged inside `loss`, before clipping, so the noise multiplicity changes the
    variance of a gradient and never its sensitivity.

    Args:
        loss: One number for each example. May not mix examples.
        module: Its trainable parameters are differentiated, tied ones once; frozen ones are not touched.
        batch: Tensors with one row for each example; no rows is an ordinary batch.
        max_grad_norm: Clipping norm C > 0, over all trainable parameters together.
        strategy: How to compute it; default: `OneBackwardEach`.
        grid: A power of two; each clipped gradient is then truncated towards zero to multiples of it.
        records: How many records the batch is of; default: as many as it has rows. Fewer rows are a batch in which some
            records contribute nothing.

    Returns:
        The sum in float64, its sensitivity, and per-example losses and norms before clipping as `Sensitive`.

    Raises:
        InputError: The batch has more rows than records, or tensors that differ in their rows. Or the module has layers
            through which examples meet, or parameters that are not real numbers. Or something draws from a generator
            that all examples share. Or the loss gives anything but one number a row, or the strategy anything but one
            gradient a row.

    Guarantees:
        * Adding or removing one example moves the sum by at most C in L2 norm.
        * All strategies return the same sum up to float rounding, examples beyond a strategy's arithmetic aside: these
          contribute zero.
        * An empty batch gives zeros; an example whose gradient is not finite contributes exactly zero.
        * A GPU that has no memory for the batch does it in halves, with the same sum.
        * On a grid, given the truncated gradients, the sum is exact: neither order nor grouping of examples matters.

    Privacy:
        Nothing returned is private before noise is added.

    Source:
        Abadi et al. 2016, Algorithm 1; noise multiplicity: Dockhorn et al. 2023, Section 3.2.
    """
    strategy = strategy or OneBackwardEach()
    require_trainable(module)
    require_rows(batch, records)
    try:
        with no_shared_draws():
            return _clipped_grad_sum(loss, module, batch, max_grad_norm, strategy, grid)
    except torch.OutOfMemoryError:
        if len(batch[0]) < 2:
            raise
    torch.cuda.empty_cache()
    middle = len(batch[0]) // 2
    parts = map_batch(lambda t: t[:middle], batch), map_batch(lambda t: t[middle:], batch)
    settings = {"max_grad_norm": max_grad_norm, "strategy": strategy, "grid": grid}
    halves = [clipped_grad_sum(loss, module, part, **settings) for part in parts]  # type: ignore[arg-type]
    return ClippedSum(
        vector=halves[0].vector + halves[1].vector,
        sensitivity=max_grad_norm,
        losses=Sensitive(torch.cat([half.losses.reveal(because="two halves joined") for half in halves])),
        grad_norms=Sensitive(torch.cat([half.grad_norms.reveal(because="two halves joined") for half in halves])),
    )


def _clipped_grad_sum(
    loss: PerExampleLoss,
    module: nn.Module,
    batch: Batch,
    max_grad_norm: float,
    strategy: Strategy,
    grid: float | None,
) -> ClippedSum:
    numel, device = sum(p.numel() for p in trainable_parameters(module)), trainable_parameters(module)[0].device
    total = torch.zeros(numel, dtype=torch.float64, device=device)
    losses, norms = [torch.zeros(0, device=device)], [torch.zeros(0, device=device)]
    for gradients in strategy(loss, module, batch) if len(batch[0]) else ():
        norms.append(gradients.norms())
        if norms[-1].dtype != torch.float64:  # rounded, they could be too short
            raise InputError(f"the strategy {strategy!r} gives norms of {norms[-1].dtype}: give them as float64")
        factors = clip_factors(norms[-1], max_grad_norm, numel)
        part = gradients.weighted_sum(factors) if grid is None else gradients.grid_sum(factors, grid)
        if part.shape != total.shape:  # else it would be broadcast
            raise InputError(f"the strategy {strategy!r} gives a sum of shape {tuple(part.shape)}, not ({numel},)")
        total += part
        losses.append(gradients.losses.float())
    for what, found in (("losses", losses), ("norms", norms)):
        if any(each.ndim != 1 for each in found) or sum(map(len, found)) != len(batch[0]):
            shapes = ", ".join(str(tuple(each.shape)) for each in found[1:])
            raise InputError(
                f"a batch of {len(batch[0])} rows has {what} of shape {shapes}: the loss must return one number for "
                "each row, and the strategy one gradient"
            )
    return ClippedSum(
        vector=total,
        sensitivity=max_grad_norm,
        losses=Sensitive(torch.cat(losses)),
        grad_norms=Sensitive(torch.cat(norms)),
    )


def clipped_row_sum(
    rows: Float[Tensor, "batch coordinates"], *, max_norm: float, grid: float | None = None
) -> Float64[Tensor, " coordinates"]:
    """Return the sum of `rows`, each clipped to an L2 norm of at most `max_norm`, in float64.

    Args:
        rows: One for each record; those that are not finite contribute zero.
        max_norm: Clipping norm C > 0.
        grid: A power of two; each clipped row is then truncated towards zero to multiples of it.

    Guarantees:
        * Adding or removing one row moves the sum by at most C in L2 norm.
    """
    written = Rows(rows, torch.zeros(len(rows)))
    factors = clip_factors(written.norms(), max_norm, rows.shape[1])
    return written.weighted_sum(factors) if grid is None else written.grid_sum(factors, grid)


def vectorized_rows(loss: PerExampleLoss, module: nn.Module, batch: Batch, parameters: list[nn.Parameter]) -> Rows:
    """Return the gradients of `parameters`, some or all of the module's, by `torch.func`."""
    bound = _Bound(loss, module)
    wanted = {id(p) for p in parameters}
    values = {name: p.detach() for name, p in bound.named_parameters() if id(p) in wanted}

    def loss_of_one(values: dict[str, Tensor], example: Batch) -> Tensor:
        return cast(Tensor, functional_call(bound, values, (map_batch(lambda t: t.unsqueeze(0), example),)))

    # "different" lets a network draw, so that `no_shared_draws` sees it and says so in one line.
    gradients, losses = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), randomness="different")(values, batch)
    return Rows(torch.cat([g.reshape(len(g), -1) for g in gradients.values()], dim=1).detach(), losses.detach())


def clip_factors(norms: Float64[Tensor, " batch"], max_grad_norm: float, numel: int) -> Float64[Tensor, " batch"]:
    """Return min(1, C / norm) for each gradient of `numel` numbers, and 0 where the norm is not finite.

    In float64 a sum of `numel` squares may lose numel · 2^-53 of itself, which pays for twice what the norm then lacks.
    Shrinking by 2^-40 more pays for the roundings of the product.
    """
    least = max_grad_norm * (1 - 2.0**-40 - numel * 2.0**-53)
    factors = (least / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)
    return torch.where(norms.isfinite(), factors, 0)


def truncated_sum(
    rows: Float[Tensor, "batch numel"], factors: Float64[Tensor, " batch"], step: float
) -> Float64[Tensor, " numel"]:
    """Return Σ step · trunc(factor · row / step), rows of factor 0 left out, whatever they are.

    Every addend is an integer times a power of two, of at most 24 bits in float32, so float64 adds them exactly, in
    any order. Truncation never makes a row longer; the rounding of the product could, by 2^-23, and is paid for.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scales = (factors * (1 - 2.0**-22) / step).to(rows.dtype)[:, None]
    integers = torch.where(scales != 0, rows * scales, 0).trunc_()
    return step * integers.sum(dim=0, dtype=torch.float64)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters in the order of the gradient vector, each tied one once."""
    return [p for p in module.parameters() if p.requires_grad]


def require_trainable(module: nn.Module) -> None:
    """Refuse modules of which no private gradient exists, whatever the records are.

    Raises:
        InputError: Nothing is trainable. Or a trainable parameter is not of real floating-point numbers, or lies on
            another device than the first. Or a layer is one of those that `reject_cross_example_layers` knows.
    """
    reject_cross_example_layers(module)
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(t):
            raise InputError(f"{name!r} has no shape yet: call the network once on a made-up batch before")
        if t.layout != torch.strided or t.is_inference():
            raise InputError(f"{name!r} is sparse, or was made in inference mode: make it an ordinary tensor")
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise InputError("the network has no trainable parameter: there is nothing to train")
    for name, p in named:
        if not p.is_floating_point():
            raise InputError(
                f"parameter {name!r} is {p.dtype}: trainable parameters must be real floating-point numbers; freeze "
                "it by requires_grad_(False), or store its real and imaginary parts"
            )
        if p.device != named[0][1].device:
            raise InputError(f"parameter {name!r} is on {p.device} and {named[0][0]!r} on {named[0][1].device}")


def require_rows(batch: Batch, records: int | None = None) -> None:
    """Raise InputError unless `batch` is tensors with as many rows each, and no more of them than `records`.

    A record with two rows would be clipped twice, and weigh 2 C.
    """
    if not batch or not all(isinstance(t, Tensor) and t.ndim for t in batch):
        raise InputError("a batch is a tuple of tensors that have one row for each example")
    rows = [len(t) for t in batch]
    if len(set(rows)) > 1:
        raise InputError(f"the tensors of a batch have {', '.join(map(str, rows))} rows: give each example one in each")
    if records is not None and rows[0] > records:
        raise InputError(
            f"a batch of {records} records came with {rows[0]} rows: a record is one row; average its views in the loss"
        )


def reject_cross_example_layers(module: nn.Module) -> None:
    """Refuse modules whose known layers let one example's gradient depend on others: by batch statistics, or by draws.

    Raises:
        InputError: Names the layer and what to use instead.
    """
    for name, layer in module.named_modules():
        where = f"layer {name or 'network'!r} ({type(layer).__name__})"
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise InputError(f"{where} changes its weights as it is called: leave max_norm out")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise InputError(f"{where} mixes examples, so no per-example gradient exists: use GroupNorm or LayerNorm")
        if layer.training and _draws(layer):
            raise InputError(
                f"{where} draws by the place in a batch, so that one example's gradient depends on the others: leave "
                "it out, or call its .eval()"
            )


def _draws(layer: nn.Module) -> bool:
    """Tell whether a known layer draws from torch's generator in training."""
    if isinstance(layer, nn.RReLU):
        return layer.lower != layer.upper
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    return isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and layer.dropout > 0


class _Bound(nn.Module):
    """Loss and module as one module, so that `functional_call` can exchange the parameters of the inner one."""

    def __init__(self, loss: PerExampleLoss, module: nn.Module) -> None:
        super().__init__()
        self._loss, self.module = loss, module

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.module, batch).sum()


def map_batch(function: Callable[[Shaped[Tensor, "batch ..."]], Shaped[Tensor, "..."]], batch: Batch) -> Batch:
    """Apply `function` to each tensor, keeping a NamedTuple's type."""
    make = getattr(type(batch), "_make", tuple)
    return cast(Batch, make(function(t) for t in batch))
