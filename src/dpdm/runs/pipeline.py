"""A release as a pipeline of Hugging Face's `diffusers`, for whoever works with these.

Needs `pip install 'dpdm[diffusers]'`, where it is exported and where it is loaded: the generator is the package's own.
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
from dpdm.files import write_atomically
from dpdm.methods import DenoisingGenerator
from dpdm.runs.release import Release, facts_of
from dpdm.runs.run_folder import release_folder
from dpdm.runs.verification import verify_release
from dpdm.types import Images, InputError

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


def export_pipeline(run: Path | str, folder: Path) -> None:
    """Write a finished run's release as a folder that `DPDMPipeline.from_pretrained` loads, with its claim.

    Raises:
        InputError: There is no finished run, its files do not bear out a claim, or the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose another folder")
    verify_release(run)
    release = Release.load(run)
    state = release.generator.state_dict()
    generator = Generator(release.settings, {name: list(tensor.shape) for name, tensor in state.items()})
    generator.generator.load_state_dict(state)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        DPDMPipeline(generator).save_pretrained(partial)
        for name in _CARRIED:
            shutil.copyfile(release_folder(run) / name, partial / name)  # not every file system has modes
        write_atomically(partial / "README.md", lambda path: path.write_text(_readme(release), encoding="utf-8"))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _readme(release: Release) -> str:
    classes = ", ".join(f"{label} {name}" for label, name in enumerate(release.facts.class_names)) or "none"
    return f"""# Images under differential privacy

{release.statement}

`privacy.json` holds the claim for machines. Classes: {classes}.

```python
import torch
from dpdm.runs.pipeline import DPDMPipeline

pipeline = DPDMPipeline.from_pretrained("path/of/this/folder")
images = pipeline(10, generator=torch.Generator().manual_seed(0)).images
```
"""
