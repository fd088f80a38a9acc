"""`dpdm plan | prepare | train`."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    Minutes,
    Set,
    Size,
    Target,
    bound,
    fail,
    finite,
    load_settings,
    print_json,
    say,
)
from dpdm.terminal import duration, leave_the_terminal, show_progress, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.data import ImageDataset
    from dpdm.privacy import Mechanism
    from dpdm.privacy.processes import Processes
    from dpdm.training import ImageFacts, Release, Trainer


def plan(
    target: Target,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would claim and take, before any training."""
    from dpdm.config import encode
    from dpdm.training import fit_to_time, measure_step

    config = load_settings(target, epsilon, dataset_size, set, minutes)
    facts, mechanism = _declared(config)
    if minutes is not None:
        config = fit_to_time(config, facts, mechanism, minutes=minutes)
        mechanism = config.plan(lambda: mechanism.dataset_size)
    quarters = [mechanism.steps * part // 4 for part in (1, 2, 3, 4)] if mechanism.steps else []
    cost = measure_step(config, facts, mechanism)
    report: dict[str, Any] = {
        "statement": mechanism.statement,
        "sample_rate": mechanism.sample_rate,
        "earlier_noise_multipliers": [release.noise_multiplier for release in mechanism.earlier],
        "steps": mechanism.steps,
        "expected_batch_size": mechanism.expected_batch_size,
        "noise_multiplicity": config.loss.noise_multiplicity,
        "noise_multiplier": getattr(mechanism, "noise_multiplier", None),
        "delta": getattr(mechanism, "delta", None),
        "epsilon": finite(mechanism.epsilon()),
        "epsilon_rdp": finite(mechanism.epsilon(accountant="rdp")),
        "epsilon_at": {str(steps): finite(mechanism.epsilon(steps=steps)) for steps in quarters},
        "parameters": cost.parameters,
        "seconds_per_step": round(cost.seconds_per_step, 3),
        "minutes": round(cost.seconds_per_step * mechanism.steps / 60, 1),
        "physical_batch_size": cost.physical_batch_size,
        "memory_gib": round(cost.memory_gib, 2),
        "settings": encode(config),
    }
    if as_json:
        return print_json(report)
    unit = mechanism.unit
    say(f"claim       {report['statement']}")
    if mechanism.earlier and report["epsilon"] is not None:
        noise = ", ".join(f"{multiplier:.3g}" for multiplier in report["earlier_noise_multipliers"])
        say(
            f"prior       {len(mechanism.earlier)} sums first; noise {noise} times what one {mechanism.unit} can change"
        )
    if report["epsilon"] is not None:
        if mechanism.steps:
            curve = ", ".join(f"{bound(eps)} at step {steps}" for steps, eps in report["epsilon_at"].items())
            say(f"noise       {report['noise_multiplier']:.4g} times the clipping norm, on {mechanism.steps:,} steps")
            say(f"epsilon     {curve}")
        loose = report["epsilon_rdp"] > 1.25 * report["epsilon"]
        remark = ", which is loose for few steps or tiny batches" if loose else ""
        say(f"check       {bound(report['epsilon_rdp'])} by Rényi accounting, another upper bound{remark}")
    if not mechanism.steps:
        return say("time        seconds: no network is trained")
    say(
        f"batches     {mechanism.expected_batch_size:,} {unit}s a step on average, each in {_copies(config)}; "
        f"{'an' if unit == 'image' else 'a'} {unit} enters with probability {mechanism.sample_rate:.4g}"
    )
    say(f"network     {cost.parameters:,} parameters")
    say(f"time        about {duration(cost.seconds_per_step * mechanism.steps)} here, measured on random images")
    beside = "" if unit == "image" else ", and what the images take"
    say(f"memory      about {cost.memory_gib:.1f} GiB, for {cost.physical_batch_size:,} {unit}s at once{beside}")
    if minutes is not None:
        chosen = {
            "privacy.steps": mechanism.steps,
            "privacy.expected_batch_size": mechanism.expected_batch_size,
            "loss.noise_multiplicity": config.loss.noise_multiplicity,
        }
        these = " ".join(f"--set {key}={value}" for key, value in chosen.items())
        say(f"to train    just this, which --minutes measures anew: {these}")


def prepare(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make; train on it from then on.")],
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out records that cannot be used, and list them.")
    ] = False,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Decode and frame a source's images once, into a folder that training need not hold in memory."""
    from dpdm.data import Framing, ReadImages, open_dataset, prepare

    for text in set or []:
        if not text.startswith("data."):
            fail(f"--set {text} changes nothing about images: prepare takes data.… only")
    data = load_settings(target, None, None, set, None).data
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
        Path | None, typer.Option("--run", "-r", help="Folder of the run; the same line again goes on with it.")
    ] = None,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    ledger: LedgerPlace = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train a private generator; stop with Ctrl-C, and go on with the same line."""
    from dpdm.ledger import Ledger
    from dpdm.training import Trainer
    from dpdm.training.hardware import joined_processes

    config = load_settings(target, epsilon, dataset_size, set, minutes)
    folder = run or Path("runs") / re.sub(r"\.(toml|npz|zip)$", "", Path(target.replace(":", "-")).name)
    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file: choose another --run folder")
    finished = (folder / "release" / "privacy.json").exists()
    with joined_processes() as processes:
        if minutes is not None:
            config = _fit(config, folder, minutes, processes)
        data = config.data.open()
        trainer = Trainer.from_config(config, data, run=folder, ledger=lambda: Ledger.default(ledger, tell=tell))
        with _say_how_to_go_on(folder, processes):
            release = train_with_progress(trainer, data, processes)
    if not processes.first:
        return None
    if as_json:
        return print_json(release.privacy)
    say(f"{'done before, nothing was left to do' if finished else 'done'}: {release.statement}")
    if not trainer.mechanism.steps:
        say("no network was trained: images are drawn from the prior")
    say(f"publish {folder / 'release'}; keep {folder / 'private'} to yourself")
    say(f"next: dpdm sample {folder} -n {trainer.mechanism.dataset_size} -o synthetic.npz")


def _stopping() -> list[int]:
    """Return the signals that end a run after its step: a terminal's, a scheduler's, or those of one that is closed."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # of which some systems lack the last two
    there = [getattr(signal, name) for name in names if hasattr(signal, name)]
    nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in there if not (nohup and number == signal.SIGHUP)]


