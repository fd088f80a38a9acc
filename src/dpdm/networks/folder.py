"""A folder of one `UNet2DModel`, in pixels, as a network to begin with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dpdm.networks.diffusers_unet import DiffusersUNet, imported
from dpdm.networks.pipeline import (
    REMEDY,
    SHA256,
    Parts,
    PipelineFolder,
    digest_of,
    only_named,
    plain,
    read_scheduler,
    read_settings,
    weights_of,
)
from dpdm.types import InputError, refusing

_UNET, _SCHEDULER = "UNet2DModel", "DDPMScheduler"
_PARTS = Parts(
    {"unet": (_UNET,), "scheduler": (_SCHEDULER,)},
    f"dpdm reads a pipeline of one {_UNET} and one {_SCHEDULER}; of texts and latents, by network.kind=text-to-image",
)
_OTHER_UNETS: Mapping[str, tuple[object, ...]] = {  # what may be said in these ways alone
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D", None),
}
_OF_TRAINING = ("dropout", "num_train_timesteps", "out_channels")  # what is seen to elsewhere


@dataclass(frozen=True, kw_only=True)
class DiffusersFolder(PipelineFolder):
    """A `UNet2DModel` of a pipeline of `diffusers`, to train further from its public weights.

    A folder without classes gets a new table of classes with a null class. Private steps always train this table.

    Args:
        source: The pipeline's folder. A release keeps only the folder's name.
        trains: Which parameters private steps train: `all`, `norms` (and biases), `attention`, `last` (the output
            half), `lora:RANK` (low rank beside attention, by `peft`), or names with `*`, joined by commas.
        sha256: Digest of the file of its weights (default: the folder's). A release stores it.
        unet: The content of its `config.json`, as a release stores it.

    Example:
        >>> DiffusersFolder(source="pipelines/small", trains="lora:4").name
        'small'
    """

    kind: ClassVar[str] = "diffusers"
    parts: ClassVar[Parts] = _PARTS
    needed: ClassVar[tuple[str, ...]] = ("unet", "sha256")
    sha256: str | None = None
    unet: DiffusersUNet | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            raise InputError("sha256 must be 64 hexadecimal digits")
        if (self.unet is None) != (self.sha256 is None) and self.unet is not None:
            raise InputError("sha256 is missing beside unet: a release says both")

    @property
    def released(self) -> bool:
        """Whether it comes from a release, and its folder is not known here."""
        return self.unet is not None

    @property
    def spec(self) -> DiffusersUNet:
        """The settings of its unet, by the release or the folder.

        Raises:
            InputError: There is no such folder, or something else is in it.
        """
        return self.unet or _read_unet(self.folder)

    @property
    def digest(self) -> str:
        """The SHA-256 of its weights' file; raise InputError if it differs from `sha256`."""
        if self.unet is not None:
            assert self.sha256 is not None
            return self.sha256
        found = digest_of(weights_of(self.folder / "unet"))
        if self.sha256 not in (None, found):
            raise InputError(f"{self.source} is another folder than the settings name: network.sha256 differs")
        return found

    @property
    def digests(self) -> tuple[tuple[str, str], ...]:
        """Its name, with the SHA-256 of its weights' file."""
        return ((self.name, self.digest),)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)

    def said(self) -> "DiffusersFolder":
        """Return it in the form that a release stores."""
        return replace(self, source=self.name, sha256=self.digest, unet=self.spec)

    def seen(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape that its unet sees for images of this shape: theirs, or theirs in a frame."""
        return self.spec.seen(shape)

    def require_images(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Raise InputError unless its unet takes images of `shape` (channel, height, width) and this many classes."""
        self.spec.require_images(shape, num_classes)

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
        path, before = weights_of(self.folder / "unet"), self.digests
        load = imported("diffusers").UNet2DModel.from_pretrained
        with refusing(f"{path} is damaged, so {REMEDY}"), torch.device("cpu"), only_named(path.parent) as part:
            settings = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
            public, found = load(part, output_loading_info=True, torch_dtype=torch.float32, **settings)
        if self.digests != before:
            raise InputError(f"{path} was changed while it was read: begin again")
        for name in (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]):
            raise InputError(f"{path} does not hold what config.json says ({name}): {REMEDY}")
        if not all(value.isfinite().all() for value in public.state_dict().values()):
            raise InputError(f"{path} holds numbers that are not finite: {REMEDY}")
        network.begin_from(public.state_dict())
        network.begun_with = before


def _read_unet(folder: Path) -> DiffusersUNet:
    said = read_settings(folder, "unet", _PARTS)
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
    values = {key: plain(value) for key, value in said.items() if key in known_fields}
    with refusing(f"{folder}/unet/config.json holds what no unet says, so {REMEDY}"):
        return DiffusersUNet(
            times=read_scheduler(folder, _PARTS).times,
            sample_size=sides,
            mid_block=said.get("mid_block_type", "UNetMidBlock2D") is not None,
            **values,
        )
