"""`dpdm plan`, and what `--minutes` chooses."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdm.cli.options import (
    AsJson,
    Epsilon,
    Minutes,
    Set,
    Size,
    Target,
    bound,
    finite,
    load_settings,
    print_json,
    say,
)
from dpdm.terminal import duration, show_progress, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.privacy import AnyPlan
    from dpdm.privacy.processes import Processes
    from dpdm.training import ImageFacts
    from dpdm.training.step_cost import Fitted


def plan(
    target: Target,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would claim, and the time and memory it needs, before any training."""
    config = load_settings(target, epsilon, dataset_size, set, minutes)
    from dpdm.config import encode
    from dpdm.training import measure_sampling, measure_step
    from dpdm.training.worth import noise_to_signal, why_it_cannot_pay

    facts, mechanism = _declared(config)
    if minutes is not None:
        config, cost, sampling = _measured(config, facts, mechanism, minutes, first=True)
        mechanism = config.plan(lambda: mechanism.dataset_size)
    else:
        cost, sampling = measure_step(config, facts, mechanism), measure_sampling(config, facts, mechanism)
    quarters = [mechanism.steps * part // 4 for part in (1, 2, 3, 4)] if mechanism.steps else []
    report: dict[str, Any] = {
        "statement": mechanism.statement,
        "sample_rate": mechanism.sample_rate,
        "noise_multipliers": {release.name: release.noise_multiplier for release in mechanism.full},
        "steps": mechanism.steps,
        "expected_batch_size": mechanism.expected_batch_size,
        "noise_multiplicity": config.loss.noise_multiplicity,
        "noise_multiplier": mechanism.noise_multiplier,
        "delta": mechanism.delta,
        "epsilon": finite(mechanism.epsilon()),
        "epsilon_rdp": finite(mechanism.epsilon(accountant="rdp")),
        "epsilon_at": {str(steps): finite(mechanism.epsilon(made=mechanism.made_after(steps))) for steps in quarters},
        "parameters": cost.parameters,
        "noise_to_signal": noise_to_signal(mechanism, cost.parameters),
        "seconds_per_step": round(cost.seconds_per_step, 3),
        "minutes": round(cost.seconds_per_step * mechanism.steps / 60, 1),
        "physical_batch_size": cost.physical_batch_size,
        "memory_gib": round(cost.memory_gib, 2),
        "minutes_for_10000_images": round(sampling / 60, 2),
        "settings": encode(config),
    }
    if as_json:
        return print_json(report)
    unit = mechanism.unit
    say(f"claim       {report['statement']}")
    if mechanism.full and report["epsilon"] is not None:
        noise = ", ".join(f"{multiplier:.3g}" for multiplier in report["noise_multipliers"].values())
        say(f"prior       {len(mechanism.full)} sums first; noise {noise} times what one {mechanism.unit} can change")
    if report["epsilon"] is not None:
        if mechanism.steps:
            curve = ", ".join(f"{bound(eps)} at step {steps}" for steps, eps in report["epsilon_at"].items())
            say(f"noise       {report['noise_multiplier']:.4g} times the clipping norm, on {mechanism.steps:,} steps")
            say(f"epsilon     {curve}")
        loose = report["epsilon_rdp"] > 1.25 * report["epsilon"]
        remark = ", which is loose for few steps or tiny batches" if loose else ""
        say(f"check       {bound(report['epsilon_rdp'])} by Rényi accounting, another upper bound{remark}")
    drawn = f"sampling    about {duration(sampling)} for 10,000 images here"
    if not mechanism.steps:
        say("time        seconds: no network is trained")
        return say(drawn)
    say(
        f"batches     {mechanism.expected_batch_size:,} {unit}s a step on average, each in {_copies(config)}; "
        f"{'an' if unit == 'image' else 'a'} {unit} enters with probability {mechanism.sample_rate:.4g}"
    )
    say(f"network     {cost.parameters:,} parameters")
    if advice := why_it_cannot_pay(config, mechanism, cost.parameters):
        say(f"            {advice}")
    say(f"time        about {duration(cost.seconds_per_step * mechanism.steps)} here, measured on random images")
    beside = "" if unit == "image" else ", and what the images take"
    say(f"memory      about {cost.memory_gib:.1f} GiB, for {cost.physical_batch_size:,} {unit}s at once{beside}")
    say(drawn)
    if minutes is not None:
        chosen = {
            "privacy.steps": mechanism.steps,
            "privacy.expected_batch_size": mechanism.expected_batch_size,
            "loss.noise_multiplicity": config.loss.noise_multiplicity,
        }
        these = " ".join(f"--set {key}={value}" for key, value in chosen.items())
        say(f"to train    exactly this: {these} (train --minutes measures again)")


def fitted(config: "Config", folder: Path, minutes: float, processes: "Processes") -> "Config":
    """Return the settings that take so long; for a run that goes on, those with which it began."""
    from dpdm.config import read_toml
    from dpdm.training.worth import why_it_cannot_pay

    settings = folder / "private" / "config.toml"
    there = processes.object_from_first(read_toml(settings) if processes.first and settings.exists() else None)
    if there is not None:
        steps, batch = there["privacy"]["steps"], there["privacy"]["expected_batch_size"]
        copies = there["loss"]["noise_multiplicity"]
        config = replace(
            config,
            privacy=replace(config.privacy, steps=steps, expected_batch_size=batch),
            loss=replace(config.loss, noise_multiplicity=copies),
        )
        begun, remarks = "begun with", []
    else:
        facts, mechanism = _declared(config)
        config, cost, sampling = _measured(config, facts, mechanism, minutes, first=processes.first)
        begun = f"for {minutes:g} minute{'' if minutes == 1 else 's'} here"
        advice = why_it_cannot_pay(config, config.plan(lambda: mechanism.dataset_size), cost.parameters)
        remarks = [f"sampling 10,000 images will then take about {duration(sampling)}", *([advice] if advice else [])]
    if processes.first:
        steps, batch = config.privacy.steps, config.privacy.expected_batch_size
        tell(f"{begun}: {steps:,} steps of {batch:,} {config.data.unit}s in {_copies(config)}")
        for remark in remarks:
            tell(remark)
    return config


def _measured(config: "Config", facts: "ImageFacts", mechanism: "AnyPlan", minutes: float, *, first: bool) -> "Fitted":
    """Return the settings that fit the time; the first process shows how far the measuring is."""
    from dpdm.training import fit_to_time

    shown = 0
    with show_progress("measuring this machine", None) as advance:

        def on_progress(done: int, total: int) -> None:
            nonlocal shown
            advance(done - shown, "", total if first else None)
            shown = done

        return fit_to_time(config, facts, mechanism, minutes=minutes, on_progress=on_progress)


def _declared(config: "Config") -> tuple["ImageFacts", "AnyPlan"]:
    """Return shape and classes, and the plan; the data is opened only if the settings do not declare all of it."""
    from dpdm.training import ImageFacts

    data, privacy = config.data, config.privacy
    size, channels, num_classes = data.size, data.channels, data.num_classes
    if size is not None and channels is not None and num_classes is not None and privacy.dataset_size is not None:
        names = tuple(str(label) for label in range(num_classes))
        return ImageFacts((channels, size, size), names), config.plan(lambda: 0)
    facts = {
        "data.size": size,
        "data.channels": channels,
        "data.num_classes": num_classes,
        "privacy.dataset_size": privacy.dataset_size,
    }
    tell(f"opening {data.source}: {', '.join(key for key, value in facts.items() if value is None)} not declared")
    opened = data.open()
    return ImageFacts(opened.shape, opened.class_names), config.plan(lambda: opened.num_units)


def _copies(config: "Config") -> str:
    copies = config.loss.noise_multiplicity
    return "one noisy copy" if copies == 1 else f"{copies} noisy copies"
