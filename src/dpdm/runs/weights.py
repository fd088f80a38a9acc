"""The file of a release's weights: safetensors, of which the same numbers have one file, to the byte.

The order in a file is that of the library: by type, and then by name. It is written down here, so that neither another
version of the library nor a forger has a choice. Whatever can be refused is refused by the header alone.
"""

import json
import math
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from dpdm.files import write_atomically
from dpdm.types import InputError

_TYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # in the order of a file
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_ORDER = list(_NAMES)
_MOST_SIDES = 8  # of a tensor
_MOST_HEADER = 2**22  # bytes, some ten thousand tensors
_MOST_BYTES = 2**31  # of all tensors: five hundred million parameters
_LONGEST_NAME = 255
_PART = 2**22  # numbers read at a time

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor by its name."""


def layout_of(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> Layout:
    """Return the layout of a module's state."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def require_storable(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Raise InputError if no file of weights could hold the tensors: of what type they are, and how large."""
    size = sum(_bytes(*entry) for entry in layout_of(tensors).values())
    _in_order(layout_of(tensors))
    if size > _MOST_BYTES:
        raise InputError(f"weights of {size:,} bytes are more than a release holds, {_MOST_BYTES:,}: a smaller network")


def differences(given: Layout, found: Layout) -> str:
    """Say in what the weights of a network that is given differ from those found: the first of them; or nothing."""
    for name in sorted(given.keys() | found.keys()):
        one, other = (
            f"{str(layout[name][0]).removeprefix('torch.')} {layout[name][1]}" if name in layout else "none"
            for layout in (given, found)
        )
        if one != other:
            return f"{name} is {one} in the network given, and was {other}"
    return ""


def require_plain(layout: Layout) -> None:
    """Raise InputError unless weights have names of letters and digits, and numbers: shapes without any could tell."""
    for name, (_, shape) in layout.items():
        if 0 in shape:
            raise InputError(f"the weight {name[:80]!a} has no numbers: leave it out")
        parts = name.split(".")
        if len(name) > _LONGEST_NAME or not all(p.isascii() and (p.isidentifier() or p.isdigit()) for p in parts):
            raise InputError(f"a weight is called {name[:80]!a}: let its name be of letters, digits and _")


def save_weights(
    path: Path, tensors: Mapping[str, Shaped[Tensor, "..."]], said: Mapping[str, str] | None = None
) -> None:
    """Write the tensors' one file, atomically, with words `said` beside them in an export alone.

    Raises:
        InputError: A tensor is of a type that is no weight's, such as a complex one.
        OSError: The file cannot be written; the disk may be full.
    """
    layout = layout_of(tensors)
    head = head_of(layout, said)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(head)
            for name in _in_order(layout):
                file.write(tensors[name].detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)

    write_atomically(path, write)


def read_layout(path: Path) -> Layout:
    """Return the layout that the header of a file declares, and read nothing else of it.

    Raises:
        InputError: The header or the size of the file is not what `save_weights` makes of that layout.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing, or not a file of its own")
    try:
        with path.open("rb") as file:
            length = file.read(8)
            text = file.read(min(int.from_bytes(length, "little"), _MOST_HEADER))
        layout = {
            name: (_TYPES[entry["dtype"]], tuple(entry["shape"]))
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        }
        shapes = [shape for _, shape in layout.values()]
        if any(len(shape) > _MOST_SIDES for shape in shapes):  # or their product would keep a reader busy
            raise ValueError("tensors of too many sides")
        if not all(type(side) is int and 0 <= side < 2**40 for shape in shapes for side in shape):
            raise ValueError("sides that are none")
        head = head_of(layout)
        size = len(head) + sum(_bytes(*entry) for entry in layout.values())
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): it is no file of weights") from None
    if size > _MOST_BYTES:
        raise InputError(f"{path} is larger than a release's weights are, {_MOST_BYTES:,} bytes")
    if head != length + text:
        raise InputError(f"{path} holds more than weights, or is not as a run writes it")
    if size != path.stat().st_size:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes, and its header is that of {size:,}: it is damaged")
    return layout


def read_weights(path: Path, layout: Layout, *, below: str = "") -> dict[str, Shaped[Tensor, "..."]]:
    """Return the tensors of a file of this layout, whose names begin with `below`, without that beginning."""
    places = _places(layout)  # once: a stranger's file may have ten thousand tensors
    return {
        name.removeprefix(below): _tensor_at(path, places[name], *layout[name])
        for name in layout
        if name.startswith(below)
    }


def reader(path: Path, layout: Layout) -> Callable[..., Shaped[Tensor, "..."]]:
    """Return what reads one tensor of a file of this layout by its name, or those of its rows that are asked for."""
    places = _places(layout)  # once: a prior is read class by class

    def read(name: str, rows: slice = slice(None)) -> Tensor:
        return _tensor_at(path, places[name], *layout[name], rows)

    return read


def _tensor_at(path: Path, place: int, dtype: torch.dtype, shape: tuple[int, ...], rows: slice = slice(None)) -> Tensor:
    start, stop, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
    row = _bytes(dtype, shape[1:])
    content = bytearray(max(0, stop - start) * row)
    with path.open("rb", buffering=0) as file:
        file.seek(place + start * row)
        _fill(file, memoryview(content))
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(stop - start, *shape[1:]) if shape else flat.reshape(())


def all_finite(path: Path, layout: Layout) -> bool:
    """Whether all numbers of a file of this layout are finite, which are read part by part."""
    buffer = memoryview(bytearray(8 * _PART))
    with path.open("rb", buffering=0) as file:
        for name, place in _places(layout).items():
            file.seek(place)
            left = _bytes(*layout[name])
            while left:
                dtype = layout[name][0]
                part = buffer[: min(left, _PART * dtype.itemsize)]
                _fill(file, part)
                left -= len(part)
                if not torch.frombuffer(part, dtype=dtype).isfinite().all():
                    return False
    return True


def _fill(file: FileIO, part: memoryview) -> None:
    """Read a file on into all of `part`, without a copy."""
    while part:
        if not (count := file.readinto(part)):
            raise ValueError("a file that ends early")
        part = part[count:]


def _places(layout: Layout) -> dict[str, int]:
    """Return where in its file each tensor begins."""
    places, place = {}, len(head_of(layout))
    for name in _in_order(layout):
        places[name] = place
        place += _bytes(*layout[name])
    return places


def head_of(layout: Layout, said: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes before the numbers: the length of a JSON text, and that text, filled up to eights."""
    entries: dict[str, object] = {} if said is None else {"__metadata__": dict(said)}
    place = 0
    for name in _in_order(layout):
        dtype, shape = layout[name]
        end = place + _bytes(dtype, shape)
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_order(layout: Layout) -> list[str]:
    for name, (dtype, _) in layout.items():
        if dtype not in _NAMES:
            raise InputError(f"{name} is of the type {dtype}, which is no weight's: make it floating-point numbers")
    return sorted(layout, key=lambda name: (_ORDER.index(layout[name][0]), name))


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)
