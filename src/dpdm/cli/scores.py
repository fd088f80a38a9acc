"""`dpdm evaluate | compare`: how good images are, by classifiers and by distances of features."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.judging import Real, by_dp_sgd, draw, features_of, is_run, judging, made_up, named_alike, require_fit
from dpdm.cli.options import AsJson, fail, print_json, require_found, require_run, say
from dpdm.terminal import tell

if TYPE_CHECKING:
    from dpdm.data import ImageDataset
    from dpdm.runs import Release

Reference = Annotated[str, typer.Option(help="Real images to test on, such as fashion-mnist:test.")]
FitTo = Annotated[
    str,
    typer.Option("--fit", help="How real images get to the size of the others: crop, pad or resize."),
]
Classes = Annotated[int | None, typer.Option("--num-classes", help="Number of classes, if no file declares it.")]
Named = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="Compute distances as well, on these features: efficientnet-lite0, pixels, classifier (trained on the "
        "baseline), or a TorchScript file.",
    ),
]
Group = Annotated[str | None, typer.Option(help="What names the groups of real images, as data.group does.")]
Quick = Annotated[bool, typer.Option("--quick", help="Train for fewer epochs. Not comparable with papers.")]
Seed = Annotated[int, typer.Option(help="Seed of the classifiers' weights and batches.")]

_CLASSIFIERS = {"logreg": "LogReg", "mlp": "MLP", "cnn": "CNN"}
_MOST_SHOWN = 20  # classes
_DISTANCES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def evaluate(
    synthetic: Annotated[str, typer.Argument(help="The synthetic images: an .npz file or class folders.")],
    reference: Reference,
    baseline: Annotated[
        str | None, typer.Option(help="Real images to train the same classifiers on, for comparison.")
    ] = None,
    dp_sgd: Annotated[
        float | None, typer.Option("--dp-sgd", help="Train a CNN on the baseline by DP-SGD as well, at this ε.")
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
    if is_run(synthetic):
        fail(f"{synthetic} is a run: make images first, dpdm sample {synthetic} -n 60000 -o synthetic.npz")
    if dp_sgd is not None and group is not None:
        fail("--dp-sgd makes a claim about single images, and --group names groups: leave out one of the two")
    if dp_sgd is not None and baseline is None:
        fail("--dp-sgd trains on real images: name them with --baseline")
    require_found(synthetic, reference, baseline)
    from dpdm.data import open_dataset
    from dpdm.runs.hardware import joined_processes
    from dpdm.types import require_positive

    if dp_sgd is not None:
        require_positive(dp_sgd=dp_sgd)
    made = open_dataset(synthetic, num_classes=num_classes)
    claim = _claim_of(made)
    test = Real(reference, fit, group).like(made, synthetic)
    remarks = list[str]()
    made = named_alike(made, test, synthetic, reference, remarks)
    beside = None if baseline is None else Real(baseline, fit, group).like(made, synthetic)
    if beside is not None:
        beside = named_alike(beside, test, str(baseline), reference, remarks)
    at_most = None if beside is None else len(beside)
    for data in [made] if beside is None else [made, beside]:
        require_fit(data, test, seed)
    chosen = features_of(features, beside, [test], len(made) if at_most is None else min(len(made), at_most))
    for remark in remarks:
        tell(remark)
    # Names, not paths: a report shows them.
    report: dict[str, Any] = {"reference": test.name, "quick": quick, "claim": claim}
    with joined_processes() as processes:
        judge = judging(chosen, quick, seed, processes, at_most)
        report |= judge(made, test, synthetic)
        if beside is not None:
            report["baseline"] = {"source": beside.name, **judge(beside, test, str(baseline))}
    if not processes.first:
        return None
    if dp_sgd is not None and beside is not None:
        report["dp_sgd"], statement = by_dp_sgd(beside, test, dp_sgd)
    report["covered_by_epsilon"] = False
    if as_json:
        return print_json(report)
    if claim is not None:
        say(f"{synthetic} says of itself, which nothing here has verified: {claim}")
    for key in _CLASSIFIERS:
        remark = f"   (trained on {baseline}: {100 * report['baseline'][key]['accuracy']:.1f} %)" if baseline else ""
        score = report[key]
        interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
        balanced = _percent(score["balanced_accuracy"])
        say(f"{key:7} {_percent(score['accuracy'])} {interval}, balanced {balanced}{remark}")
    if dp_sgd is not None:
        found = report["dp_sgd"]
        balanced = _percent(found["balanced_accuracy"])
        say(f"dp-sgd  {_percent(found['accuracy'])}, balanced {balanced}: a CNN on {baseline} itself, {statement}")
    largest = report[next(iter(_CLASSIFIERS))]["largest_class"]
    say(f"always answering the largest class of {reference} would be right for {_percent(largest)}")
    _say_recalls(report, test.class_names)
    if features is not None:
        found = report["fidelity"]
        say(f"on {found['num_images']:,} images of each, {found['features']}:")
        for key in [key for key in (*_DISTANCES, "inception") if key in found]:
            remark = f"   ({baseline}: {report['baseline']['fidelity'][key]['value']:.4g})" if baseline else ""
            say(f"{key:9} {_interval(found[key])}{remark}")
    seen = f"{reference} and {baseline}" if baseline else reference
    say(f"These scores were computed from {seen}. If those images are private, so are they: ε does not cover them.")


def compare(
    sources: Annotated[list[str], typer.Argument(help="Finished runs, or images of any origin: .npz files, folders.")],
    reference: Reference,
    count: Annotated[int, typer.Option("-n", "--count", help="Number of images that a run draws.")] = 10_000,
    fit: FitTo = "crop",
    num_classes: Classes = None,
    group: Group = None,
    features: Named = None,
    quick: Quick = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge several runs, or images of any origin, by the same scores side by side."""
    runs = [source for source in sources if is_run(source)]
    require_found(*(source for source in sources if source not in runs), reference)
    for run in runs:
        require_run(Path(run))
    from dpdm.runs import Release, verify_release
    from dpdm.runs.hardware import joined_processes
    from dpdm.types import require_positive

    require_positive(count=count)
    opened = [_open(source, num_classes) for source in sources]
    claims = [it.statement if isinstance(it, Release) else _claim_of(it) for it in opened]
    real, tests, remarks = Real(reference, fit, group), [], list[str]()
    for place, (source, it) in enumerate(zip(sources, opened, strict=True)):
        tests.append(test := real.like(it.facts if isinstance(it, Release) else it, source))
        made = made_up(it.facts, count, source) if isinstance(it, Release) else it
        made = named_alike(made, test, source, reference, remarks)
        require_fit(made, test, seed, stand_in=isinstance(it, Release))
        opened[place] = it if isinstance(it, Release) else made
    for run in runs:
        verify_release(run)  # raises, too, if it claims nothing
    fewest = min(count if isinstance(it, Release) else len(it) for it in opened)
    chosen = features_of(features, None, tests, fewest)
    for remark in dict.fromkeys(remarks):
        tell(remark)
    rows = []
    with joined_processes() as processes:
        judge = judging(chosen, quick, seed, processes, fewest)
        for source, it, test, claim in zip(sources, opened, tests, claims, strict=True):
            made = draw(it, source, count, seed, processes, test) if isinstance(it, Release) else it
            require_fit(made, test, seed)
            about: dict[str, Any] = {"source": source, "claim": claim, "verified": source in runs}
            rows.append(about | {"images": len(made)} | judge(made, test, source))
    if not processes.first:
        return None
    if as_json:
        return print_json({"reference": reference, "quick": quick, "rows": rows, "covered_by_epsilon": False})
    distances = _DISTANCES if features is not None else ()
    table = [["", *_CLASSIFIERS.values(), *distances, "images", "claim"]]
    for row in rows:
        scores = [f"{100 * row[key]['accuracy']:.1f}" for key in _CLASSIFIERS]
        near = [f"{row['fidelity'][key]['value']:.4g}" for key in distances]
        stated = row["claim"] if row["verified"] else f"unverified: {row['claim']}" if row["claim"] else "none stated"
        table.append([row["source"], *scores, *near, f"{row['images']:,}", stated])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if features is not None:
        found = rows[0]["fidelity"]
        say(f"Distances on {found['num_images']:,} images of each, {found['features']}; accuracies in %.")
    largest = rows[0][next(iter(_CLASSIFIERS))]["largest_class"]
    say(f"Always answering the largest class of {reference} would be right for {_percent(largest)}.")
    say(f"These scores were computed from {reference}: if that is private, so are they.")


