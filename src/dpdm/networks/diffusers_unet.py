"""The U-Net of a pipeline of `diffusers`: what settings say of it, and the network that it becomes here.

`diffusers` and `peft` are imported when a network is built: `pip install 'dpdm[diffusers]'`.
"""

import fnmatch
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dpdm.networks.frame import framed_sides
from dpdm.networks.layers import MOST_BLOCKS, MOST_WIDTH
from dpdm.types import InputError, refusing, require_at_most, require_counts, require_counts_or_none, require_within

DownBlock = Literal["DownBlock2D", "AttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D"]

NEEDS = "pip install 'dpdm[diffusers]'"
_MOST_LEVELS, _MOST_LAYERS, _MOST_RANK, _MOST_PATTERNS = 8, 32, 256, 16
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_TRAINED = {
    "all": ("*",),
    "norms": ("*norm*", "*.bias"),
    "attention": ("*attentions*",),
    "last": ("up_blocks.*", "conv_norm_out.*", "conv_out.*"),
}
_PATTERN, _RANK = re.compile(r"[a-zA-Z0-9_.*]{1,64}", re.ASCII), re.compile("lora:([1-9][0-9]{0,2})", re.ASCII)
_CLASSES = "class_embedding.weight"
_BASE, _LOW_RANK = ".base_layer.", ".lora_"


