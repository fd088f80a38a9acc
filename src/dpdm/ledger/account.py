"""What one data set's entries add up to: its total, what is spent or reserved, and whether more fits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dpdm.ledger import entries
from dpdm.ledger.entries import Statement
from dpdm.privacy.accounting import (
    Accountant,
    Event,
    GaussianRelease,
    Relation,
    epsilon,
    merged,
    upwards,
)
from dpdm.privacy.filter import RenyiFilter
from dpdm.privacy.gaussians import gaussian_mu
from dpdm.types import InputError

_MOST_RUNS = 10_000  # that are counted in advance


@dataclass
class Reservation:
    """The part of a run: what it may release at most, or, once it is completed, what it has released.

    Args:
        name: Its own.
        at: When it was made.
        planned: The same for what PLD composed as one plan; empty for what the filter let in.
        events: What is counted.
        allowed: What was reserved.
        run: The run that took it.
        token: By which its process of now is told from copies and earlier ones.
        place: That run's folder.
        completed: Whether the run will release nothing more.
    """

    name: str
    at: str
    planned: str
    events: list[Event]
    allowed: list[Event]
    run: str | None = None
    token: str = ""
    place: str = ""
    completed: bool = False

    @property
    def state(self) -> str:
        """For people."""
        if self.run is None:  # which a ledger of an earlier version may hold
            return "given back" if self.completed else "reserved"
        return "completed" if self.completed else "running"


@dataclass
class Account:
    """One data set: the result of reading its entries in order.

    `records` maps a digest of the images to a digest of their groups: empty without groups, or once the owner of the
    data has allowed others. `benchmark` is whether methods are compared on it, which no later entry can change.

    Guarantees:
        * Whatever `require_room` lets pass keeps all releases together within the total, even if each run was chosen
          after the results of those before it.
    """

    dataset: str
    epsilon: float | None
    delta: float
    relation: Relation
    unit: str
    order: float | None
    registered: str
    records: dict[str, str] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    entered: list[entries.OtherReleaseEntered] = field(default_factory=list)
    facts: entries.FactsDeclared | None = None
    benchmark: bool = False

    @property
    def filter(self) -> RenyiFilter | None:
        """The total as a budget; None on a public data set."""
        if self.epsilon is None or self.order is None:
            return None
        return RenyiFilter(epsilon=self.epsilon, delta=self.delta, order=self.order)

    def require_room(self, events: Sequence[Event] = (), entered: Sequence[entries.OtherReleaseEntered] = ()) -> None:
        """Raise InputError unless these fit into the total together with all that is there.

        The filter decides, which allows for adaptive choice. The first run on a data set is planned, by itself: PLD may
        let it in, which is tighter.
        """
        budget = self.filter
        if budget is None:
            if self.benchmark and 10 * sum(entry.delta for entry in [*self.entered, *entered]) > self.delta:
                raise InputError(
                    f"{self.dataset} is a benchmark at δ = {self.delta}, of which a tenth is for releases with a δ of "
                    "their own: it does not fit"
                )
            return
        spent = self._divergence(budget)
        more = budget.divergence(events, self.relation) + sum(entry.epsilon for entry in entered)
        own = sum(entry.delta for entry in [*self.entered, *entered])
        if budget.allows(spent + more, delta=own):
            return
        if entered and budget.allows(spent + more):
            raise InputError(
                f"{self.dataset} has a total of δ = {self.delta}, of which a tenth is for releases with a δ of their "
                f"own. These would have {own} together: it does not fit"
            )
        if self.untouched and not entered:
            ways = (merged(events), events)  # equal but for round-off
            if any(epsilon(way, delta=self.delta, relation=self.relation) <= self.total for way in ways):
                return
        raise InputError(
            f"{self.dataset} has a total of ({upwards(self.total)}, {self.delta}), of which "
            f"{whole_percent(_share(spent, budget))} % is spent or reserved. This needs "
            f"{whole_percent(_share(more, budget))} %: it does not fit. Details: "
            f"dpdm ledger show {self.dataset!r}. The owner of the data can raise the total: "
            f"dpdm ledger total {self.dataset!r} --epsilon ..."
        )

    @property
    def untouched(self) -> bool:
        """Whether nothing is spent or reserved: another kind of claim may take its place then."""
        return not self.groups and not self.entered

    @property
    def total(self) -> float:
        """ε of the total; infinite for a public data set."""
        return float("inf") if self.epsilon is None else self.epsilon

    @property
    def groups(self) -> list[list[Reservation]]:
        """Reservations as they were planned, but for those of which nothing was released, or ever will be."""
        together: dict[str, list[Reservation]] = {}
        for reservation in self.reservations.values():
            together.setdefault(reservation.planned or reservation.name, []).append(reservation)
        return [runs for runs in together.values() if any(run.events or not run.completed for run in runs)]

    @property
    def events(self) -> list[Event]:
        """All that is spent or reserved and has events."""
        return [event for reservation in self.reservations.values() for event in reservation.events]

    @property
    def share(self) -> float:
        """The part of the budget that is spent or reserved, from 0 to 1; 1 for runs that PLD alone let in."""
        budget = self.filter
        return 0.0 if budget is None else _share(self._divergence(budget), budget)

    @property
    def epsilon_if_planned(self) -> float:
        """What all of it would cost at the total's δ, had it been planned beforehand; by PLD."""
        return self._cost_if_planned("pld")

    @property
    def epsilon_by_rdp(self) -> float:
        """The same by RDP, which takes no time."""
        return self._cost_if_planned("rdp")

    def more_runs(self, *, epsilon: float) -> int:
        """Return how many more runs at `epsilon` fit, each chosen after the results of those before it.

        A run counts as one Gaussian release of (epsilon, total's δ); one of small batches can take more.
        """
        budget = self.filter
        if budget is None:
            raise InputError(f"{self.dataset} is public: nothing limits its runs")
        run = GaussianRelease(noise_multiplier=1 / gaussian_mu(epsilon=epsilon, delta=self.delta))
        own = sum(entry.delta for entry in self.entered)
        each, spent = budget.divergence([run], self.relation), self._divergence(budget)
        room = (budget.budget - spent) / each if budget.allows(spent, delta=own) else 0.0
        first = int(self.untouched and epsilon <= self.total)
        return min(_MOST_RUNS, max(first, int(room + 1e-9)))

    def _cost_if_planned(self, accountant: Accountant) -> float:
        left = self.delta - sum(entry.delta for entry in self.entered)
        if left <= 0:
            return float("inf")
        of_events = epsilon(merged(self.events), delta=left, relation=self.relation, accountant=accountant)
        return of_events + sum(entry.epsilon for entry in self.entered)

    def _divergence(self, budget: RenyiFilter) -> float:
        """Return what is spent or reserved of the budget.

        Runs that PLD alone let in count in full even if they released less: whether they would was not known when they
        began, and then no filter covered them.
        """
        spent = sum(entry.epsilon for entry in self.entered)
        for runs in self.groups:
            allowed = budget.divergence([event for run in runs for event in run.allowed], self.relation)
            released = budget.divergence([event for run in runs for event in run.events], self.relation)
            spent += released if budget.allows(allowed) else allowed
        return spent


