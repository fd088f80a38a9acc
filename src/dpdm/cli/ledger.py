"""`dpdm ledger`: what each data set has spent, and what is left."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import (
    AsJson,
    LedgerPlace,
    SetData,
    Size,
    Target,
    bound,
    fail,
    finite,
    json_line,
    load_settings,
    print_json,
    say,
)
from dpdm.terminal import tell

if TYPE_CHECKING:
    from dpdm.ledger import Account, Ledger, Shown

_BAR = 30  # characters
_CHANGES = {"add_or_remove_one": "adding or removing", "replace_special": "blanking out"}

ledger = typer.Typer(help="Show and manage what runs have spent on each data set.")

Dataset = Annotated[str, typer.Argument(help="The name of a data set in the ledger.")]


@ledger.callback(invoke_without_command=True)
def list_all(context: typer.Context, place: LedgerPlace = None, as_json: AsJson = False) -> None:
    """List the data sets, and what is left of each budget."""
    if context.invoked_subcommand is not None:
        if place is not None or as_json:
            fail("give --ledger and --json after the verb: dpdm ledger show NAME --ledger FILE --json")
        return
    book = _open(place, must_exist=False)
    found = book.shown() if book.storage.exists else {}
    if as_json:
        print_json({"ledger": book.storage.shown, "datasets": [_facts(shown) for shown in found.values()]})
        return
    say(f"ledger   {book.storage.shown}")
    for name, shown in found.items():
        say(f"{name}: {_total(shown.account)}; {_used(shown)}")
    if not found:
        say("nothing is registered yet: the first run on a data set does it, or dpdm ledger register")


@ledger.command()
def show(dataset: Dataset, place: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Show what was spent on a data set, when, and by which run."""
    shown = _open(place).shown(dataset)[dataset]
    account = shown.account
    if as_json:
        print_json(_facts(shown) | {"history": [spent._asdict() for spent in shown.history]})
        return
    say(f"{account.dataset}: {_total(account)}, registered {account.registered[:10]}")
    say(f"one unit of protection is {account.unit}; claims are about {_CHANGES[account.relation]} one")
    if (facts := account.facts) is not None:
        channels, height, width = facts.shape
        classes = ", ".join(facts.class_names) or "none"
        say(f"images of {height} × {width} pixels and {channels} channel{'s' * (channels > 1)}; classes: {classes}")
    for spent in shown.history:
        bar = "" if spent.share is None else ("█" * round(_BAR * spent.share)).ljust(_BAR, "·")
        part = f"ε {bound(spent.epsilon)}" if spent.share is None else f"{_percent(spent.share):4} %"
        say(f"{spent.at[:16]}  {bar} {part}  {spent.what}")
    for key, reservation in account.reservations.items():
        say(f"{reservation.state:10} {key[:8]}  {reservation.place}".rstrip())
    say(_used(shown))
    if any(each.state == "running" for each in account.reservations.values()):
        say("a running one goes on by its own train command, or ends by: dpdm ledger settle RUN")
    if account.epsilon is not None:
        say("% is of the budget for runs that are chosen one after another, which a filter counts")


@ledger.command()
def register(
    target: Target,
    epsilon: Annotated[
        float | None, typer.Option(help="ε of the total: the most that all runs together may spend.")
    ] = None,
    delta: Annotated[float, typer.Option(help="δ of the total.")] = 1e-5,
    dataset_size: Size = None,
    set: SetData = None,
    place: LedgerPlace = None,
) -> None:
    """Give a data set its total (ε, δ) before the first run on it."""
    if epsilon is None:
        fail("give the total: --epsilon 3")
    config = load_settings(target, epsilon, dataset_size, set)
    from dpdm.ledger import Records
    from dpdm.ledger.entries import FactsDeclared
    from dpdm.privacy import Plan

    data = config.data.open()
    plan = config.plan(lambda: data.num_units)
    if not isinstance(plan, Plan):
        fail("privacy.kind = non-private claims nothing: there is nothing to count")
    records, book = Records.of(data), _open(place, must_exist=False)
    if records.public:
        fail(f"{records.dataset} is public: nothing limits its runs")
    facts = FactsDeclared(dataset=records.dataset, shape=data.shape, class_names=data.class_names)
    book.register(records, epsilon=epsilon, delta=delta, relation=plan.relation, unit=plan.one_unit, facts=[facts])
    say(f"{records.dataset} has a total of ({bound(epsilon)}, {delta}) in {book.storage.shown}")


@ledger.command()
def total(
    dataset: Dataset, epsilon: Annotated[float, typer.Option(help="ε of the new total.")], place: LedgerPlace = None
) -> None:
    """Change the total of a data set. Only the owner of the data should do this."""
    book = _open(place)
    before = book.account(dataset)
    book.change_total(dataset, epsilon=epsilon)
    say(f"{dataset}: ε = {bound(before.total)} is now ε = {bound(epsilon)}; what was promised before was the old one")


@ledger.command()
def regroup(dataset: Dataset, place: LedgerPlace = None) -> None:
    """Allow other groups of the same images, such as after a correction of names.

    Only the owner of the data should do this.
    """
    _open(place).allow_other_groups(dataset)
    say(f"the next run on {dataset} may group its images differently")
    say("groups must still mean the same thing, persons for example: otherwise the claims do not add up")


