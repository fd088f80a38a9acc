"""`dpdm pretrain`."""

import shlex
import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import AsJson, LedgerPlace, Set, existing_ledger, fail, load_settings, print_json, say
from dpdm.cli.training import asked_to_stop, drawing
from dpdm.terminal import show_progress, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.data import Fit, ImageDataset
    from dpdm.ledger import Ledger
    from dpdm.methods import ImageFacts
    from dpdm.methods.values import PublicStart
    from dpdm.privacy.processes import Processes
    from dpdm.runs.drawn import Drawn
    from dpdm.runs.public_training import PublicTraining

_KINDS = {
    "denoiser": (
        "data.",
        "network.",
        "preconditioning.",
        "prior.",
        "sampler.",  # whose noise levels must be those of the preconditioning
        "loss.label_dropout",
        "codec.",
        "codec=",
        "machine.",
        "seed",
    ),
    "classifier": ("data.", "machine.", "seed"),
    "codec": ("data.", "machine.", "seed"),
}

_USES = {
    "denoiser": "--start {output} --epsilon ...",
    "classifier": "--method statistics --start {output} --public {public} --epsilon ...",
    "codec": "--set codec.source={output} --epsilon ...",
}
"""What is said of the next command, for each kind."""

Kind = Annotated[
    str,
    typer.Option(
        help="denoiser, classifier or codec. A denoiser is a network for the method diffusion. A classifier is for the "
        "method statistics, which matches its layers. A codec is an autoencoder that makes images smaller, for --set "
        "codec.source."
    ),
]


