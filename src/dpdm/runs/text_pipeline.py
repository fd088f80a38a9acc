"""A release of a text-to-image pipeline as `diffusers` loads it: an adapter of its unet, and a whole pipeline."""

import shutil
from pathlib import Path

import diffusers
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from dpdm.diffusion import DDPM
from dpdm.files import read_json, write_json
from dpdm.methods import DenoisingGenerator
from dpdm.networks import KLCodec, TextNetwork, digest_of_part
from dpdm.networks.pipeline import CLAIM, NAMED, WEIGHTS
from dpdm.networks.text_folder import AS_THEY_ARE
from dpdm.runs.readme import ADAPTER, LOW_RANK, TEXT_TO_IMAGE, readme_of
from dpdm.runs.release import Release
from dpdm.types import InputError

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
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


def save_text_pipeline(release: Release, folder: Path, public: Path | str | None) -> str:
    """Write low rank as an adapter and, where the public pipeline is there, a whole one; return what its README says.

    Raises:
        InputError: There is neither low rank nor a public pipeline, or this is another one.
    """
    drawn = release.generator
    assert isinstance(drawn, DenoisingGenerator)
    network = drawn.denoiser.network
    assert isinstance(network, TextNetwork)
    said = {"format": "pt", CLAIM: release.statement}
    if public is None and not network.rank:
        raise InputError("this run trained parts of the public unet itself: name its pipeline by --public")
    folder.mkdir(parents=True)
    if network.rank:
        save_file({name: value.contiguous() for name, value in network.low_rank().items()}, folder / LOW_RANK, said)
    if public is None:
        return readme_of(release.statement, release.facts.class_names, ADAPTER, low_rank=False)
    _copy_public(drawn, Path(public), folder)
    assert drawn.folder is not None
    unet = UNet2DConditionModel(**drawn.folder.spec.config(sides=drawn.seen.shape[1:]))
    unet.load_state_dict(network.merged())
    unet.save_config(folder / "unet")
    save_file(unet.state_dict(), folder / "unet" / WEIGHTS, said)
    _scheduler_of(drawn).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _INDEX)
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        write_json(folder / name, read_json(folder / name) | {CLAIM: release.statement})
    assert isinstance(drawn.codec, KLCodec)
    bordered = drawn.codec.sides != drawn.facts.shape[1:]
    low_rank = network.rank > 0
    return readme_of(release.statement, release.facts.class_names, TEXT_TO_IMAGE, low_rank=low_rank, bordered=bordered)


def _copy_public(drawn: DenoisingGenerator, public: Path, folder: Path) -> None:
    """Copy the files of the parts that stay as they are; raise InputError if a part is another than the claim names."""
    assert drawn.folder is not None
    for name, sha256 in drawn.folder.digests:
        part = name.rpartition("/")[2]
        if part not in AS_THEY_ARE:
            continue
        (folder / part).mkdir()
        for file in NAMED:
            if (public / part / file).is_file():
                shutil.copyfile(public / part / file, folder / part / file)
        if digest_of_part(folder / part) != sha256:
            raise InputError(f"{public / part} is another part than the release names: its SHA-256 is {sha256}")


def _scheduler_of(drawn: DenoisingGenerator) -> DDIMScheduler:
    """Return the scheduler of what was trained. What it goes by in sampling alone is as latents have it."""
    ddpm = drawn.denoiser.preconditioning
    assert isinstance(ddpm, DDPM)
    levels = ddpm.noise_levels
    return DDIMScheduler(
        num_train_timesteps=levels.times,
        beta_start=levels.beta_start,
        beta_end=levels.beta_end,
        beta_schedule=levels.schedule,
        prediction_type=ddpm.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