def _open(source: str, num_classes: int | None) -> "Release | ImageDataset":
    """Return a run's release, or images."""
    from dpdm.data import open_dataset
    from dpdm.runs import Release

    return Release.load(source) if is_run(source) else open_dataset(source, num_classes=num_classes)


def _claim_of(made: "ImageDataset") -> str | None:
    """Return what a file of images says of itself."""
    from dpdm.data import read_claim

    return read_claim(Path(made.location)) if made.location.endswith(".npz") else None


def _say_recalls(report: dict[str, Any], names: Sequence[str]) -> None:
    """Print how many of each class each classifier got right; of many classes, those that the best knows least."""
    recalls = [report[key]["recalls"] for key in _CLASSIFIERS]
    known = [place for place in range(len(names)) if recalls[0][place] is not None]
    shown = known if len(known) <= _MOST_SHOWN else sorted(known, key=lambda place: max(of[place] for of in recalls))
    shown = shown[:_MOST_SHOWN]
    width = max(len(names[place]) for place in shown)
    more = "" if len(shown) == len(known) else f", the {len(shown)} least known of {len(known)} classes"
    say(f"recall of each class in %{more}:")
    say("  ".join([" " * width, *(f"{title:>6}" for title in _CLASSIFIERS.values())]))
    for place in shown:
        say("  ".join([names[place].ljust(width), *(f"{100 * of[place]:6.1f}" for of in recalls)]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(score: dict[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"
