"""What private steps are taken with, and what all methods share that take them with a network of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from dpdm.methods.interface import Budget, Run
from dpdm.methods.made_up import bytes_for_backward
from dpdm.privacy import MechanismRun, PoissonSums
from dpdm.privacy.clipping import Batch, PerExampleLoss
from dpdm.types import InputError, refusing

_STEPS = 1000  # where nobody says how many


class Stepped(NamedTuple):
    """What private steps are taken with.

    Attributes:
        module: What is trained by private gradients.
        loss: One number of an example.
        made_up: Returns so many random examples, of all classes, where the module is.
    """

    module: nn.Module
    loss: PerExampleLoss
    made_up: Callable[[int], Batch]

    def bytes_of_one(self) -> int:
        """Return the bytes that an example keeps for its gradient, and those of the gradient."""
        one: Any = self.made_up(1)
        kept = bytes_for_backward(lambda: self.loss(self.module, one), self.module)
        return kept + sum(4 * p.numel() for p in self.module.parameters() if p.requires_grad)

    def rehearse(self, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if no step can be taken: for want of memory, or for what the mechanism refuses."""
        run.require_memory(self.module, self.bytes_of_one())
        with refusing("the network fails on made-up images"), run.autocast():
            mechanism.rehearse(self.loss, self.module, self.made_up(3))


def steps_of(budget: Budget) -> tuple[PoissonSums, ...]:
    """Return the steps that a budget asks for, of a method that does nothing else."""
    if budget.steps == 0:
        raise InputError("privacy.steps = 0 trains no network: give steps")
    count = _STEPS if budget.steps is None else budget.steps
    return (PoissonSums(count=count, expected_batch_size=budget.batch_size, max_norm=budget.max_grad_norm),)
