"""`dpdm evaluate | compare`: how good images are, by classifiers and by distances of features."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.comparing import Asked, compare_methods
from dpdm.cli.judging import Entrant, Real, enter, features_of, is_run, judged, named_alike, require_fit
from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    PublicImages,
    Set,
    Size,
    fail,
    require_found,
    require_run,
    show,
)
from dpdm.terminal import remarked, show_progress, tell

if TYPE_CHECKING:
    from dpdm.data import ImageDataset
    from dpdm.evaluation import Scorecard

Reference = Annotated[str, typer.Option(help="Real images to test on, such as fashion-mnist:test.")]
FitTo = Annotated[
    str,
    typer.Option("--fit", help="How real images reach the size of the synthetic ones: crop, pad or resize."),
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
Group = Annotated[str | None, typer.Option(help="Groups of the real images, named as for data.group.")]
DPSGDEpsilon = Annotated[
    float | None, typer.Option("--dp-sgd", help="Train a CNN on the baseline by DP-SGD as well, at this ε.")
]
DPSGDStart = Annotated[
    str | None,
    typer.Option(
        help="What --dp-sgd begins with: none; procedural (drawn images); or features (a linear classifier on those of "
        "the public EfficientNet-Lite0; without its packages, of a random network)."
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Train for fewer epochs. Not comparable with papers.")]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="How to train: paper (default), quick (as --quick), or dpimagebench (50 epochs of a wide residual "
        "network on a GPU, of a small one elsewhere)."
    ),
]
_OF_BENCHMARK = 60_000  # images

Seed = Annotated[int, typer.Option(help="Seed of the classifiers' weights and batches.")]


def evaluate(
    synthetic: Annotated[str, typer.Argument(help="The synthetic images: an .npz file or class folders.")],
    reference: Reference,
    baseline: Annotated[
        str | None, typer.Option(help="Real images to train the same classifiers on, for comparison.")
    ] = None,
    dp_sgd: DPSGDEpsilon = None,
    dp_sgd_start: DPSGDStart = None,
    fit: FitTo = "crop",
    num_classes: Classes = None,
    group: Group = None,
    features: Named = None,
    quick: Quick = False,
    protocol: Protocol = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge synthetic images by classifiers, tested on real ones.

    LogReg, MLP, CNN and, in colour, a ResNet learn from the synthetic images alone.
    """
    _refuse(synthetic, baseline, dp_sgd, dp_sgd_start, group)
    require_found(synthetic, reference, baseline)
    named = _protocol(protocol, quick)
    from dpdm.evaluation import Judge
    from dpdm.runs.hardware import choose_device, joined_processes

    remarks = list[str]()
    entrant = enter(synthetic, Real(reference, fit, group), num_classes=num_classes, seed=seed, remarks=remarks)
    test, sides = entrant.test, [(synthetic, entrant.made)]
    if baseline is not None:
        beside = Real(baseline, fit, group).like(entrant.made, synthetic)
        sides.append((baseline, named_alike(beside, test, baseline, reference, remarks)))
        require_fit(sides[1][1], test, seed)
    fewest = min(len(data) for _, data in sides)
    chosen = features_of(features, sides[1][1] if baseline else None, [test], fewest)
    for remark in (*remarks, *_remarks_on(named, len(entrant.made))):
        tell(remark)
    with joined_processes() as processes:
        device = choose_device("auto")
        judge = Judge(features=chosen, protocol=named, at_most=fewest, seed=seed, processes=processes, device=device)
        cards = [judged(judge, data, test, name) for name, data in sides]
    if not processes.first:
        return
    # Names, not paths: a report shows them.
    said = {"reference": test.name, "quick": named == "quick", "protocol": named, "claim": entrant.claim}
    report: dict[str, Any] = said | cards[0].as_json()
    if baseline is not None:
        report["baseline"] = {"source": sides[1][1].name, **cards[1].as_json()}
    claimed = ""
    if dp_sgd is not None:
        report["dp_sgd"], claimed = _by_dp_sgd(sides[1][1], test, dp_sgd, dp_sgd_start or "none")
    text = _evaluated(entrant, reference, str(baseline), cards, report.get("dp_sgd"), claimed)
    show(report | {"covered_by_epsilon": False}, text, as_json)


