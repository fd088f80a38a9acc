"""What the README of an exported pipeline says: its claim, and how to load it. `verify` knows these words."""

from collections.abc import Sequence

LOW_RANK = "pytorch_lora_weights.safetensors"
"""The file with a low-rank change alone."""

OF_DPDM = """import torch
from dpdm.runs.pipeline import DPDMPipeline  # pip install 'dpdm[diffusers]'

pipeline = DPDMPipeline.from_pretrained("path/of/this/folder")
images = pipeline(10, generator=torch.Generator().manual_seed(0)).images
"""

PLAIN = """import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/of/this/folder")
images = pipeline(10, generator=torch.Generator().manual_seed(0)).images
"""

PLAIN_WITH_CLASSES = """import torch
from diffusers import DDIMScheduler, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/of/this/folder")
unet, scheduler = pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config)
labels = torch.tensor([0, 0, 0])  # a DDPMPipeline takes no classes, so its steps are written out
sides = unet.config.sample_size
sides = (sides, sides) if isinstance(sides, int) else sides
x = torch.randn(len(labels), unet.config.in_channels, *sides)
scheduler.set_timesteps(50)
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
images = pipeline.numpy_to_pil(((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy())
"""

TEXT_TO_IMAGE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/of/this/folder")
images = pipeline("the network.prompt of config.toml, with the name of a class").images
"""

ADAPTER = f"""from diffusers import DiffusionPipeline

# {LOW_RANK} changes the public pipeline that config.toml names.
pipeline = DiffusionPipeline.from_pretrained("path/of/the/public/pipeline")
pipeline.load_lora_weights("path/of/this/folder")
images = pipeline("the network.prompt of config.toml, with the name of a class").images
"""

_BORDERED = "An image is the middle of what is drawn, of the height and width in config.toml: cut off the border.\n\n"
CODES = OF_DPDM, PLAIN, PLAIN_WITH_CLASSES, TEXT_TO_IMAGE, ADAPTER


def readme_of(statement: str, class_names: Sequence[str], code: str, *, low_rank: bool, bordered: bool = False) -> str:
    """Return what the README of a pipeline says: nothing but its claim, and how to load it."""
    classes = ", ".join(f"{label} {name}" for label, name in enumerate(class_names)) or "none"
    beside = f"`{LOW_RANK}` holds the low rank alone, which is merged into the weights already.\n\n" if low_rank else ""
    beside += _BORDERED if bordered else ""
    return f"""# Images under differential privacy

{statement}

`privacy.json` holds the claim for machines, and `manifest.json` the digests of all files.
`dpdm verify` of this folder checks both. Classes: {classes}.

{beside}```python
{code}```
"""
