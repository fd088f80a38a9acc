"""The files of a `diffusers` pipeline, and what a network that begins with one says: read offline, no pickle at all.

These are the only files that this room reads. `[network]` names the folder; a release says what was in it.
"""

import functools
import hashlib
import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

from torch import nn

from dpdm.networks.diffusers_unet import rank_of
from dpdm.types import InputError, refusing, require_name

WEIGHTS = "diffusion_pytorch_model.safetensors"
REMEDY = "copy the folder again, from where it came from"
CLAIM = "_dpdm_claim"
"""The key under which settings and weights of an exported pipeline say its claim: they are not public."""

TEXT_WEIGHTS = "model.safetensors"
NAMED: Final = (
    "added_tokens.json",
    "config.json",
    WEIGHTS,
    "merges.txt",
    TEXT_WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""The files of a part that are read, in the order in which its digest has them."""

SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_MOST_TEXT, _MOST_HEADER = 2**20, 2**24
_OF_A_RUN = ("privacy.json", "release/privacy.json", "private/journal.jsonl")
_OF_SAMPLING = (  # what `diffusers` alone goes by when it draws
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
_BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_PREDICTION = {"prediction_type": "epsilon"}


class Scheduled(NamedTuple):
    """What a scheduler says of training."""

    times: int
    beta_start: float
    beta_end: float
    schedule: Any
    prediction: Any


class Parts(NamedTuple):
    """What pipelines of a kind have: the classes known of each part, and the parts that are left alone."""

    known: Mapping[str, tuple[str, ...]]
    wanted: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PipelineFolder(ABC):
    """A pipeline of `diffusers` on disk, whose network is trained on from its public weights.

    Args:
        source: The pipeline's folder; a release keeps its name alone.
        trains: Which parameters private steps train: `all`, `norms` (and biases), `attention`, `last` (the output
            half), `lora:RANK` (low rank beside attention, by `peft`), or names with `*`, joined by commas.
    """

    kind: ClassVar[str]
    parts: ClassVar[Parts]
    needed: ClassVar[tuple[str, ...]]
    """The settings that a release says of the folder: nobody's disk is looked at where one is opened."""

    source: str
    trains: str = "all"

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source is empty: name the folder of a diffusers pipeline")
        require_name(self.source, "the diffusers folder (network.source)")
        rank_of(self.trains)

    @property
    @abstractmethod
    def released(self) -> bool:
        """Whether it comes from a release, and its folder is not known here."""

    @property
    @abstractmethod
    def spec(self) -> Any:  # noqa: ANN401 (a DiffusersUNet, or a ConditionUNet)
        """The settings of its unet, by the release or the folder; raise InputError if the folder holds another."""

    @property
    @abstractmethod
    def digests(self) -> tuple[tuple[str, str], ...]:
        """The names that a claim gives its public parts, with the SHA-256 of each.

        Raises:
            InputError: The folder holds other parts than the settings name.
        """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names that a claim gives its public parts."""

    @abstractmethod
    def said(self) -> "PipelineFolder":
        """Return it in the form that a release stores."""

    @abstractmethod
    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the network for images or latents of `shape`, with the folder's weights if it is known.

        Raises:
            InputError: The network is not for such images, or the folder is damaged.
        """

    @abstractmethod
    def require_images(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Raise InputError unless it takes images of `shape` (channel, height, width) and this number of classes."""

    @abstractmethod
    def seen(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape that its unet sees for images of this shape (channel, height, width)."""

    def begun_from(self, source: str) -> Self:
        """Return the value of a release with the place of its folder on this machine."""
        said: dict[str, Any] = {name: None for name in self.needed if name != "sha256"}
        return replace(self, source=source, **said)

    @property
    def name(self) -> str:
        """The name that a claim gives it."""
        return self.source if self.released else self.folder.resolve().name or "diffusers"

    @property
    def folder(self) -> Path:
        """Where it is."""
        return Path(self.source).expanduser()

    def scheduled(self) -> Scheduled:
        """Return its scheduler's settings; raise InputError if dpdm does not know them, or they are not public."""
        said = read_scheduler(self.folder, self.parts)
        if self.has_weights:
            weights_of(self.folder / "unet")
        return said

    @property
    def has_weights(self) -> bool:
        """Whether its unet has weights. Settings alone are enough for a plan."""
        unet = self.folder / "unet"
        return self.released or (unet.is_dir() and any(each.name != "config.json" for each in unet.iterdir()))

    def require_weights(self) -> None:
        """Raise InputError if it comes from a release, and its folder is not known here."""
        if self.released:
            raise InputError(
                f"training begins with the public weights of {self.source}: name its folder (network.source), and "
                f"leave out {' and '.join(f'network.{name}' for name in self.needed)}, which a release says"
            )


def read_settings(folder: Path, part: str, parts: Parts) -> dict[str, Any]:
    """Return what a part of a pipeline says of itself, without what begins with "_".

    Raises:
        InputError: There is no pipeline, or one of other parts.
    """
    at = folder.resolve()
    for place in (at, *at.parents[:2]):
        if any((place / name).exists() for name in _OF_A_RUN):
            raise InputError(f"{folder} belongs to a private run ({place}): its weights are not public")
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} holds no diffusers pipeline (model_index.json): name a folder that has one")
    settings = "scheduler_config.json" if part == "scheduler" else "config.json"
    whole, said = read_json(index), read_json(folder / part / settings) if (folder / part).is_dir() else {}
    if claim := whole.get(CLAIM) or said.get(CLAIM):
        raise InputError(f"{folder} was exported from a private run ({claim}): its weights are not public")
    there = {key: value for key, value in whole.items() if not key.startswith("_") and key not in parts.ignored}
    if there.keys() != parts.known.keys():
        raise InputError(f"{folder} is a pipeline of {', '.join(sorted(there)) or 'nothing'}: {parts.wanted}")
    for key, known in parts.known.items():
        if not isinstance(there[key], list) or not any(there[key][-1:] == [name] for name in known):
            raise InputError(f"{index} says that {key} is {there[key]!r}: {parts.wanted}")
    said = read_json(folder / part / settings)
    called = said.get("_class_name") or [*(said.get("architectures") or []), None][0]
    if called not in parts.known[part]:
        raise InputError(f"{folder}/{part} is a {called!r}: {parts.wanted}")
    return {key: value for key, value in said.items() if not key.startswith("_")}


def read_scheduler(folder: Path, parts: Parts) -> Scheduled:
    """Return what a pipeline's scheduler says; raise InputError if it says what dpdm does not know."""
    said = read_settings(folder, "scheduler", parts)
    if said.pop("trained_betas", None) is not None or said.pop("rescale_betas_zero_snr", False):
        raise InputError(f"{folder}/scheduler has trained or rescaled betas, which dpdm does not know")
    for key in said.keys() - {*_BETAS, *_PREDICTION, *_OF_SAMPLING}:
        raise InputError(f"{folder}/scheduler/scheduler_config.json says {key}, which dpdm does not know")
    values = {key: said.get(key, default) for key, default in (_BETAS | _PREDICTION).items()}
    times, start, end, schedule, prediction = values.values()
    if type(times) is not int or not all(type(beta) in (int, float) for beta in (start, end)):
        raise InputError(f"{folder}/scheduler has times or betas that are no numbers: {REMEDY}")
    return Scheduled(times, float(start), float(end), schedule, prediction)


def plain(value: object) -> Any:  # noqa: ANN401 (as JSON has it)
    """Return a setting as a frozen value holds it."""
    return tuple(value) if isinstance(value, list) else value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a megabyte at most, or raise InputError naming the file."""
    with refusing(f"{path} cannot be read, so {REMEDY}"):
        if not path.is_file() or path.stat().st_size > _MOST_TEXT:
            raise InputError(f"{path} is missing, or no file of settings: {REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    return content


def weights_of(part: Path, name: str = WEIGHTS) -> Path:
    """Return the file of a part's weights, or raise InputError: a pickle runs what a stranger wrote."""
    path = part / name
    if path.is_file():
        if claim := _said_in(path).get(CLAIM):
            raise InputError(f"{path} was exported from a private run ({claim}): its weights are not public")
        return path
    others = sorted(each.name for each in part.glob("*") if each.name != "config.json")
    raise InputError(
        f"{path} is missing{f' (there is {others[0]})' if others else ''}: weights are read from one file of "
        "safetensors alone, never from a pickle; save them by save_pretrained(..., safe_serialization=True)"
    )


@contextmanager
def only_named(part: Path) -> Iterator[Path]:
    """Yield a folder with those files of a part that are read, and no others, which no digest covers.

    `diffusers` and `transformers` look for more: shards and adapters go before the file of weights, without a word.
    """
    with tempfile.TemporaryDirectory(prefix="dpdm-") as folder:
        for name in NAMED:
            if (part / name).is_file():
                (Path(folder) / name).symlink_to((part / name).resolve())
        yield Path(folder)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once as long as nobody writes it."""
    found = path.stat()
    return _digest_as_it_was(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_as_it_was(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said_in(path: Path) -> dict[str, Any]:
    """Return what a file of safetensors says of itself: it begins with the length of a JSON object that may say it."""
    with refusing(f"{path} is damaged, so {REMEDY}"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError("no file of safetensors")
        said: dict[str, Any] = json.loads(file.read(length)).get("__metadata__", {})
    return said
