"""The U-Net of a text-to-image pipeline of `diffusers`: what settings say of it, and the network that it becomes here.

Its public weights are no part of a release: `state_dict` holds what is trained, and the prompts of the classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dpdm.networks.diffusers_unet import DiffusersNetwork, imported
from dpdm.networks.layers import MOST_BLOCKS, MOST_WIDTH
from dpdm.types import InputError, refusing, require_at_most, require_counts, require_counts_or_none, require_within

_MOST_LEVELS, _MOST_LAYERS, _MOST_TOKENS = 8, 32, 1024
_MOST_TRANSFORMERS = 64  # layers of all blocks: Stable Diffusion has 8, and a stranger's settings must come to an end
_AT_ONCE = 16  # rows, where nothing is trained: drawing images of any number takes the memory of these
_LOW_RANK_A = ".lora_A."


@dataclass(frozen=True, kw_only=True)
class ConditionUNet:
    """A `UNet2DConditionModel`, by the names that its `config.json` has for what it is.

    Args:
        times: How many times its scheduler has.
        tokens: How many tokens a prompt has.
        in_channels: Channels of its latents; it must give as many.
        center_input_sample: Whether it sees 2x − 1.
        time_embedding_dim: Width of what tells the time (default: four times the first block's).
        freq_shift: See `diffusers`, as all below.
        flip_sin_to_cos: Cosines first.
        down_block_types: With attention or without, from the finest level.
        up_block_types: The same, from the coarsest level.
        block_out_channels: Width of each level.
        layers_per_block: Residual blocks of each level.
        transformer_layers_per_block: Layers of each transformer.
        cross_attention_dim: Width of a token.
        attention_head_dim: Heads of attention, of all levels or of each.
        use_linear_projection: Around a transformer, for a convolution.
        upcast_attention: Whether attention is computed in float32.
        mid_block_scale_factor: By which residual blocks in the middle are divided.
        downsample_padding: Of convolutions between levels.
        act_fn: The activation.
        norm_num_groups: Groups of the norms.
        norm_eps: Added to variances.
        resnet_time_scale_shift: Whether the time is added, or scales and shifts.
    """

    times: int
    tokens: int
    in_channels: int = 4
    center_input_sample: bool = False
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Literal["DownBlock2D", "CrossAttnDownBlock2D"], ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    up_block_types: tuple[Literal["UpBlock2D", "CrossAttnUpBlock2D"], ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformer_layers_per_block: int = 1
    cross_attention_dim: int = 1280
    attention_head_dim: tuple[int, ...] = (8,)
    use_linear_projection: bool = False
    upcast_attention: bool = False
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not 1 <= levels <= _MOST_LEVELS or {len(self.down_block_types), len(self.up_block_types)} != {levels}:
            raise InputError(f"a unet has one block down and one up for each of 1 to {_MOST_LEVELS} block_out_channels")
        if len(self.attention_head_dim) not in (1, levels):
            raise InputError("attention_head_dim must be one number, or one for each level")
        counts = {
            name: getattr(self, name)
            for name in (
                "times",
                "tokens",
                "in_channels",
                "layers_per_block",
                "transformer_layers_per_block",
                "cross_attention_dim",
                "norm_num_groups",
            )
        }
        counts |= {f"block_out_channels.{i}": width for i, width in enumerate(self.block_out_channels)}
        counts |= {f"attention_head_dim.{i}": heads for i, heads in enumerate(self.attention_head_dim)}
        require_counts(**counts)
        require_counts_or_none(time_embedding_dim=self.time_embedding_dim)
        require_at_most(MOST_WIDTH, **counts, time_embedding_dim=self.time_embedding_dim or 1)
        require_at_most(_MOST_TOKENS, tokens=self.tokens)
        layers = {"layers_per_block": self.layers_per_block, "transformer_layers": self.transformer_layers_per_block}
        require_at_most(MOST_BLOCKS, **layers)
        require_at_most(_MOST_LAYERS, **{"layers_per_block × levels": self.layers_per_block * levels})
        transformers = self.layers_per_block * levels * self.transformer_layers_per_block
        require_at_most(_MOST_TRANSFORMERS, **{"transformer_layers_per_block of all blocks": transformers})
        require_within(0, 1, downsample_padding=self.downsample_padding, freq_shift=self.freq_shift)
        require_within(1e-12, 1, norm_eps=self.norm_eps)
        require_within(1e-3, 1e3, mid_block_scale_factor=self.mid_block_scale_factor)

    @property
    def multiple(self) -> int:
        """What sides of latents must be multiples of."""
        return 1 << (len(self.block_out_channels) - 1)

    def config(self, sides: tuple[int, ...] = ()) -> dict[str, Any]:
        """Return what `UNet2DConditionModel` takes. There is no dropout: it would draw at random within a gradient."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("times", "tokens")}
        heads = self.attention_head_dim
        return said | {
            "sample_size": sides[0] if len({*sides}) == 1 else list(sides) or None,
            "out_channels": self.in_channels,
            "attention_head_dim": heads[0] if len(heads) == 1 else list(heads),
            "dropout": 0.0,
        }

    def build(self, *, prompts: int, trains: str) -> "TextNetwork":
        """Return the network with so many prompts, on "meta": it has no numbers yet.

        Raises:
            InputError: It cannot be built, or nothing of it is called as `trains` says.
        """
        diffusers = imported("diffusers")
        with torch.device("meta"):
            with refusing("no unet can be built like this"):
                unet = diffusers.UNet2DConditionModel(**self.config())
            embedded = torch.empty(prompts, self.tokens, self.cross_attention_dim)
            return TextNetwork(unet, self.times, trains=trains, prompts=embedded)


class TextNetwork(DiffusersNetwork):
    """F(x; c_noise, label) by a `UNet2DConditionModel`, which is told the prompt of a class.

    Args:
        unet: The network.
        times: How many times there are; c_noise is a time divided by it.
        trains: What of it is trained (see `PipelineFolder`).
        prompts: What a text encoder makes of the prompt of each class, and last of no text.

    Guarantees:
        * `state_dict` holds what is trained, and the prompts: no public weight that stays as it is.
    """

    prompts: Float[Tensor, "class token width"]

    def __init__(
        self, unet: nn.Module, times: int, *, trains: str, prompts: Float[Tensor, "class token width"]
    ) -> None:
        super().__init__(unet, times, with_classes=False, trains=trains)
        self.register_buffer("prompts", prompts)
        self.public = frozenset(name for name, p in unet.named_parameters() if not p.requires_grad)
        leave_out(self, {f"unet.{name}" for name in self.public})

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return what the unet gives."""
        if len(x) > _AT_ONCE and not torch.is_grad_enabled():
            parts = (slice(start, start + _AT_ONCE) for start in range(0, len(x), _AT_ONCE))
            return torch.cat([self(x[part], c_noise[part], labels[part]) for part in parts])
        out: Tensor = self.unet(x, self.at(c_noise), self.prompts[labels], return_dict=False)[0]
        return out

    def begun(self) -> "TextNetwork":
        """Give a network on "meta" numbers for what is no public weight: low rank that changes nothing, and zeros."""
        for module in self.unet.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.requires_grad:
                    module.register_parameter(name, nn.Parameter(torch.zeros_like(p, device="cpu")))
        for name, p in self.unet.named_parameters():
            if _LOW_RANK_A in name:  # as `peft` draws it
                nn.init.normal_(p, std=1 / self.rank)
        self.prompts = torch.zeros_like(self.prompts, device="cpu")
        return self

    def begin_from(self, weights: Mapping[str, Shaped[Tensor, "..."]], *, frozen: bool = False) -> None:
        """Take public weights: all of them, or what stays `frozen` alone, where a release has the rest."""
        places = self._places(weights)
        taken = {places[name]: value.float() for name, value in weights.items()}
        if frozen:
            taken = {name: value for name, value in taken.items() if name in self.public}
        self.unet.load_state_dict(taken, strict=False, assign=True)

    def kept(self) -> Iterator[nn.Parameter]:
        """Yield the public weights that stay as they are, which an average of the network may share."""
        return (p for name, p in self.unet.named_parameters() if name in self.public)

    def low_rank(self) -> dict[str, Shaped[Tensor, "..."]]:
        """Return what low rank has added, by the names that a pipeline of `diffusers` loads it by."""
        return {f"unet.{name}": value for name, value in super().low_rank().items()}


def leave_out(module: nn.Module, names: set[str] | frozenset[str]) -> None:
    """Let `state_dict` of a module be without some of its tensors, and loading one need none of them."""

    def saved(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
        for name in names:
            state.pop(f"{prefix}{name}", None)

    def loaded(_: nn.Module, keys: Any) -> None:  # noqa: ANN401 (torch's own)
        keys.missing_keys[:] = [key for key in keys.missing_keys if not _ends(key, names)]

    module.register_state_dict_post_hook(saved)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_post_hook(loaded)  # type: ignore[no-untyped-call]


def _ends(key: str, names: set[str] | frozenset[str]) -> bool:
    """Whether a key is one of these names, whatever module it is in."""
    parts = key.split(".")
    return any(".".join(parts[start:]) in names for start in range(len(parts)))
