"""`dpdm sample | export | evaluate`."""

import os
import typing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.common import AsJson, Run, Set, fail, print_json, say
from dpdm.terminal import show_progress

if TYPE_CHECKING:
    from dpdm.data import Channels, Fit, ImageDataset
    from dpdm.evaluation import UtilityProtocol, UtilityScore
    from dpdm.privacy.processes import Processes
    from dpdm.types import Images


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
        fail(f"{output}: give a name ending in .npz, or a folder without a dot in its name")
    if as_npz and output.exists():
        fail(f"{output} exists: choose another name, or remove it")
    if not as_npz and output.exists() and (not output.is_dir() or any(output.iterdir())):
        fail(f"{output} is not empty: choose another folder")
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
        return print_json({"output": str(output), "count": count, "statement": release.statement})
    say(f"{count:,} images in {output}, which carry the run's claim: {release.statement}")


def export(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Write a finished run as a pipeline of Hugging Face's diffusers, with its claim."""
    try:
        from dpdm.training.pipeline import export_pipeline
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dpdm":
            raise
        fail(f"export needs {error.name}: pip install 'dpdm[diffusers]'")
    export_pipeline(run, output)
    if as_json:
        return print_json({"output": str(output)})
    say(f"{output} holds the pipeline; its README.md says how to load it")


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
    from dpdm.evaluation import QUICK, UtilityProtocol, features_by_name
    from dpdm.training.hardware import joined_processes

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
    with joined_processes() as processes:
        for name, source in (("synthetic", synthetic), ("baseline", baseline)):
            if source is None:
                continue
            data = made if name == "synthetic" else real(source)
            if data.labels is None or test.labels is None:
                fail(f"{source if data.labels is None else reference} has no labels: both sides need them")
            scores = _utility(data, test, f"classifiers on {source}", protocol, seed, processes)
            target = report if name == "synthetic" else report.setdefault("baseline", {"source": source})
            target |= {key: asdict(score) for key, score in scores.items()}
        if features is not None:
            others = None if baseline is None else data.images
            report["frechet"] = _frechet(features, made.images, test.images, others, processes)
    report["covered_by_epsilon"] = False
    if not processes.first:
        return None
    if as_json:
        return print_json(report)
    for key in ("logreg", "mlp", "cnn"):
        beside = f"   (trained on {baseline}: {100 * report['baseline'][key]['accuracy']:.1f} %)" if baseline else ""
        score = report[key]
        say(f"{key:7} {100 * score['accuracy']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]{beside}")
    if features is not None:
        distance = report["frechet"]
        beside = f"   ({baseline}: {distance['baseline']:.2f})" if baseline else ""
        say(f"Fréchet {distance['distance']:.2f} on {distance['count']:,} images, {distance['features']}{beside}")
    seen = f"{reference} and {baseline}" if baseline else reference
    say(f"These scores were computed from {seen}. If those images are private, so are they: ε does not cover them.")


def _utility(
    data: "ImageDataset",
    test: "ImageDataset",
    what: str,
    protocol: "UtilityProtocol",
    seed: int,
    processes: "Processes",
) -> dict[str, "UtilityScore"]:
    """Return, on the first process, the score of each classifier; each process teaches some of them."""
    from dpdm.evaluation import evaluate_utility
    from dpdm.evaluation.classifiers import CLASSIFIERS

    assert data.labels is not None
    assert test.labels is not None
    names = list(CLASSIFIERS)[::-1]  # the slowest one first
    mine = [names[index] for index in processes.shard(len(names))]
    scores = {}
    with show_progress(what, None) as advance:
        if mine:
            scores = evaluate_utility(
                data.images,
                data.labels,
                test.images,
                test.labels,
                num_classes=test.num_classes,
                protocol=protocol,
                classifiers={name: CLASSIFIERS[name] for name in mine},
                seed=seed,
                on_progress=lambda done, total: advance(1, "", total if processes.first else None),
            )
    everyones = dict(processes.in_turn(list(scores.items())))
    return {name: everyones[name] for name in CLASSIFIERS if name in everyones}


def _frechet(
    name: str, made: "Images", test: "Images", baseline: "Images | None", processes: "Processes"
) -> dict[str, Any]:
    """Return the Fréchet distance of synthetic from real images, and of other real ones, from as many of each."""
    import numpy as np
    import torch

    from dpdm.evaluation import features_by_name, frechet_distance, image_features

    features = features_by_name(name)
    sets = {"distance": made, "baseline": baseline, "reference": test}
    count = min(len(images) for images in sets.values() if images is not None)
    seen = {}
    for key, images in sets.items():
        if images is not None:
            chosen = np.random.default_rng(0).permutation(len(images))[:count]  # folders come class by class
            mine = images[chosen[processes.rank :: processes.size]]
            with show_progress(f"features of {count:,} images", len(mine) if processes.first else None) as advance:
                seen[key] = image_features(mine, features, on_progress=lambda done: advance(done, ""))
            seen[key] = torch.cat(processes.in_turn([seen[key]]) or [seen[key]])
    if not processes.first:
        return {}
    real = seen.pop("reference")
    scores = {key: frechet_distance(values, real) for key, values in seen.items()}
    return {"features": features.name, "count": count, **scores}
