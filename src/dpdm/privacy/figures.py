"""What of a plan is a person's, and what a processor's: figures that are calibrated are computed once, and kept.

Another processor, or another numpy, comes to other last digits. So what `calibrate` was asked for is compared.
"""

import dataclasses
import hashlib
import json
import math
from typing import NamedTuple, TypeVar

from dpdm.privacy.plan import AnyPlan, Plan, with_noise

P = TypeVar("P", bound=AnyPlan)
_SIX_DIGITS = 1e-6


class Figures(NamedTuple):
    """The noise multipliers of a plan in order, and the ε that they were calibrated to, if any."""

    noise: tuple[float, ...]
    asked: float | None = None


def figures_of(plan: AnyPlan) -> Figures:
    """Return the noise multipliers of a plan, and the ε that `calibrate` was given for them."""
    noise = tuple(r.noise_multiplier for r in plan.releases if r.noise_multiplier is not None)
    return Figures(noise, plan._asked if isinstance(plan, Plan) else None)


def keep(plan: P, figures: Figures) -> P | None:
    """Return the plan with figures that were computed before, or None if a person asked for others.

    A figure is computed once, and kept: another processor, or another numpy, computes it to other last digits. So what
    `calibrate` was asked for is compared, and of figures that were given, six digits.
    """
    mine, there = figures_of(plan), figures.noise
    if len(mine.noise) != len(there):
        return None
    same = mine.noise
    if isinstance(plan, Plan) and mine.asked is not None and figures.asked is not None:
        if mine.asked != figures.asked:
            return None
        if any(plan._open):  # these follow from ε
            fixed = [place for place, chosen in enumerate(plan._open) if not chosen]
            same, there = (tuple(noise[place] for place in fixed) for noise in (same, there))
        else:  # one factor follows from it
            same, there = (tuple(each / noise[0] for each in noise) for noise in (same, there))
    if not all(math.isclose(a, b, rel_tol=_SIX_DIGITS) for a, b in zip(same, there, strict=True)):
        return None
    kept = with_noise(plan, figures.noise)
    if isinstance(plan, Plan):
        object.__setattr__(kept, "_asked", figures.asked)
        object.__setattr__(kept, "_open", plan._open)
    return kept


def kept_as(plan: AnyPlan, other: AnyPlan) -> AnyPlan | None:
    """Return `other`, a plan that was begun before, if a person asked for the same in `plan`; else None."""
    same = type(plan) is type(other) and keep(plan, figures_of(other)) == other
    return other if same else None


def fingerprint(plan: AnyPlan, *, secure: bool) -> str:
    """Return a digest of all that a plan claims."""
    said = {"kind": type(plan).__name__, "secure": secure, **dataclasses.asdict(plan)}
    if not plan.earlier:  # so that journals of before are read as they were
        said.pop("earlier", None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
