"""`dpdm ledger`: what each data set has spent, and what is left."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    MethodName,
    Set,
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
    from dpdm.ledger import Account, Ledger, Records
    from dpdm.privacy import Plan

_BAR = 30  # characters

ledger = typer.Typer(help="Show and manage what runs have spent on each data set.")

Dataset = Annotated[str, typer.Argument(help="The name of a data set in the ledger.")]


@ledger.callback(invoke_without_command=True)
def list_all(context: typer.Context, place: LedgerPlace = None, as_json: AsJson = False) -> None:
    """List the data sets, and what is left of each budget."""
    if context.invoked_subcommand is not None:
        if place is not None or as_json:
            fail("give --ledger and --json after the verb: dpdm ledger show NAME --ledger FILE --json")
        return None
    book = _open(place, must_exist=False)
    accounts = book.accounts() if book.storage.exists else {}
    if as_json:
        return print_json({"ledger": book.storage.shown, "datasets": [_facts(a) for a in accounts.values()]})
    say(f"ledger   {book.storage.shown}")
    for account in accounts.values():
        say(f"{account.dataset}: {_total(account)}; {_used(account)}")
    if not accounts:
        say("nothing is registered yet: the first run on a data set does it, or dpdm ledger register")


@ledger.command()
def show(dataset: Dataset, place: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Show what was spent on a data set, when, and by which run."""
    from dpdm.ledger.account import whole_percent

    book = _open(place)
    account, history = book.account(dataset), book.history(dataset)
    if as_json:
        return print_json(_facts(account) | {"history": [spent._asdict() for spent in history]})
    say(f"{account.dataset}: {_total(account)}, registered {account.registered[:10]}")
    say(f"one unit of protection is {account.unit}, {account.relation}")
    for spent in history:
        bar = "" if spent.share is None else ("█" * round(_BAR * spent.share)).ljust(_BAR, "·")
        part = f"ε {bound(spent.epsilon)}" if spent.share is None else f"{whole_percent(spent.share):4} %"
        say(f"{spent.at[:16]}  {bar} {part}  {spent.what}")
    for key, reservation in account.reservations.items():
        what = reservation.place or ("" if reservation.completed else "waits for its run")
        say(f"{reservation.state:10} {key[:8]}  {what}".rstrip())
    say(_used(account))
    if account.epsilon is not None:
        say("% is of the budget for runs that are chosen one after another, which a filter counts")


@ledger.command()
def register(
    target: Target,
    epsilon: Epsilon = None,
    delta: Annotated[float, typer.Option(help="δ of the total.")] = 1e-5,
    dataset_size: Size = None,
    set: Set = None,
    place: LedgerPlace = None,
) -> None:
    """Give a data set its total (ε, δ) before the first run on it."""
    if epsilon is None:
        fail("give the total: --epsilon 3")
    records, plan = _records(target, epsilon, dataset_size, set)
    book = _open(place, must_exist=False)
    if records.public:
        fail(f"{records.dataset} is public: nothing limits its runs")
    book.register(records, epsilon=epsilon, delta=delta, relation=plan.relation, unit=plan.one_unit)
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
    """Allow other groups of the same images, say after names were corrected. Only the owner of the data should."""
    _open(place).allow_other_groups(dataset)
    say(f"the next run on {dataset} may group its images differently")
    say("groups must still mean the same thing, persons for example: otherwise the claims do not add up")


@ledger.command()
def reserve(
    target: Target,
    times: Annotated[int, typer.Option(help="Number of runs.")],
    method: MethodName = None,
    epsilon: Epsilon = None,
    dataset_size: Size = None,
    set: Set = None,
    place: LedgerPlace = None,
) -> None:
    """Reserve several runs of the same settings together, which costs less than one by one."""
    book = _open(place)
    records, plan = _records(target, epsilon, dataset_size, set, method)
    book.reserve_together(plan, records, times=times)
    say(f"{times} runs are reserved: {plan.statement}")
    say(f"each begins by dpdm train with these same settings; {_used(book.account(records.dataset))}")


@ledger.command()
def cancel(
    dataset: Dataset,
    reservations: Annotated[
        list[str] | None,
        typer.Argument(help="Reservations, as dpdm ledger show names them (default: all)."),
    ] = None,
    place: LedgerPlace = None,
) -> None:
    """Give back reservations that no run has taken."""
    book = _open(place)
    count = book.cancel(dataset, reservations or [])
    say(f"{count:,} reservation{'' if count == 1 else 's'} given back; {_used(book.account(dataset))}")


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
    account = book.account(dataset)
    say(f"entered, as a claim about {account.unit}, {account.relation}; {_used(account)}")


