"""Which releases still fit into a total (ε, δ), if each is chosen after all the ones before were seen.

Theorems that compose planned releases need all of them fixed beforehand. A filter needs its total, and one order of
Rényi divergence, fixed beforehand, and no more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpdm.privacy.accounting import Event, Relation, renyi_divergence
from dpdm.types import InputError, require_positive

_RENYI = 0.9  # part of δ that the Rényi divergence takes; what is left is for releases that come with a δ of their own
_ORDERS = [round(1.1 * 1.05**step, 2) for step in range(140)]  # up to 971


@dataclass(frozen=True, kw_only=True)
class RenyiFilter:
    """A total of (ε, δ), as a budget of Rényi divergence at one order.

    Args:
        epsilon: ε of the total.
        delta: δ of the total, below 1.
        order: Of the divergence, above 1, fixed before the first release.

    Guarantees:
        * All releases together are (ε, δ)-DP for as long as `allows` holds of them. This is so however each release is
          chosen from the results of those before it.

    Source:
        Feldman & Zrnic 2021: divergences at one fixed order add up for adaptively chosen releases too. A release that
        is (ε', δ')-DP is, but for an event of probability δ', one of a divergence of at most ε' at every order.
    """

    epsilon: float
    delta: float
    order: float

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, delta=self.delta)
        if self.delta >= 1:
            raise InputError(f"delta must be below 1, not {self.delta}")
        if not 1.01 < self.order < math.inf:
            raise InputError(f"order must be above 1.01, not {self.order}")

    @classmethod
    def for_gaussians(cls, *, epsilon: float, delta: float) -> "RenyiFilter":
        """Return the filter of the order at which most Gaussian releases fit: their divergence grows with the order."""
        require_positive(epsilon=epsilon, delta=delta)
        order = max(_ORDERS, key=lambda order: (epsilon - _conversion(order, _RENYI * delta)) / order)
        return cls(epsilon=epsilon, delta=delta, order=order)

    @property
    def budget(self) -> float:
        """The Rényi divergence that fits; nothing does if it is not positive, as of a tiny ε."""
        return self.epsilon - _conversion(self.order, _RENYI * self.delta)

    def divergence(self, events: Sequence[Event], relation: Relation) -> float:
        """Return what `events` take of the budget."""
        return renyi_divergence(events, order=self.order, relation=relation)

    def allows(self, divergence: float, *, delta: float = 0.0) -> bool:
        """Whether releases of this divergence in all, and of this δ of their own in all, fit; never if one is NaN."""
        return divergence <= self.budget and delta <= (1 - _RENYI) * self.delta


def _conversion(order: float, delta: float) -> float:
    """Return how far ε at `delta` lies above a Rényi divergence of this order.

    Source:
        Canonne, Kamath & Steinke 2020, proposition 12.
    """
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
