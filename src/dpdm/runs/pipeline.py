"""A release as a pipeline of Hugging Face's `diffusers`, for whoever works with these.

Needs `pip install 'dpdm[diffusers]'` where it is exported. Where the network is that of a diffusers folder, `diffusers`
alone loads it again. Every other generator is the package's own, which is then needed there, too.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors.torch import save_file

from dpdm.config import decode_method
from dpdm.files import read_json, write_atomically, write_json
from dpdm.methods import DenoisingGenerator, Diffusion, ImageFacts
from dpdm.networks import DiffusersFolder, DiffusersNetwork, DiffusersUNet, TextToImageFolder
from dpdm.networks.pipeline import CLAIM
from dpdm.runs.exported import write_manifest
from dpdm.runs.readme import LOW_RANK, OF_DPDM, PLAIN, PLAIN_WITH_CLASSES, readme_of
from dpdm.runs.release import Release, facts_of, open_without_public, require_whole_folder, supply
from dpdm.runs.run_folder import release_folder
from dpdm.runs.text_pipeline import save_text_pipeline
from dpdm.runs.verification import verify_release
from dpdm.types import Images, InputError

_INSTALL = "pip install 'dpdm[diffusers]', and load it by dpdm.runs.pipeline.DPDMPipeline.from_pretrained"
_CARRIED = ("privacy.json", "config.toml")  # what a person should see of the release


class Generator(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The generator of a release, as a component of a pipeline.

    Args:
        settings: The settings of the release, as its `config.toml` holds them.
        sizes: The shape of each of its tensors.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, settings: dict[str, Any], sizes: dict[str, list[int]]) -> None:
        super().__init__()
        require_whole_folder(settings, self.config_name)
        shapes = {name: tuple(shape) for name, shape in sizes.items()}
        self.generator = decode_method(settings).untrained(facts_of(settings["facts"]), sizes=shapes)


class DPDMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Makes the images that `Release.sample` makes of the same seed on the same device."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.register_modules(generator=generator)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int] | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | Images]:
        """Make images.

        Args:
            batch_size: How many, where `class_labels` does not say.
            class_labels: The class of each (default: each class in turn).
            generator: Only its initial seed counts: the images are those of `dpdm sample --seed`.
            num_inference_steps: Steps of the release's own sampler (default: as many as it has).
            output_type: "pil", or "np" for `uint8` (number, height, width, channel).
            return_dict: Whether to return an `ImagePipelineOutput` rather than a tuple.

        Raises:
            InputError: A label is no class of the release, `output_type` is another, or there are no steps to count.
        """
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be pil or np, not {output_type}")
        drawn = self.generator.generator.eval()
        if num_inference_steps is not None:
            if not isinstance(drawn, DenoisingGenerator):
                raise InputError("images of this run are drawn at once: leave out num_inference_steps")
            drawn = drawn.sampled_by(replace(drawn.sampler, steps=num_inference_steps))
        release = Release(drawn, {}, self.generator.config.settings)
        labels = None if class_labels is None else np.asarray(class_labels)
        count = batch_size if labels is None else len(labels)
        images, _ = release.sample(
            count, labels=labels, seed=None if generator is None else generator.initial_seed() % 2**63
        )
        shown = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]
        made = shown if output_type == "pil" else images
        return ImagePipelineOutput(images=made) if return_dict else (made,)


def export_pipeline(run: Path | str, folder: Path, *, public: Path | str | None = None) -> None:
    """Write a finished run's release as a folder that `diffusers` loads, with its claim, which `verify_release` checks.

    A network of a diffusers folder becomes a `DDPMPipeline`, or a `StableDiffusionPipeline`, low rank merged into its
    weights. Where there is low rank, a file of it lies beside. All else becomes a `DPDMPipeline`.

    Args:
        run: The run's folder.
        folder: What is made.
        public: The folder of the text-to-image pipeline that the run began with. Without it, the file of low rank is
            all that is exported of such a run.

    Raises:
        InputError: There is no finished run, its files do not bear out a claim, or the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose another folder")
    verify_release(run)
    release = open_without_public(release_folder(run), None)
    if public is not None or not release.generator.parts:
        supply(release.generator, public or {}, release_folder(run))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        text = isinstance(getattr(release.generator, "folder", None), TextToImageFolder)
        readme = save_text_pipeline(release, partial, public) if text else _save(release, partial)
        for name in _CARRIED:
            shutil.copyfile(release_folder(run) / name, partial / name)  # not every file system has modes
        write_atomically(partial / "README.md", lambda path: path.write_text(readme, encoding="utf-8"))
        write_manifest(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(release: Release, folder: Path) -> str:
    """Write a release as a pipeline, and return what its README says."""
    drawn, method = release.generator, decode_method(release.settings)
    network = drawn.denoiser.network if isinstance(drawn, DenoisingGenerator) and drawn.trajectories is None else None
    if isinstance(network, DiffusersNetwork):  # whose draws begin with noise alone
        assert isinstance(method, Diffusion)
        assert isinstance(drawn, DenoisingGenerator)
        assert isinstance(method.network, DiffusersFolder)
        plain = _plain_pipeline(network, method.network.spec, method.preconditioning, drawn.seen)
        plain.save_pretrained(folder, safe_serialization=True)
        said = {"format": "pt", CLAIM: release.statement}
        save_file(plain.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors", said)
        if low_rank := network.low_rank():
            save_file({name: value.contiguous().cpu() for name, value in low_rank.items()}, folder / LOW_RANK, said)
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
            write_json(folder / name, read_json(folder / name) | {CLAIM: release.statement})
        code = PLAIN_WITH_CLASSES if network.with_classes else PLAIN
        bordered = drawn.seen != drawn.facts
        return readme_of(release.statement, release.facts.class_names, code, low_rank=bool(low_rank), bordered=bordered)
    state = drawn.state_dict()
    generator = Generator(release.settings, {name: list(tensor.shape) for name, tensor in state.items()})
    generator.generator.load_state_dict(state)
    DPDMPipeline(generator).save_pretrained(folder)
    index = folder / "model_index.json"  # whose name of a class `diffusers` says where it knows none of that name
    write_json(index, read_json(index) | {"_class_name": f"{DPDMPipeline.__name__} ({_INSTALL})"})
    return readme_of(release.statement, release.facts.class_names, OF_DPDM, low_rank=False)


def _plain_pipeline(network: DiffusersNetwork, spec: DiffusersUNet, ddpm: Any, seen: ImageFacts) -> DDPMPipeline:  # noqa: ANN401
    """Return what `diffusers` alone draws from. What it goes by in sampling alone is as it has it by default."""
    levels, rows = ddpm.noise_levels, spec.with_classes(seen.num_classes)
    unet = UNet2DModel(**spec.config(num_class_embeds=rows, sides=seen.shape[1:]))
    unet.load_state_dict(network.merged())
    scheduler = DDPMScheduler(
        num_train_timesteps=levels.times,
        beta_start=levels.beta_start,
        beta_end=levels.beta_end,
        beta_schedule=levels.schedule,
        prediction_type=ddpm.prediction,
    )
    return DDPMPipeline(unet.eval(), scheduler)