def pretrain(
    public: Annotated[
        str,
        typer.Argument(
            help="Public images: fonts, shapes (a program draws both), a path, a name, or several joined by +. Or a "
            "finished run: its release draws the images, and later runs count its noisy sums again."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make, for train --start.")],
    like: Annotated[
        str, typer.Option(help="The private images that it is for: a preset, a TOML file, or a path. None is read.")
    ],
    kind: Kind = "denoiser",
    minutes: Annotated[float, typer.Option(help="Time for training. Opening or drawing images comes on top.")] = 30.0,
    ledger: LedgerPlace = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on public images, as a start of private runs.

    Reads nothing private, and spends no ε. The same command goes on where it was interrupted.
    """
    _require_of_a_start(kind, set or [], minutes)
    config = load_settings(like, None, None, set, claims=False)
    from dpdm.config import declared_facts
    from dpdm.data import require_outside
    from dpdm.methods import Diffusion
    from dpdm.runs.hardware import joined_processes
    from dpdm.runs.public import as_settings
    from dpdm.runs.start import open_start, require_free

    if kind == "denoiser" and not isinstance(config.method, Diffusion):
        fail(f"a start is for the method diffusion, and {like} has the method {config.method.kind}")
    require_free(output)
    require_outside(output, config.data.source)
    _require_others(config, public)
    book = existing_ledger(ledger)
    facts = declared_facts(config, ledger=book)
    with joined_processes() as processes:
        with processes.refused_together(), drawing(processes):
            drawn = _open(public, facts, config.data.fit)
        training = _training_on(drawn, config, facts, minutes, kind)
        with processes.refused_together():
            _require_public(drawn.images, book if processes.first else None)
        if processes.first:
            _tell_of(training)
        _with_progress(training, output, processes)
    if not processes.first:
        return None
    start = open_start(output)
    if as_json:
        return print_json({"output": str(output), "public": as_settings([start.part])[0], "classes": start.classes})
    use = _USES[kind].format(output=shlex.quote(str(output)), public=shlex.quote(public))
    return _tell_what_next(start, output, kind, f"{shlex.quote(like)} {use}{_same(set or [])}")


def _training_on(drawn: "Drawn", config: "Config", facts: "ImageFacts", minutes: float, kind: str) -> "PublicTraining":
    """Return what trains the network of a start, a classifier whose layers are matched, or a codec."""
    from dpdm.methods import Diffusion
    from dpdm.runs.classifying import Classifying
    from dpdm.runs.coding import Coding
    from dpdm.runs.pretraining import Pretraining

    made: dict[str, Any] = {"public": drawn.images, "earlier": drawn.earlier, "facts": facts, "minutes": minutes}
    made |= {"machine": config.machine, "seed": config.seed}
    if kind != "denoiser":
        return (Classifying if kind == "classifier" else Coding)(**made)
    assert isinstance(config.method, Diffusion)
    return Pretraining(method=config.method, **made)


def _same(settings: list[str]) -> str:
    """Return the options of these settings, without those that may be others when a start is used."""
    return "".join(f" --set {shlex.quote(text)}" for text in settings if not text.startswith(("machine.", "seed")))


def _tell_what_next(start: "PublicStart", output: Path, kind: str, use: str) -> None:
    """Say what a start was made with, and what can be done with it."""
    claims = "whose release every claim counts again" if start.earlier else "which no claim protects"
    say(f"done: {output}, made with {start.part.name} ({start.part.images:,} images), {claims}")
    alone = kind == "denoiser" and start.preconditioning != "moment-matched"  # without a prior
    say(f"next: dpdm train {use}{' --set start.gains=false' if alone else ''}")
    if kind == "denoiser":
        none = "" if alone else "; --set privacy.steps=0 takes none"
        say(f"before: dpdm plan, with the same options, says whether private steps pay{none}")


def _require_others(config: "Config", public: str) -> None:
    """Raise InputError if public images lie where the private ones do."""
    from dpdm.config import is_release
    from dpdm.data.public import location_of, require_others_than

    if not is_release(public):
        require_others_than(location_of(config.data.source), public)


def _open(public: str, facts: "ImageFacts", fit: "Fit") -> "Drawn":
    """Return images that are declared public, or drawn from a release with what it cost."""
    from dpdm.config import is_release
    from dpdm.data import open_public
    from dpdm.runs.drawn import Drawn, open_drawn

    if not is_release(public):
        return Drawn(open_public(public, shape=facts.shape, class_names=facts.class_names, fit=fit), ())
    tell(f"drawing images from the release of {public}, which runs with this start count again")
    return open_drawn(public, shape=facts.shape)


def _require_public(images: "ImageDataset", book: "Ledger | None") -> None:
    from dpdm.runs.start import known_records

    if book is not None:
        book.require_public(known_records(images))


def _require_of_a_start(kind: str, settings: list[str], minutes: float) -> None:
    from dpdm.types import require_positive

    require_positive(minutes=minutes)
    if kind not in _KINDS:
        fail(f"--kind {kind} is none of {', '.join(_KINDS)}")
    for text in settings:
        if not text.startswith(_KINDS[kind]):
            fail(f"--set {text} changes nothing about a {kind}: it takes {', '.join(_KINDS[kind])}")


def _tell_of(training: "PublicTraining") -> None:
    known = f"with the classes {', '.join(training.facts.class_names[:10])}"
    classes = known if training.labelled else "whose classes are not used"
    tell(f"{len(training.public):,} images of {training.public.name}, {classes}")


def _with_progress(training: "PublicTraining", output: Path, processes: "Processes") -> None:
    """Train, and show how much of the time is over; a signal to any process ends all after the update in flight."""
    whole, over = max(1, round(60 * training.minutes)), 0
    with (
        asked_to_stop() as stopped,
        closing(training.steps(output)) as updates,
        show_progress("pre-training, in seconds", whole if processes.first else None) as advance,
    ):
        for progress in updates:
            now = min(whole, int(progress.seconds))
            advance(now - over, f"loss {progress.loss:.3f}")
            over = now
            if processes.any(bool(stopped)):
                updates.close()  # which saves
                if processes.first:
                    tell(f"stopped at update {progress.updates}; the same command goes on from here")
                raise typer.Exit(128 + (stopped or [signal.SIGTERM])[0])
