"""How private gradients change a network."""

import math
from dataclasses import dataclass

from dpdm.types import InputError, require_within


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """`[optimizer]`: Adam, and the average of the weights, which a run releases.

    Args:
        learning_rate: Learning rate of Adam after `warmup`.
        warmup: Fraction of the steps over which the learning rate rises from zero.
        decay: Fraction of itself to which the learning rate falls by a cosine; 1 keeps it constant.
        ema_decay: Weight of the past in the average of the weights.

    Example:
        >>> Diffusion(optimizer=Optimizer(learning_rate=1e-3)).optimizer.learning_rate
        0.001
    """

    learning_rate: float = 4e-3
    warmup: float = 0.05
    decay: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        require_within(1e-12, 100, learning_rate=self.learning_rate)
        for name, value in (("warmup", self.warmup), ("ema_decay", self.ema_decay)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), not {value}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must be in [0, 1], not {self.decay}")

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate after a fraction `progress` in [0, 1] of the steps."""
        cosine = (1 + self.decay) / 2 + (1 - self.decay) / 2 * math.cos(math.pi * progress)
        return self.learning_rate * min(1.0, (progress + 1e-3) / max(self.warmup, 1e-3)) * cosine
