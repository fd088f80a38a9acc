"""What `--minutes` and `--rehearse` choose, and whether noisy steps pay: for `dpdm plan` and `dpdm train`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdm.cli.options import fail
from dpdm.terminal import duration, show_progress, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.methods import ImageFacts, Method
    from dpdm.methods.values import PublicStart
    from dpdm.privacy import AnyPlan
    from dpdm.privacy.processes import Processes
    from dpdm.runs.cost import Fitted


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
            copies = there.get("loss", {}).get("noise_multiplicity", noise_multiplicity(config))  # none of another run
            loss = replace(config.method.loss, noise_multiplicity=copies)
            config = replace(config, method=replace(config.method, loss=loss))
        begun, remarks = "begun with", []
    else:
        facts, mechanism = declared(config)
        (config, cost, sampling), none = measured(config, facts, mechanism, minutes, first=processes.first)
        begun = f"for {minutes:g} minute{'' if minutes == 1 else 's'} here"
        advice = none or advice_on(config.method, config.plan(lambda: mechanism.dataset_size), facts, cost.parameters)
        remarks = [f"sampling 10,000 images will then take about {duration(sampling)}", *([advice] if advice else [])]
    if processes.first:
        steps, batch = config.privacy.steps, config.privacy.expected_batch_size
        if config.method.timed:
            tell(f"{begun}: {', '.join(f'{name} = {value:,}' for name, value in timed_settings(config).items())}")
        elif not steps:
            tell(f"{begun}: no private steps")
        else:
            tell(f"{begun}: {steps:,} steps of {batch:,} {config.data.unit}s{in_copies(config, ' in ')}")
        for remark in remarks:
            tell(remark)
    return config


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
        facts, plan = declared(config, open_starts(method.start_folders))
        assert isinstance(plan, Plan)
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


def measured(
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


def advice_on(method: "Method", plan: "AnyPlan", facts: "ImageFacts", parameters: int) -> str | None:
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
        if advice := advice_on(method, plan, facts, sum(p.numel() for p in module.parameters() if p.requires_grad)):
            tell(advice)


def timed_settings(config: "Config") -> dict[str, Any]:
    """Return the settings of a method without steps that fill a given time, if it has any."""
    return {name: getattr(config.method, name) for name in config.method.timed}


def _begun_with(folder: Path, processes: "Processes") -> dict[str, Any] | None:
    """Return the settings with which a run has begun; None if there is none yet."""
    from dpdm.config import read_toml

    settings = folder / "private" / "config.toml"
    return processes.object_from_first(read_toml(settings) if processes.first and settings.exists() else None)


def declared(config: "Config", starts: Sequence["PublicStart"] = ()) -> tuple["ImageFacts", "AnyPlan"]:
    """Return shape and classes, and the plan; the data is opened only if the settings do not declare all of it.

    Classes that are declared by their number alone have the names that a start knows, if it knows as many.
    """
    from dpdm.methods import ImageFacts

    data, privacy = config.data, config.privacy
    size, channels, num_classes = data.size, data.channels, data.num_classes
    if size is not None and channels is not None and num_classes is not None and privacy.dataset_size is not None:
        known = [start.classes for start in starts if start.classes and len(start.classes) == num_classes]
        names = known[0] if known else tuple(str(label) for label in range(num_classes))
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


def noise_multiplicity(config: "Config") -> int | None:
    """Return how many noisy copies of an example a step takes, if the method makes any."""
    loss = getattr(config.method, "loss", None)
    return None if loss is None else loss.noise_multiplicity


def in_copies(config: "Config", before: str) -> str:
    """Say in how many noisy copies a step takes an example, if the method makes any."""
    copies = noise_multiplicity(config)
    if copies is None:
        return ""
    return f"{before}one noisy copy" if copies == 1 else f"{before}{copies} noisy copies"
