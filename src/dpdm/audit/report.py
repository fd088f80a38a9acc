"""The whole audit of a run: four attacks on its claim, and what they proved beside what it promises."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from dpdm.audit.canaries import AuditedRun, train_with_canaries
from dpdm.audit.membership import ATTACKS, Attacked, attack_scores, judge
from dpdm.audit.memorisation import Nearness, near_samples, nearness
from dpdm.audit.parametric import Check, called, check_mechanism, check_sums
from dpdm.config import Config, Data, Machine, Public, decode, decode_method, decode_plan, read_toml, require_same_unit
from dpdm.data import ImageDataset, open_again, open_dataset, read_location
from dpdm.evaluation import roc_chart, side_by_side
from dpdm.files import write_atomically, write_json
from dpdm.methods import DenoisingGenerator, ImageFacts, Method
from dpdm.methods.values import PublicStart
from dpdm.privacy import Plan
from dpdm.privacy.accounting import downwards, round_up, true_positive_rates
from dpdm.privacy.auditing import LowerBounds, lower_bounds
from dpdm.runs import Release, measure_step, verify_release
from dpdm.runs.drawn import open_begun_with
from dpdm.runs.public import taking_part_of
from dpdm.runs.start import open_starts
from dpdm.types import InputError, require_counts, require_positive

STAMP = "AUDIT of private images: covered by no ε, for the data owner alone, never to be published"
_CANARIES = 1000
_MEMBERS = 1000
_FEWEST = 16  # images, or groups, that can be audited
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
    release, plan, config, location = _finished(run)
    data, held_out = _images_of(run, release, plan, location, data, held_out)
    public = _public_of(run, release, config, public)
    starts = _starts_of(run, release, config)
    data = taking_part_of(data, public, starts)
    audited = dataclasses.replace(_within(minutes, config, plan, release.facts, canaries), earlier=())

    on_progress("checking the mechanism", 0, 1)
    checks = check_mechanism(plan)
    on_progress("checking the mechanism", 1, 1)
    members = max(2, min(members, data.num_units // 4))
    coins = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    played: AuditedRun | None = None
    for outcome in train_with_canaries(
        config, audited, data, public=public, starts=starts, canaries=canaries, members=members, coins=coins
    ):
        if isinstance(outcome, int):
            on_progress("training with canaries", outcome, audited.steps or audited.planned)
        else:
            played = outcome
    assert played is not None
    black_box = _attacked(played, data.part(played.members), generated, on_progress)
    on_progress("looking for copies", 0, 1)
    made, _ = release.sample(generated)
    near = nearness(made, data.images, None if held_out is None else held_out.images)
    on_progress("looking for copies", 1, 1)
    allowed = true_positive_rates(audited.events(), false_positive_rates=_FALSE_ALARMS, relation=audited.relation)
    found = Audit(
        claim=release.statement,
        claimed=plan,
        epsilon=plan.epsilon(),
        checks=checks + check_sums(played.sums, called(plan)),
        plan=audited,
        audited_epsilon=audited.epsilon(),
        canaries=canaries,
        white_box=lower_bounds(played.scores, played.took_part, delta=audited.delta),
        members=members,
        black_box=black_box,
        ceiling=(_FALSE_ALARMS, allowed),
        nearness=near,
    )
    _write(found, Path(run) / "private" / "audit", made, data)
    return found


def _finished(run: Path | str) -> tuple[Release, Plan, Config, str]:
    """Return a finished run's release, plan and settings, and where its images were opened."""
    verify_release(run)
    release, file = Release.load(run), Path(run) / "private" / "config.toml"
    if not file.is_file():
        raise InputError(f"{run} has no private/ folder: an audit needs all of the run's folder, where its images are")
    try:
        settings = read_toml(file)
        if settings["plan"] != release.settings["plan"]:
            raise InputError(f"{file} is of another run than {run}/release")
        plan = decode_plan(settings["plan"])
        assert isinstance(plan, Plan)
        config = Config(
            data=Data(source="?"),
            public=decode(Public, settings["public"], path="public.") if "public" in settings else None,
            method=_as_opened(decode_method(settings), settings),
            seed=settings["seed"],
            machine=decode(Machine, settings["machine"], path="machine."),
        )
        return release, plan, config, settings["opened"]
    except (LookupError, TypeError, AssertionError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__})") from None


def _as_opened(method: Method, settings: dict[str, Any]) -> Method:
    """Return a run's method with the places of its starts, which a release does not tell."""
    return method.begun_from(places) if (places := settings.get("start_folders")) else method


