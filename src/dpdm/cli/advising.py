"""`dpdm advise`: which method to try first, by declared facts alone."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    SetData,
    Size,
    Target,
    existing_ledger,
    fail,
    load_settings,
    show,
)

if TYPE_CHECKING:
    from dpdm.runs.advice import Advice, Case, Row, Way


def advise(
    target: Target,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    public: Annotated[
        str | None, typer.Option(help="Public images at hand, as for train --public: fonts, shapes, or a path.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time that training may take.")] = None,
    ledger: LedgerPlace = None,
    set: SetData = None,
    as_json: AsJson = False,
) -> None:
    """Rank the methods for these images, by measurements on others.

    Shows the commands for each, and what it gained over the prior alone. Opens no image.
    """
    config = load_settings(target, epsilon, dataset_size, set)
    from dpdm.config import Privacy, declared_facts
    from dpdm.runs.advice import Case, left_out
    from dpdm.runs.advice import advise as ranked
    from dpdm.types import require_positive

    if minutes is not None:
        require_positive(minutes=minutes)
    if not isinstance(config.privacy, Privacy):
        fail("a run without noise needs no advice on its budget: leave out privacy.kind")
    number_is_missing = config.privacy.dataset_size is None
    also = "--dataset-size 10000" if number_is_missing else ""
    facts = declared_facts(config, ledger=existing_ledger(ledger), also=also)
    if number_is_missing:
        fail("the number of images is not declared: say --dataset-size 10000 for a public figure of ten thousand")
    assert config.privacy.epsilon is not None
    assert config.privacy.dataset_size is not None
    number, budget = config.privacy.dataset_size, config.privacy.epsilon
    case = Case(target, facts, number, budget, public, minutes, tuple(set or ()), config.data.source)
    choices, others = ranked(case), left_out(case)
    memory = {choice.way.name: _memory(choice.way.method, case) for choice in choices}
    report = {
        "ways": [_said(choice, memory[choice.way.name]) for choice in choices],
        "left_out": [{"way": way.name, "reason": reason} for way, reason in others],
    }
    show(report, _lines(case, choices, others, memory), as_json)


@cache
def _memory(method: str, case: "Case") -> float | None:
    """Return the GiB that training takes about here, counted; None if the method is not for this case."""
    from dpdm.cli.planning import bytes_of_method
    from dpdm.config import NoPrivacy
    from dpdm.runs.cost import count_memory
    from dpdm.types import InputError

    given = {"method": method, "public": case.public}
    try:
        config = load_settings(case.target, case.epsilon, case.number, [*case.settings], **given)  # type: ignore[arg-type]
        sizes = {"steps": config.privacy.steps, "expected_batch_size": config.privacy.expected_batch_size}
        without_noise = NoPrivacy(dataset_size=case.number, **sizes)  # which takes no memory
        plan = without_noise.plan(config.method, lambda: case.number)
        return count_memory(config, case.facts, plan) + bytes_of_method(config, case.facts, plan) / 2**30
    except InputError:
        return None


def _said(choice: "Advice", memory: float | None) -> dict[str, Any]:
    """Return what machines read of one way."""
    accuracy = [row.cnn for row in choice.rows]
    return {
        "way": choice.way.name,
        "cnn_percent": [min(accuracy), max(accuracy)] if accuracy else None,
        "points_above_prior": None if not choice.rows else [row.gain for row in choice.rows],
        "minutes": [row.minutes for row in choice.rows],
        "memory_gib": None if memory is None else round(memory, 2),
        "against": choice.against,
        "commands": list(choice.commands),
    }


def _lines(
    case: "Case",
    choices: "list[Advice]",
    others: "list[tuple[Way, str]]",
    memory: dict[str, float | None],
) -> Iterator[str]:
    """Say it for people."""
    channels, height, width = case.facts.shape
    seen = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    kinds = f"{case.facts.num_classes} classes" if case.facts.num_classes else "no classes"
    yield f"for         {case.number:,} images, {height} × {width}, {seen}, {kinds}; ε = {case.epsilon:g}"
    for number, choice in enumerate(choices, 1):
        yield ""
        yield f"{number}. {choice.way.name}: {choice.way.what}"
        if choice.against:
            yield f"   last      {choice.against}"
        if choice.rows:
            yield f"   CNN       {_range([row.cnn for row in choice.rows])} % of real test images"
            for row in choice.rows:
                yield f"             {_row(row)}"
            if minutes := [row.minutes for row in choice.rows if row.minutes is not None]:
                yield f"   took      {_range(minutes)} min of a slow core's time, for training alone"
        if (needs := memory[choice.way.name]) is not None:
            yield f"   memory    about {max(0.1, needs):.1f} GiB"
        for command in choice.commands:
            yield f"   $ {command}"
    if others:
        yield ""
    for way, reason in others:
        yield f"{way.name}: {reason}"
    yield ""
    yield "Order: by the measured gain over the prior alone. Accuracies on different images do not compare."
    yield "Accuracies are those of the images that each line names: yours may be harder. No image was opened."
    yield "dpdm plan, with the same options as train, says time on this machine."


def _row(row: "Row") -> str:
    public = f" with {row.public}" if row.public else ""
    gained = "" if row.gain is None or row.way == "prior" else f", {row.gain:+.1f} against the prior alone"
    return f"{row.cnn:.1f} on {row.number:,} of {row.images}{public} at ε = {row.epsilon:g}{gained}"


def _range(values: "list[float]", digits: int = 1) -> str:
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least} to {most}"
