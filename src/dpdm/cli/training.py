"""`dpdm prepare | train`."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from dpdm.cli.fitting import fitted, rehearsed, tell_what_cannot_pay
from dpdm.cli.ledger import keep_figures
from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    MethodName,
    Minutes,
    PublicImages,
    Rehearse,
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
from dpdm.terminal import Advance, leave_the_terminal, remarked, show_progress, show_stages, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.data import ImageDataset
    from dpdm.ledger import Ledger
    from dpdm.methods import Progress
    from dpdm.privacy.processes import Processes
    from dpdm.runs import Release, Trainer


def prepare(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make, for training.")],
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out records that cannot be used, and list them in refused.txt.")
    ] = False,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Decode and frame images once. Training then need not hold them in memory."""
    for text in set or []:
        if not text.startswith("data."):
            fail(f"--set {text} changes nothing about images: prepare takes data.… only")
    data = load_settings(target, None, None, set, claims=False).data
    from dpdm.data import Framing, ReadImages, open_dataset, prepare, require_outside

    require_outside(output, data.source)
    framing = Framing(size=data.size, fit=data.fit, channels=data.channels)
    done = 0
    with show_progress("preparing", None) as advance:

        def on_progress(now: int, total: int) -> None:
            nonlocal done
            advance(now - done, "", total)
            done = now

        def open_source(read: ReadImages) -> "ImageDataset":
            opened = open_dataset(data.source, num_classes=data.num_classes, group=data.group, read=read)
            return data.named(opened)

        prepared = prepare(
            output,
            open_source,
            framing,
            leave_out=leave_out,
            on_progress=on_progress,
        )
    if as_json:
        return print_json({"output": str(output), **prepared._asdict()})
    say(f"{prepared.num_images:,} images in {output}")
    if prepared.left_out:
        say(f"{len(prepared.left_out):,} records were left out: {output / 'refused.txt'} says why")
    groups = "" if data.group is None else " --set data.group=groups"
    say(f"next: dpdm train {output}{groups}, or --set data.source={output}{groups} beside a preset")


def train(
    target: Target,
    run: Annotated[
        Path | None, typer.Option("--run", "-r", help="Folder of the run. The same command again resumes it.")
    ] = None,
    method: MethodName = None,
    public: PublicImages = None,
    start: StartFolder = None,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    rehearse: Rehearse = False,
    ledger: LedgerPlace = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train a private generator. Ctrl-C stops it, and the same command resumes it."""
    config = load_settings(target, epsilon, dataset_size, set, minutes, method=method, public=public, start=start)
    from dpdm.ledger import Ledger
    from dpdm.runs import Trainer
    from dpdm.runs.hardware import joined_processes
    from dpdm.runs.learning import TIME

    require_public_there_for(config)
    folder = run or Path("runs") / re.sub(r"\.(toml|npz|zip)$", "", Path(target.replace(":", "-")).name)
    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file: choose another --run folder")
    finished = (folder / "release" / "privacy.json").exists()
    with joined_processes() as processes:
        book = Ledger.default(ledger, tell=tell)
        require_readable(book, processes)
        if minutes is not None:
            config = fitted(config, folder, minutes / (1 + TIME) if rehearse else minutes, processes)
        if rehearse:
            config = rehearsed(config, folder, processes, timed=minutes is not None)
        data = config.data.open()
        require_agreeing(config, data)
        with drawing(processes):
            trainer = Trainer.from_config(config, data, run=folder, ledger=lambda: book)
        if processes.first:
            tell_of_lost_labels(trainer.public)
        with _say_how_to_go_on(folder, processes):
            release = train_with_progress(trainer, data, processes, advise=minutes is None)
    if not processes.first:
        return None
    keep_figures(Ledger.default(ledger))
    if as_json:
        return print_json(release.claim)
    say(f"{'done before, nothing was left to do' if finished else 'done'}: {release.statement}")
    return _tell_what_next(release, folder, trainer.plan.dataset_size)


def _tell_what_next(release: "Release", folder: Path, number: int) -> None:
    """Say what a person should know of a release, and what can be done with it."""
    if remark := release.generator.remark:
        say(f"note: {remark}")
    say(f"publish {folder / 'release'}; keep {folder / 'private'} to yourself")
    say(f"next: dpdm sample {folder} -n {number} -o synthetic.npz")


def require_public_there_for(config: "Config") -> None:
    """Raise InputError unless public images and a start are there, before any image is read."""
    from dpdm.config import is_release, require_public_source
    from dpdm.data.public import require_public_there
    from dpdm.runs.start import open_starts

    require_public_source(config.method, given=config.public is not None)
    if config.public is not None and not is_release(config.public.source):
        require_public_there(config.public.source)
    open_starts(config.method.start_folders)


def _stopping() -> list[int]:
    """Return the signals that end a run after its step: a terminal's, a scheduler's, or those of one that is closed."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # of which some systems lack the last two
    there = [getattr(signal, name) for name in names if hasattr(signal, name)]
    nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in there if not (nohup and number == signal.SIGHUP)]


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Yield a list of the signals to stop, for a caller that ends after its step. A second signal ends it at once."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        hung_up = number == getattr(signal, "SIGHUP", None)  # which a shell and the system may both send
        if stopped and not hung_up:
            raise KeyboardInterrupt
        if hung_up:
            leave_the_terminal()  # before anything is said: an error here would end the step in flight
        if not stopped:
            tell("finishing this step, then saving (once more to stop at once)")
        stopped.append(number)

    before = {number: signal.signal(number, stop) for number in _stopping()}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_with_progress(
    trainer: "Trainer", data: "ImageDataset", processes: "Processes", *, advise: bool = False
) -> "Release":
    """Drive the trainer; a signal to any process ends all after the step in flight, with a checkpoint.

    `advise` is whether to say, once the run has begun, that its steps cannot pay.
    """
    from dpdm.runs.trainer import as_begun

    trainer = as_begun(trainer)
    with asked_to_stop() as stopped:
        return _driven(trainer, data, processes, stopped, advise=advise)


