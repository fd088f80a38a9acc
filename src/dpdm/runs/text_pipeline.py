"""What `diffusers` is told of a network of its own that is exported, and the public parts that go with it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dpdm.diffusion import DDPM
from dpdm.methods import DenoisingGenerator
from dpdm.networks import digest_of_part
from dpdm.networks.pipeline import NAMED
from dpdm.networks.text_folder import AS_THEY_ARE
from dpdm.types import InputError

PLAIN_INDEX: Final[Mapping[str, Any]] = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
TEXT_INDEX: Final[Mapping[str, Any]] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SAMPLING_OF_LATENTS: Final[Mapping[str, Any]] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
"""What a scheduler goes by in sampling alone, as latents have it."""


def scheduler_of(drawn: DenoisingGenerator) -> dict[str, Any]:
    """Return what a scheduler of `diffusers` takes for what was trained."""
    ddpm = drawn.denoiser.preconditioning
    assert isinstance(ddpm, DDPM)
    levels = ddpm.noise_levels
    return {
        "num_train_timesteps": levels.times,
        "beta_start": levels.beta_start,
        "beta_end": levels.beta_end,
        "beta_schedule": levels.schedule,
        "prediction_type": ddpm.prediction,
    }


def copy_public(drawn: DenoisingGenerator, public: Path, folder: Path) -> None:
    """Copy the files of the parts that stay as they are; raise InputError if a part is another than the claim names."""
    assert drawn.folder is not None
    for name, sha256 in drawn.folder.digests:
        part = name.rpartition("/")[2]
        if part not in AS_THEY_ARE:
            continue
        (folder / part).mkdir(parents=True)
        for file in NAMED:
            if (public / part / file).is_file():
                shutil.copyfile(public / part / file, folder / part / file)
        if digest_of_part(folder / part) != sha256:
            raise InputError(f"{public / part} is another part than the release names: its SHA-256 is {sha256}")