@dataclass(frozen=True, kw_only=True)
class DiffusersUNet:
    """A `UNet2DModel`, by the names that its `config.json` has for what it is.

    Args:
        times: How many times its scheduler has.
        sample_size: Sides of its images; none where it does not say.
        in_channels: Channels of its images; it must give as many.
        center_input_sample: Whether it sees 2x − 1.
        time_embedding_dim: Width of what tells the time (default: four times the first block's).
        freq_shift: See `diffusers`, as all below.
        flip_sin_to_cos: Cosines first.
        down_block_types: With attention or without, from the finest level.
        up_block_types: The same, from the coarsest level.
        mid_block: Whether there is a block in the middle.
        block_out_channels: Width of each level.
        layers_per_block: Residual blocks of each level.
        mid_block_scale_factor: By which residual blocks in the middle are divided.
        downsample_padding: Of convolutions between levels.
        downsample_type: "conv" or "resnet".
        upsample_type: "conv" or "resnet".
        act_fn: The activation.
        attention_head_dim: Width of a head (default: that of the level).
        norm_num_groups: Groups of the norms.
        attn_norm_num_groups: Groups of the norm before attention in the middle.
        norm_eps: Added to variances.
        resnet_time_scale_shift: Whether the time is added, or scales and shifts.
        add_attention: Whether the block in the middle has attention.
        num_class_embeds: Rows of its table of classes, if it has one.
    """

    times: int
    sample_size: tuple[int, ...] = ()
    in_channels: int = 3
    center_input_sample: bool = False
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[DownBlock, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    up_block_types: tuple[UpBlock, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    mid_block: bool = True
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: int | None = None
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not 1 <= levels <= _MOST_LEVELS or {len(self.down_block_types), len(self.up_block_types)} != {levels}:
            raise InputError(f"a unet has one block down and one up for each of 1 to {_MOST_LEVELS} block_out_channels")
        if len(self.sample_size) not in (0, 2):
            raise InputError("sample_size must be two sides, or none")
        counts = {
            "times": self.times,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            **{f"block_out_channels.{i}": width for i, width in enumerate(self.block_out_channels)},
            **{f"sample_size.{i}": side for i, side in enumerate(self.sample_size)},
        }
        optional = {
            "time_embedding_dim": self.time_embedding_dim,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "num_class_embeds": self.num_class_embeds,
        }
        require_counts(**counts)
        require_counts_or_none(**optional)
        require_at_most(MOST_WIDTH, **{name: count for name, count in (counts | optional).items() if count})
        require_at_most(MOST_BLOCKS, layers_per_block=self.layers_per_block)
        require_at_most(_MOST_LAYERS, **{"layers_per_block × levels": self.layers_per_block * levels})
        require_within(0, 1, downsample_padding=self.downsample_padding, freq_shift=self.freq_shift)
        require_within(1e-12, 1, norm_eps=self.norm_eps)
        require_within(1e-3, 1e3, mid_block_scale_factor=self.mid_block_scale_factor)

    @property
    def multiple(self) -> int:
        """What sides of what it sees must be multiples of."""
        return 1 << (len(self.block_out_channels) - 1)

    def seen(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape of what it sees of images of `shape`: these, or these in a frame that it can halve."""
        height, width = framed_sides(shape[1:], self.multiple)
        return shape[0], height, width

    def with_classes(self, num_classes: int) -> int | None:
        """Return how many rows the table of classes has for so many classes: its own, or those of a new table.

        Raises:
            InputError: Its own table is one of other classes.
        """
        if self.num_class_embeds is None:
            return num_classes + 1 if num_classes else None
        if num_classes not in (self.num_class_embeds, self.num_class_embeds - 1):
            raise InputError(
                f"the unet knows {self.num_class_embeds} classes, and these images have {num_classes}: take a unet "
                "without classes (num_class_embeds: null), or declare as many (data.num_classes)"
            )
        return self.num_class_embeds

    def require_images(self, shape: tuple[int, int, int], num_classes: int) -> None:
        """Raise InputError unless it takes images of `shape` (channel, height, width) and so many classes."""
        own = " × ".join(map(str, (self.in_channels, *(self.sample_size or ("any", "any")))))
        if shape[0] != self.in_channels or (self.sample_size and self.seen(shape)[1:] != self.sample_size):
            raise InputError(
                f"the unet is for images of {own} (channels, height, width), and these are "
                f"{' × '.join(map(str, shape))}: set data.channels and data.size"
            )
        self.with_classes(num_classes)

    def config(self, *, num_class_embeds: int | None, sides: tuple[int, ...]) -> dict[str, Any]:
        """Return what `UNet2DModel` takes. There is no dropout: it would draw at random within a gradient."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        times, mid = said.pop("times"), said.pop("mid_block")
        return said | {
            "sample_size": sides[0] if len({*sides}) == 1 else list(sides) or None,
            "out_channels": self.in_channels,
            "mid_block_type": "UNetMidBlock2D" if mid else None,
            "num_class_embeds": num_class_embeds,
            "num_train_timesteps": times,
            "dropout": 0.0,
        }

    def build(self, shape: tuple[int, int, int], *, num_classes: int, trains: str) -> "DiffusersNetwork":
        """Return the network, with weights as `diffusers` draws them, and new classes that change nothing at first.

        Raises:
            InputError: It is not for such images, or cannot be built.
        """
        self.require_images(shape, num_classes)
        diffusers = imported("diffusers")
        rows = self.with_classes(num_classes)
        with refusing("no unet can be built like this"):
            unet = diffusers.UNet2DModel(**self.config(num_class_embeds=rows, sides=shape[1:]))
        network = DiffusersNetwork(unet, self.times, with_classes=rows is not None, trains=trains)
        if rows is not None and self.num_class_embeds is None:
            nn.init.zeros_(unet.class_embedding.weight)
            unet.class_embedding.weight.requires_grad_(True)  # whatever else is: nobody has trained it before
        return network


class DiffusersNetwork(nn.Module):
    """F(x; c_noise, label) by a `UNet2DModel`, which is told a time for each image.

    Args:
        unet: The network.
        times: How many times there are; c_noise is a time divided by it.
        with_classes: Whether it is told classes.
        trains: What of it is trained (see `DiffusersFolder`).
    """

    def __init__(self, unet: nn.Module, times: int, *, with_classes: bool, trains: str) -> None:
        super().__init__()
        self.unet, self.times, self.with_classes = unet, times, with_classes
        self.begun_with: tuple[tuple[str, str], ...] = ()  # the digests of the public weights, once it has them
        for layer in unet.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.register_forward_pre_hook(_in_rows)
            if hasattr(layer, "set_processor"):  # torch's own attention has no rule under `vmap`
                layer.set_processor(_plain_attention())  # type: ignore[operator]
        self.rank = rank_of(trains)
        if self.rank:
            _add_low_rank(unet, self.rank)
        patterns = (f"*{_LOW_RANK}*",) if self.rank else _patterns(trains)
        trained = 0
        for name, parameter in unet.named_parameters():
            chosen = any(fnmatch.fnmatchcase(plain_name(name), pattern) for pattern in patterns)
            parameter.requires_grad_(chosen)
            trained += chosen
        if not trained:
            parts = ", ".join(sorted({name.split(".")[0] for name, _ in unet.named_parameters()}))
            raise InputError(f"network.trains = {trains} names no parameter of the unet, whose parts are {parts}")

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return what the unet gives."""
        t, classes = self.at(c_noise), labels if self.with_classes else None
        out: Tensor = self.unet(x, t, classes, return_dict=False)[0]
        return out

    def at(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the times that the unet is told."""
        t = c_noise * self.times
        return torch.where((t - t.round()).abs() < 2e-3, t.round(), t)  # the division by `times` left rounding

    def begin_from(self, weights: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """Take public weights; a table of classes that these lack stays as it is."""
        places = self._places(weights)
        self.unet.load_state_dict({places[name]: value for name, value in weights.items()}, strict=False)

    def _places(self, weights: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, str]:
        """Return the name here of each of a unet's weights; raise InputError if these are others."""
        own = self.unet.state_dict()
        places = {plain_name(name): name for name in own if _LOW_RANK not in name}
        missing = places.keys() - weights.keys() - {_CLASSES}
        other = [name for name in weights if name not in places or own[places[name]].shape != weights[name].shape]
        if missing or other:
            raise InputError(f"the weights of the unet are not what its config.json says: {[*missing, *other][0]}")
        return places

    def merged(self) -> dict[str, Shaped[Tensor, "..."]]:
        """Return the weights of the `UNet2DModel` alone: low-rank changes are added to what they belong to."""
        whole = self.unet.state_dict()
        plain = {plain_name(name): value for name, value in whole.items() if _LOW_RANK not in name}
        for name, value in whole.items():
            if name.endswith(f"{_BASE}weight"):
                place = name.removesuffix(f"{_BASE}weight")
                first, second = (whole[f"{place}.lora_{each}.default.weight"] for each in "AB")
                plain[f"{place}.weight"] = value + second @ first
        return plain

    def low_rank(self) -> dict[str, Shaped[Tensor, "..."]]:
        """Return what low rank has added, by the names that `peft` gives a file of it."""
        state = self.unet.state_dict()
        return {name.replace(".default.", "."): value for name, value in state.items() if _LOW_RANK in name}


def rank_of(trains: str) -> int:
    """Return the rank that `trains` names, or 0; raise InputError if it is none that there can be."""
    if not trains.startswith("lora"):
        if len(patterns := _patterns(trains)) > _MOST_PATTERNS or not all(map(_PATTERN.fullmatch, patterns)):
            raise InputError(
                f"trains must be {', '.join(_TRAINED)}, lora:RANK, or up to {_MOST_PATTERNS} names of parameters "
                "joined by commas, of letters, digits, _, . and *"
            )
        return 0
    found = _RANK.fullmatch(trains)
    if found is None or (rank := int(found[1])) > _MOST_RANK:
        raise InputError(f"trains = {trains!r} must be lora:RANK, such as lora:4, of a rank up to {_MOST_RANK}")
    return rank


def plain_name(name: str) -> str:
    """Return the name that a weight with low rank beside it has in a unet without."""
    return name.replace(_BASE, ".")


def imported(name: str) -> Any:  # noqa: ANN401 (a module that few have)
    """Return a module of the extra `diffusers`, or raise InputError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"a diffusers folder needs {error.name}: {NEEDS}") from None


def _plain_attention() -> Any:  # noqa: ANN401 (of a module that few have)
    return imported("diffusers.models.attention_processor").AttnProcessor()


def _in_rows(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lay a norm's input out row by row: with channels last, torch 2.13 crashes where what comes before is frozen."""
    return tuple(t.contiguous() for t in inputs)


def _patterns(trains: str) -> tuple[str, ...]:
    return _TRAINED.get(trains) or tuple(name.strip() for name in trains.split(","))


def _add_low_rank(unet: nn.Module, rank: int) -> None:
    """Add B A of a rank to queries, keys, values and outputs of attention. B is zero: nothing is changed at first."""
    if not any(name.endswith(f".{_ATTENTION[0]}") for name, _ in unet.named_modules()):
        raise InputError(f"network.trains = lora:{rank} is for attention, and the unet has none: train something else")
    peft = imported("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=_ATTENTION, init_lora_weights="gaussian")
    peft.inject_adapter_in_model(config, unet)