def _refuse(synthetic: str, baseline: str | None, dp_sgd: float | None, start: str | None, group: str | None) -> None:
    """Raise InputError for what `evaluate` cannot do, before the heavy imports."""
    from dpdm.types import require_positive

    if is_run(synthetic):
        fail(f"{synthetic} is a run: make images first, dpdm sample {synthetic} -n 60000 -o synthetic.npz")
    if start is not None:
        from dpdm.runs.classifier_starts import STARTS

        if dp_sgd is None:
            fail("--dp-sgd-start is what --dp-sgd begins with: give both")
        if start not in STARTS:
            fail(f"--dp-sgd-start must be one of {', '.join(STARTS)}, not {start!r}")
    if dp_sgd is None:
        return
    if group is not None:
        fail("--dp-sgd makes a claim about single images, and --group names groups: leave out one of the two")
    if baseline is None:
        fail("--dp-sgd trains on real images: name them with --baseline")
    require_positive(dp_sgd=dp_sgd)


def _protocol(named: str | None, quick: bool) -> str:
    """Return the name of the protocol that was asked for; raise InputError if it is none, or they are two."""
    from dpdm.evaluation import PROTOCOLS

    if named is None:
        return "quick" if quick else "paper"
    if named not in PROTOCOLS:
        fail(f"--protocol is one of {', '.join(PROTOCOLS)}, not {named!r}")
    if quick and named != "quick":
        fail(f"--quick is a protocol of its own: leave it out, or --protocol {named}")
    return named


def _remarks_on(protocol: str, images: int) -> Iterator[str]:
    """Yield why scores are not to be compared with those that DPImageBench publishes."""
    if protocol != "dpimagebench":
        return
    from dpdm.runs.hardware import choose_device

    if images != _OF_BENCHMARK:
        yield f"DPImageBench's protocol is for {_OF_BENCHMARK:,} images, and these are {images:,}: not comparable"
    if choose_device("auto").type == "cpu":
        yield "there is no GPU: a small residual network stands in for WRN-40-4, by the same rules: not comparable"


def _by_dp_sgd(train: "ImageDataset", test: "ImageDataset", epsilon: float, start: str) -> tuple[dict[str, Any], str]:
    """Return how well a classifier does that DP-SGD trained on the real images themselves, and its claim."""
    from dpdm.data.procedural import watched
    from dpdm.evaluation import by_class
    from dpdm.runs import train_private_classifier

    with show_progress(f"DP-SGD on {train.name}", None) as advance, watched(remarked(advance)):
        trained = train_private_classifier(
            train, epsilon=epsilon, start=start, on_step=lambda total: advance(1, "", total)
        )
    confusion = trained.confusion(test)
    accuracy = sum(row[place] for place, row in enumerate(confusion)) / len(test)
    found = {"epsilon": epsilon, "start": start, "accuracy": accuracy, "confusion": confusion}
    return found | by_class(confusion)._asdict(), trained.statement


def _evaluated(
    entrant: Entrant,
    reference: str,
    baseline: str,
    cards: "Sequence[Scorecard]",
    dp_sgd: dict[str, Any] | None,
    claimed: str,
) -> Iterator[str]:
    """Yield the lines of `evaluate`: what the images scored and, in remarks, what those of the baseline did."""
    from dpdm.evaluation import percent
    from dpdm.runs.classifier_starts import STARTS

    card, beside = cards[0], (baseline, cards[1]) if len(cards) > 1 else None
    if entrant.claim is not None:
        yield f"{entrant.source} says of itself, which nothing here has verified: {entrant.claim}"
    yield from card.accuracies(beside)
    if dp_sgd is not None:
        shown = f"{percent(dp_sgd['accuracy'])}, balanced {percent(dp_sgd['balanced_accuracy'])}"
        yield f"dp-sgd  {shown}: {STARTS[dp_sgd['start']]} on {baseline} itself, {claimed}"
    yield f"always answering the largest class of {reference} would be right for {percent(card.largest_class)}"
    yield from card.recalls(entrant.test.class_names)
    yield from card.distances(beside)
    seen = f"{reference} and {baseline}" if beside else reference
    yield f"These scores were computed from {seen}. If those images are private, so are they: ε does not cover them."


