"""What private steps are taken with, and what all methods share that take them with a network of their own."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.made_up import bytes_for_backward
from dpdm.methods.values import Budget
from dpdm.privacy import MechanismRun, PoissonSums
from dpdm.privacy.clipping import Batch, PerExampleLoss
from dpdm.types import InputError, refusing


@dataclass(frozen=True)
class Stepped:
    """What private steps are taken with.

    Args:
        module: What is trained by private gradients.
        loss: One number of an example.
        made_up: Returns so many examples that nobody took, where the module is, drawn as those of a run are.
        copies: Images of an example.
        counted: Returns the bytes that an example keeps for its gradient, and those of the gradient (default: as a
            pass with one tells).
        follow: Does what may come after a step.
    """

    module: nn.Module
    loss: PerExampleLoss
    made_up: Callable[[int], Batch]
    copies: int = 1
    counted: Callable[[], int] | None = None
    follow: Callable[[], object] = lambda: None

    def bytes_of_one(self) -> int:
        """Return the bytes that an example keeps for its gradient, and those of the gradient."""
        if self.counted is not None:
            return self.counted()
        one: Any = self.made_up(1)
        kept = bytes_for_backward(lambda: self.loss(self.module, one), self.module)
        return kept + sum(4 * p.numel() for p in self.module.parameters() if p.requires_grad)

    def rehearse(self, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError if no step can be taken: for want of memory, or for what the mechanism refuses."""
        run.require_memory(self.module, self.bytes_of_one())
        with refusing("the network fails on made-up images"), run.autocast():
            mechanism.rehearse(self.loss, self.module, self.made_up(3))


class TakesSteps(Method):
    """A method of private steps, whose time can be measured."""

    @abstractmethod
    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return the module that private steps train, for a generator as `untrained` made it."""


def steps_of(budget: Budget, *, unless_said: int = 1000) -> tuple[PoissonSums, ...]:
    """Return the steps that a budget asks for, or so many, of a method that does nothing else."""
    if budget.steps == 0:
        raise InputError("privacy.steps = 0 trains no network: give steps")
    count = unless_said if budget.steps is None else budget.steps
    return (PoissonSums(count=count, expected_batch_size=budget.batch_size, max_norm=budget.max_grad_norm),)