def _driven(
    trainer: "Trainer", data: "ImageDataset", processes: "Processes", stopped: list[int], *, advise: bool
) -> "Release":
    steps = trainer.steps(data)
    plan, shown = trainer.plan, 0
    counted, what = (plan.steps, "step") if plan.steps else (plan.planned, "noisy sum")
    begun = False
    try:
        nothing_to_do = trainer.run is not None and (Path(trainer.run) / "release" / "privacy.json").exists()
        with _showing(counted if processes.first and not nothing_to_do else None, steps=bool(plan.steps)) as advance:
            while True:
                progress = next(steps)
                if processes.first and not begun:
                    begun = True
                    _tell_first(trainer, progress, data, advise=advise)
                said = "" if progress.epsilon is None else f"ε ≤ {bound(finite(progress.epsilon))}"
                advance(progress.steps_spent - shown, said)
                shown = progress.steps_spent
                if processes.any(bool(stopped)):
                    steps.close()
                    if processes.first:
                        tell(f"stopped at {what} {shown} of {counted}; the same command goes on from here")
                    raise typer.Exit(128 + (stopped or [signal.SIGTERM])[0])
    except StopIteration as end:
        release: Release = end.value
        return release
    finally:
        steps.close()  # also where nothing could be shown any more, so that a terminal that is gone loses no step


def _tell_first(trainer: "Trainer", progress: "Progress", data: "ImageDataset", *, advise: bool) -> None:
    """Say what a run claims, from where it goes on, and whether its steps can pay."""
    from dpdm.methods import ImageFacts

    plan = trainer.plan
    tell(plan.statement)
    if progress.steps_spent > 1 and plan.steps:
        tell(f"going on from step {progress.steps_spent - 1:,} of {plan.steps:,}")
    elif advise:
        tell_what_cannot_pay(trainer.method, plan, ImageFacts(data.shape, data.class_names))
    if lost := progress.steps_spent - progress.updates:
        tell(f"{lost} steps were lost when an earlier process was killed: they stay spent")


@contextmanager
def _showing(total: int | None, *, steps: bool) -> Iterator[Advance]:
    """Show how far a run is: its steps; or without any the stages of its work, which tell of themselves."""
    from dpdm.data.procedural import watched

    if steps or total is None:
        with show_progress("training", total) as advance, watched(remarked(advance)):
            yield advance
        return
    made = 0
    with show_stages() as move, watched(move):

        def count(number: int, remark: str) -> None:
            nonlocal made
            if number:
                made += number
                move("noisy sums", made, total)

        yield count


def require_readable(book: "Ledger | None", processes: "Processes") -> None:
    """Raise InputError or OSError if the ledger cannot be read, before any image is opened or drawn."""
    with processes.refused_together():
        if book is not None and processes.first and book.storage.exists:
            book.accounts()


def require_agreeing(config: "Config", data: "ImageDataset") -> None:
    """Raise InputError if settings do not fit the images that are to be protected, before public ones are drawn."""
    from dpdm.config import is_release, require_exact_size, require_same_unit
    from dpdm.data import read_location
    from dpdm.data.public import require_others_than
    from dpdm.methods import ImageFacts

    plan = config.plan(lambda: data.num_units)
    require_same_unit(plan, data)
    require_exact_size(plan, data)
    config.method.require_images(ImageFacts(data.shape, data.class_names))
    if config.public is not None and not is_release(config.public.source) and data.location:
        require_others_than(read_location(data.location).source, config.public.source)


@contextmanager
def drawing(processes: "Processes") -> Iterator[None]:
    """Show how far the drawing of public images is; Ctrl-C ends it in a line, and nothing is begun yet."""
    from dpdm.data.procedural import watched

    try:
        with show_stages() as move, watched(lambda source, done, total: move(f"drawing {source}", done, total)):
            yield
    except KeyboardInterrupt:
        if processes.first:
            tell("stopped while public images were drawn: nothing was begun")
        raise


def tell_of_lost_labels(public: "ImageDataset | None") -> None:
    """Say that the sources of public images name their classes otherwise, which leaves all without labels."""
    parts = () if public is None else public.made_of
    if public is None or public.labels is not None or len(parts) < 2:
        return
    if labelled := [part.name for part in parts if part.labels is not None]:
        tell(
            f"{public.name}: the labels of {' and '.join(labelled)} are left out, since not all sources have the same "
            "class names; every public image may stand for every class"
        )


@contextmanager
def _say_how_to_go_on(folder: Path, processes: "Processes") -> Iterator[None]:
    from dpdm.runs.run import SumLost

    try:
        yield
    except RuntimeError as error:
        if processes.size == 1 or "onnection" not in str(error):
            raise
        tell(f"dpdm: another process of this run ended ({processes.rank} saw it): the same command goes on")
        raise typer.Exit(1) from None
    except OSError as error:
        private = folder / "private"
        saved = any(private.glob("checkpoint*.safetensors"))
        state = "the last checkpoint is whole" if saved else "nothing was saved yet"
        next_step = "mend this, and the same command goes on"
        if isinstance(error, SumLost):
            state, next_step = "this sum was released and could not be saved", "mend this, and start a new run"
        print(f"dpdm: {error}: {state}; {next_step}", file=sys.stderr)
        raise typer.Exit(1) from None
