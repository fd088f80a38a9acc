"""What a change appends to a ledger, or why it is refused: pure functions of all accounts."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dpdm.ledger import entries
from dpdm.ledger.account import Account, Accounts, Reservation, find_run, read_accounts, require_account
from dpdm.ledger.entries import Statement
from dpdm.ledger.identity import RunIdentity
from dpdm.ledger.records import (
    Records,
    account_of,
    has_others,
    naming_first,
    record_new_fingerprint,
    require_its_own,
    require_no_total,
    require_same_kind,
    require_unknown,
)
from dpdm.privacy.accounting import Event, PoissonGaussianSteps, RepeatedSelection, upwards
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError

if TYPE_CHECKING:
    from dpdm.privacy import Plan


class Request(NamedTuple):
    """What a run asks a ledger to reserve: see `Ledger.reserve`."""

    run: str
    plan: "Plan"
    records: Records
    seen: entries.RecordsSeen
    public: Sequence[entries.RecordsSeen]
    place: str
    token: str
    tokens_before: Sequence[str]
    begun: bool

    def taking(self, reservation: str) -> entries.ReservationTaken:
        """Return the entry by which the run takes a reservation."""
        return entries.ReservationTaken(reservation=reservation, run=self.run, token=self.token, place=self.place)


def register(
    accounts: Accounts,
    new: entries.Registered,
    seen: entries.RecordsSeen,
    facts: Sequence[entries.FactsDeclared] = (),
) -> list[Statement]:
    """Give a data set a total; one of another kind than before, if nothing is spent or reserved."""
    known = accounts.get(new.dataset)
    with naming_first(known, seen):
        if known is not None and not (
            known.untouched
            and known.epsilon is not None
            and (known.relation, known.unit) != (new.relation, new.unit)
            and not has_others(known, seen)
        ):
            raise InputError(
                f"{new.dataset} is registered already: change its total by "
                f"dpdm ledger total {new.dataset!r} --epsilon ..."
            )
    require_unknown(accounts, seen, private=True)
    return [new, seen, *facts]


def declare_benchmark(
    accounts: Accounts, new: entries.Registered, seen: entries.RecordsSeen, *, ledger: str
) -> list[Statement]:
    """Make records a benchmark by their first entries; nothing is appended if they are one."""
    there = [a for a in accounts.values() if a.dataset == new.dataset or a.records.keys() & seen.records.keys()]
    if not there:
        return [new, entries.BenchmarkDeclared(dataset=new.dataset), seen]
    for account in there:
        if not account.benchmark:
            raise InputError(
                f"{new.dataset} has entries in {ledger} that are no benchmark's, as {account.dataset}: only its first "
                "entry can make it one; name a ledger for benchmarks by --ledger"
            )
    require_unknown(accounts, seen, private=False)
    require_its_own(accounts, accounts[new.dataset], seen)
    return []


def change_total(accounts: Accounts, dataset: str, epsilon: float) -> list[Statement]:
    """Give a data set another ε, with the order at which most runs fit into it."""
    account = require_account(accounts, dataset)
    if account.epsilon is None:
        raise InputError(f"{dataset} is public: it has no total")
    order = RenyiFilter.for_gaussians(epsilon=epsilon, delta=account.delta).order
    return [entries.TotalChanged(dataset=dataset, epsilon=epsilon, order=order)]


def reserve(accounts: Accounts, request: Request, told: list[str], *, ledger: str) -> list[Statement]:
    """Reserve what a run may release, or let it go on under its reservation; `told` gets lines for people."""
    dataset, place = account_of(accounts, request.plan, request.records), request.place
    seen, known = replace(request.seen, dataset=dataset), accounts.get(dataset)
    found = find_run(accounts, request.run)
    if found is not None:
        of, mine = found
        _require_going_on(mine, request, ledger)
        if of is not known:
            raise InputError(f"{place} has reserved of another data set than {dataset}: start a new run")
        require_same_kind(of, request.plan, request.records)
        return [*record_new_fingerprint(accounts, of, seen, told), request.taking(mine.name)]
    if request.begun:
        raise InputError(
            f"{place} began in another ledger than {ledger}, or that was lost: name the one that it began in by "
            "--ledger"
        )
    for public in request.public:  # of a run that goes on it was asked when it began
        require_no_total(accounts, public)
    made = [] if known else _registration(accounts, request, seen, told, ledger)
    account, events = known or read_accounts(made)[dataset], request.plan.events()
    if account.benchmark:
        _require_comparable(account, request.plan)
    with naming_first(known, seen):
        require_same_kind(account, request.plan, request.records)
        made += record_new_fingerprint(accounts, account, seen, told)
        account.require_room(events)
    name, planned = uuid.uuid4().hex, uuid.uuid4().hex if account.untouched else ""
    reserved = entries.Reserved(
        dataset=dataset, reservation=name, planned=planned, events=entries.encode_events(events)
    )
    return [*made, reserved, request.taking(name)]


def _require_comparable(account: Account, plan: "Plan") -> None:
    """Raise InputError for a plan whose release could not say what all runs on a benchmark cost."""
    if plan.search is not None:
        raise InputError(f"{account.dataset} is a benchmark, on which methods are compared: search on other images")
    if plan.delta != account.delta:
        raise InputError(f"{account.dataset} is a benchmark at δ = {account.delta}: set privacy.delta to that")


def _registration(
    accounts: Accounts, request: Request, seen: entries.RecordsSeen, told: list[str], ledger: str
) -> list[Statement]:
    """Return the registration of a data set that is not there, with the plan's own claim for its total."""
    require_unknown(accounts, seen, private=not request.records.public)
    plan = request.plan
    # A hair above: another processor, on which the same plan is reserved again, may compute other last digits.
    epsilon = None if request.records.public else plan.epsilon() * (1 + 1e-7)
    total = (
        "public, so nothing limits its runs"
        if epsilon is None
        else f"a total of ({upwards(epsilon)}, {plan.delta}), this run's claim with room for rounding (dpdm ledger "
        "register gives another, before the first run)"
    )
    told.append(f"ledger: {seen.dataset} is new in {ledger}: {total}")
    return [entries.Registered.total(seen.dataset, epsilon, plan.delta, plan.relation, plan.one_unit), seen]


