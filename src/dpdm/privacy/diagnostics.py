"""What a step saw of the private records: no noise covers it, so it is for the data owner's eyes alone."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dpdm.types import Sensitive


class Diagnostics(NamedTuple):
    """What one step saw of the private records, for the data owner's eyes: per example, before clipping."""

    losses: Sensitive[Float[Tensor, " batch"]]
    grad_norms: Sensitive[Float[Tensor, " batch"]]


class Joined:
    """Losses and norms of physical batches, joined to those of one step."""

    def __init__(self, disclosures: list[str]) -> None:
        self._disclosures = disclosures
        self._losses, self._norms = [torch.zeros(0)], [torch.zeros(0)]

    def add(self, losses: Sensitive[Float[Tensor, " batch"]], norms: Sensitive[Float[Tensor, " batch"]]) -> None:
        """Take those of one more physical batch."""
        self._losses.append(losses.reveal(because="joined over physical batches"))
        self._norms.append(norms.reveal(because="joined over physical batches"))

    def joined(self) -> Diagnostics:
        """Return those of the step."""
        losses, norms = (torch.cat(parts[1:] or parts) for parts in (self._losses, self._norms))
        return Diagnostics(Sensitive(losses, self._disclosures), Sensitive(norms, self._disclosures))
