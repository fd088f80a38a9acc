"""Settings to and from TOML, strictly.

An unknown key is an error that names its path and the nearest known one. A `kind` in a table says which of several
values it holds.
"""

import copy
import dataclasses
import difflib
import functools
import numbers
import operator
import tomllib
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, TypeVar

import pydantic

from dpdm.config.settings import Config, NoPrivacy, Privacy
from dpdm.config.target import Table, preset_names, read_preset, read_target
from dpdm.diffusion import MatchedSolver, MomentMatched
from dpdm.methods import METHODS, AnySampler, Diffusion, Method, Pose
from dpdm.networks import DiffusersFolder, Own, TextToImageFolder
from dpdm.privacy import AnyPlan
from dpdm.types import InputError, require_at_most

_MOST_ENTRIES = 1000  # of a list of tables: a plan has no more
T = TypeVar("T")
_FOLLOWS = ("facts", "plan", "opened", "epsilon", "start_folders")  # what a run writes beside what a person asked for
_LEFT_OUT = ("codec", "retrieval", "start")  # by key=none
_BATCH = "expected_batch_size"
_OF_ITS_IMAGES = ("epsilon", "dataset_size")  # what a preset says of its own images alone
_COMMON = tuple(f.name for f in dataclasses.fields(Config) if f.name != "method")  # tables of every method