Accounts = dict[str, Account]
"""The account of each data set, by name."""


def read_accounts(statements: Iterable[Statement]) -> Accounts:
    """Return the account of each data set."""
    accounts = Accounts()
    for statement in statements:
        apply(statement, accounts)
    return accounts


def apply(statement: Statement, accounts: Accounts) -> Account:
    """Enter a statement into its account, and return that; one about something unknown raises KeyError."""
    match statement:
        case entries.Registered():
            return _register(statement, accounts)
        case entries.ReservationTaken() | entries.Completed():
            name = statement.reservation
            account = next((a for a in accounts.values() if name in a.reservations), None)
            if account is None:
                raise KeyError(name)
            reservation = account.reservations[name]
            if isinstance(statement, entries.Completed):
                reservation.events, reservation.completed = statement.made, True
            else:
                reservation.run, reservation.token, reservation.place = statement.run, statement.token, statement.place
            return account
    account = accounts[statement.dataset]
    match statement:
        case entries.RecordsSeen():
            account.records |= statement.records
        case entries.BenchmarkDeclared():
            if account.epsilon is not None or account.records or not account.untouched:
                raise InputError(f"the ledger is damaged: {account.dataset} became a benchmark late; restore a backup")
            account.benchmark = True
        case entries.FactsDeclared():
            account.facts = statement
        case entries.TotalChanged():
            account.epsilon, account.order = statement.epsilon, statement.order
        case entries.GroupsReleased():
            account.records = dict.fromkeys(account.records, "")
        case entries.OtherReleaseEntered():
            account.entered.append(statement)
        case entries.Reserved(reservation=name, made=made):
            account.reservations[name] = Reservation(name, statement.at, statement.planned, made, made)
    return account


def _register(statement: entries.Registered, accounts: Accounts) -> Account:
    name = statement.dataset
    before = accounts.get(name)
    if before is not None and (before.benchmark or not before.untouched):
        raise InputError(f"the ledger is damaged: {name} is registered twice; restore a backup")
    kept = () if before is None else (before.records, before.reservations)
    total = statement.epsilon, statement.delta, statement.relation, statement.unit, statement.order
    accounts[name] = Account(name, *total, statement.at, *kept)
    return accounts[name]


def find_run(accounts: Accounts, run: str) -> tuple[Account, Reservation] | None:
    """Return the reservation that a run has taken, with its account; None if it has none."""
    found = ((account, r) for account in accounts.values() for r in account.reservations.values() if r.run == run)
    return next(found, None)


def require_account(accounts: Accounts, dataset: str) -> Account:
    """Return the account of a data set, or raise InputError."""
    if dataset not in accounts:
        known = f"it has {', '.join(sorted(accounts))}" if accounts else "register it first"
        raise InputError(f"the ledger has no data set {dataset!r}: {known}")
    return accounts[dataset]


def whole_percent(share: float) -> int:
    """Return what is spent of a budget in per cent, upwards; what is left is the rest of 100, and so downwards."""
    return math.ceil(100 * share - 1e-9)  # less the round-off of sums


def _share(divergence: float, budget: RenyiFilter) -> float:
    return min(1.0, divergence / budget.budget) if budget.budget > 0 else 1.0
