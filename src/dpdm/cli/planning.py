"""`dpdm plan`, and what `--minutes` chooses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdm.cli.options import (
    AsJson,
    Epsilon,
    MethodName,
    Minutes,
    PublicImages,
    Set,
    Size,
    StartFolder,
    Target,
    bound,
    fail,
    finite,
    load_settings,
    print_json,
    say,
)
from dpdm.terminal import duration, show_progress, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.methods import ImageFacts, Method
    from dpdm.privacy import AnyPlan
    from dpdm.privacy.processes import Processes
    from dpdm.runs.cost import Fitted, StepCost

_SHOWN_GIB = 0.1  # of memory: less is not worth a line


def plan(
    target: Target,
    method: MethodName = None,
    public: PublicImages = None,
    start: StartFolder = None,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would claim and need, before any training."""
    config = load_settings(target, epsilon, dataset_size, set, minutes, method=method, public=public, start=start)
    from dpdm.config import is_release, require_public_source
    from dpdm.data.public import location_of, require_others_than
    from dpdm.runs import measure_sampling, measure_step
    from dpdm.runs.counted import count_step, is_without_weights
    from dpdm.runs.hardware import choose_device
    from dpdm.runs.start import open_starts

    if config.public is not None:  # a plan can be made without, which train cannot
        require_public_source(config.method, given=True)
        if not is_release(config.public.source):
            require_others_than(location_of(config.data.source), config.public.source)
    open_starts(config.method.start_folders)
    facts, asked = _declared(config)
    by_set: dict[str, tuple[int, float]] = {}
    none = None  # or why no steps are taken
    if minutes is not None:
        (config, cost, sampling), none = _measured(config, facts, asked, minutes, first=True)
        asked = config.plan(lambda: asked.dataset_size)
    elif is_without_weights(config):
        (cost, by_set), sampling = count_step(config, facts, asked), 0.0
    else:
        cost, sampling = measure_step(config, facts, asked), measure_sampling(config, facts)
    if own := bytes_of_method(config, facts, asked):
        cost = cost._replace(memory_gib=cost.memory_gib + own / 2**30)
    report = _report(config, asked, cost, sampling, by_set)
    report["advice"] = none or _advice(config.method, asked, facts, cost.parameters)
    if config.method.timed:
        device = choose_device(config.machine.device)
        report["minutes"] = config.method.seconds(facts, records=asked.dataset_size, device=device) / 60
    if as_json:
        return print_json(report)
    for line in _lines(report, config, asked, sampling):
        say(line)
    if minutes is not None:
        these = " ".join(f"--set {key}={value}" for key, value in _chosen(config, asked).items())
        say(f"to train    exactly this: {these} (train --minutes measures again)")


def _chosen(config: "Config", plan: "AnyPlan") -> dict[str, Any]:
    """Return the settings that --minutes chose."""
    if config.method.timed or not plan.steps:
        return _timed(config) or {"privacy.steps": 0}
    copies = _noise_multiplicity(config)
    chosen = {"privacy.steps": plan.steps, "privacy.expected_batch_size": plan.expected_batch_size}
    return chosen | ({"loss.noise_multiplicity": copies} if copies else {})


