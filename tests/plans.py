"""Plans with other numbers, and runs that nothing is kept of, as tests want them."""

import dataclasses

import torch

from dpdm.config import Machine
from dpdm.privacy import FullSum, MechanismRun, Plan
from dpdm.runs.run import Run

_OF_STEPS = {
    "steps": "count",
    "expected_batch_size": "expected_batch_size",
    "max_grad_norm": "max_norm",
    "noise_multiplier": "noise_multiplier",
}


def changed(plan: Plan, *, before: dict[str, float] | None = None, **changes) -> Plan:
    """Return a plan of DP-SGD with other sums before its steps, other numbers of its steps, or other fields."""
    of_steps = {_OF_STEPS[key]: changes.pop(key) for key in list(changes) if key in _OF_STEPS}
    full = plan.full if before is None else tuple(FullSum(name=n, noise_multiplier=z) for n, z in before.items())
    steps = [] if of_steps.get("count") == 0 else [dataclasses.replace(plan.poisson[0], **of_steps)]
    return dataclasses.replace(plan, releases=(*full, *steps), **changes)


def in_memory(mechanism: MechanismRun, num_records: int, *, seed: int = 0) -> Run:
    """Return a run of which nothing is kept."""
    return Run.in_memory(mechanism, machine=Machine(), device=torch.device("cpu"), seed=seed, num_records=num_records)
