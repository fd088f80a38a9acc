"""What settings are asked for: a preset's name, a TOML file, or a path to images. A misspelt one is told at once."""

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dpdm.data import is_source
from dpdm.types import InputError

Table = dict[str, Any]


def preset_names() -> list[str]:
    """Return the names of the presets."""
    files = (resources.files("dpdm") / "presets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_target(target: str) -> Table:
    """Return the settings that a preset or a TOML file holds; those of a path to images are where these are.

    Raises:
        InputError: There is no such preset, file or path.
    """
    if target in preset_names():
        return read_preset(target)
    if target.endswith(".toml"):
        return read_toml(Path(target))
    if is_source(target):
        return {"data": {"source": target}}
    raise InputError(_nothing_there(target))


def read_preset(name: str) -> Table:
    """Return the settings of a preset, or those of a method's own preset, which has no data."""
    folder = resources.files("dpdm") / "presets"
    file = folder / f"{name}.toml" if name in preset_names() else folder / "methods" / f"{name}.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    base = table.pop("extends", None)
    return table if base is None else _over(read_preset(base), table)


def _over(base: Table, table: Table) -> Table:
    """Return the settings of one preset with those of another, which says what is other, put over them."""
    whole = dict(base)
    for key, value in table.items():
        inner = whole.get(key)
        if (
            isinstance(value, dict)
            and isinstance(inner, dict)
            and value.get("kind", inner.get("kind")) == inner.get("kind")
        ):
            whole[key] = _over(inner, value)
        else:
            whole[key] = value
    return whole


def read_toml(path: Path) -> Table:
    """Return the table in a TOML file, or raise InputError naming it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} cannot be read: is the path right?") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, text that is not UTF-8, numbers without end
        raise InputError(f"{path} is not valid TOML: {error}") from None


def _nothing_there(target: str) -> str:
    """Say what is wrong with a target that is no preset, no TOML file and no path to images."""
    place, _, part = target.rpartition(":")
    if place and is_source(place):
        return f"{place} has no part {part!r}: say {place}:train, {place}:val or {place}:test"
    path = Path(target)
    beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(target, [*preset_names(), *beside], n=1)
    hint = f"did you mean {close[0]}?" if close else f"the presets are {', '.join(preset_names())}"
    return f"{target!r} is no preset, no TOML file and no path to images: {hint}"