def _report(
    config: "Config", plan: "AnyPlan", cost: "StepCost", sampling: float, by_set: dict[str, tuple[int, float]]
) -> dict[str, Any]:
    """Return what a plan claims and costs, for machines."""
    from dpdm.config import encode_config
    from dpdm.runs.worth import noise_to_signal

    quarters = [plan.steps * part // 4 for part in (1, 2, 3, 4)] if plan.steps else []
    sets = {name: {"parameters": of[0], "memory_gib": round(of[1], 2)} for name, of in by_set.items()}
    return ({"by_set": sets} if sets else {}) | {
        "statement": plan.statement,
        "sample_rate": plan.sample_rate,
        "noise_multipliers": {release.name: release.noise_multiplier for release in plan.full},
        "steps": plan.steps,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplicity": _noise_multiplicity(config),
        "noise_multiplier": plan.noise_multiplier,
        "delta": plan.delta,
        "epsilon": finite(plan.epsilon()),
        "epsilon_rdp": finite(plan.epsilon(accountant="rdp")),
        "epsilon_at": {str(steps): finite(plan.epsilon(made=plan.made_after(steps))) for steps in quarters},
        "parameters": cost.parameters,
        "noise_to_signal": noise_to_signal(plan, cost.parameters),
        "seconds_per_step": round(cost.seconds_per_step, 3),
        "minutes": round(cost.seconds_per_step * plan.steps / 60, 1),
        "physical_batch_size": cost.physical_batch_size,
        "memory_gib": round(cost.memory_gib, 2),
        "minutes_for_10000_images": round(sampling / 60, 2),
        "settings": encode_config(config),
    }


def _lines(report: dict[str, Any], config: "Config", plan: "AnyPlan", sampling: float) -> Iterator[str]:
    """Say what a plan claims and costs, for people."""
    unit = plan.unit
    yield f"claim       {report['statement']}"
    if plan.full and report["epsilon"] is not None:
        least, most = (f"{end(report['noise_multipliers'].values()):.3g}" for end in (min, max))
        noise = least if least == most else f"from {least} to {most}"
        first = " first" if plan.steps else ""
        yield f"sums        {len(plan.full)}{first}; noise {noise} times what one {unit} can change"
    yield from _public(config, plan)
    if report["epsilon"] is not None:
        if plan.steps:
            curve = ", ".join(f"{bound(eps)} at step {steps}" for steps, eps in report["epsilon_at"].items())
            yield f"noise       {report['noise_multiplier']:.4g} times the clipping norm, on {plan.steps:,} steps"
            yield f"epsilon     {curve}"
        loose = report["epsilon_rdp"] > 1.25 * report["epsilon"]
        remark = ", which is loose for few steps or tiny batches" if loose else ""
        yield f"check       {bound(report['epsilon_rdp'])} by Rényi accounting, another upper bound{remark}"
    if plan.steps:
        yield (
            f"batches     {plan.expected_batch_size:,} {unit}s a step on average{_copies(config, ', each in ')}; "
            f"{'an' if unit == 'image' else 'a'} {unit} enters with probability {plan.sample_rate:.4g}"
        )
    if report["parameters"]:
        yield f"network     {report['parameters']:,} parameters"
        if report["advice"]:
            yield f"            {report['advice']}"
        where = "here, measured on random images"
        if by_set := report.get("by_set"):
            where = "at 100 TFLOP/s, counted: the public weights are not here"
        yield f"time        about {duration(60 * report['minutes'])} {where}"
        beside = "" if unit == "image" else ", and what the images take"
        at_once = f"{report['physical_batch_size']:,} {unit}s at once"
        yield f"memory      about {report['memory_gib']:.1f} GiB, for {at_once}{beside}"
        for name, of in (by_set or {}).items():
            yield f"            network.trains={name}: {of['parameters']:,} parameters, {of['memory_gib']:.1f} GiB"
    else:
        if report["advice"]:
            yield f"steps       {report['advice']}"
        takes = "minutes, most of them for features" if config.method.networks else "seconds to minutes"
        said = f"{takes}: no network is trained on private images"
        if plan.steps and not config.method.networks:
            said = "minutes to hours: what a step takes here is not measured"
        if config.method.timed:
            said = f"about {duration(60 * report['minutes'])} here, measured on made-up images"
        yield f"time        {said}"
        if report["memory_gib"] >= _SHOWN_GIB:
            among = _among(config) if config.method.starts_from_images else ""
            yield f"memory      about {report['memory_gib']:.1f} GiB{among}"
    if sampling:
        yield f"sampling    about {duration(sampling)} for 10,000 images here"


def _advice(method: "Method", plan: "AnyPlan", facts: "ImageFacts", parameters: int) -> str | None:
    """Return what to do instead of noisy steps that cannot pay, if they cannot."""
    from dpdm.methods import Diffusion
    from dpdm.runs.worth import why_it_cannot_pay

    if not isinstance(method, Diffusion):  # the rule was found by networks around a prior
        return None
    grey = facts.shape[0] == 1 and method.codec is None
    started = method.start is not None and method.prior is not None
    return why_it_cannot_pay(plan, parameters, started=started, pipeline=bool(method.networks), grey=grey)


def tell_what_cannot_pay(method: "Method", plan: "AnyPlan", facts: "ImageFacts") -> None:
    """Say that noisy steps cannot pay, if public numbers tell so."""
    import torch

    from dpdm.methods import Diffusion

    if isinstance(method, Diffusion) and plan.steps:
        with torch.device("meta"):
            module = method.stepped(method.untrained(facts)).module
        if advice := _advice(method, plan, facts, sum(p.numel() for p in module.parameters() if p.requires_grad)):
            tell(advice)


def _public(config: "Config", plan: "AnyPlan") -> Iterator[str]:
    """Say with what that is not protected, or was paid for before, a run begins."""
    from dpdm.runs.start import open_starts

    for start in open_starts(config.method.start_folders):
        said = "of a release, which the claim counts" if start.earlier else "that no ε protects"
        yield f"start       a network of {start.part.images:,} images of {start.part.name}, {said}"
    if plan.steps:
        for name in config.method.networks:
            yield f"start       the network of {name}: no ε protects the images that it was trained on"
    if config.method.starts_from_images and config.public is not None:
        said = "images of a release, which the claim counts" if config.earlier else "images that no ε protects"
        yield f"public      {config.public.source}: {said}"
    elif config.method.starts_from_images:
        yield "public      train needs --public: images that no ε protects"


def bytes_of_method(config: "Config", facts: "ImageFacts", plan: "AnyPlan") -> int:
    """Return the bytes that a method without a network needs; public images that are not drawn are not counted."""
    from dpdm.data.public import COUNT, DRAWN
    from dpdm.runs.drawn import COUNT as FROM_A_RELEASE

    sources = [] if config.public is None else [name.strip() for name in config.public.source.split("+")]
    drawn = sum(COUNT for name in sources if name in DRAWN) if sources else COUNT
    drawn += FROM_A_RELEASE if config.earlier else 0
    return config.method.memory(facts, public=drawn, records=plan.dataset_size)


def _among(config: "Config") -> str:
    """Say which public images the figure of memory counts."""
    from dpdm.data.public import COUNT, DRAWN

    if config.public is None:
        return f", with {COUNT:,} public images"
    if config.earlier:
        return ""
    others = [name.strip() for name in config.public.source.split("+") if name.strip() not in DRAWN]
    return f", and what the images of {' and '.join(others)} take" if others else ""


def fitted(config: "Config", folder: Path, minutes: float, processes: "Processes") -> "Config":
    """Return the settings that take so long; for a run that goes on, those with which it began."""
    from dpdm.config import decode_plan
    from dpdm.methods import Diffusion

    there = _begun_with(folder, processes)
    if there is not None:
        plan = decode_plan(there["plan"])
        if config.method.timed:
            config = replace(config, method=config.method.as_begun(there))
        else:
            batch = plan.expected_batch_size if plan.steps else config.privacy.expected_batch_size
            config = replace(config, privacy=replace(config.privacy, steps=plan.steps, expected_batch_size=batch))
        if isinstance(config.method, Diffusion):
            copies = there.get("loss", {}).get("noise_multiplicity", _noise_multiplicity(config))  # none of another run
            loss = replace(config.method.loss, noise_multiplicity=copies)
            config = replace(config, method=replace(config.method, loss=loss))
        begun, remarks = "begun with", []
    else:
        facts, mechanism = _declared(config)
        (config, cost, sampling), none = _measured(config, facts, mechanism, minutes, first=processes.first)
        begun = f"for {minutes:g} minute{'' if minutes == 1 else 's'} here"
        advice = none or _advice(config.method, config.plan(lambda: mechanism.dataset_size), facts, cost.parameters)
        remarks = [f"sampling 10,000 images will then take about {duration(sampling)}", *([advice] if advice else [])]
    if processes.first:
        steps, batch = config.privacy.steps, config.privacy.expected_batch_size
        if config.method.timed:
            tell(f"{begun}: {', '.join(f'{name} = {value:,}' for name, value in _timed(config).items())}")
        elif not steps:
            tell(f"{begun}: no private steps")
        else:
            tell(f"{begun}: {steps:,} steps of {batch:,} {config.data.unit}s{_copies(config, ' in ')}")
        for remark in remarks:
            tell(remark)
    return config


def _timed(config: "Config") -> dict[str, Any]:
    """Return the settings of a method without steps that fill a given time, if it has any."""
    return {name: getattr(config.method, name) for name in config.method.timed}


def _begun_with(folder: Path, processes: "Processes") -> dict[str, Any] | None:
    """Return the settings with which a run has begun; None if there is none yet."""
    from dpdm.config import read_toml

    settings = folder / "private" / "config.toml"
    return processes.object_from_first(read_toml(settings) if processes.first and settings.exists() else None)


def rehearsed(config: "Config", folder: Path, processes: "Processes", *, timed: bool) -> "Config":
    """Return the settings with the learning rate and the clipping norm that a rehearsal finds, or that a run has.

    Settings that are `timed` may take no steps: then there is nothing to find.
    """
    from dpdm.config import Privacy, decode_plan
    from dpdm.methods import Diffusion
    from dpdm.privacy import Plan
    from dpdm.runs.learning import rehearse_learning
    from dpdm.runs.start import open_starts

    method = config.method
    if timed and config.privacy.steps == 0:
        if processes.first:
            tell("no steps, so there is nothing to rehearse")
        return config
    if not isinstance(config.privacy, Privacy) or not isinstance(method, Diffusion) or config.privacy.steps == 0:
        fail("a rehearsal is for noisy steps of a network, and this plan takes none: leave out --rehearse")
    there = _begun_with(folder, processes)
    if there is not None:
        plan = decode_plan(there["plan"])
        rate, norm = there.get("optimizer", {}).get("learning_rate"), plan.max_grad_norm
        if rate is None or not plan.steps:
            fail(f"{folder} holds another run, without steps: choose another folder")
    else:
        facts, plan = _declared(config)
        assert isinstance(plan, Plan)
        known = [start.classes for start in open_starts(method.start_folders) if start.classes]
        if known and len(known[0]) == facts.num_classes:  # declared by their number alone
            facts = facts._replace(class_names=known[0])
        shown = 0
        with show_progress("rehearsing on drawn images, in steps", None) as advance:

            def on_progress(done: int, total: int) -> None:
                nonlocal shown
                advance(done - shown, "", total if processes.first else None)
                shown = done

            found = rehearse_learning(config, plan, facts, on_progress)
        rate, norm, losses = processes.object_from_first(found)
        if processes.first:
            tried = ", ".join(f"{loss:.4f} at {rate:g}" for rate, loss in losses.items())
            tell(f"rehearsed: learning rate {rate:g} (loss {tried}), clipping norm {norm:g}")
    method = replace(method, optimizer=replace(method.optimizer, learning_rate=rate))
    return replace(config, method=method, privacy=replace(config.privacy, max_grad_norm=norm))


def _measured(
    config: "Config", facts: "ImageFacts", mechanism: "AnyPlan", minutes: float, *, first: bool
) -> tuple["Fitted", str | None]:
    """Return the settings that fit the time, and why they take no steps, if a start makes up for steps that cannot pay.

    The first process shows how far the measuring is.
    """
    from dpdm.runs import fit_to_time
    from dpdm.runs.cost import without_steps
    from dpdm.runs.worth import why_none_are_taken

    shown = 0
    with show_progress("measuring this machine", None) as advance:

        def on_progress(done: int, total: int) -> None:
            nonlocal shown
            advance(done - shown, "", total if first else None)
            shown = done

        fitted = fit_to_time(config, facts, mechanism, minutes=minutes, on_progress=on_progress)
    plan = fitted.config.plan(lambda: mechanism.dataset_size)
    none = why_none_are_taken(fitted.config.method, plan, fitted.cost.parameters)
    return (fitted if none is None else without_steps(config, facts, plan, fitted.sampling_seconds)), none


def _declared(config: "Config") -> tuple["ImageFacts", "AnyPlan"]:
    """Return shape and classes, and the plan; the data is opened only if the settings do not declare all of it."""
    from dpdm.methods import ImageFacts

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
    tell(f"opening {data.source} for what is not declared: {', '.join(key for key in facts if facts[key] is None)}")
    opened = data.open()
    return ImageFacts(opened.shape, opened.class_names), config.plan(lambda: opened.num_units)


def _noise_multiplicity(config: "Config") -> int | None:
    """Return how many noisy copies of an example a step takes, if the method makes any."""
    loss = getattr(config.method, "loss", None)
    return None if loss is None else loss.noise_multiplicity


def _copies(config: "Config", before: str) -> str:
    """Say in how many noisy copies a step takes an example, if the method makes any."""
    copies = _noise_multiplicity(config)
    if copies is None:
        return ""
    return f"{before}one noisy copy" if copies == 1 else f"{before}{copies} noisy copies"
