"""Your own network in dpdm's trainer: trained privately, saved with its claim, and opened again."""

import sys
from pathlib import Path

import torch
from torch import nn

import dpdm


class Convolutions(nn.Module):
    """Two layers, and what the noise level and the class add between them."""

    def __init__(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(images_in * shape[0], 32, 3, padding=1)
        self.noise_level = nn.Linear(1, 32)
        self.classes = nn.Embedding(num_classes + 1, 32)  # one more: the null class
        self.last = nn.Conv2d(32, shape[0], 3, padding=1)

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return one image for each row of `x`."""
        added = self.noise_level(c_noise[:, None]) + self.classes(labels)
        hidden: torch.Tensor = self.first(x) + added[:, :, None, None]
        return self.last(nn.functional.silu(hidden))  # type: ignore[no-any-return]


def main(run: Path, steps: int = 100) -> dpdm.Release:
    """Train on the digits at ε = 2, and open the release as anyone can who has this class."""
    synthesizer = dpdm.Synthesizer(
        epsilon=2.0, delta=1e-4, num_classes=10, steps=steps, name="digits for a try", network=Convolutions, run=run
    )
    digits = dpdm.open_dataset("digits")
    print(synthesizer.fit(digits.images, digits.labels).statement)
    return dpdm.Release.load(run, network=Convolutions)


if __name__ == "__main__":
    images, _ = main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/own")).sample(10)
    print(f"{len(images)} images of shape {images.shape[1:]}")
