"""What can refuse a network, a loss or a strategy, found out on made-up examples, before any record is touched."""

import copy
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from dpdm.generators import no_shared_draws
from dpdm.privacy.clipping import (
    Batch,
    OneBackwardEach,
    PerExampleLoss,
    Strategy,
    map_batch,
    require_rows,
    require_trainable,
    trainable_parameters,
)
from dpdm.types import InputError, is_of_memory, refusing

_MADE_UP = 3  # examples: two could be told apart by their order alone
_TOLERANCE = 1e-3  # of a parameter's gradient, by which two ways to compute it may differ
_VANISHING = 2.0**-100  # length of a gradient that float32 holds with few digits, and cannot make longer


class MadeUp(NamedTuple):
    """Examples of public content, for a comparison of two ways to their gradients (`require_same_gradients`).

    Attributes:
        batch: The examples.
        rounding: The part of the whole gradient below which differences come of rounding.
        rows: What `rehearse` returned for them; None: it is computed.
    """

    batch: Batch
    rounding: float = 1e-5
    rows: Float64[Tensor, "batch loss_and_gradient"] | None = None


def rehearse(loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Float64[Tensor, "batch loss_and_gradient"]:
    """Refuse a network and a loss that private gradients cannot be computed of.

    Args:
        loss: What steps will be given.
        module: The network, or the denoiser around it. A copy of it with moved parameters is what runs.
        batch: Made-up examples, of public content alone, that are like real ones in their shapes and their range.

    Returns:
        Loss and gradient of each example, a row for each, of the copy.

    Guarantees:
        * Refused are: parameters that are not real numbers, layers through which examples meet, and draws from shared
          generators. So is anything that leaves another buffer or another result behind, and so is a loss that is not
          one number for each example.

    Raises:
        InputError: Says what is wrong, in one line.
    """
    require_trainable(module)
    require_rows(batch)
    moved = moved_copy(module)
    before = {name: t.clone() for name, t in tensors(moved)}
    with refusing("the network fails on a made-up batch", CannotRun), no_shared_draws(), _exactly(batch[0]):
        with torch.no_grad():
            losses = loss(moved, batch)
        first = _rows(loss, moved, batch)
        again = _rows(loss, moved, map_batch(lambda t: t[:1], batch))  # one tells, after all that have gone before
    if not isinstance(losses, Tensor) or losses.shape != (len(batch[0]),):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(f"the loss of {len(batch[0])} examples is {shape}: it must be one number for each example")
    for name, t in tensors(moved):
        if name not in before or not torch.equal(t.nan_to_num(), before[name].nan_to_num()):
            raise InputError(f"the network changes {name!r} as it is called: what records leave there, no noise covers")
    size = float(first[:1].nan_to_num().abs().max())
    if not torch.allclose(first[:1], again, rtol=1e-3, atol=1e-5 * size, equal_nan=True):
        raise InputError("the network gives the same examples different losses: it draws, or keeps what it has seen")
    return first


class CannotRun(InputError):
    """A network or a loss fails on made-up examples, which may be the fault of what was made up."""


def _rows(loss: PerExampleLoss, module: nn.Module, batch: Batch) -> Float64[Tensor, "batch loss_and_gradient"]:
    """Return losses and gradients of single examples, a row for each."""
    groups = [*OneBackwardEach()(loss, module, batch)]
    return torch.cat([torch.cat([group.losses[:, None].double(), group.rows.double()], dim=1) for group in groups])


def require_same_gradients(
    strategy: Strategy, loss: PerExampleLoss, module: nn.Module, example: MadeUp, *, otherwise: str
) -> bool:
    """Raise InputError, which says `otherwise`, unless a strategy gives the gradients of `OneBackwardEach`.

    Each gradient is weighed by a factor of its own in one sum, which is compared parameter by parameter. No norm may be
    below the reference's.

    Args:
        strategy: What is compared.
        loss: One number for each example.
        module: A copy that nobody trains (`moved_copy`).
        example: Made-up examples.
        otherwise: What the error says.

    Returns:
        Whether there was anything to compare: a gradient that is finite.
    """
    parameters = trainable_parameters(module)
    batch, rounding, rows = example
    with _exactly(batch[0]):
        try:
            rows = (_rows(loss, module, batch) if rows is None else rows)[:, 1:]
        except (IndexError, RuntimeError) as error:
            if is_of_memory(error):
                raise
            return False  # what is made up, the network does not take: nothing is to be compared
        length = rows.norm(dim=1)
        known = length.isfinite()
        rows = torch.where(known[:, None], rows, 0)
        # Factors that no rearrangement of examples leaves alike, and that make all examples weigh about the same.
        factors = ((1 + _wave(length.shape).to(length) / 2) / length.where(length > _VANISHING, 1)).where(known, 0)
        groups = list(strategy(loss, module, batch))
        norms = torch.cat([group.norms() for group in groups])
        parts = factors.split([len(group.losses) for group in groups])
        found = torch.stack([g.weighted_sum(part) for g, part in zip(groups, parts, strict=True)]).sum(0)
    expected = factors @ rows
    least = rounding * expected.norm() + _VANISHING
    tolerance = max(_TOLERANCE, rounding, *(4 * torch.finfo(p.dtype).eps for p in parameters))
    sizes = [p.numel() for p in parameters]
    pairs = zip(found.split(sizes), expected.split(sizes), strict=True)  # type: ignore[no-untyped-call]
    short = known & (norms < length * (1 - tolerance))
    if short.any() or not all((f - e).norm() <= tolerance * e.norm() + least for f, e in pairs):
        raise InputError(otherwise)
    return bool(known.any())


def made_up(batch: Batch) -> Iterator[MadeUp]:
    """Yield a few examples of the shapes of `batch` and of public content: near one, of all sizes, and of both signs.

    What the records are decides nothing: floating-point numbers are made up, and all others are 0, or 0 and 1.
    """
    # Numbers of all sizes find out what depends on thresholds; their gradients are less exact.
    for sign, spread, rounding in ((False, 0.0, 1e-5), (False, 2.0, 1e-2), (True, 2.0, 1e-2)):

        def like(t: Tensor, sign: bool = sign, spread: float = spread) -> Tensor:
            shape = (_MADE_UP, *t.shape[1:])
            wave = _wave(shape)
            if not t.is_floating_point():  # 1 may be no class there is; on a GPU, that could not be caught
                return (wave > 0 if spread and t.device.type == "cpu" else torch.zeros(shape)).to(t)
            size = 1 + wave / 2 if not spread else 10 ** (spread * wave)
            return (torch.where(_wave(shape, 1.3) < 0, -size, size) if sign else size).to(t)

        yield MadeUp(map_batch(like, batch), rounding)


def moved_copy(module: nn.Module) -> nn.Module:
    """Return a copy with other parameters: where a last layer starts at zero, most of a network has no gradient.

    Raises:
        InputError: The module cannot be copied.
    """
    try:
        moved = copy.deepcopy(module)
    except Exception as error:  # whatever a network of one's own does
        if is_of_memory(error):
            raise
        raise InputError(f"the network cannot be copied ({type(error).__name__}), as its average must be") from error
    with torch.no_grad():
        for p in moved.parameters():
            if p.is_floating_point():
                p.add_(0.2 * _wave(tuple(p.shape)).to(p))
    return moved


def tensors(module: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Yield all parameters and buffers with their names."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _wave(shape: tuple[int, ...], pace: float = 0.7) -> Tensor:
    """Return numbers in [-1, 1] that have no pattern which a layer could keep."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64).square() * pace).reshape(shape)


@contextmanager
def _exactly(t: Tensor) -> Iterator[None]:
    """Compute in the precision of the weights: not in bfloat16, nor, in a GPU's convolutions, in TF32.

    TF32 is torch's default for these. It rounds by about as much as two ways to a gradient may differ.
    """
    setting: tuple[Any, str, object] = (torch.backends.cudnn, "allow_tf32", False)
    if hasattr(torch.backends.cudnn, "conv"):  # from torch 2.9 on
        setting = (torch.backends.cudnn.conv, "fp32_precision", "ieee")
    of, name, exact = setting
    before = getattr(of, name)
    setattr(of, name, exact)
    try:
        with torch.autocast(t.device.type, enabled=False):
            yield
    finally:
        setattr(of, name, before)


class Rehearsals:
    """What a run has rehearsed with its strategy: networks, with what is trained of them and the mode of each layer."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._done: weakref.WeakKeyDictionary[nn.Module, set[object]] = weakref.WeakKeyDictionary()

    def rehearse(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Rehearse on made-up examples that a person has given."""
        self._rehearse(loss, module, MadeUp(batch, rounding=1e-4))
        self._done.setdefault(module, set()).add(_case(loss, module))

    def require(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Rehearse what nobody has rehearsed, on made-up examples of the shapes of `batch` that the network takes."""
        done = self._done.setdefault(module, set())
        if not len(batch[0]) or (case := _case(loss, module)) in done:
            return
        failed: CannotRun | None = None
        for example in made_up(batch):
            try:
                self._rehearse(loss, module, example)
                done.add(case)
            except CannotRun as error:  # what is made up knows nothing of what a loss demands of its numbers
                failed = failed or error
        if case not in done:
            raise InputError(
                f"{failed}: call MechanismRun.rehearse with made-up examples of your own first"
            ) from failed

    def _rehearse(self, loss: PerExampleLoss, module: nn.Module, example: MadeUp) -> None:
        example = example._replace(rows=rehearse(loss, module, example.batch))
        if (check := getattr(self._strategy, "check", None)) is not None:  # a strategy that knows its own limits
            check(loss, module, example)
        elif not isinstance(self._strategy, OneBackwardEach):
            wrong = f"the strategy {self._strategy!r} gives other gradients than one backward pass for each example"
            with refusing("the strategy fails on a made-up batch", CannotRun):
                require_same_gradients(self._strategy, loss, moved_copy(module), example, otherwise=wrong)


def _case(loss: PerExampleLoss, module: nn.Module) -> tuple[object, ...]:
    """Return what a rehearsal holds for: the loss, what is trained, and the mode of every layer."""
    trained = tuple(p.requires_grad for p in module.parameters())
    return loss, trained, tuple(layer.training for layer in module.modules())
