"""Whether a step leaves all as it found it: what records leave in a network or a loss, no noise covers."""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dpdm.types import InputError

_DEEPEST = 4  # objects inside one another that are looked into
_MOST_ITEMS = 1000  # of a list that is looked into
_OWN = frozenset(vars(nn.Module()))  # a module's tables: parameters, buffers, modules, hooks
_SAID = "the network changes {!r} as it is called: what records leave there, no noise covers"


@contextmanager
def unchanged(module: nn.Module, loss: object) -> Iterator[None]:
    """Refuse a step in which a tensor of the network or of the loss was written, by whatever way.

    Guarantees:
        * Seen are parameters and buffers of modules, and tensors that a loss holds otherwise: in attributes, lists,
          arguments that were bound, and closures.
        * Of a module's other attributes, a tensor is seen if its numbers change. One that takes its place is not: it
          may be a cache.

    Raises:
        InputError: Names the tensor.
    """
    before = _state(module, loss)  # keeps the tensors alive, so that no other one can pass for them
    cached = {name: (t, _sum_of_bits(t)) for name, t in _attributes(module, loss)}
    yield
    for name, (t, was_of_bits) in cached.items():
        if not torch.equal(was_of_bits, _sum_of_bits(t)):
            raise InputError(_SAID.format(name))
    after = _state(module, loss)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None or was[0] is not now[0] or was[1] != now[1] or not torch.equal(was[2], now[2]):
            raise InputError(_SAID.format(name.partition(".")[2]))


def _state(module: nn.Module, loss: object) -> dict[str, tuple[Tensor, int, Tensor]]:
    seen: set[int] = set()
    found = [*_tensors(module, "network", seen), *_tensors(loss, "loss", seen)]
    return {name: (t, t._version, _sum_of_bits(t)) for name, t in found}


def _attributes(*parts: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among the plain attributes of all modules, and in lists and tables among these."""
    for part in parts:
        for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
            for key, value in vars(module).items():
                if isinstance(value, Tensor | list | tuple | dict) and key not in _OWN:
                    yield from _tensors(value, f"{name}.{key}".lstrip("."), set(), depth=2)


def _tensors(part: object, name: str, seen: set[int], depth: int = _DEEPEST) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a module, or of what is none, with where they are."""
    if id(part) in seen or depth < 0:
        return
    seen.add(id(part))
    inside: dict[str, object] = {}
    if isinstance(part, Tensor):
        yield name, part
    elif isinstance(part, nn.Module):
        inside = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    elif isinstance(part, dict) and len(part) <= _MOST_ITEMS:
        inside = {str(key): value for key, value in part.items()}
    elif isinstance(part, list | tuple) and len(part) <= _MOST_ITEMS:
        inside = dict(zip(map(str, range(len(part))), part, strict=True))
    elif isinstance(part, functools.partial):
        inside = {"func": part.func, "args": part.args, "keywords": part.keywords}
    elif isinstance(part, types.MethodType):
        inside = {"self": part.__self__}
    elif isinstance(part, types.FunctionType):
        names = zip(part.__code__.co_freevars, part.__closure__ or (), strict=False)
        inside = {free: cell.cell_contents for free, cell in names if cell != types.CellType()}
        inside |= {"defaults": part.__defaults__, "keywords": part.__kwdefaults__}
    elif not isinstance(part, type | types.ModuleType):
        inside = getattr(part, "__dict__", {})
    for key, value in inside.items():
        yield from _tensors(value, f"{name}.{key}", seen, depth - 1)


def _sum_of_bits(t: Tensor) -> Tensor:
    """Return what changes with nearly every change of a tensor, another order too: `.data` leaves no other trace."""
    t = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    words = t.contiguous().view(-1).view(whole)
    places = 2 * torch.arange(len(words), device=t.device) + 1
    return (words * places).sum()
