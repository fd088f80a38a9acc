"""A folder of a text-conditional latent pipeline, as Stable Diffusion's are, as a network to begin with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Final

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpdm.networks.condition_unet import ConditionUNet, TextNetwork
from dpdm.networks.diffusers_unet import imported
from dpdm.networks.frame import framed_sides
from dpdm.networks.kl import KLCodec, Latents
from dpdm.networks.pipeline import (
    NAMED,
    REMEDY,
    SHA256,
    TEXT_WEIGHTS,
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

CLASS: Final = "{class}"
"""What stands in a prompt for the name of a class."""

PUBLIC: Final = ("unet", "vae", "text_encoder", "tokenizer")
"""The parts of a pipeline that a claim names."""

AS_THEY_ARE: Final = ("vae", "text_encoder", "tokenizer")
"""Those that no private step changes: an exported pipeline has copies of them."""

_FOR_DRAWING = ("unet", "vae")  # a release holds what the text encoder made of the prompts
_LONGEST_PROMPT = 1000
_PARTS = Parts(
    {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "scheduler": ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"),
    },
    "dpdm reads a pipeline of one UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer and a DDPM, DDIM "
    "or PNDM scheduler",
    # Neither trains nor draws: a checker of finished images, what it sees of them, and a prompt that is an image.
    ("safety_checker", "feature_extractor", "requires_safety_checker", "image_encoder"),
)
_KNOWN: Mapping[str, tuple[object, ...]] = {  # what a unet may say in these ways alone
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_ELSEWHERE = ("dropout", "sample_size", "out_channels", "addition_time_embed_dim", "addition_embed_type_num_heads")


@dataclass(frozen=True, kw_only=True)
class TextToImageFolder(PipelineFolder):
    """A `UNet2DConditionModel` of a pipeline of `diffusers`, to train further in the latents of its `AutoencoderKL`.

    Before training, its `CLIPTextModel` makes one embedding of a prompt for each class. A release holds the trained
    weights and these embeddings. To draw from it, name the folder again.

    Args:
        source: The pipeline's folder. A release keeps only the folder's name.
        trains: Which parameters private steps train: `all`, `norms` (and biases), `attention`, `last` (the output
            half), `lora:RANK` (low rank beside attention, by `peft`), or names with `*`, joined by commas.
        prompt: The text of an image for the text encoder; {class} stands for the name of its class. For images without
            classes, a prompt with {class} becomes the empty text.
        sha256: Digests of unet, vae, text encoder and tokenizer (`digest_of_part`; default: the folder's). A release
            stores them.
        unet: The content of its `config.json`, and the number of tokens of a prompt, as a release stores them.
        latents: The autoencoder's settings about latents, as a release stores them.

    Example:
        >>> folder = TextToImageFolder(source="pipelines/sd", trains="lora:4", prompt="a scan of {class}")
        >>> folder.prompts_of(("healthy", "ill"))
        ('a scan of healthy', 'a scan of ill', '')
    """

    kind: ClassVar[str] = "text-to-image"
    parts: ClassVar[Parts] = _PARTS
    needed: ClassVar[tuple[str, ...]] = ("unet", "latents", "sha256")
    prompt: str = f"a photo of a {CLASS}"
    sha256: tuple[str, ...] = ()
    unet: ConditionUNet | None = None
    latents: Latents | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.isprintable() or len(self.prompt) > _LONGEST_PROMPT:
            raise InputError(f"prompt must be up to {_LONGEST_PROMPT} visible characters")
        if self.sha256 and (len(self.sha256) != len(PUBLIC) or not all(map(SHA256.fullmatch, self.sha256))):
            raise InputError(f"sha256 must be 64 hexadecimal digits each of {', '.join(PUBLIC)}")
        if (self.unet is None) != (self.latents is None) or (self.released and not self.sha256):
            raise InputError("unet, latents and sha256 are said together, by a release")

    @property
    def released(self) -> bool:
        """Whether it comes from a release, and its folder is not known here."""
        return self.unet is not None

    @property
    def spec(self) -> ConditionUNet:
        """The settings of its unet, by the release or the folder; raise InputError if the folder holds another."""
        return self.unet or _read_unet(self.folder)

    @property
    def space(self) -> Latents:
        """The settings of its latents, by the release or the folder; raise InputError if the folder holds others."""
        return self.latents or _read_latents(self.folder, self.spec)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a claim gives its public parts."""
        return tuple(f"{self.name}/{part}" for part in PUBLIC)

    @property
    def digests(self) -> tuple[tuple[str, str], ...]:
        """The names that a claim gives its public parts, with the SHA-256 of each (`digest_of_part`).

        Raises:
            InputError: The folder holds other parts than the settings name.
        """
        found = self.sha256 if self.released else tuple(digest_of_part(self.folder / part) for part in PUBLIC)
        if self.sha256 not in ((), found):
            raise InputError(f"{self.source} is another folder than the settings name: network.sha256 differs")
        return tuple(zip(self.names, found, strict=True))

    @property
    def for_drawing(self) -> tuple[tuple[str, str], ...]:
        """The entries of `digests` that drawing needs, and that a release does not hold."""
        return tuple(each for part, each in zip(PUBLIC, self.digests, strict=True) if part in _FOR_DRAWING)

    def said(self) -> "TextToImageFolder":
        """Return it in the form that a release stores."""
        digests = tuple(sha256 for _, sha256 in self.digests)
        return replace(self, source=self.name, sha256=digests, unet=self.spec, latents=self.space)

    def seen(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the latents' shape for images of this shape, in a frame that autoencoder and unet can shrink."""
        factor = self.space.factor
        height, width = framed_sides(shape[1:], factor * self.spec.multiple)
        return self.spec.in_channels, height // factor, width // factor

    def require_images(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Raise InputError unless it takes images of `shape` (channel, height, width)."""
        space = self.space
        if shape[0] != space.channels:
            raise InputError(
                f"the autoencoder of {self.name} is for images of {space.channels} channels, and these have "
                f"{shape[0]}: set data.channels"
            )

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> TextNetwork:
        """Return the network for latents of `shape` (channel, height, width), with the folder's weights if it is known.

        Raises:
            InputError: There is no such unet, or the folder is damaged.
        """
        if images_in != 1:
            raise InputError("a diffusers folder sees one image: it is for preconditioning.kind = ddpm, its own")
        network = self.spec.build(prompts=num_classes + 1 if num_classes else 1, trains=self.trains)
        if torch.empty(0).device.type == "meta":
            return network
        network.begun()
        if not self.released:
            network.begun_with = self.digests
            network.begin_from(_weights_in(self.folder / "unet"))
        return network

    def complete(self, network: nn.Module, shape: tuple[int, int, int], class_names: Sequence[str]) -> KLCodec:
        """Give the network its prompts, and return the autoencoder beside it. A release has neither of them yet.

        Raises:
            InputError: The folder's parts are damaged, or do not fit the unet.
        """
        assert isinstance(network, TextNetwork)
        codec = KLCodec(self, self.space, shape=shape, latent=self.seen(shape))
        if self.released or network.prompts.device.type == "meta":
            return codec
        before = dict(network.begun_with)
        network.prompts = self._embedded(class_names)
        codec.begin_from(self.folder / "vae", before[f"{self.name}/vae"])
        if dict(self.digests) != before:
            raise InputError(f"{self.source} was changed while it was read: begin again")
        return codec

    def supply(self, part: str, path: Path, network: nn.Module, codec: nn.Module | None) -> None:
        """Give a network, or its autoencoder, the public weights that a release does not hold.

        Args:
            part: The name that the claim gives them.
            path: Their folder, with the digest that the claim names.
            network: The network.
            codec: The autoencoder.

        Raises:
            InputError: The weights are damaged.
        """
        assert isinstance(network, TextNetwork)
        assert isinstance(codec, KLCodec)
        if part == self.names[PUBLIC.index("vae")]:
            codec.begin_from(path, dict(self.digests)[part])
        else:
            network.begin_from(_weights_in(path), frozen=True)

    def prompts_of(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return the prompt of each class and, last, the empty text; without classes, one prompt for all images."""
        if not class_names:
            return ("" if CLASS in self.prompt else self.prompt,)
        return (*(self.prompt.replace(CLASS, name) for name in class_names), "")

    @torch.no_grad()
    def _embedded(self, class_names: Sequence[str]) -> Float32[Tensor, "class token width"]:
        """Return what the text encoder makes of the prompts. It is not kept."""
        weights_of(self.folder / "text_encoder", TEXT_WEIGHTS)
        transformers, tokens = imported("transformers"), self.spec.tokens
        imported("transformers.utils.logging").disable_progress_bar()
        with refusing(f"the text encoder of {self.source} is damaged, so {REMEDY}"), torch.device("cpu"):
            files = {"local_files_only": True}
            with only_named(self.folder / "tokenizer") as part:
                tokenizer = transformers.CLIPTokenizer.from_pretrained(part, **files)
            with only_named(self.folder / "text_encoder") as part:
                encoder, found = transformers.CLIPTextModel.from_pretrained(
                    part, use_safetensors=True, output_loading_info=True, **files
                )
            if found["missing_keys"] or found["mismatched_keys"]:
                raise ValueError("its weights are not those that config.json says")
            prompts = [*self.prompts_of(class_names)]
            ids = tokenizer(prompts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
            made: Tensor = torch.cat([encoder.float().eval()(each[None])[0] for each in ids.input_ids])
            if made.shape[1:] != (tokens, self.spec.cross_attention_dim) or not made.isfinite().all():
                raise ValueError("it makes no embeddings that the unet takes")
        return made.float()


def digest_of_part(part: Path) -> str:
    """Return the SHA-256 of a part of a pipeline: of what `sha256sum` prints of those of its files that are read.

    Raises:
        InputError: There are none.
    """
    names = [name for name in NAMED if (part / name).is_file()]
    if not names:
        raise InputError(f"{part} is missing, or holds no files of safetensors or settings: {REMEDY}")
    lines = "".join(f"{digest_of(part / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _weights_in(part: Path) -> dict[str, Tensor]:
    """Return the tensors of a part's file; raise InputError if it is damaged."""
    path = weights_of(part)
    with refusing(f"{path} is damaged, so {REMEDY}"):
        found: dict[str, Tensor] = imported("safetensors.torch").load_file(path)
        if not all(value.isfinite().all() for value in found.values()):
            raise InputError(f"{path} holds numbers that are not finite: {REMEDY}")
    return found


def _read_unet(folder: Path) -> ConditionUNet:
    said, text = (read_settings(folder, part, _PARTS) for part in ("unet", "text_encoder"))
    for key, known in _KNOWN.items():
        if key in said and said[key] not in known:
            raise InputError(f"{folder}/unet has {key} = {said[key]!r}, which dpdm does not train")
    if said.get("out_channels", 4) != said.get("in_channels", 4):
        raise InputError(f"{folder}/unet gives other channels than it takes: dpdm trains one that gives latents")
    known_fields = {f.name for f in fields(ConditionUNet)} - {"times", "tokens"}
    if unknown := said.keys() - known_fields - _KNOWN.keys() - {*_ELSEWHERE}:
        raise InputError(f"{folder}/unet/config.json says {sorted(unknown)[0]}, which dpdm does not know")
    values = {key: plain(value) for key, value in said.items() if key in known_fields}
    with refusing(f"{folder}/unet/config.json holds what no unet says, so {REMEDY}"):
        heads = values.get("attention_head_dim", 8)
        values["attention_head_dim"] = heads if isinstance(heads, tuple) else (heads,)
        tokens = text.get("max_position_embeddings", 77)
        spec = ConditionUNet(times=read_scheduler(folder, _PARTS).times, tokens=tokens, **values)
    if text.get("hidden_size", 512) != spec.cross_attention_dim:
        raise InputError(f"the text encoder of {folder} is for another unet: the widths of a token differ")
    return spec


def _read_latents(folder: Path, unet: ConditionUNet) -> Latents:
    said = read_settings(folder, "vae", _PARTS)
    if said.get("latents_mean") is not None or said.get("latents_std") is not None:
        raise InputError(f"{folder}/vae has a mean and a deviation for each channel, which dpdm does not know")
    if said.get("latent_channels", 4) != unet.in_channels:
        raise InputError(f"the autoencoder of {folder} is for another unet: the channels of latents differ")
    with refusing(f"{folder}/vae/config.json holds what no autoencoder says, so {REMEDY}"):
        return Latents(
            channels=said.get("in_channels", 3),
            factor=2 ** (len(said.get("block_out_channels", (64,))) - 1),
            scale=float(said.get("scaling_factor", 0.18215)),
            shift=float(said.get("shift_factor") or 0.0),
        )