def compare(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Finished runs, or images of any origin: .npz files, folders.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Real images to test on (default with --methods: a built-in data set's own).")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Number of images that a run draws.")] = 10_000,
    methods: Annotated[
        str | None, typer.Option(help="Train methods first, on a benchmark: all, or names joined by commas.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="With --methods: a preset, a TOML file or public images.")] = None,
    epsilon: Epsilon = None,
    minutes: Annotated[float | None, typer.Option(help="With --methods: time for each that can be timed.")] = None,
    public: PublicImages = None,
    dataset_size: Size = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", "-r", help="With --methods: the folder of all runs. The same command goes on."),
    ] = None,
    ledger: LedgerPlace = None,
    set: Set = None,
    fit: FitTo = "crop",
    num_classes: Classes = None,
    group: Group = None,
    features: Named = None,
    quick: Quick = False,
    seed: Seed = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --methods: a table in Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge runs, or images of any origin, side by side.

    With --methods it first trains methods on a benchmark, and judges those.
    """
    from dpdm.types import require_positive

    require_positive(count=count)
    if methods is None:
        beside = (dataset, epsilon, minutes, public, dataset_size, run, ledger, set, markdown or None)
        if any(given is not None for given in beside):
            fail("--dataset, --epsilon, --minutes, --public, --run, --ledger, --set and --markdown go with --methods")
        if not sources or reference is None:
            fail("name what is compared, and --reference with real images; or --methods all --dataset fashion-mnist")
        real = Real(reference, fit, group)
        return _compare_sources(sources, real, count, num_classes, features, quick, seed, as_json)
    if sources or num_classes is not None or group is not None:
        fail("--methods compares methods: leave out runs, --num-classes and --group (--set data.…)")
    if dataset is None:
        fail("--methods needs the images: --dataset fashion-mnist, say")
    of_data = (dataset, epsilon, minutes, public, dataset_size, set or [])
    asked = Asked(*of_data, reference, fit, features, count, quick, seed)
    folder = run or Path("runs") / f"compare-{Path(dataset.replace(':', '-')).stem}"
    return compare_methods(asked, methods, folder, ledger, markdown=markdown, as_json=as_json)


def _compare_sources(
    sources: list[str],
    real: Real,
    count: int,
    num_classes: int | None,
    features: str | None,
    quick: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Judge finished runs, or images, side by side."""
    runs = [source for source in sources if is_run(source)]
    require_found(*(source for source in sources if source not in runs), real.source)
    for run in runs:
        require_run(Path(run))
    from dpdm.evaluation import Judge
    from dpdm.runs import verify_release
    from dpdm.runs.hardware import joined_processes

    remarks = list[str]()
    entrants = [
        enter(source, real, count=count, num_classes=num_classes, seed=seed, remarks=remarks) for source in sources
    ]
    for run in runs:
        verify_release(run)  # raises, too, if it claims nothing
    fewest = min(len(one.made) if one.release is None else count for one in entrants)
    chosen = features_of(features, None, [one.test for one in entrants], fewest)
    for remark in remarks:
        tell(remark)
    rows, cards = [], []
    with joined_processes() as processes:
        named = "quick" if quick else "paper"
        judge = Judge(features=chosen, protocol=named, at_most=fewest, seed=seed, processes=processes)
        for one in entrants:
            made = one.images(count, seed, processes)
            cards.append(judged(judge, made, one.test, one.source))
            verified = one.release is not None
            rows.append({"source": one.source, "claim": one.claim, "verified": verified, "images": len(made)})
    if not processes.first:
        return
    found = [row | card.as_json() for row, card in zip(rows, cards, strict=True)]
    report = {"reference": real.source, "quick": quick, "rows": found, "covered_by_epsilon": False}
    show(report, _compared(rows, cards, real.source), as_json)


def _compared(rows: Sequence[dict[str, Any]], cards: "Sequence[Scorecard]", reference: str) -> Iterator[str]:
    """Yield the lines of `compare`: a table, and what to know of its numbers."""
    from dpdm.evaluation import percent

    headings = max((card.cells() for card in cards), key=len)  # those of colour, if any are
    table = [["", *headings, "images", "claim"]]
    for row, card in zip(rows, cards, strict=True):
        stated = row["claim"] if row["verified"] else f"unverified: {row['claim']}" if row["claim"] else "none stated"
        cells = [card.cells().get(heading, "") for heading in headings]
        table.append([row["source"], *cells, f"{row['images']:,}", stated])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    if (fidelity := cards[0].fidelity) is not None:
        yield f"Distances on {fidelity.num_images:,} images of each, {fidelity.features}; accuracies in %."
    yield f"Always answering the largest class of {reference} would be right for {percent(cards[0].largest_class)}."
    yield f"These scores were computed from {reference}: if that is private, so are they."
