"""The whole audit of a run: four attacks on its claim, and what they proved beside what it promises."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from dpdm.audit.canaries import AuditedRun, train_with_canaries
from dpdm.audit.membership import ATTACKS, Attacked, attack_scores, judge
from dpdm.audit.memorisation import Nearness, near_samples, nearness
from dpdm.audit.opened import Opened, open_run, units_that_took_part
from dpdm.audit.parametric import Check, called, check_mechanism, check_sums
from dpdm.audit.properties import Properties, properties_of
from dpdm.audit.reference import LESS_PUBLIC, Calibrated, public_denoiser
from dpdm.config import Config
from dpdm.data import ImageDataset
from dpdm.evaluation import roc_chart, side_by_side
from dpdm.files import write_atomically, write_json
from dpdm.methods import DenoisingGenerator, ImageFacts
from dpdm.privacy import Plan
from dpdm.privacy.accounting import downwards, round_up, true_positive_rates
from dpdm.privacy.auditing import LowerBounds, lower_bounds
from dpdm.runs import Release, measure_step
from dpdm.types import Images, InputError, require_counts, require_positive

STAMP = "AUDIT of private images: covered by no ε, for the data owner alone, never to be published"
_CANARIES = 1000
_MEMBERS = 1000
_SHOWN = 20  # closest pairs in the picture
_FALSE_ALARMS = tuple(float(rate) for rate in np.geomspace(1e-3, 1, 25))

OnProgress = Callable[[str, int, int], None]
"""Called with a stage of the audit, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the attacks on one run found.

    Args:
        claim: The run's claim in one line.
        claimed: The run's plan.
        epsilon: ε of the run.
        checks: Of the mechanism's noise and batches.
        plan: The audited plan: the run's own, with fewer steps if the time was too short for all.
        audited_epsilon: ε of the audited plan, which no bound may pass; that of the run if all steps were audited.
        canaries: How many Dirac canaries there were.
        white_box: What they proved.
        members: How many member canaries there were.
        black_box: What each attack on the trained generator found, by its name.
        ceiling: False-positive rates, and the most true positives that the audited plan allows at each.
        nearness: How near generated images are to the training images.
        properties: What an attacker learns of the share of each class; None where nothing tells it.
    """

    claim: str
    claimed: Plan
    epsilon: float
    checks: list[Check]
    plan: Plan
    audited_epsilon: float
    canaries: int
    white_box: LowerBounds
    members: int
    black_box: dict[str, Attacked]
    ceiling: tuple[tuple[float, ...], list[float]]
    nearness: Nearness
    properties: Properties | None

    @property
    def part(self) -> str:
        """What of the run's plan was audited."""
        if not self.claimed.steps:
            return f"all {len(self.claimed.full)} sums"
        all_steps = "the only step" if self.claimed.steps == 1 else f"all {self.claimed.steps:,} steps"
        steps = all_steps if self.whole else f"{self.plan.steps:,} of {self.claimed.steps:,} steps"
        return f"the sums before and {steps}" if self.plan.full else steps

    @property
    def whole(self) -> bool:
        """Whether all of the run's plan was audited."""
        return self.plan.steps == self.claimed.steps

    @property
    def scope(self) -> str:
        """What was audited, what it costs by itself, and what the run claims."""
        pair = f"({round_up(self.epsilon)}, {self.claimed.delta!r})"
        if self.whole:
            return f"{self.part}: all that the run claims {pair} for"
        by_itself = f"ε ≤ {round_up(self.audited_epsilon)} at the same δ"
        return f"{self.part}, which by themselves cost {by_itself}; the run claims {pair}"

    @property
    def conclusion(self) -> list[str]:
        """What the findings say about the claim that is published, a line each; the last one ends on it."""
        lines = []
        if not self.whole:
            rest = self.claimed.steps - self.plan.steps
            others = "the last step was" if rest == 1 else f"the other {rest:,} steps were"
            if not self.findings:
                lines.append(f"No attack exceeded what {self.part} allow; {others} not attacked.")
            else:
                lines.append(f"Attacked were {self.part}; {others} not.")
        elif not self.findings:
            lines.append("No attack exceeded what the run claims.")
        contradicted = "What was found CONTRADICTS" if self.findings else "Nothing that was found contradicts"
        return [*lines, f"{contradicted} the run's claim: {self.claim}"]

    @property
    def findings(self) -> list[str]:
        """What contradicts the claim, a line each; none for a sound run."""
        found = [f"{c.name} is {c.value:.6g}, not {c.low:.6g} to {c.high:.6g}" for c in self.checks if not c.passed]
        ofs = {"canaries in the noisy sums": self.white_box} | {n: a.bounds for n, a in self.black_box.items()}
        for name, bounds in ofs.items():
            # Member canaries share one generator, so only the bound of one run is proved by them.
            proved = max(bounds.one_run, bounds.clopper_pearson if bounds is self.white_box else 0.0)
            estimated = max(bounds.one_run_gaussian, bounds.gaussian if bounds is self.white_box else 0.0)
            for word, bound in (("proved", proved), ("make it likely that", estimated)):
                if bound > self.audited_epsilon:
                    most = round_up(self.audited_epsilon)
                    found.append(f"{name} {word} ε ≥ {downwards(bound)}, and {self.part} can cost no more than {most}")
                    break
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        return {
            "stamp": STAMP,
            "claim": self.claim,
            "claimed": {"steps": self.claimed.steps, "epsilon": self.epsilon, "delta": self.claimed.delta},
            "audited": {
                "steps": self.plan.steps,
                "of_steps": self.claimed.steps,
                "whole": self.whole,
                "part": self.part,
                "epsilon": self.audited_epsilon,
                "delta": self.plan.delta,
                "scope": self.scope,
            },
            "findings": self.findings,
            "conclusion": " ".join(self.conclusion),
            "parametric": [check._asdict() | {"passed": check.passed} for check in self.checks],
            "white_box": {"canaries": self.canaries, **dataclasses.asdict(self.white_box)},
            "black_box": {
                name: {
                    "members": self.members,
                    "auc": found.auc,
                    "balanced_accuracy": found.balanced_accuracy,
                    "rates": [rate._asdict() for rate in found.rates],
                    "bounds": dataclasses.asdict(found.bounds),
                }
                for name, found in self.black_box.items()
            },
            "ceiling": [
                {"false_positive_rate": false, "true_positive_rate": true}
                for false, true in zip(*self.ceiling, strict=True)
            ],
            "memorisation": self.nearness.as_json(),
            "properties": self.properties and self.properties.as_json(),
        }