def _require_going_on(mine: Reservation, request: Request, ledger: str) -> None:
    """Raise InputError unless a run may go on under its reservation: it, and no copy of it."""
    place = request.place
    if mine.completed:
        raise InputError(f"{place} was completed or settled in the ledger {ledger}, and cannot go on: start a new run")
    if mine.allowed != request.plan.events():
        raise InputError(f"{place} has reserved other events in the ledger: start a new run")
    there = RunIdentity.read(Path(mine.place) / "private") if place != mine.place else None
    if (there is not None and there.run == mine.run) or mine.token not in request.tokens_before:
        raise InputError(
            f"{place} is a copy of {mine.place}, which has gone on: both would spend one reservation twice; go on "
            "there, or start a new run"
        )


def complete(mine: Reservation, events: Sequence[Event], tokens: Sequence[str]) -> list[Statement]:
    """Replace what a run has reserved by what it has released; nothing is appended if that was done before."""
    if mine.token not in tokens:
        raise InputError(f"{mine.place} has gone on since this copy was made: complete it there")
    if mine.completed and mine.events == list(events):
        return []
    if mine.completed:
        raise InputError(f"{mine.place} was completed or settled in the ledger and cannot go on: start anew")
    if not is_prefix_of(events, mine.allowed):
        raise InputError(f"{mine.place} cannot have released this: it has reserved less")
    done = entries.Completed(reservation=mine.name, events=entries.encode_events(events))
    # How long a search took would tell how many runs it had, which nobody may know.
    search = any(isinstance(event, RepeatedSelection) for event in mine.allowed)
    return [replace(done, at=mine.at) if search else done]


def is_prefix_of(events: Sequence[Event], allowed: Sequence[Event]) -> bool:
    """Whether `events` are the first of those allowed, the last of them perhaps with fewer steps."""
    if not events:
        return True
    *before, last = events
    if len(events) > len(allowed) or before != list(allowed[: len(before)]):
        return False
    most = allowed[len(before)]
    if isinstance(last, PoissonGaussianSteps) and isinstance(most, PoissonGaussianSteps):
        return last.steps <= most.steps and replace(last, steps=most.steps) == most
    return last == most