@ledger.command()
def settle(
    run: Annotated[Path, typer.Argument(help="The folder of a run that will not go on.")],
    only_copy: Annotated[
        bool,
        typer.Option("--i-have-the-only-copy", help="Confirm that a folder that was moved is the run, and no backup."),
    ] = False,
    place: LedgerPlace = None,
) -> None:
    """End a crashed run: count what its journal says was spent, and give the rest back."""
    book = _open(place)
    if not (run / "private").is_dir():
        fail(f"{run} holds no run that a ledger counts: is the path right?")
    from dpdm.runs.settling import settle_run

    spent, planned = settle_run(run, book, only_copy=only_copy)
    say(f"{run} counts {spent:,} of {planned:,} noisy sums as released, and can release no more")


@ledger.command()
def plan(
    dataset: Dataset, epsilon: Annotated[float, typer.Option(help="ε of each run.")], place: LedgerPlace = None
) -> None:
    """Say how many more runs at a given ε fit into the budget."""
    account = _open(place).account(dataset)
    one_by_one, together = account.more_runs(epsilon=epsilon)
    say(f"{dataset}: {_total(account)}; {_used(account)}")
    say(f"at ε = {bound(epsilon)} each: {one_by_one:,} more, each chosen after the results of those before it")
    if together > one_by_one:
        say(f"                 {together:,} if they are reserved together now: dpdm ledger reserve ... --times")


@ledger.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .jsonl file (default: standard output).")
    ] = None,
    place: LedgerPlace = None,
) -> None:
    """Write all entries with their digests, one a line, without the ledger's key."""
    entries = [entry._asdict() for entry in _open(place).storage.entries()]
    if output is None:
        return print("".join(json_line(entry, sort_keys=True) + "\n" for entry in entries), end="")
    from dpdm.files import write_atomically

    lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in entries)
    write_atomically(output, lambda path: path.write_text(lines, encoding="utf-8"))
    return say(f"{len(entries):,} entries in {output}")


@ledger.command()
def verify(
    earlier: Annotated[Path | None, typer.Argument(help="A file that dpdm ledger export wrote before.")] = None,
    place: LedgerPlace = None,
) -> None:
    """Check the chain of entries, and that it continues an earlier export."""
    book = _open(place)
    entries = book.storage.entries()
    book.accounts()
    if earlier is not None:
        from dpdm.types import InputError

        try:
            rows = [json.loads(line) for line in earlier.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            rows = []
        if not rows or not all(isinstance(row, dict) and "digest" in row for row in rows):
            raise InputError(f"{earlier} is not what dpdm ledger export writes: is the path right?")
        if rows != [entry._asdict() for entry in entries[: len(rows)]]:
            fail(f"{book.storage.shown} does not go on from {earlier}: entries were changed or taken out since")
    head = entries[-1].digest if entries else "none"
    say(f"{len(entries):,} entries, every one chained to those before it; the last digest is {head}")
    if earlier is None:
        say("that none is missing at the end shows beside an earlier export: dpdm ledger verify FILE")


def _open(place: str | None, *, must_exist: bool = True) -> "Ledger":
    from dpdm.ledger import Ledger

    book = Ledger.default(place, tell=tell)
    if book is None:
        fail("DPDM_LEDGER says none: name a ledger by --ledger")
    if must_exist and not book.storage.exists:
        fail(f"there is no ledger {book.storage.shown}: is the path right? the first run, or register, makes it")
    return book


def _records(
    target: str,
    epsilon: float | None,
    dataset_size: int | None,
    overrides: list[str] | None,
    method: str | None = None,
) -> tuple["Records", "Plan"]:
    """Return the records that settings speak of, and their plan."""
    config = load_settings(target, epsilon, dataset_size, overrides, method=method)
    from dpdm.ledger import Records
    from dpdm.privacy import Plan

    data = config.data.open()
    plan = config.plan(lambda: data.num_units)
    if not isinstance(plan, Plan):
        fail("privacy.kind = non-private claims nothing: there is nothing to count")
    return Records.of(data), plan


def _facts(account: "Account") -> dict[str, Any]:
    return {
        "dataset": account.dataset,
        "epsilon": account.epsilon,
        "delta": account.delta,
        "relation": account.relation,
        "unit": account.unit,
        "order": account.order,
        "registered": account.registered,
        "share": account.share if account.filter else None,
        "epsilon_if_planned": finite(account.epsilon_if_planned),
        "runs": [
            {"state": r.state, "at": r.at, "place": r.place, "completed": r.completed}
            for r in account.reservations.values()
        ],
        "entered": [{"what": e.what, "epsilon": e.epsilon, "delta": e.delta} for e in account.entered],
    }


def _total(account: "Account") -> str:
    return (
        "public, not limited" if account.epsilon is None else f"a total of ({bound(account.epsilon)}, {account.delta})"
    )


def _used(account: "Account") -> str:
    from dpdm.ledger.account import whole_percent

    count = sum(reservation.state != "given back" for reservation in account.reservations.values())
    runs = f"{count:,} run{'' if count == 1 else 's'}, ε {bound(account.epsilon_if_planned)} if planned together"
    return runs if account.filter is None else f"{runs}; {100 - whole_percent(account.share)} % of the budget is left"
