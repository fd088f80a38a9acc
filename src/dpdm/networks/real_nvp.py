"""RealNVP: rows of numbers become normal ones, and normal ones rows, by functions whose determinants are known."""

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import silu

from dpdm.networks.layers import zero_initialised

_MOST = 2.0  # log of the scale of a coupling, at most: a step of noise cannot make its inverse explode


class RealNVP(nn.Module):
    """An affine function of each class, and affine couplings, of which each moves half of the numbers by the others.

    It begins as the identity.

    Args:
        numbers: Of a row; two at least.
        classes: Every coupling knows the class.
        couplings: How many.
        width: Hidden units of a coupling.

    Source:
        Dinh, Sohl-Dickstein & Bengio 2017. The halves are even and odd places, then the first and the last ones.
    """

    def __init__(self, numbers: int, *, classes: int, couplings: int, width: int) -> None:
        super().__init__()
        self.places, self.scales = (nn.Embedding(classes, numbers) for _ in range(2))
        for table in (self.places, self.scales):
            nn.init.zeros_(table.weight)
        every = torch.arange(numbers)
        even_first = torch.cat([every[::2], every[1::2]])
        orders = [even_first, even_first.flip(0), every, every.flip(0)]
        made = (_Coupling(orders[number % 4], classes=classes, width=width) for number in range(couplings))
        self.couplings = nn.ModuleList(made)

    def forward(
        self, x: Float[Tensor, "rows numbers"], labels: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows numbers"], Float[Tensor, " rows"]]:
        """Return what is normal, and the logarithm of the determinant of its derivative."""
        scales = self.scales(labels)
        x, log_det = (x - self.places(labels)) * (-scales).exp(), -scales.sum(1)
        for coupling in self.couplings:
            x, more = coupling(x, labels)
            log_det = log_det + more
        return x, log_det

    def inverse(
        self, normal: Float[Tensor, "rows numbers"], labels: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows numbers"]:
        """Return the rows that `forward` makes these of."""
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, _Coupling)
            normal = coupling.inverse(normal, labels)
        rows: Tensor = normal * self.scales(labels).exp() + self.places(labels)
        return rows


class _Coupling(nn.Module):
    """In some order, x₁ stays and x₂ becomes x₂ · exp(s) + t, with s and t of x₁ and the class."""

    order: Int64[Tensor, " numbers"]
    back: Int64[Tensor, " numbers"]

    def __init__(self, order: Int64[Tensor, " numbers"], *, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.kept = len(order) // 2
        self.first, self.of_class = nn.Linear(self.kept, width), nn.Embedding(classes, width)
        self.second = nn.Linear(width, width)
        self.last = zero_initialised(nn.Linear(width, 2 * (len(order) - self.kept)))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        stays, moves = self._parted(x)
        scale, shift = self._scale_and_shift(stays, labels)
        return torch.cat([stays, moves * scale.exp() + shift], dim=1)[:, self.back], scale.sum(1)

    def inverse(self, y: Tensor, labels: Tensor) -> Tensor:
        stays, moves = self._parted(y)
        scale, shift = self._scale_and_shift(stays, labels)
        return torch.cat([stays, (moves - shift) * (-scale).exp()], dim=1)[:, self.back]

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ordered = x[:, self.order]
        return ordered[:, : self.kept], ordered[:, self.kept :]

    def _scale_and_shift(self, stays: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = silu(self.second(silu(self.first(stays) + self.of_class(labels))))
        scale, shift = self.last(hidden).to(stays).chunk(2, dim=1)
        return _MOST * torch.tanh(scale / _MOST), shift
