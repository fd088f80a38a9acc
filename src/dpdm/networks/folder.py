"""A folder of a `diffusers` pipeline as a network to begin with: read offline, from safetensors alone.

This is the one file of this room that reads any. `[network]` names the folder; a release says what was in it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from dpdm.networks.diffusers_unet import DiffusersUNet, imported, rank_of
from dpdm.types import InputError, refusing, require_name

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_UNET, _SCHEDULER = "UNet2DModel", "DDPMScheduler"
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_MOST_TEXT, _MOST_HEADER = 2**20, 2**24
_REMEDY = "copy the folder again, from where it came from"
_WANTED = f"dpdm reads a pipeline of one {_UNET} and one {_SCHEDULER}"
_OTHER_UNETS: Mapping[str, tuple[object, ...]] = {  # what may be said in these ways alone
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D", None),
}
_OF_TRAINING = ("dropout", "num_train_timesteps", "out_channels")  # what is seen to elsewhere
_OF_SAMPLING = (  # what `diffusers` alone goes by when it draws
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "timestep_spacing",
    "steps_offset",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
_OF_A_RUN = ("privacy.json", "release/privacy.json", "private/journal.jsonl")
CLAIM = "_dpdm_claim"
"""The key under which settings and weights of an exported pipeline say its claim: they are not public."""

_BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_PREDICTION = {"prediction_type": "epsilon"}


class Scheduled(NamedTuple):
    """What a scheduler says of training."""

    times: int
    beta_start: float
    beta_end: float
    schedule: Any
    prediction: Any


@dataclass(frozen=True, kw_only=True)
class DiffusersFolder:
    """A `UNet2DModel` of a pipeline of `diffusers`, which is trained on from its public weights.

    A folder without classes gets a new table of them, and a null class, which is trained whatever `trains` says.

    Args:
        source: The pipeline's folder; a release keeps its name alone.
        trains: Which parameters private steps train: `all`, `norms` (and biases), `attention`, `last` (the output
            half), `lora:RANK` (low rank beside attention, by `peft`), or names with `*`, joined by commas.
        sha256: Of the file of its weights, as a release says it. Default: whatever the folder has.
        unet: What its `config.json` says, as a release says it.
    """

    kind: ClassVar[str] = "diffusers"
    source: str
    trains: str = "all"
    sha256: str | None = None
    unet: DiffusersUNet | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source is empty: name the folder of a diffusers pipeline")
        require_name(self.source, "the diffusers folder (network.source)")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InputError("sha256 must be 64 hexadecimal digits")
        if (self.unet is None) != (self.sha256 is None) and self.unet is not None:
            raise InputError("sha256 is missing beside unet: a release says both")
        rank_of(self.trains)

    @property
    def name(self) -> str:
        """What a claim calls it."""
        return self.source if self.unet else self._folder.resolve().name or "diffusers"

    @property
    def spec(self) -> DiffusersUNet:
        """What it is, as the release says or the folder.

        Raises:
            InputError: There is no such folder, or something else is in it.
        """
        return self.unet or _read_unet(self._folder)

    @property
    def digest(self) -> str:
        """The SHA-256 of its weights' file; raise InputError if it is another than is named."""
        if self.unet is not None:
            assert self.sha256 is not None
            return self.sha256
        with _weights_of(self._folder).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if self.sha256 not in (None, found):
            raise InputError(f"{self.source} is another folder than the settings name: network.sha256 differs")
        return found

    def scheduled(self) -> Scheduled:
        """Return what its scheduler says; raise InputError if it says what dpdm does not know, or is not public."""
        said = _read_scheduler(self._folder)
        _weights_of(self._folder)
        return said

    def said(self) -> "DiffusersFolder":
        """Return it as a release says it."""
        return replace(self, source=self.name, sha256=self.digest, unet=self.spec)

    def require_weights(self) -> None:
        """Raise InputError where settings are those of a release, whose folder nobody has named."""
        if self.unet is not None:
            raise InputError(
                f"training begins with the public weights of {self.source}: name its folder (network.source), and "
                "leave out network.sha256 and network.unet, which a release says"
            )

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the network for images of `shape` (channel, height, width), with the folder's weights if it is one.

        Raises:
            InputError: It is not for such images, or the folder is damaged.
        """
        if images_in != 1:
            raise InputError("a diffusers folder sees one image: it is for preconditioning.kind = ddpm, its own")
        network = self.spec.build(shape, num_classes=num_classes, trains=self.trains)
        if self.unet is None and next(network.parameters()).device.type != "meta":
            self._load_into(network)
        return network

    def _load_into(self, network: Any) -> None:  # noqa: ANN401 (a DiffusersNetwork)
        """Give a network the folder's weights, in float32.

        Raises:
            InputError: They are damaged, or those of another unet.
        """
        path, before = _weights_of(self._folder), self.digest
        load = imported("diffusers").UNet2DModel.from_pretrained
        with refusing(f"{path} is damaged, so {_REMEDY}"), torch.device("cpu"):
            settings = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
            public, found = load(path.parent, output_loading_info=True, torch_dtype=torch.float32, **settings)
        if self.digest != before:
            raise InputError(f"{path} was changed while it was read: begin again")
        for name in (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]):
            raise InputError(f"{path} does not hold what config.json says ({name}): {_REMEDY}")
        if not all(value.isfinite().all() for value in public.state_dict().values()):
            raise InputError(f"{path} holds numbers that are not finite: {_REMEDY}")
        network.begin_from(public.state_dict())

    @property
    def _folder(self) -> Path:
        return Path(self.source).expanduser()


def _read_unet(folder: Path) -> DiffusersUNet:
    said = _read_pipeline(folder, "unet", _UNET)
    for key, known in _OTHER_UNETS.items():
        if key in said and said[key] not in known:
            raise InputError(f"{folder}/unet has {key} = {said[key]!r}, which dpdm does not train")
    size, channels = said.pop("sample_size", None), said.get("in_channels", 3)
    if said.get("out_channels", 3) != channels:
        raise InputError(f"{folder}/unet gives other channels than it takes: dpdm trains one that gives an image")
    said = {"attention_head_dim": 8, **said}  # the default of `diffusers`; null is another width
    known_fields = {f.name for f in fields(DiffusersUNet)} - {"times", "sample_size", "mid_block"}
    unknown = said.keys() - known_fields - _OTHER_UNETS.keys() - {*_OF_TRAINING}
    if unknown:
        raise InputError(f"{folder}/unet/config.json says {sorted(unknown)[0]}, which dpdm does not know")
    sides = () if size is None else tuple(size) if isinstance(size, list) else (size, size)
    values = {key: _plain(value) for key, value in said.items() if key in known_fields}
    with refusing(f"{folder}/unet/config.json holds what no unet says, so {_REMEDY}"):
        return DiffusersUNet(
            times=_read_scheduler(folder).times,
            sample_size=sides,
            mid_block=said.get("mid_block_type", "UNetMidBlock2D") is not None,
            **values,
        )


def _plain(value: object) -> Any:  # noqa: ANN401 (as JSON has it)
    return tuple(value) if isinstance(value, list) else value


def _read_scheduler(folder: Path) -> Scheduled:
    said = _read_pipeline(folder, "scheduler", _SCHEDULER)
    if said.pop("trained_betas", None) is not None or said.pop("rescale_betas_zero_snr", False):
        raise InputError(f"{folder}/scheduler has trained or rescaled betas, which dpdm does not know")
    for key in said.keys() - {*_BETAS, *_PREDICTION, *_OF_SAMPLING}:
        raise InputError(f"{folder}/scheduler/scheduler_config.json says {key}, which dpdm does not know")
    values = {key: said.get(key, default) for key, default in (_BETAS | _PREDICTION).items()}
    times, start, end, schedule, prediction = values.values()
    if type(times) is not int or not all(type(beta) in (int, float) for beta in (start, end)):
        raise InputError(f"{folder}/scheduler has times or betas that are no numbers: {_REMEDY}")
    return Scheduled(times, float(start), float(end), schedule, prediction)


def _read_pipeline(folder: Path, part: str, wanted: str) -> dict[str, Any]:
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
    name = "config.json" if part == "unet" else "scheduler_config.json"
    whole, said = _read_json(index), _read_json(folder / part / name) if (folder / part).is_dir() else {}
    if claim := whole.get(CLAIM) or said.get(CLAIM):
        raise InputError(f"{folder} was exported from a private run ({claim}): its weights are not public")
    parts = {key: value for key, value in whole.items() if not key.startswith("_")}
    if parts.keys() != {"unet", "scheduler"}:
        raise InputError(f"{folder} is a pipeline of {', '.join(sorted(parts)) or 'nothing'}: {_WANTED}")
    said = _read_json(folder / part / name)
    if said.get("_class_name") != wanted:
        raise InputError(f"{folder}/{part} is a {said.get('_class_name')!r}: {_WANTED}")
    return {key: value for key, value in said.items() if not key.startswith("_")}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a megabyte at most, or raise InputError naming the file."""
    with refusing(f"{path} cannot be read, so {_REMEDY}"):
        if not path.is_file() or path.stat().st_size > _MOST_TEXT:
            raise InputError(f"{path} is missing, or no file of settings: {_REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    return content


def _said_in(path: Path) -> dict[str, Any]:
    """Return what a file of safetensors says of itself: it begins with the length of a JSON object that may say it."""
    with refusing(f"{path} is damaged, so {_REMEDY}"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError("no file of safetensors")
        said: dict[str, Any] = json.loads(file.read(length)).get("__metadata__", {})
    return said


def _weights_of(folder: Path) -> Path:
    """Return the file of a folder's weights, or raise InputError: a pickle runs what a stranger wrote."""
    path = folder / "unet" / _WEIGHTS
    if path.is_file():
        if claim := _said_in(path).get(CLAIM):
            raise InputError(f"{path} was exported from a private run ({claim}): its weights are not public")
        return path
    others = sorted(each.name for each in path.parent.glob("*") if each.name != "config.json")
    raise InputError(
        f"{path} is missing{f' (there is {others[0]})' if others else ''}: weights are read from one file of "
        "safetensors alone, never from a pickle; save them by save_pretrained(..., safe_serialization=True)"
    )