def _images_of(
    run: Path | str,
    release: Release,
    plan: Plan,
    location: str,
    data: ImageDataset | None,
    held_out: ImageDataset | str | None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """Return the images of a run, opened where they were opened then unless given, and those held out."""
    if data is None:
        if not location:
            raise InputError(f"{run} was trained on arrays: give them to dpdm.audit.audit_run(run, data=...)")
        channels = release.facts.shape[0]
        data = open_again(location, channels=channels, num_classes=release.facts.num_classes)  # type: ignore[arg-type]
    require_same_unit(plan, data)
    if data.num_units < _FEWEST:
        raise InputError(f"{run} was trained on {data.num_units} {plan.unit}s: an audit needs at least {_FEWEST}")
    if isinstance(held_out, str):
        held_out = _open_like(data, held_out, read_location(location).group if location else None)
    elif held_out is None:
        held_out = _test_part(data, location)
    if data.shape != release.facts.shape or (held_out is not None and held_out.shape != data.shape):
        raise InputError(f"{run} is about images of shape {release.facts.shape}: give images of that shape")
    return data, held_out


def _starts_of(run: Path | str, release: Release, config: Config) -> tuple[PublicStart, ...]:
    """Return the public starts of a run, from where they were then."""
    starts = open_starts(config.method.start_folders)
    if tuple(start.sha256 for start in starts) != decode_method(release.settings).start_digests:
        raise InputError(f"{', '.join(config.method.start_folders)}: {run} began with another start")
    return starts


def _public_of(run: Path | str, release: Release, config: Config, public: ImageDataset | None) -> ImageDataset | None:
    """Return the public images that a run started from, opened as they were then unless given; None if it did not."""
    if not config.method.starts_from_images:
        return None
    if public is None:
        if config.public is None:
            raise InputError(f"{run} started from public arrays: give them to dpdm.audit.audit_run(run, public=...)")
        public = open_begun_with(config.public, release.facts.shape, release.facts.class_names).images
    started = release.public[0]
    if public.digest() != started.sha256:
        raise InputError(f"{public.name} is not {started.name}, which {run} started from: its digest is another")
    return public


def _attacked(
    played: AuditedRun, accused: ImageDataset, generated: int, on_progress: OnProgress
) -> dict[str, Attacked]:
    """Return how well each attack that the generator is open to tells its members from the others."""

    def judged(of_images: ndarray) -> Attacked:
        scores = np.bincount(accused.units, accused.weights * of_images)  # a group's is the mean of its images'
        return judge(scores, played.were_in, delta=played.plan.delta)

    generator = played.generator
    samples, _ = Release(generator, {}, {}).sample(generated)
    found = {"samples": judged(near_samples(samples, accused.images))}
    if not isinstance(generator, DenoisingGenerator):  # which each of the others needs
        return found
    images = generator.seen_of(accused.images).to(generator.device)
    known = np.zeros(len(images), np.int64) if accused.labels is None else accused.labels
    labels = torch.from_numpy(known).to(generator.device)
    for done, (name, attack) in enumerate(ATTACKS.items(), start=1):
        found[name] = judged(attack_scores(attack, generator.denoiser, images, labels))
        on_progress("attacking the generator", done, len(ATTACKS))
    return found


def _within(minutes: float, config: Config, plan: Plan, facts: ImageFacts, canaries: int) -> Plan:
    """Return the plan, with no more steps than fit into the time; canaries make batches larger."""
    if not plan.steps:
        return plan
    seconds = measure_step(config, facts, plan).seconds_per_step * (1 + canaries / plan.dataset_size)
    return plan.with_steps(max(1, min(plan.steps, int(60 * minutes / max(seconds, 1e-9)))))


def _test_part(data: ImageDataset, location: str) -> ImageDataset | None:
    """Return the test part of what was opened at `location`, if it has one."""
    try:
        place, group, *_ = read_location(location)
        return None if place.endswith(":test") else _open_like(data, f"{place}:test", group)
    except InputError:
        return None


def _open_like(data: ImageDataset, source: str, group: str | None) -> ImageDataset:
    channels, height, width = data.shape
    size = height if height == width else None
    num_classes = data.num_classes or None
    return open_dataset(source, size=size, channels=channels, num_classes=num_classes, group=group)  # type: ignore[arg-type]


def _write(found: Audit, folder: Path, made: ndarray, data: ImageDataset) -> None:
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
        data.images[found.nearness.neighbour[nearest]],
        columns=5,
        captions=("generated", "nearest in training"),
    )
    write_json(folder / "audit.json", report)
