"""The command line: `dpdm plan | train | sample | evaluate | verify | audit`.

A person's mistake ends in one plain line and exit code 2; Ctrl-C in 130, SIGTERM in 143, what is nobody's mistake
(a full disk) in 1. The heavy imports wait until a verb runs, so that help is instant.
"""

import json
import os
import re
import signal
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dpdm.terminal import duration, show_progress, show_stages, tell

if TYPE_CHECKING:
    from dpdm.audit import Audit
    from dpdm.audit.membership import Rate
    from dpdm.config import Config
    from dpdm.data import Channels, Fit, ImageDataset
    from dpdm.privacy import Mechanism
    from dpdm.privacy.processes import Processes
    from dpdm.training import ImageFacts, Release, Trainer
    from dpdm.types import Images

app = typer.Typer(
    help="Turn a private image data set into a generator whose images anyone may see, at a stated (ε, δ).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Argument(help="A preset's name, a TOML file, or a path to images.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Epsilon = Annotated[float | None, typer.Option(help="ε of the claim: privacy.epsilon, 10 where nothing else says so.")]
Size = Annotated[int | None, typer.Option(help="Declared public size of the data set: privacy.dataset_size.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value for any setting, such as training.seed=1.")]
Minutes = Annotated[
    float | None, typer.Option(help="Choose noise multiplicity, steps and batch to take so long on this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def plan(
    target: Target,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would claim and take, before any training."""
    from dpdm.training import fit_to_time, measure_step

    config = _config(target, epsilon, dataset_size, set, minutes)
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
        "epsilon": _finite(mechanism.epsilon()),
        "epsilon_rdp": _finite(mechanism.epsilon(accountant="rdp")),
        "epsilon_at": {str(steps): _finite(mechanism.epsilon(steps=steps)) for steps in quarters},
        "parameters": cost.parameters,
        "seconds_per_step": round(cost.seconds_per_step, 3),
        "minutes": round(cost.seconds_per_step * mechanism.steps / 60, 1),
        "physical_batch_size": cost.physical_batch_size,
        "memory_gib": round(cost.memory_gib, 2),
    }
    if as_json:
        return _print_json(report)
    _print(f"claim       {report['statement']}")
    if mechanism.earlier and report["epsilon"] is not None:
        noise = ", ".join(f"{multiplier:.3g}" for multiplier in report["earlier_noise_multipliers"])
        _print(f"prior       {len(mechanism.earlier)} sums first; noise {noise} times what one image can change")
    if report["epsilon"] is not None:
        if mechanism.steps:
            curve = ", ".join(f"{_bound(eps)} at step {steps}" for steps, eps in report["epsilon_at"].items())
            _print(
                f"noise       {report['noise_multiplier']:.4g} times the clipping norm, on {mechanism.steps:,} steps"
            )
            _print(f"epsilon     {curve}")
        loose = report["epsilon_rdp"] > 1.25 * report["epsilon"]
        remark = ", which is loose for few steps or tiny batches" if loose else ""
        _print(f"check       {_bound(report['epsilon_rdp'])} by Rényi accounting, another upper bound{remark}")
    if not mechanism.steps:
        return _print("time        seconds: no network is trained")
    _print(
        f"batches     {mechanism.expected_batch_size:,} images a step on average, each in "
        f"{_copies(config)}; an image enters with probability {mechanism.sample_rate:.4g}"
    )
    _print(f"network     {cost.parameters:,} parameters")
    _print(f"time        about {duration(cost.seconds_per_step * mechanism.steps)} here, measured on random images")
    _print(f"memory      about {cost.memory_gib:.1f} GiB, for {cost.physical_batch_size:,} images at once")


@app.command()
def train(
    target: Target,
    run: Annotated[
        Path | None, typer.Option("--run", "-r", help="Folder of the run; the same line again goes on with it.")
    ] = None,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    minutes: Minutes = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train a private generator; stop with Ctrl-C, and go on with the same line."""
    from dpdm.training import Trainer
    from dpdm.training.hardware import joined_processes

    config = _config(target, epsilon, dataset_size, set, minutes)
    folder = run or Path("runs") / re.sub(r"\.(toml|npz|zip)$", "", Path(target.replace(":", "-")).name)
    if folder.exists() and not folder.is_dir():
        _fail(f"{folder} is a file: choose another --run folder")
    with joined_processes() as processes:
        if minutes is not None:
            config = processes.object_from_first(_fit(config, folder, minutes))
        data = config.data.open()
        trainer = Trainer.from_config(config, data, run=folder)
        with _say_how_to_go_on(folder, processes):
            release = _train_with_progress(trainer, data, processes)
    if not processes.first:
        return None
    if as_json:
        return _print_json(release.privacy)
    _print(f"done: {release.statement}")
    if not trainer.mechanism.steps:
        _print("no network was trained: images are drawn from the prior")
    _print(f"publish {folder / 'release'}; keep {folder / 'private'} to yourself")
    _print(f"next: dpdm sample {folder} -n 60000 -o synthetic.npz")


@app.command()
def sample(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz file, or a folder for PNG files.")],
    seed: Annotated[int | None, typer.Option(help="Makes the images repeatable.")] = None,
    sampler: Annotated[str | None, typer.Option(help="One of the run's named samplers, such as accuracy.")] = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Make images from a finished run: as many as you like, at no further cost in privacy."""
    import numpy as np

    from dpdm.config import choose_sampler
    from dpdm.data import save_folder, save_npz
    from dpdm.training import Release
    from dpdm.training.hardware import joined_processes
    from dpdm.types import require_positive

    require_positive(count=count)
    release = Release.load(run)
    chosen = choose_sampler(release.settings, name=sampler, overrides=set or [])
    as_npz = output.suffix == ".npz"
    if output.suffix and not as_npz:
        _fail(f"{output}: give a name ending in .npz, or a folder without a dot in its name")
    if as_npz and output.exists():
        _fail(f"{output} exists: choose another name, or remove it")
    if not as_npz and output.exists() and (not output.is_dir() or any(output.iterdir())):
        _fail(f"{output} is not empty: choose another folder")
    parts = []
    with joined_processes() as processes:
        seed = processes.object_from_first(int.from_bytes(os.urandom(7), "little") if seed is None else seed)
        with show_progress("sampling", count if processes.first else None) as advance:
            for images, labels in release.sample_in_parts(count, sampler=chosen, seed=seed, processes=processes):
                parts.append((images, labels))
                advance(len(images) * processes.size, "")
        parts = processes.in_turn(parts)
    if not processes.first:
        return None
    images = np.concatenate([part for part, _ in parts])
    classes = np.concatenate([part for _, part in parts])
    known = classes if release.facts.num_classes else None
    if as_npz:
        save_npz(output, images, known, num_classes=release.facts.num_classes)
    else:
        save_folder(output, images, known, class_names=release.facts.class_names)
    if as_json:
        return _print_json({"output": str(output), "count": count, "statement": release.statement})
    _print(f"{count:,} images in {output}, which carry the run's claim: {release.statement}")


@app.command()
def evaluate(
    synthetic: Annotated[str, typer.Argument(help="The synthetic images: .npz or class folders.")],
    reference: Annotated[str, typer.Option(help="Real images to test on, such as fashion-mnist:test.")],
    baseline: Annotated[str | None, typer.Option(help="Real images to train the same classifiers on, beside.")] = None,
    fit: Annotated[str, typer.Option(help="How real images get to their size: crop, pad or resize.")] = "crop",
    num_classes: Annotated[int | None, typer.Option(help="How many classes, where the files do not say.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Fréchet distance too, on efficientnet-lite0's features or a TorchScript file's.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs; not for comparison.")] = False,
    seed: Annotated[int, typer.Option(help="Of the classifiers' weights and order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train classifiers on synthetic images and test them on real ones."""
    from dpdm.data import open_dataset
    from dpdm.evaluation import QUICK, UtilityProtocol, evaluate_utility, features_by_name

    made = open_dataset(synthetic, num_classes=num_classes)
    channels, height, width = made.shape

    def real(source: str) -> "ImageDataset":
        """Open real images at the synthetic ones' size, with their declared classes."""
        return open_dataset(
            source,
            size=height if height == width else None,
            fit=typing.cast("Fit", fit),
            channels=typing.cast("Channels", channels),
            num_classes=made.num_classes or None,
        )

    test = real(reference)
    if features is not None:
        features_by_name(features).build()  # a wrong name shows before the classifiers' hours
    protocol = QUICK if quick else UtilityProtocol()
    report: dict[str, Any] = {"reference": reference, "quick": quick}
    for name, source in (("synthetic", synthetic), ("baseline", baseline)):
        if source is None:
            continue
        data = made if name == "synthetic" else real(source)
        if data.labels is None or test.labels is None:
            _fail(f"{source if data.labels is None else reference} has no labels: classifiers need them on both sides")
        with show_progress(f"classifiers on {source}", None) as advance:
            scores = evaluate_utility(
                data.images,
                data.labels,
                test.images,
                test.labels,
                num_classes=test.num_classes,
                protocol=protocol,
                seed=seed,
                on_progress=lambda done, total: advance(1, "", total),
            )
        target = report if name == "synthetic" else report.setdefault("baseline", {"source": source})
        target |= {key: asdict(score) for key, score in scores.items()}
    if features is not None:
        report["frechet"] = _frechet(features, made.images, test.images, None if baseline is None else data.images)
    report["covered_by_epsilon"] = False
    if as_json:
        return _print_json(report)
    for key in ("logreg", "mlp", "cnn"):
        beside = f"   (trained on {baseline}: {100 * report['baseline'][key]['accuracy']:.1f} %)" if baseline else ""
        score = report[key]
        _print(f"{key:7} {100 * score['accuracy']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]{beside}")
    if features is not None:
        distance = report["frechet"]
        beside = f"   ({baseline}: {distance['baseline']:.2f})" if baseline else ""
        _print(f"Fréchet {distance['distance']:.2f} on {distance['count']:,} images, {distance['features']}{beside}")
    seen = f"{reference} and {baseline}" if baseline else reference
    _print(f"These scores were computed from {seen}. If those images are private, so are they: ε does not cover them.")


@app.command()
def verify(run: Run, as_json: AsJson = False) -> None:
    """Check that a release's files agree with its claim, and say the claim in plain words."""
    from dpdm.training import verify_release

    found = verify_release(run)
    if as_json:
        return _print_json(asdict(found) | {"protects": found.protects, "bounds": found.bounds})
    _print(f"claim    {found.statement}")
    _print(f"unit     {found.protects}")
    _print(f"bound    {found.bounds}")
    _print(f"checked  from the events: {_bound(found.epsilon)} by PLD, {_bound(found.epsilon_rdp)} by Rényi accounting")
    _print("         digests of settings, weights and picture; the weights fit the settings; no other file is there")
    _print("The files agree. That training ran as they say, files cannot show: `dpdm audit` attacks it.")


@app.command()
def audit(
    run: Run,
    held_out: Annotated[
        str | None, typer.Option(help="Real images the run was not trained on, such as digits:test.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="For the second training run; fewer steps if too short.")] = 8.0,
    as_json: AsJson = False,
) -> None:
    """Attack a run's claim: its mechanism, its noisy sums, its generator and its images."""
    from dpdm.audit import STAMP, audit_run

    with show_stages() as on_progress:
        found = audit_run(run, held_out=held_out, minutes=minutes, on_progress=on_progress)
    if as_json:
        _print_json(found.to_json())
    else:
        _print_audit(found)
        if not found.findings:
            _print(f"Nothing that was found contradicts the claim of ε ≤ {_bound(found.audited_epsilon)}.")
        _print(f"{STAMP}: {run / 'private' / 'audit'}")
    for finding in found.findings:
        tell(f"dpdm: CONTRADICTED: {finding}")
    if found.findings:
        raise typer.Exit(1)


def _print_audit(found: "Audit") -> None:
    import numpy as np

    _print(f"claim        {found.claim}")
    for check in found.checks:
        _print(
            f"{'ok' if check.passed else 'FAILED':12} {check.name}: {check.value:.6g}, "
            f"expected {check.expected:g} [{check.low:.6g}, {check.high:.6g}]"
        )
    fewer = f", {found.plan.steps:,} steps" if found.plan.steps else ""
    _print(f"audited      ε ≤ {_bound(found.audited_epsilon)}{fewer}; what the attacks proved (95 %):")
    bounds = found.white_box
    _print(
        f"white box    {found.canaries:,} canaries in every noisy sum: ε ≥ {bounds.one_run:.3f} of one run, "
        f"{bounds.clopper_pearson:.3f} by Clopper-Pearson"
    )
    _print(
        f"             estimates, if the trade-off is Gaussian: {bounds.one_run_gaussian:.3f} of one run (f-DP), "
        f"{bounds.gaussian:.3f} by Clopper-Pearson"
    )
    allowed = dict(zip(*found.ceiling, strict=True))
    others = found.members // 2  # about as many took no part
    for name, attacked in found.black_box.items():
        one, tenth = attacked.rates
        _print(
            f"black box    {name}: AUC {attacked.auc:.3f}; ε ≥ {attacked.bounds.one_run:.3f}; true positives "
            f"{_rate(one, others)} at 1 %, {_rate(tenth, others)} at 0.1 %"
        )
    _print(f"             {found.members:,} members; the plan allows {100 * allowed[min(allowed)]:.1f} % at 0.1 %")
    near = found.nearness

    def distances(values: Any) -> str:  # noqa: ANN401
        return f"at {values.min():.3f}, in the median {np.median(values):.3f}"

    _print(f"copies       nearest training image of generated ones: {distances(near.nearest)}")
    if near.nearer_to_training is not None and near.of_held_out is not None:
        part, low, high, _ = near.nearer_to_training
        _print(f"             of held-out ones: {distances(near.of_held_out)}")
        _print(
            f"             {100 * part:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of generated ones are nearer to "
            "training than to held-out images"
        )


def _rate(rate: "Rate", others: int) -> str:
    if others * rate.false_positive_rate < 1:
        return "(too few images to tell)"
    return f"{100 * rate.true_positive_rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _frechet(name: str, made: "Images", test: "Images", baseline: "Images | None") -> dict[str, Any]:
    """Return the Fréchet distance of synthetic from real images, and of other real ones, from as many of each."""
    import numpy as np

    from dpdm.evaluation import features_by_name, frechet_distance, image_features

    features = features_by_name(name)
    sets = {"distance": made, "baseline": baseline, "reference": test}
    count = min(len(images) for images in sets.values() if images is not None)
    seen = {}
    for key, images in sets.items():
        if images is not None:
            chosen = images[np.random.default_rng(0).permutation(len(images))[:count]]  # folders come class by class
            with show_progress(f"features of {count:,} images", count) as advance:
                seen[key] = image_features(chosen, features, on_progress=lambda done: advance(done, ""))
    real = seen.pop("reference")
    scores = {key: frechet_distance(values, real) for key, values in seen.items()}
    return {"features": features.name, "count": count, **scores}


def main() -> None:
    """Run the command line; the one place where errors become exit codes."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError as error:
        print(f"dpdm: not enough memory ({error}): ask for fewer or smaller images", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        from dpdm.types import InputError

        if isinstance(error, ValueError) and not isinstance(error, InputError):
            raise  # a fault of the program's, which wants its traceback
        print("dpdm:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _config(
    target: str, epsilon: float | None, dataset_size: int | None, overrides: list[str] | None, minutes: float | None
) -> "Config":
    from dpdm.config import load_config
    from dpdm.types import require_positive

    if minutes is not None:
        require_positive(minutes=minutes)
        if any(text.startswith("loss.noise_multiplicity=") for text in overrides or []):
            _fail("--minutes chooses loss.noise_multiplicity: leave out one of the two")
    given = {"privacy.epsilon": epsilon, "privacy.dataset_size": dataset_size}
    return load_config(target, overrides=[*(overrides or []), *(f"{k}={v}" for k, v in given.items() if v is not None)])


def _declared(config: "Config") -> tuple["ImageFacts", "Mechanism"]:
    """Return shape and classes, and the plan; the data is opened only if the settings do not declare all of it."""
    from dpdm.training import ImageFacts

    data, privacy = config.data, config.privacy
    size, channels, num_classes = data.size, data.channels, data.num_classes
    if size is not None and channels is not None and num_classes is not None and privacy.dataset_size is not None:
        names = tuple(str(label) for label in range(num_classes))
        return ImageFacts((channels, size, size), names), config.plan(lambda: 0)
    tell(f"opening {data.source}: size, channels, num_classes and dataset_size are not all declared")
    opened = data.open()
    return ImageFacts(opened.shape, opened.class_names), config.plan(lambda: len(opened))


def _fit(config: "Config", folder: Path, minutes: float) -> "Config":
    """Return the settings that take so long; for a run that goes on, those with which it began."""
    from dpdm.config import read_toml
    from dpdm.training import fit_to_time

    if (folder / "private" / "config.toml").exists():
        there = read_toml(folder / "private" / "config.toml")
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
        begun = f"for {minutes:g} minutes here"
    tell(
        f"{begun}: {config.privacy.steps:,} steps of {config.privacy.expected_batch_size:,} images in {_copies(config)}"
    )
    return config


def _train_with_progress(trainer: "Trainer", data: "ImageDataset", processes: "Processes") -> "Release":
    """Drive the trainer; a signal to any process ends all after the step in flight, with a checkpoint."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        tell("finishing this step, then saving (once more to stop at once)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    steps = trainer.steps(data)
    mechanism, shown = trainer.mechanism, 0
    spent = ""
    try:
        with show_progress("training", mechanism.steps if processes.first else None) as advance:
            while True:
                progress = next(steps)
                twentieth = progress.steps_spent * 20 // mechanism.steps
                if processes.first and not spent:
                    tell(mechanism.statement)
                    if progress.steps_spent > 1:
                        tell(f"going on from step {progress.steps_spent - 1:,} of {mechanism.steps:,}")
                    if lost := progress.steps_spent - progress.updates:
                        tell(f"{lost} steps were lost when an earlier process was killed: they stay spent")
                if processes.first and (not spent or twentieth > shown * 20 // mechanism.steps):
                    ahead = min(mechanism.steps, (twentieth + 1) * mechanism.steps // 20)
                    spent = f"ε ≤ {_bound(_finite(mechanism.epsilon(steps=ahead)))}"
                advance(progress.steps_spent - shown, spent)
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
        saved = (private / "checkpoint.safetensors").exists()
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


def _bound(epsilon: float | None) -> str:
    """Say an upper bound, rounded up."""
    from dpdm.privacy.accounting import round_up

    return "∞" if epsilon is None else f"{round_up(epsilon):g}"


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _fail(message: str) -> NoReturn:
    from dpdm.types import InputError

    raise InputError(message)


def _print(text: str) -> None:
    print(text, flush=True)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False), flush=True)
