"""Settings to and from TOML, strictly.

An unknown key is an error that names its path and the nearest known one. A `kind` in a table says which of several
values it holds.
"""

import dataclasses
import difflib
import numbers
import operator
import tomllib
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, TypeVar

import pydantic

from dpdm.config.settings import KIND_OF, AnySampler, Config, NoPrivacy, Privacy
from dpdm.config.target import Table, preset_names, read_target
from dpdm.diffusion import FromPrior, MatchedSolver, MomentMatched
from dpdm.networks import Own
from dpdm.privacy import DPSGD, GaussianRelease, Mechanism, NonPrivate
from dpdm.privacy.search import Search
from dpdm.types import InputError

T = TypeVar("T")
_OF_PRIOR = (KIND_OF[MatchedSolver], KIND_OF[FromPrior])  # samplers that need one


def load_config(target: str, *, overrides: Sequence[str] = ()) -> Config:
    """Return the settings for a preset's name, a TOML file, or a path to images, with `key=value` overrides.

    A preset's ε is for the images that the preset names: it is left out where `data.source` is another one.

    Raises:
        InputError: No such preset, file or path; an unknown key; a value that does not fit.
    """
    table = _overridden(read_target(target), overrides)
    own = read_target(target)
    if target in preset_names() and _source(table) != _source(own):
        del own["privacy"]["epsilon"]
        table = _overridden(own, overrides)
    return decode(Config, table)


def choose_sampler(settings: Table, *, name: str | None = None, overrides: Sequence[str] = ()) -> AnySampler:
    """Return the sampler of a run's settings, or the one called `name`, with `sampler.key=value` overrides.

    Raises:
        InputError: There is no such name; an override is not of the sampler, or does not fit.
    """
    known = settings.get("samplers", {})
    if name is not None and name not in known:
        raise InputError(f"this run has no sampler called {name!r}" + _did_you_mean(name, list(known)))
    whole = {"sampler": dict(settings["sampler"] if name is None else known[name])}
    for override in overrides:
        if not override.startswith("sampler."):
            raise InputError(f"--set {override}: the run is trained, only sampler.* can be set now")
    sampler: AnySampler = _decode_value(AnySampler, _overridden(whole, overrides)["sampler"], "sampler")
    return sampler


def decode(cls: type[T], table: Table, *, path: str = "", default: object = None) -> T:
    """Return the frozen value of `cls` that `table` describes; keys it lacks are those of `default`, if that is one.

    Raises:
        InputError: Names the path of an unknown key, a missing one, or a value that does not fit.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    values = {key: getattr(default, key) for key in fields} if type(default) is cls else {}
    for key, value in table.items():
        if key not in fields:
            raise InputError(f"unknown key {path}{key}" + _did_you_mean(key, list(fields)))
        values[key] = _decode_value(hints[key], value, f"{path}{key}", values.get(key, _default(fields[key])))
    for key, spec in fields.items():
        if key not in values and spec.default is spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{path}{key} is missing: give it in the file or by --set {path}{key}=...")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{path.rstrip('.')}: {error}" if path else str(error)) from None


def decode_plan(table: Table) -> Mechanism:
    """Return the plan that `encode` made `table` of, as a release's settings hold it under `privacy`."""
    plan = DPSGD if "delta" in table else NonPrivate
    hints = typing.get_type_hints(plan)
    values = {key: _check(hints[key], table[key], f"privacy.{key}") for key in table.keys() - {"earlier", "search"}}
    values["earlier"] = tuple(GaussianRelease(**release) for release in table.get("earlier", ()))
    if "search" in table:
        values["search"] = Search(**table["search"])
    return plan(**values)


def encode(value: object) -> Table:
    """Return the table that `decode` turns back into the frozen `value`; what is None is left out."""
    table: Table = {"kind": KIND_OF[type(value)]} if type(value) in KIND_OF else {}
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(typing.cast(Any, value)):
        entry = _of_one_spelling(getattr(value, f.name), hints[f.name])
        default = "said_if_another" in f.metadata and entry == f.default
        if entry is not None and f.init and not default:
            table[f.name] = _plain(entry)
    return table


