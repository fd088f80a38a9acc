"""Tiny pipelines of `diffusers` with random weights, for tests to begin with."""

import json
from pathlib import Path

import torch

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}


def save_pipeline(folder, *, scheduler=None, **unet):
    """Save a pipeline of one unet, all of whose weights are random, and return its folder as a string."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DDPMPipeline(UNet2DModel(**{**TINY, **unet}), DDPMScheduler(**(scheduler or {}))).save_pretrained(folder)
    return str(folder)


TEXT_UNET = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def save_text_pipeline(folder, *, scheduler=None, kind="PNDMScheduler", channels=3, **unet):
    """Save a tiny pipeline of Stable Diffusion's shape, all of whose weights are random; return its folder."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    words = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    steps = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionPipeline(
            unet=diffusers.UNet2DConditionModel(**{**TEXT_UNET, **unet}),
            vae=diffusers.AutoencoderKL(
                in_channels=channels,
                out_channels=channels,
                block_out_channels=(4, 8),
                norm_num_groups=4,
                latent_channels=4,
                **blocks,
            ),
            text_encoder=CLIPTextModel(CLIPTextConfig(max_position_embeddings=16, **words, **tokens)),
            tokenizer=_tokenizer(Path(folder).with_suffix(".words")),
            scheduler=getattr(diffusers, kind)(**(SCHEDULER | steps | (scheduler or {}))),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return str(folder)


def _tokenizer(folder):
    """Return a tokenizer that knows letters: each is a token."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    known = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def add_shards(part, name):
    """Put other weights beside those of a part, as shards, which loaders take before the one file."""
    from safetensors.torch import load_file, save_file

    other = {key: value + 1 for key, value in load_file(part / f"{name}.safetensors").items()}
    shard = f"{name}-00001-of-00001.safetensors"
    save_file(other, part / shard, {"format": "pt"})
    size = sum(value.nbytes for value in other.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(other, shard)}
    (part / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def add_adapter(part):
    """Put an adapter into the folder of a text encoder, which loaders add to its weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPTextModel

    layers = ["q_proj", "k_proj", "v_proj", "out_proj"]
    config = LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    get_peft_model(CLIPTextModel.from_pretrained(part), config).save_pretrained(part.with_name("adapted"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        part.with_name("adapted").joinpath(name).rename(part / name)
