"""The layers of the small residual network: blocks, the changes that images go through in training, and precision."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dpdm.processor import has_bfloat16


class CropsAndFlips(nn.Module):
    """In training, shifts each image by up to an eighth of its sides; with `flips`, mirrors half of the images.

    What comes in from beyond the edge is mid-grey. All draws are from torch's global generator. In evaluation mode
    images stay as they are.

    Source:
        He et al. 2016, section 4.2: crops of an image with a margin of 4 pixels of 32, and flips.
    """

    def __init__(self, *, flips: bool) -> None:
        super().__init__()
        self.flips = flips

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Return the images as they are to be seen."""
        if not self.training:
            return x
        number, _, height, width = x.shape
        rows, columns = _window(number, height), _window(number, width)
        if self.flips:
            columns = torch.where(torch.rand(number, 1) < 0.5, columns.flip(1), columns)
        padded = nn.functional.pad(x, (width // 8, width // 8, height // 8, height // 8))
        each = torch.arange(number)[:, None, None]
        return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _window(number: int, side: int) -> Int64[Tensor, "number side"]:
    """Return, for each image, the places of one axis that a random crop takes from the padded image."""
    return torch.randint(2 * (side // 8) + 1, (number, 1)) + torch.arange(side)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation, by running statistics where a batch is a single image: one image says nothing of others."""

    def forward(
        self, input: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return normalised values."""
        if self.training and len(input) == 1:
            known = self.running_mean, self.running_var, self.weight, self.bias
            return nn.functional.batch_norm(input, *known, eps=self.eps)
        return super().forward(input)


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut: (batch, inputs, h, w) to (batch, outputs, ⌈h / stride⌉, ⌈w / stride⌉).

    Source:
        He et al. 2016, section 3.2 and figure 2; the shortcut is a 1 × 1 convolution where shapes differ (option B).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = convolution(inputs, outputs, size=1, stride=stride)

    def forward(self, x: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs _ _"]:
        """Return the sum of both ways."""
        both: Tensor = self.second(self.first(x).relu()) + self.shortcut(x)
        return both.relu()


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution, normalised."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, BatchNorm(outputs))


class InBfloat16(nn.Sequential):
    """Layers in a row that compute in bfloat16 where the processor does; weights and results are float32."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.native = has_bfloat16(torch.device("cpu"))

    def forward(self, input: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return what the last layer gives."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.native):
            found: Tensor = super().forward(input)  # type: ignore[no-untyped-call]  # torch's stubs lack it
        return found.float()
