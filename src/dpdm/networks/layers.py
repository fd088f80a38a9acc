"""What the networks share: how they are told the noise level and the class."""

import math
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

MOST_WIDTH, MOST_BLOCKS = 2**16, 32  # a stranger's release says what to build, and there must be an end


class ConditionEmbedding(nn.Module):
    """Noise level and class as one vector for each image.

    The noise level enters by sine and cosine at sixteen frequencies, made for a c_noise of order one.

    The class table has one row more than there are classes: the null class, whose index is `num_classes`. A network
    without classes has that row alone, so conditional and unconditional networks are one code path.
    """

    frequencies: Float[Tensor, " 16"]

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(32.0), 16))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.noise = nn.Linear(32, width)
        self.mix = nn.Linear(width, width)

    def forward(self, c_noise: Float[Tensor, " batch"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Return SiLU of a mixture of both embeddings."""
        angles = c_noise.float()[:, None] * self.frequencies
        noise = self.noise(torch.cat([angles.sin(), angles.cos()], dim=1))
        mixed: Tensor = self.mix(silu(noise + self.classes(labels)))
        return silu(mixed)


def zero_initialised(layer: Layer) -> Layer:
    """Return `layer` with all its parameters zero: training starts from the preconditioning's own denoiser."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
