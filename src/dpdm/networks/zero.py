"""The network of a run without steps: it answers zero, which leaves the preconditioning's own denoiser."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Zero:
    """No network: nothing to train."""

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Return the module for images of `shape` (channel, height, width)."""
        return _Zero(shape)


class _Zero(nn.Module):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        return x.new_zeros(len(x), *self.shape)
