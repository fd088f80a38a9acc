"""`dpdm plan`: what a run would claim, take and need."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dpdm.cli.fitting import advice_on, declared, in_copies, measured, noise_multiplicity, timed_settings
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
    finite,
    load_settings,
    print_json,
    say,
)
from dpdm.terminal import duration

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.methods import ImageFacts
    from dpdm.privacy import AnyPlan
    from dpdm.runs.cost import StepCost

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
    starts = open_starts(config.method.start_folders)
    facts, asked = declared(config, starts)
    if starts:
        config.method.require_starts(config.method.untrained(facts), starts)
    by_set: dict[str, tuple[int, float]] = {}
    none = None  # or why no steps are taken
    if minutes is not None:
        (config, cost, sampling), none = measured(config, facts, asked, minutes, first=True)
        asked = config.plan(lambda: asked.dataset_size)
    elif is_without_weights(config):
        (cost, by_set), sampling = count_step(config, facts, asked), 0.0
    else:
        cost, sampling = measure_step(config, facts, asked), measure_sampling(config, facts)
    if own := bytes_of_method(config, facts, asked):
        cost = cost._replace(memory_gib=cost.memory_gib + own / 2**30)
    report = _report(config, asked, cost, sampling, by_set)
    report["advice"] = none or advice_on(config.method, asked, facts, cost.parameters)
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
        return timed_settings(config) or {"privacy.steps": 0}
    copies = noise_multiplicity(config)
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
        "noise_multiplicity": noise_multiplicity(config),
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
    from dpdm.privacy import ShardSums

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
        entering = "shard" if isinstance(plan.poisson[-1], ShardSums) else unit
        yield (
            f"batches     {plan.expected_batch_size:,} {entering}s a step on average{in_copies(config, ', each in ')}; "
            f"{'an' if entering == 'image' else 'a'} {entering} enters with probability {plan.sample_rate:.4g}"
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
        yield from _memory(report["memory_gib"], config)
    if sampling:
        yield f"sampling    about {duration(sampling)} for 10,000 images here"


def _public(config: "Config", plan: "AnyPlan") -> Iterator[str]:
    """Say with what that is not protected, or was paid for before, a run begins."""
    from dpdm.runs.start import open_starts

    for start in open_starts(config.method.start_folders):
        said = "of a release, which the claim counts" if start.earlier else "that no ε protects"
        yield f"start       a network of {start.part.images:,} images of {start.part.name}, {said}"
    for name in config.method.networks:
        what = f"start       the network of {name}" if plan.steps else f"public      the network {name}"
        yield f"{what}: no ε protects the images that it was trained on"
    if config.method.starts_from_images and config.public is not None:
        said = "images of a release, which the claim counts" if config.earlier else "images that no ε protects"
        yield f"public      {config.public.source}: {said}"
    elif config.method.starts_from_images:
        yield "public      train needs --public: images that no ε protects"


def bytes_of_method(config: "Config", facts: "ImageFacts", plan: "AnyPlan") -> int:
    """Return the bytes that a method without a network needs; public images that are not drawn are not counted."""
    from dpdm.data.public import COUNT, DRAWN
    from dpdm.runs.drawn import MOST

    sources = [] if config.public is None else [name.strip() for name in config.public.source.split("+")]
    drawn = sum(COUNT for name in sources if name in DRAWN) if sources else COUNT
    drawn += MOST if config.earlier else 0
    return config.method.memory(facts, public=drawn, records=plan.dataset_size)


def _memory(gib: float, config: "Config") -> Iterator[str]:
    """Say what memory a method without a network needs, and whether this machine has it."""
    import torch

    from dpdm.runs.memory import memory_there

    if gib < _SHOWN_GIB:
        return
    yield f"memory      about {gib:.1f} GiB{_among(config) if config.method.starts_from_images else ''}"
    if gib > (there := memory_there(torch.device("cpu")) / 2**30):
        yield f"            more than the {there:.1f} GiB here: train refuses it on this machine"


def _among(config: "Config") -> str:
    """Say which public images the figure of memory counts."""
    from dpdm.data.public import COUNT, DRAWN

    if config.public is None:
        return f", with {COUNT:,} public images"
    if config.earlier:
        return ""
    others = [name.strip() for name in config.public.source.split("+") if name.strip() not in DRAWN]
    return f", and what the images of {' and '.join(others)} take" if others else ""