def _default(field: "dataclasses.Field[Any]") -> object:
    """Return a field's default, or None."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _decode_value(hint: Any, value: Any, path: str, default: object = None) -> Any:  # noqa: ANN401 (as TOML has it)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {name: _decode_value(typing.get_args(hint)[1], entry, f"{path}.{name}") for name, entry in value.items()}
    choices = [c for c in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(c)]
    if not choices:
        return _check(hint, value, path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is a table, not {value!r}: set its keys, such as {path}.{_first_key(choices[0])}")
    rest = dict(value)
    if len(choices) == 1:
        return decode(typing.cast(Any, choices[0]), rest, path=f"{path}.", default=default)
    kinds = {KIND_OF[typing.cast(type, c)]: c for c in choices}
    kind = rest.pop("kind", KIND_OF.get(type(default), next(iter(kinds))))
    if not isinstance(kind, str) or kind not in kinds:
        named = [name for name in kinds if name != KIND_OF[Own]]  # which has no code that settings could name
        raise InputError(f"{path}.kind must be one of {', '.join(named)}, not {kind!r}")
    return decode(typing.cast(Any, kinds[kind]), rest, path=f"{path}.", default=default)


def _check(hint: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    try:
        # Strict, so that true is no 1 and "20" no 20; TOML has lists only, and the values hold tuples.
        exact = tuple(value) if isinstance(value, list) else value
        return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True)).validate_python(exact)
    except pydantic.ValidationError as error:
        wanted = error.errors()[-1 if value is not None and NoneType in typing.get_args(hint) else 0]["msg"]
        raise InputError(f"{path} = {value!r}: {wanted[0].lower()}{wanted[1:]}") from None


def _source(table: Table) -> object:
    data = table.get("data")
    return data.get("source") if isinstance(data, dict) else data


def _overridden(table: Table, overrides: Sequence[str]) -> Table:
    """Return `table` after all `key=value`, a new `kind` before the settings that belong to it."""
    for override in sorted(overrides, key=lambda text: ".kind=" not in text):
        _override(table, override)
    return table


def _override(table: Table, text: str) -> None:
    """Apply one `key=value` to `table`; a new `kind` drops the settings of the old one that it does not share."""
    key, equals, raw = text.partition("=")
    if not equals:
        raise InputError(f"--set takes key=value, not {text!r}")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    *parents, last = key.strip().split(".")
    if key.strip() == "preconditioning.kind" and value != KIND_OF[MomentMatched]:
        table.pop("prior", None)
        samplers = table.get("samplers", {})
        for name in [name for name, sampler in samplers.items() if sampler.get("kind") in _OF_PRIOR]:
            del samplers[name]
        if table.get("sampler", {}).get("kind") in _OF_PRIOR:
            del table["sampler"]
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {key}: {parent} is a value, not a table")
    if last == "kind" and table.get("kind") != value:
        shared = dataclasses.fields(Privacy if value == "dp-sgd" else NoPrivacy) if parents == ["privacy"] else ()
        for name in table.keys() - {f.name for f in shared}:
            del table[name]
    table[last] = value


def _of_one_spelling(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Return numbers as the one spelling that they have in a file: 1 is 1.0 where the hint has a float, and -0.0 0.0.

    Whole numbers of another library are Python's own: its writers of files know no others.
    """
    kinds = (hint, *typing.get_args(hint))
    if isinstance(value, tuple):
        return tuple(_of_one_spelling(entry, kinds[1]) for entry in value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and {float, int} & {*kinds}:
        return float(value) + 0.0 if float in kinds else operator.index(typing.cast(Any, value))
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return encode(value) if dataclasses.is_dataclass(value) else value


def _first_key(cls: Any) -> str:  # noqa: ANN401
    return dataclasses.fields(cls)[0].name


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f"; known: {', '.join(known) or 'none'}"
