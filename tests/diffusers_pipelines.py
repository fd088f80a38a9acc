"""Tiny pipelines of `diffusers` with random weights, for tests to begin with."""

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