@ledger.command()
def enter(
    dataset: Dataset,
    what: Annotated[str, typer.Option(help="What was released, in words.")],
    epsilon: Annotated[float, typer.Option(help="Its ε.")],
    delta: Annotated[float, typer.Option(help="Its δ.")] = 0.0,
    place: LedgerPlace = None,
) -> None:
    """Enter a release that was made without dpdm, with its own (ε, δ)."""
    book = _open(place)
    book.enter(dataset, what=what, epsilon=epsilon, delta=delta)
    shown = book.shown(dataset)[dataset]
    say(f"entered, as a claim about {shown.account.unit}, {shown.account.relation}; {_used(shown)}")


@ledger.command()
def settle(
    run: Annotated[Path, typer.Argument(help="The folder of a run that will not go on.")],
    only_copy: Annotated[
        bool,
        typer.Option("--i-have-the-only-copy", help="Confirm that a folder that was moved is the run, and no backup."),
    ] = False,
    place: LedgerPlace = None,
) -> None:
    """End a crashed run: its journal says what counts, and the ledger gives back the rest."""
    book = _open(place)
    if not (run / "private").is_dir():
        fail(f"{run} holds no run that a ledger counts: is the path right?")
    from dpdm.runs.settling import settle_run

    spent, planned = settle_run(run, book, only_copy=only_copy)
    say(f"{run} counts {spent:,} of {planned:,} noisy sums as released, and can release no more")
    say("dpdm ledger says what is left. A first run that was the whole total counts in full once it released anything")


@ledger.command()
def plan(
    dataset: Dataset, epsilon: Annotated[float, typer.Option(help="ε of each run.")], place: LedgerPlace = None
) -> None:
    """Say how many more runs at a given ε fit into the budget."""
    shown = _open(place).shown(dataset)[dataset]
    more = shown.account.more_runs(epsilon=epsilon)
    say(f"{dataset}: {_total(shown.account)}; {_used(shown)}")
    say(f"at ε = {bound(epsilon)} each: {more:,} more, each chosen after the results of those before it")


@ledger.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .jsonl file (default: standard output).")
    ] = None,
    place: LedgerPlace = None,
) -> None:
    """Write all entries, one a line. Their digests come along, the ledger's key does not."""
    entries = [entry._asdict() for entry in _open(place).storage.entries()]
    if output is None:
        for entry in entries:
            print(json_line(entry, sort_keys=True))
        return
    from dpdm.files import write_atomically

    lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in entries)
    write_atomically(output, lambda path: path.write_text(lines, encoding="utf-8"))
    say(f"{len(entries):,} entries in {output}")


@ledger.command()
def verify(
    earlier: Annotated[Path | None, typer.Argument(help="A file that dpdm ledger export wrote before.")] = None,
    place: LedgerPlace = None,
) -> None:
    """Check the chain of entries, and that it continues an export."""
    book = _open(place)
    entries = book.storage.entries()
    book.accounts()
    if earlier is not None:
        try:
            rows = [json.loads(line) for line in earlier.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            rows = []
        if not rows or not all(isinstance(row, dict) and "digest" in row for row in rows):
            fail(f"{earlier} is not what dpdm ledger export writes: is the path right?")
        if rows != [entry._asdict() for entry in entries[: len(rows)]]:
            fail(f"{book.storage.shown} does not go on from {earlier}: entries were changed or taken out since")
    head = entries[-1].digest if entries else "none"
    say(f"{len(entries):,} entries, every one chained to those before it; the last digest is {head}")
    if earlier is None:
        say("that none is missing at the end shows beside an earlier export: dpdm ledger verify FILE")


def keep_figures(book: "Ledger | None") -> None:
    """Have the ledger's figures computed now, where dp-accounting is at hand, so that `show` need not."""
    from dpdm.types import InputError

    if book is not None:
        with suppress(InputError, OSError):
            book.shown()


def _open(place: str | None, *, must_exist: bool = True) -> "Ledger":
    from dpdm.ledger import Ledger

    book = Ledger.default(place, tell=tell)
    if book is None:
        fail("DPDM_LEDGER says none: name a ledger by --ledger")
    if must_exist and not book.storage.exists:
        fail(f"there is no ledger {book.storage.shown}: is the path right? the first run, or register, makes it")
    return book


def _facts(shown: "Shown") -> dict[str, Any]:
    account = shown.account
    kept = "dataset", "epsilon", "delta", "relation", "unit", "order", "registered", "benchmark"
    of_runs, of_entered = ("state", "at", "place", "completed"), ("what", "epsilon", "delta")
    return {
        **{name: getattr(account, name) for name in kept},
        "share": shown.share,
        "epsilon_if_planned": finite(shown.epsilon_if_planned),
        "runs": [{name: getattr(run, name) for name in of_runs} for run in account.reservations.values()],
        "entered": [{name: getattr(entry, name) for name in of_entered} for entry in account.entered],
    }


def _percent(share: float) -> int:
    from dpdm.ledger.account import whole_percent

    return whole_percent(share)


def _total(account: "Account") -> str:
    total = account.epsilon
    public = "a benchmark for good, not limited" if account.benchmark else "public, not limited"
    return public if total is None else f"a total of ({bound(total)}, {account.delta})"


def _used(shown: "Shown") -> str:
    count = sum(reservation.state != "given back" for reservation in shown.account.reservations.values())
    runs = f"{count:,} run{'' if count == 1 else 's'}, ε {bound(shown.epsilon_if_planned)} if planned together"
    return runs if shown.share is None else f"{runs}; {100 - _percent(shown.share)} % of the budget is left"