def audit_run(
    run: Path | str,
    *,
    data: ImageDataset | None = None,
    public: ImageDataset | None = None,
    held_out: ImageDataset | str | None = None,
    minutes: float = 8.0,
    canaries: int = _CANARIES,
    members: int = _MEMBERS,
    generated: int = 2000,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Audit:
    """Attack the claim of a finished run, and write what was found into `private/audit/` of its folder.

    A second training run, on the same images and by the same plan, has canaries planted in it: its weights are never
    written, and cannot become a release. What it proves is about the plan and this code, beside what it claims.

    Args:
        run: The folder of a finished run, `private/` included.
        data: Its images; opened where they were opened then unless given.
        public: The public images that it started from, if it did; opened as they were then unless given.
        held_out: Images of the same population that it was not trained on, or where they are: a measure for how near
            an image that was not copied comes. The test part of what was trained on, unless given, if it has one.
        minutes: About how long the second training run may take. If that is too short for the plan, it has fewer
            steps, and what it proves is compared with what these cost by themselves.
        canaries: Dirac canaries: records with the largest gradient that clipping allows, each in its own coordinate.
        members: Images of the data set, or groups, that take part by the toss of a coin, at most a quarter of all.
        generated: Images made by the run's release, to be compared with the training images.
        on_progress: Called as the audit goes on.

    Raises:
        InputError: There is no finished run, its release does not verify or claims nothing, its images cannot be opened
            again, or are too few.
    """
    require_positive(minutes=minutes)
    require_counts(canaries=canaries, members=members, generated=generated)
    if canaries < 2 or members < 2:
        raise InputError(
            "an audit needs at least two canaries, and two members: those that take part and those that do not"
        )
    opened = open_run(run, data=data, public=public, held_out=held_out)
    plan, private = opened.plan, opened.private.images
    audited = dataclasses.replace(_within(minutes, opened.config, plan, opened.release.facts, canaries), earlier=())

    on_progress("checking the mechanism", 0, 1)
    checks = check_mechanism(plan)
    on_progress("checking the mechanism", 1, 1)
    members = max(2, min(members, len(units_that_took_part(opened.data)) // 4))
    played = _played(opened, audited, canaries, members, on_progress)
    black_box = _attacked(played, opened, generated, on_progress)
    on_progress("looking for copies", 0, 1)
    made, _ = opened.release.sample(generated)
    near = nearness(made, private, None if opened.held_out is None else opened.held_out.images)
    on_progress("looking for copies", 1, 1)
    found = Audit(
        claim=opened.release.statement,
        claimed=plan,
        epsilon=plan.epsilon(),
        checks=checks + check_sums(played.sums, called(plan)),
        plan=audited,
        audited_epsilon=audited.epsilon(),
        canaries=canaries,
        white_box=lower_bounds(played.scores, played.took_part, delta=audited.delta),
        members=members,
        black_box=black_box,
        ceiling=_ceiling(audited),
        nearness=near,
        properties=properties_of(opened, generated),
    )
    _write(found, Path(run) / "private" / "audit", made, private)
    return found


def _played(opened: Opened, audited: Plan, canaries: int, members: int, on_progress: OnProgress) -> AuditedRun:
    """Return what a training run by the audited plan gave away, with canaries planted in it."""
    coins = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    config, data, public = opened.config, opened.data, opened.public
    for outcome in train_with_canaries(
        config, audited, data, public=public, starts=opened.starts, canaries=canaries, members=members, coins=coins
    ):
        if isinstance(outcome, AuditedRun):
            return outcome
        on_progress("training with canaries", outcome, audited.steps or audited.planned)
    raise AssertionError("a run that does not end")


def _attacked(played: AuditedRun, opened: Opened, generated: int, on_progress: OnProgress) -> dict[str, Attacked]:
    """Return how well each attack that the generator is open to tells its members from the others."""
    accused = opened.data.part(played.members)

    def judged(of_images: ndarray) -> Attacked:
        return judge(of_units(accused, of_images), played.were_in, delta=played.plan.delta)

    generator = played.generator
    samples, _ = Release(generator, {}, {}).sample(generated)
    found = {"samples": judged(near_samples(samples, accused.images))}
    if not isinstance(generator, DenoisingGenerator):  # which each of the others needs
        return found
    base = public_denoiser(opened.config.method, generator, opened.starts, seed=opened.config.seed)
    attacks = ATTACKS if base is None else ATTACKS | {LESS_PUBLIC: Calibrated(base)}
    images = generator.seen_of(accused.images).to(generator.device)
    known = np.zeros(len(images), np.int64) if accused.labels is None else accused.labels
    labels = torch.from_numpy(known).to(generator.device)
    for done, (name, attack) in enumerate(attacks.items(), start=1):
        found[name] = judged(attack_scores(attack, generator.denoiser, images, labels))
        on_progress("attacking the generator", done, len(attacks))
    return found


def of_units(data: ImageDataset, of_images: Float64[ndarray, " images"]) -> Float64[ndarray, " units"]:
    """Return the score of each unit: for a group, the mean of those of its images that took part, of which it has one.

    A score of an image that took no part counts for nothing; were it taken for zero, such groups would stand out.
    """
    return np.bincount(data.units, data.weights * of_images) / np.bincount(data.units, data.weights)


def _ceiling(plan: Plan) -> tuple[tuple[float, ...], list[float]]:
    """Return false-positive rates, and the most true positives that a plan allows at each."""
    rates = true_positive_rates(plan.events(), false_positive_rates=_FALSE_ALARMS, relation=plan.relation)
    return _FALSE_ALARMS, rates


def _within(minutes: float, config: Config, plan: Plan, facts: ImageFacts, canaries: int) -> Plan:
    """Return the plan, with no more steps than fit into the time; canaries make batches larger."""
    if not plan.steps:
        return plan
    seconds = measure_step(config, facts, plan).seconds_per_step * (1 + canaries / plan.dataset_size)
    return plan.with_steps(max(1, min(plan.steps, int(60 * minutes / max(seconds, 1e-9)))))


def _write(found: Audit, folder: Path, made: ndarray, private: Images) -> None:
    """Write report, ROC curves, and the generated images that are nearest to a training image beside it."""
    report = found.to_json()
    folder.mkdir(exist_ok=True)
    curves = {name: [*zip(*attacked.roc, strict=True)] for name, attacked in found.black_box.items()}
    text = roc_chart(curves, [*zip(*found.ceiling, strict=True)])
    write_atomically(folder / "roc.svg", lambda path: path.write_text(text, encoding="utf-8"))
    nearest = np.argsort(found.nearness.nearest, kind="stable")[:_SHOWN]
    side_by_side(
        folder / "nearest.png",
        made[nearest],
        private[found.nearness.neighbour[nearest]],
        columns=5,
        captions=("generated", "nearest in training"),
    )
    write_json(folder / "audit.json", report)
