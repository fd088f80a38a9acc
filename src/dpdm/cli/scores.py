"""`dpdm evaluate | compare`: how good images are, by classifiers and by distances of features."""

import typing
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import AsJson, fail, print_json, say
from dpdm.terminal import show_progress, show_stages

if TYPE_CHECKING:
    from dpdm.data import Channels, Fit, ImageDataset
    from dpdm.evaluation import Features, UtilityProtocol, UtilityScore
    from dpdm.privacy.processes import Processes
    from dpdm.training import ImageFacts, Release

Reference = Annotated[str, typer.Option(help="Real images to test on, such as fashion-mnist:test.")]
FitTo = Annotated[str, typer.Option("--fit", help="How real images get to their size: crop, pad or resize.")]
Classes = Annotated[int | None, typer.Option("--num-classes", help="How many classes, where the files do not say.")]
Named = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="Fidelity too, on features of: efficientnet-lite0, pixels, a classifier of the baseline's images "
        "(classifier), or a TorchScript file.",
    ),
]
Group = Annotated[str | None, typer.Option(help="What names groups of real images: data.group, if they need it.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer epochs; not for comparison with papers.")]
Seed = Annotated[int, typer.Option(help="Of the classifiers' weights and order.")]

_OF_A_RUN = ("private/journal.jsonl", "release/privacy.json", "privacy.json")
_CLASSIFIERS = {"logreg": "LogReg", "mlp": "MLP", "cnn": "CNN"}
_DISTANCES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def evaluate(
    synthetic: Annotated[str, typer.Argument(help="The synthetic images: .npz or class folders.")],
    reference: Reference,
    baseline: Annotated[str | None, typer.Option(help="Real images to train the same classifiers on, beside.")] = None,
    dp_sgd: Annotated[
        float | None, typer.Option("--dp-sgd", help="And a CNN on the baseline's images by DP-SGD, at this ε.")
    ] = None,
    fit: FitTo = "crop",
    num_classes: Classes = None,
    group: Group = None,
    features: Named = None,
    quick: Quick = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train classifiers on synthetic images and test them on real ones."""
    from dpdm.data import open_dataset
    from dpdm.training.hardware import joined_processes
    from dpdm.types import require_positive

    if _is_run(synthetic):
        fail(f"{synthetic} is a run: make images first, dpdm sample {synthetic} -n 60000 -o synthetic.npz")
    if dp_sgd is not None and group is not None:
        fail("--dp-sgd claims something of single images, and --group names groups of them: leave out one of the two")
    if dp_sgd is not None:
        require_positive(dp_sgd=dp_sgd)
        if baseline is None:
            fail("--dp-sgd trains on real images: name them with --baseline")
    made = open_dataset(synthetic, num_classes=num_classes)
    test = _like(made, synthetic, reference, fit, group)
    beside = None if baseline is None else _like(made, synthetic, baseline, fit, group)
    at_most = None if beside is None else len(beside)
    chosen = _features(features, beside, [test], len(made) if at_most is None else min(len(made), at_most))
    for data in [made] if beside is None else [made, beside]:
        _require_fit(data, test, seed)
    # Names, not paths: a report shows them.
    report: dict[str, Any] = {"reference": test.name, "quick": quick}
    with joined_processes() as processes:
        judge = _judge(chosen, quick, seed, processes, at_most)
        report |= judge(made, test, synthetic)
        if beside is not None:
            report["baseline"] = {"source": beside.name, **judge(beside, test, str(baseline))}
    if not processes.first:
        return None
    if dp_sgd is not None and beside is not None:
        report["dp_sgd"], statement = _by_dp_sgd(beside, test, dp_sgd)
    report["covered_by_epsilon"] = False
    if as_json:
        return print_json(report)
    for key in _CLASSIFIERS:
        remark = f"   (trained on {baseline}: {100 * report['baseline'][key]['accuracy']:.1f} %)" if baseline else ""
        score = report[key]
        say(f"{key:7} {100 * score['accuracy']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]{remark}")
    if dp_sgd is not None:
        found = report["dp_sgd"]
        say(f"dp-sgd  {100 * found['accuracy']:.1f} %: a CNN on {baseline} itself, {statement}")
    if features is not None:
        found = report["fidelity"]
        say(f"on {found['num_images']:,} images of each, {found['features']}:")
        for key in [key for key in (*_DISTANCES, "inception") if key in found]:
            remark = f"   ({baseline}: {report['baseline']['fidelity'][key]['value']:.4g})" if baseline else ""
            say(f"{key:9} {_interval(found[key])}{remark}")
    seen = f"{reference} and {baseline}" if baseline else reference
    say(f"These scores were computed from {seen}. If those images are private, so are they: ε does not cover them.")


def compare(
    sources: Annotated[list[str], typer.Argument(help="Finished runs, or any images: .npz, folders.")],
    reference: Reference,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images a run draws.")] = 10_000,
    fit: FitTo = "crop",
    num_classes: Classes = None,
    group: Group = None,
    features: Named = None,
    quick: Quick = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge several runs, or anyone's images, by the same scores side by side."""
    from dpdm.training import Release
    from dpdm.training.hardware import joined_processes
    from dpdm.types import require_positive

    require_positive(count=count)
    opened = [_open(source, num_classes) for source in sources]
    tests = [
        _like(it.facts if isinstance(it, Release) else it, source, reference, fit, group)
        for source, it in zip(sources, opened, strict=True)
    ]
    fewest = min(count if isinstance(it, Release) else len(it) for it in opened)
    chosen = _features(features, None, tests, fewest)
    rows = []
    with joined_processes() as processes:
        drawn = [
            _draw(it, source, count, seed, processes) if isinstance(it, Release) else it
            for source, it in zip(sources, opened, strict=True)
        ]
        for made, test in zip(drawn, tests, strict=True):
            _require_fit(made, test, seed)
        judge = _judge(chosen, quick, seed, processes, fewest)
        for source, it, made, test in zip(sources, opened, drawn, tests, strict=True):
            claim = it.statement if isinstance(it, Release) else None
            rows.append({"source": source, "claim": claim, "images": len(made), **judge(made, test, source)})
    if not processes.first:
        return None
    if as_json:
        return print_json({"reference": reference, "quick": quick, "rows": rows, "covered_by_epsilon": False})
    distances = _DISTANCES if features is not None else ()
    table = [["", *_CLASSIFIERS.values(), *distances, "images", "claim"]]
    for row in rows:
        scores = [f"{100 * row[key]['accuracy']:.1f}" for key in _CLASSIFIERS]
        near = [f"{row['fidelity'][key]['value']:.4g}" for key in distances]
        table.append([row["source"], *scores, *near, f"{row['images']:,}", row["claim"] or "none stated"])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if features is not None:
        found = rows[0]["fidelity"]
        say(f"Distances on {found['num_images']:,} images of each, {found['features']}; accuracies in %.")
    say(f"These scores were computed from {reference}: if that is private, so are they.")


def _open(source: str, num_classes: int | None) -> "Release | ImageDataset":
    """Return a run's release, which must bear out its claim, or images."""
    from dpdm.data import open_dataset
    from dpdm.training import Release, verify_release

    if not _is_run(source):
        return open_dataset(source, num_classes=num_classes)
    verify_release(source)  # raises, too, if it claims nothing
    return Release.load(source)


def _draw(release: "Release", source: str, count: int, seed: int, processes: "Processes") -> "ImageDataset":
    """Return images of a run; all processes share the work."""
    import numpy as np

    from dpdm.data import ImageDataset

    parts = []
    with show_progress(f"sampling {source}", count if processes.first else None) as advance:
        for part in release.sample_in_parts(count, seed=seed, processes=processes):
            parts.append(part)
            advance(len(part[0]) * processes.size, "")
    parts = processes.object_from_first(processes.in_turn(parts))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    names = release.facts.class_names
    return ImageDataset(images=images, labels=labels, num_classes=len(names), class_names=names, name=source)


def _is_run(source: str) -> bool:
    return any((Path(source) / place).is_file() for place in _OF_A_RUN)


def _like(made: "ImageDataset | ImageFacts", name: str, source: str, fit: str, group: str | None) -> "ImageDataset":
    """Open real images at the synthetic ones' size, with their declared classes: both need labels."""
    from dpdm.data import open_dataset

    channels, height, width = made.shape
    real = open_dataset(
        source,
        size=height if height == width else None,
        fit=typing.cast("Fit", fit),
        channels=typing.cast("Channels", channels),
        num_classes=made.num_classes or None,
        group=group,
    )
    for side, called in ((made, name), (real, source)):
        if not side.num_classes:
            fail(f"{called} has no labels: classifiers need them on both sides")
    return real


def _require_fit(data: "ImageDataset", test: "ImageDataset", seed: int) -> None:
    """Raise InputError unless classifiers of these images can be tested on those: before any is trained."""
    from dpdm.evaluation import refuse_same_images, require_testable

    assert data.labels is not None
    assert test.labels is not None
    refuse_same_images(data.images, test.images)
    require_testable(data.images, data.labels, test.images, test.labels, num_classes=test.num_classes, seed=seed)


Judge = Callable[["ImageDataset", "ImageDataset", str], dict[str, Any]]


def _features(
    named: str | None, beside: "ImageDataset | None", tests: "list[ImageDataset]", fewest: int
) -> "Features | None":
    """Return the features of that name, once it is sure that they work here: before the classifiers' hours.

    `fewest` is the number of synthetic images, of the smallest source.
    """
    from dpdm.evaluation import ClassifierFeatures, features_by_name, image_features, require_comparable

    if named is None:
        return None
    for test in tests:
        require_comparable(fewest, len(test))
    if named != "classifier":
        features = features_by_name(named)
        for test in tests:
            image_features(test.images[:1], features)
        return features
    if beside is None or beside.labels is None:
        fail("the features of a classifier need real images to train it on: name them with --baseline")
    return ClassifierFeatures(images=beside.images, labels=beside.labels, num_classes=beside.num_classes)


def _judge(features: "Features | None", quick: bool, seed: int, processes: "Processes", at_most: int | None) -> Judge:
    """Return what scores images against others, on the first process; all share the work.

    `at_most` is a number of images that all sides have, so that distances are comparable.
    """
    from dpdm.evaluation import (
        QUICK,
        ClassifierFeatures,
        UtilityProtocol,
        compare_features,
        draw_equally,
        image_features,
        inception_score,
    )

    protocol = QUICK if quick else UtilityProtocol()

    def judge(data: "ImageDataset", test: "ImageDataset", name: str) -> dict[str, Any]:
        scores = _utility(data, test, f"classifiers on {name}", protocol, seed, processes)
        report: dict[str, Any] = {key: asdict(score) for key, score in scores.items()}
        if features is not None:
            import numpy as np
            import torch

            chosen = draw_equally(len(data), len(test), limit=min(10_000, at_most or 10_000), seed=seed)
            seen = []
            for images, indices in zip((data.images, test.images), chosen, strict=True):
                mine = images[indices[processes.rank :: processes.size]]
                what, total = f"features of {len(indices):,} images", len(mine) if processes.first else None
                with show_progress(what, total) as advance:
                    part = image_features(mine, features, on_progress=lambda done: advance(done, ""))
                seen.append(torch.cat(processes.in_turn([part]) or [part]))
            if processes.first:
                # The processes' parts come one after the other, and so must the labels.
                order = np.concatenate([np.arange(len(chosen[0]))[r :: processes.size] for r in range(processes.size)])
                assert data.labels is not None
                assert test.labels is not None
                with show_stages() as advance_to:
                    found = compare_features(
                        *seen,
                        features=features,
                        labels=data.labels[chosen[0][order]],
                        reference_labels=test.labels[chosen[1][order]],
                        num_classes=test.num_classes,
                        resamples=0 if quick else 5,
                        seed=seed,
                        on_progress=advance_to,
                    )
                report["fidelity"] = asdict(found)
                if isinstance(features, ClassifierFeatures):
                    probabilities = features.probabilities(data.images[chosen[0]])
                    report["fidelity"]["inception"] = {"value": inception_score(probabilities), "low": None}
        return report

    return judge


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


def _by_dp_sgd(train: "ImageDataset", test: "ImageDataset", epsilon: float) -> tuple[dict[str, float], str]:
    """Return how well a CNN does that DP-SGD trained on the real images themselves, and its claim."""
    from dpdm.training import train_private_classifier

    with show_progress(f"DP-SGD on {train.name}", None) as advance:
        trained = train_private_classifier(train, epsilon=epsilon, on_step=lambda total: advance(1, "", total))
    return {"epsilon": epsilon, "accuracy": trained.accuracy(test)}, trained.statement


def _interval(score: dict[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"