def _declared(config: "Config") -> tuple["ImageFacts", "Mechanism"]:
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


def _fit(config: "Config", folder: Path, minutes: float, processes: "Processes") -> "Config":
    """Return the settings that take so long; for a run that goes on, those with which it began."""
    from dpdm.config import read_toml
    from dpdm.training import fit_to_time

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
        begun = "begun with"
    else:
        config = fit_to_time(config, *_declared(config), minutes=minutes)
        begun = f"for {minutes:g} minute{'' if minutes == 1 else 's'} here"
    if processes.first:
        steps, batch = config.privacy.steps, config.privacy.expected_batch_size
        tell(f"{begun}: {steps:,} steps of {batch:,} {config.data.unit}s in {_copies(config)}")
    return config


def train_with_progress(trainer: "Trainer", data: "ImageDataset", processes: "Processes") -> "Release":
    """Drive the trainer; a signal to any process ends all after the step in flight, with a checkpoint."""
    from dpdm.training.trainer import as_begun

    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        hung_up = number == getattr(signal, "SIGHUP", None)  # which a shell and the system may both send
        if stopped and not hung_up:
            raise KeyboardInterrupt
        if not stopped:
            tell("finishing this step, then saving (once more to stop at once)")
        stopped.append(number)
        if hung_up:
            leave_the_terminal()

    trainer = as_begun(trainer, data)
    before = {number: signal.signal(number, stop) for number in _stopping()}
    steps = trainer.steps(data)
    mechanism, shown = trainer.mechanism, 0
    begun = False
    try:
        with show_progress("training", mechanism.steps if processes.first else None) as advance:
            while True:
                progress = next(steps)
                if processes.first and not begun:
                    begun = True
                    tell(mechanism.statement)
                    if progress.steps_spent > 1:
                        tell(f"going on from step {progress.steps_spent - 1:,} of {mechanism.steps:,}")
                    if lost := progress.steps_spent - progress.updates:
                        tell(f"{lost} steps were lost when an earlier process was killed: they stay spent")
                epsilon = float("inf") if progress.epsilon is None else progress.epsilon
                advance(progress.steps_spent - shown, f"ε ≤ {bound(finite(epsilon))}")
                shown = progress.steps_spent
                if processes.any(bool(stopped)):
                    steps.close()
                    if processes.first:
                        tell(f"stopped at step {shown} of {mechanism.steps}; the same command goes on from here")
                    raise typer.Exit(128 + (stopped or [signal.SIGTERM])[0])
    except StopIteration as end:
        release: Release = end.value
        return release
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _say_how_to_go_on(folder: Path, processes: "Processes") -> Iterator[None]:
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
        if (
            saved
            and '"spent"' in (private / "journal.jsonl").read_text()
            and not (private / "prior.safetensors").exists()
        ):
            state, next_step = "the prior was released and could not be saved", "mend this, and start a new run"
        print(f"dpdm: {error}: {state}; {next_step}", file=sys.stderr)
        raise typer.Exit(1) from None


def _copies(config: "Config") -> str:
    copies = config.loss.noise_multiplicity
    return "one noisy copy" if copies == 1 else f"{copies} noisy copies"
