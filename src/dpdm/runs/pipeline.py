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
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image

from dpdm.config import decode_method
from dpdm.methods import DenoisingGenerator
from dpdm.runs.as_exported import CARRIED, export_of, write_export
from dpdm.runs.exported import write_manifest
from dpdm.runs.release import Release, facts_of, open_without_public, require_whole_folder, supply
from dpdm.runs.run_folder import folder_with_weights
from dpdm.runs.text_pipeline import copy_public
from dpdm.runs.verification import verify_release
from dpdm.types import Images, InputError


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
    of_release = folder_with_weights(run)
    verify_release(of_release)
    release = open_without_public(of_release, None)
    drawn = release.generator
    if public is not None or not drawn.parts:
        supply(drawn, public or {}, of_release)
    export = export_of(drawn, release.settings, release.statement, whole=public is not None)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if export.parts:
            assert isinstance(drawn, DenoisingGenerator)
            assert public is not None
            copy_public(drawn, Path(public), partial)
        write_export(partial, export, release.statement)
        for name in CARRIED:
            shutil.copyfile(of_release / name, partial / name)  # not every file system has modes
        write_manifest(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
