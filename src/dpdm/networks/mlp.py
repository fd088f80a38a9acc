"""A multilayer perceptron on flattened images, for the smallest ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from dpdm.networks.layers import MOST_BLOCKS, MOST_WIDTH, ConditionEmbedding, zero_initialised
from dpdm.types import require_at_most, require_counts


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Residual blocks of linear layers.

    Args:
        width: Hidden features.
        blocks: Residual blocks.

    Example:
        >>> sum(p.numel() for p in MLP(width=16, blocks=1).build((1, 8, 8), num_classes=0).parameters())
        3776
    """

    kind: ClassVar[str] = "mlp"
    width: int = 256
    blocks: int = 3

    def __post_init__(self) -> None:
        require_counts(width=self.width, blocks=self.blocks)
        require_at_most(MOST_WIDTH, width=self.width)
        require_at_most(MOST_BLOCKS, blocks=self.blocks)

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the network for images of `shape` (channel, height, width)."""
        return _MLP(self, shape, num_classes, images_in)


class _MLP(nn.Module):
    def __init__(self, spec: MLP, shape: tuple[int, int, int], num_classes: int, images_in: int) -> None:
        super().__init__()
        self.shape, pixels = shape, math.prod(shape)
        self.condition = ConditionEmbedding(spec.width, num_classes)
        self.stem = nn.Linear(images_in * pixels, spec.width)
        self.blocks = nn.ModuleList(_Block(spec.width) for _ in range(spec.blocks))
        self.head = zero_initialised(nn.Linear(spec.width, pixels))

    def forward(
        self,
        x: Float[Tensor, "batch channel_in height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        embedding = self.condition(c_noise, labels)
        hidden = self.stem(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.head(hidden).unflatten(1, self.shape)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """x + linear(SiLU(linear(norm(x)) + linear(condition)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.condition = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # Autocast brings norms to the weights' type on GPUs; on CPUs torch.func fails without (pytorch issue 184890).
        normed = self.norm(x.to(self.norm.weight.dtype))
        residual: Tensor = self.outer(silu(self.inner(normed) + self.condition(embedding)))
        return x + residual