def load_config(
    target: str, *, method: str | None = None, overrides: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> Config:
    """Return the settings for a preset's name, a TOML file, or a path to images, with `key=value` overrides.

    A preset's ε and number of images are for those that the preset names. They do not apply to another `data.source`:
    nobody has declared how many other images there are. Where fewer images are declared than a preset's batch has, the
    batch is the method's own.

    Args:
        target: A preset's name, a TOML file or a path. A file that a run wrote is one, too.
        method: The name of a method. Data, machine, ε and δ stay those of `target`; the method's own preset sets the
            rest.
        overrides: Settings as `key=value`, such as "privacy.epsilon=1"; "codec=none" leaves out that table, and so
            for start and retrieval.
        leave_out: Tables of `target` to leave out.

    Raises:
        InputError: There is no such preset, file, path or method. Or a key is unknown, or a value does not fit.

    Example:
        >>> load_config("fashion-mnist-cpu", overrides=["privacy.epsilon=1"]).privacy.epsilon
        1.0
    """
    own = {key: value for key, value in read_target(target).items() if key not in (*_FOLLOWS, *leave_out)}
    if method is not None:
        own = _by_method(own, method)
    table = _overridden(copy.deepcopy(own), overrides)
    if target in preset_names() and _source(table) != _source(own):
        own["privacy"] = {key: value for key, value in own["privacy"].items() if key not in _OF_ITS_IMAGES}
        table = _overridden(copy.deepcopy(own), overrides)
    if target in preset_names() and _has_a_batch_too_large(own, table):
        del own["privacy"][_BATCH]
        table = _overridden(own, overrides)
    return _decode_config(table)


def _has_a_batch_too_large(own: Table, table: Table) -> bool:
    """Whether a batch is larger than the declared number of images, and nobody but a preset has set it."""
    before, now = own.get("privacy"), table.get("privacy")
    if not isinstance(before, dict) or not isinstance(now, dict):
        return False
    batch, number = now.get(_BATCH), now.get("dataset_size")
    return type(batch) is int and type(number) is int and batch > number and batch == before.get(_BATCH)


def _by_method(table: Table, method: str) -> Table:
    """Return the tables of a target that every method shares, beside those of a method's preset."""
    kind = _kind_of_method(method)
    kept = {key: value for key, value in table.items() if key in _COMMON}
    if isinstance(privacy := kept.get("privacy"), dict):
        kept["privacy"] = {
            key: value for key, value in privacy.items() if key in ("kind", "epsilon", "delta", "dataset_size")
        }
    own = read_preset(kind.kind)
    own["privacy"] = own.get("privacy", {}) | kept.pop("privacy", {})
    return {**own, **kept}


def _kind_of_method(name: object) -> type[Method]:
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method = {name!r} is none of {', '.join(METHODS)}" + _did_you_mean(str(name), list(METHODS)))
    return METHODS[name]


def _decode_config(table: Table) -> Config:
    common = {key: value for key, value in table.items() if key in _COMMON}
    return decode(Config, common, method=decode_method(table))


def decode_method(table: Table) -> Method:
    """Return the method that settings name, from all of their tables that are not every method's.

    Raises:
        InputError: There is no such method, or a table does not belong to it, or does not fit.
    """
    kind = _kind_of_method(table.get("method", Diffusion.kind))
    own = {key: value for key, value in table.items() if key not in (*_COMMON, *_FOLLOWS, "method")}
    for key in own.keys() - {f.name for f in dataclasses.fields(typing.cast(Any, kind))}:
        known = [*_COMMON, *(f.name for f in dataclasses.fields(typing.cast(Any, kind)))]
        raise InputError(f"unknown key {key} (method = {kind.kind})" + _did_you_mean(key, known))
    return decode(kind, own)


def encode_config(config: Config) -> Table:
    """Return the tables that `load_config` would read `config` from."""
    common = {name: _plain(value) for name in _COMMON if (value := getattr(config, name)) is not None}
    return {"method": config.method.kind, **common, **encode_method(config.method)}


def encode_method(method: Method) -> Table:
    """Return the tables that belong to a method, without its name."""
    return {key: value for key, value in encode(method).items() if key != "kind"}


def choose_sampler(settings: Table, *, name: str | None = None, overrides: Sequence[str] = ()) -> AnySampler:
    """Return the sampler of a run's settings, or the one called `name`, with `sampler.key=value` overrides.

    Raises:
        InputError: There is no such name; an override is not of the sampler, or does not fit.
    """
    known = settings.get("samplers", {})
    if name is not None and name not in known:
        raise InputError(f"this run has no sampler called {name!r}" + _did_you_mean(name, list(known)))
    if "sampler" not in settings:
        raise InputError(f"the method {settings['method']} draws images at once: it has no sampler")
    whole = {"sampler": dict(settings["sampler"] if name is None else known[name])}
    for override in overrides:
        if not override.startswith("sampler."):
            raise InputError(f"--set {override}: the run is trained, only sampler.* can be set now")
    sampler: AnySampler = _decode_value(AnySampler, _overridden(whole, overrides)["sampler"], "sampler")
    return sampler


def decode(cls: type[T], table: Table, *, path: str = "", default: object = None, **given: object) -> T:
    """Return the frozen value of `cls` that `table` describes; keys it lacks are those of `default`, if that is one.

    Args:
        cls: A dataclass.
        table: Its fields.
        path: Where the table is, for messages.
        default: A value of `cls`.
        given: Fields that are no part of the table.

    Raises:
        InputError: Names the path of an unknown key, a missing one, or a value that does not fit.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    values = {key: getattr(default, key) for key in fields} if type(default) is cls else {}
    values |= given
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


def decode_plan(table: Table) -> AnyPlan:
    """Return the plan that `encode` made `table` of, as a run's settings hold it."""
    plan: AnyPlan = _decode_value(AnyPlan, table, "plan")
    return plan


def encode(value: object) -> Table:
    """Return the table that `decode` turns back into the frozen `value`; what is None, or said if any, is left out."""
    kind = getattr(value, "kind", None)
    table: Table = {} if kind is None else {"kind": kind}
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(typing.cast(Any, value)):
        entry = _of_one_spelling(getattr(value, f.name), hints[f.name])
        if entry is not None and f.init and (entry or "said" not in f.metadata):
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
    if typing.get_origin(hint) is tuple and isinstance(value, list) and _choices(each := typing.get_args(hint)[0]):
        require_at_most(_MOST_ENTRIES, **{f"the number of {path}": len(value)})
        return tuple(_decode_value(each, entry, f"{path}.{number}") for number, entry in enumerate(value))
    choices = _choices(hint)
    if not choices:
        return _check(hint, value, path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is a table, not {value!r}: set its keys, such as {path}.{_first_key(choices[0])}")
    rest = dict(value)
    if len(choices) == 1:
        return decode(typing.cast(Any, choices[0]), rest, path=f"{path}.", default=default)
    kinds = {typing.cast(Any, c).kind: c for c in choices}
    kind = rest.pop("kind", getattr(default, "kind", next(iter(kinds))))
    if not isinstance(kind, str) or kind not in kinds:
        named = [name for name in kinds if name != Own.kind]  # which has no code that settings could name
        raise InputError(f"{path}.kind must be one of {', '.join(named)}, not {kind!r}")
    return decode(typing.cast(Any, kinds[kind]), rest, path=f"{path}.", default=default)


def _choices(hint: Any) -> list[Any]:  # noqa: ANN401
    """Return the frozen values among what `hint` allows."""
    return [choice for choice in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(choice)]


def _check(hint: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    try:
        # Strict, so that true is no 1 and "20" no 20; TOML has lists only, and the values hold tuples.
        exact = tuple(value) if isinstance(value, list) else value
        return _adapter(hint).validate_python(exact)
    except pydantic.ValidationError as error:
        wanted = error.errors()[-1 if value is not None and NoneType in typing.get_args(hint) else 0]["msg"]
        raise InputError(f"{path} = {value!r}: {wanted[0].lower()}{wanted[1:]}") from None


@functools.cache
def _adapter(hint: Any) -> "pydantic.TypeAdapter[Any]":  # noqa: ANN401
    return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True))


def _source(table: Table) -> object:
    data = table.get("data")
    return data.get("source") if isinstance(data, dict) else data


def _overridden(table: Table, overrides: Sequence[str]) -> Table:
    """Return `table` after all `key=value`, a new `kind` before the settings that belong to it."""
    for override in sorted(overrides, key=lambda text: (".kind=" not in text, "network.kind=" not in text)):
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
    if key.strip() == "preconditioning.kind" and value != MomentMatched.kind:
        table.pop("prior", None)
        samplers = table.get("samplers", {})
        for name in [name for name, sampler in samplers.items() if sampler.get("kind") == MatchedSolver.kind]:
            del samplers[name]
        if table.get("sampler", {}).get("kind") == MatchedSolver.kind:
            del table["sampler"]
    if key.strip() == "network.kind" and value in (DiffusersFolder.kind, TextToImageFolder.kind):
        # which says the preconditioning, without prior
        for name in ("preconditioning", "prior", "codec", "start", "sampler", "samplers"):
            table.pop(name, None)
    codec = table.get("codec")
    if key.strip() == "codec.source" and isinstance(codec, dict) and codec.get("kind") == Pose.kind:
        del table["codec"]  # which has no source
    if key.strip() in _LEFT_OUT and value == "none":
        table.pop(key.strip(), None)
        return
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
