"""The options that several verbs take, what settings these make, and how verbs speak."""

import difflib
import json
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dpdm.terminal import tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.ledger import Ledger

METHODS = sorted(  # by the first lines of their presets: a help waits for no library
    f"{file.name.removesuffix('.toml')}: {file.read_text(encoding='utf-8').splitlines()[0].strip('# ')}"
    for file in (resources.files("dpdm") / "presets" / "methods").iterdir()
)
Target = Annotated[str, typer.Argument(help="A preset's name, a TOML file, or a path to images.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="The method that makes the images (default: the target's). It keeps the target's data, machine, ε and δ; "
        "its own preset sets the rest." + "".join(f"\n\n{method}" for method in METHODS),
    ),
]
PublicPipeline = Annotated[
    Path | None,
    typer.Option(
        "--public",
        help="For a text-to-image run: the diffusers pipeline that it began with, whose weights its release lacks "
        "(default: the one that the run's own folder names).",
    ),
]
PublicImages = Annotated[
    str | None,
    typer.Option(
        "--public",
        help="Public images to start from: fonts, shapes (a program draws both), a path, a name, or several joined by "
        "+. No ε protects them. Or a finished run: its release draws the images, and the claim counts its noisy sums "
        "again.",
    ),
]
StartFolder = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="A public network to begin with: a folder that dpdm pretrain made, or none (default: a preset's). Private "
        "images choose one of several, joined by +. The method statistics takes a classifier (pretrain --kind).",
    ),
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Privacy budget ε (default: a preset's, for its own images alone). δ is privacy.delta, 1e-5."),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="A public figure for the number of images, or of groups. With it the claim is about adding or removing "
        "one. Without it the exact number counts as public, and the claim is about blanking one out."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, as key=value, such as network.width=64. plan --json lists all settings."),
]
SetData = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the images, as key=value, such as data.size=32."),
]
SetSampler = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the sampler, as key=value, such as sampler.steps=10."),
]
Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="Find learning rate and clipping norm first, on drawn images under the planned noise. Takes about a "
        "fourth of the steps' time, and more where batches are small.",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Time for the run. Measures this machine, then chooses steps, batch and noise multiplicity that fit. "
        "After a start, no steps where they cannot pay. For the method statistics, chooses the number of images."
    ),
]
LedgerPlace = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="The ledger: a file, postgresql+psycopg://..., or none (default: DPDM_LEDGER, else the user's own file).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def load_settings(
    target: str,
    epsilon: float | None,
    dataset_size: int | None,
    overrides: list[str] | None,
    minutes: float | None = None,
    *,
    method: str | None = None,
    public: str | None = None,
    start: str | None = None,
    claims: bool = True,
) -> "Config":
    """Return the settings that a target and options make; `claims` is whether a run is planned, which needs an ε."""
    from dpdm.types import require_positive

    if minutes is not None:
        require_positive(minutes=minutes)
        if any(text.startswith("loss.noise_multiplicity=") for text in overrides or []):
            fail("--minutes chooses loss.noise_multiplicity: leave out one of the two")
    require_method(method)
    require_target(target)
    from dpdm.config import Privacy, load_config, require_epsilon, require_timed

    if start not in (None, "none") and method not in (None, "diffusion", "statistics"):
        fail(f"--start is for the methods diffusion and statistics, not {method}: leave out one of the two")
    named = None if public is None else json.dumps(public)  # as text, whatever it looks like
    given = {"privacy.epsilon": epsilon, "privacy.dataset_size": dataset_size, "public.source": named}
    if start not in (None, "none") and method == "statistics":
        given["layers.network"] = json.dumps(start)
    elif start is not None and start != "none":
        given["start.sources"] = json.dumps(
            [start] if Path(start).expanduser().exists() else [one.strip() for one in start.split("+")]
        )
    settings = [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    config = load_config(target, method=method, overrides=settings, leave_out=("start",) if start == "none" else ())
    if claims and isinstance(config.privacy, Privacy):
        require_epsilon(config.privacy)
    if minutes is not None:
        require_timed(config.method)
        if config.privacy.steps == 0:
            fail("privacy.steps = 0 takes no steps that could be timed: leave out --minutes")
    return config


def existing_ledger(place: str | None) -> "Ledger | None":
    """Return a ledger that is there: none is made, since it would know of nothing."""
    from dpdm.ledger import Ledger
    from dpdm.terminal import tell

    book = Ledger.default(place, tell=tell)
    return book if book is not None and book.storage.exists else None


def require_method(method: str | None) -> None:
    """Raise InputError unless there is a method of this name, before the heavy imports."""
    names = [line.partition(":")[0] for line in METHODS]
    if method is not None and method not in names:
        close = difflib.get_close_matches(method, names, n=1)
        fail(f"--method {method!r} is none of {', '.join(names)}" + (f": did you mean {close[0]}?" if close else ""))


def require_target(target: str) -> None:
    """Raise InputError unless there is such a preset, file or path, before the heavy imports."""
    from dpdm.config.target import preset_names, read_target

    read_target(target)
    if target in preset_names() and Path(target).exists():
        tell(f"{target} is taken for the preset of this name. Say ./{target} for what lies here")


def require_found(*sources: str | None) -> None:
    """Raise InputError for the first of these sources of images that is not there, before any is opened."""
    from dpdm.data.location import require_source

    for source in sources:
        if source is not None:
            require_source(source)


def require_run(run: Path) -> None:
    """Raise InputError unless there is a finished run, before the heavy imports."""
    from dpdm.runs.run_folder import release_folder

    release_folder(run)


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


def show(result: dict[str, Any], text: Iterable[str], as_json: bool) -> None:
    """Print a verb's result: for machines, or as the lines that `text` makes for people."""
    if as_json:
        return print_json(result)
    for line in text:
        say(line)
    return None


def json_line(content: dict[str, Any], **style: Any) -> str:  # noqa: ANN401 (of json.dumps)
    """Return JSON that means the same in whatever letters standard output has."""
    text = json.dumps(content, ensure_ascii=False, **style)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, **style)
    return text
