"""The options that several verbs take, what settings these make, and how verbs speak."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from dpdm.config import Config

Target = Annotated[str, typer.Argument(help="A preset's name, a TOML file, or a path to images.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Epsilon = Annotated[
    float | None, typer.Option(help="ε of the claim, 10 where nothing else says so; its δ is privacy.delta, 1e-5.")
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Public figure for the number of images: the claim is then about adding or removing one; else, about "
        "blanking one out."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for any setting, such as training.seed=1; plan --json lists all of them."),
]
Minutes = Annotated[
    float | None, typer.Option(help="Choose noise multiplicity, steps and batch to take so long on this machine.")
]
LedgerPlace = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="The book of what runs spend: a file, postgresql+psycopg://..., or none; the user's own unless told.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def load_settings(
    target: str, epsilon: float | None, dataset_size: int | None, overrides: list[str] | None, minutes: float | None
) -> "Config":
    """Return the settings that a target and options make."""
    from dpdm.config import load_config
    from dpdm.types import require_positive

    if minutes is not None:
        require_positive(minutes=minutes)
        if any(text.startswith("loss.noise_multiplicity=") for text in overrides or []):
            fail("--minutes chooses loss.noise_multiplicity: leave out one of the two")
    given = {"privacy.epsilon": epsilon, "privacy.dataset_size": dataset_size}
    return load_config(target, overrides=[*(overrides or []), *(f"{k}={v}" for k, v in given.items() if v is not None)])


def bound(epsilon: float | None) -> str:
    """Say an upper bound, rounded up."""
    from dpdm.privacy.accounting import upwards

    return upwards(float("inf") if epsilon is None else epsilon)


def finite(value: float) -> float | None:
    """Return the value, or None for infinity, which JSON has no word for."""
    return value if value < float("inf") else None


def fail(message: str) -> NoReturn:
    """End the verb with one line and exit code 2."""
    from dpdm.types import InputError

    raise InputError(message)


def say(text: str) -> None:
    """Print one line of a verb's result."""
    print(text, flush=True)


def print_json(content: dict[str, Any]) -> None:
    """Print a verb's result for machines."""
    print(json_line(content, indent=2), flush=True)


def json_line(content: dict[str, Any], **style: Any) -> str:  # noqa: ANN401 (of json.dumps)
    """Return JSON that means the same in whatever letters standard output has."""
    text = json.dumps(content, ensure_ascii=False, **style)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, **style)
    return text
