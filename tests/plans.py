"""Plans with other numbers, as tests want them."""

import dataclasses

from dpdm.privacy import FullSum, Plan

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
