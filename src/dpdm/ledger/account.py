"""What one data set's entries add up to: its total, what is spent or reserved, and whether more fits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dpdm.ledger.entries import (
    Completed,
    Entered,
    RecordsSeen,
    Registered,
    Regrouped,
    Reserved,
    Statement,
    Taken,
    TotalChanged,
)
from dpdm.privacy.accounting import (
    Accountant,
    Event,
    GaussianRelease,
    Relation,
    epsilon,
    gaussian_mu,
    merged,
    upwards,
)
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError

_MOST_RUNS = 10_000  # that are counted in advance


@dataclass
class Reservation:
    """The part of a run: what it may release at most, or, once it is completed, what it has released.

    Args:
        name: Its own.
        at: When it was made.
        planned: The same for reservations that were made together; empty for one that was made by itself.
        events: What is counted.
        allowed: What was reserved.
        asked: The (ε, δ) that its noise was calibrated to; None if it was given.
        run: The run that took it; None as long as none has.
        token: By which its process of now is told from copies and earlier ones.
        place: That run's folder.
        completed: Whether the run will release nothing more.
    """

    name: str
    at: str
    planned: str
    events: list[Event]
    allowed: list[Event]
    asked: tuple[float, float] | None = None
    run: str | None = None
    token: str = ""
    place: str = ""
    completed: bool = False

    @property
    def state(self) -> str:
        """For people."""
        if self.run is None:
            return "given back" if self.completed else "reserved"
        return "completed" if self.completed else "running"


@dataclass
class Account:
    """One data set: the result of reading its entries in order.

    `records` maps a digest of the images to a digest of their groups: empty without groups, or once the owner of the
    data has allowed others.

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
    entered: list[Entered] = field(default_factory=list)

    @property
    def filter(self) -> RenyiFilter | None:
        """The total as a budget; None on a public data set."""
        if self.epsilon is None or self.order is None:
            return None
        return RenyiFilter(epsilon=self.epsilon, delta=self.delta, order=self.order)

    def require_room(self, reserved: Sequence[Reservation] = (), entered: Sequence[Entered] = ()) -> None:
        """Raise InputError unless these fit into the total together with all that is there.

        Either by the filter, which allows for adaptive choice; or, if all there ever was are runs that were reserved
        together, by PLD, which is tighter.
        """
        budget = self.filter
        if budget is None:
            return
        events = [event for reservation in reserved for event in reservation.events]
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
        whole = [*(run for runs in self.groups for run in runs), *reserved]
        together = {reservation.planned for reservation in whole}
        if len(together) == 1 and together != {""} and not self.entered and not entered:
            allowed = [event for reservation in whole for event in reservation.allowed]
            ways = (merged(allowed), allowed) if len(whole) == 1 else (merged(allowed),)  # equal but for round-off
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
        """Reservations that were made together, but for those of which nothing was released, or ever will be."""
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
        return _planned(self.events, self.entered, self.delta, self.relation, "pld")

    @property
    def epsilon_by_rdp(self) -> float:
        """The same by RDP, which takes no time."""
        return _planned(self.events, self.entered, self.delta, self.relation, "rdp")

    def more_runs(self, *, epsilon: float) -> tuple[int, int]:
        """Return how many more runs at `epsilon` fit: chosen one after another; and if planned together, now.

        A run counts as one Gaussian release of (epsilon, total's δ); one of small batches can take more.
        """
        budget = self.filter
        if budget is None:
            raise InputError(f"{self.dataset} is public: nothing limits its runs")
        run = GaussianRelease(noise_multiplier=1 / gaussian_mu(epsilon=epsilon, delta=self.delta))
        own = sum(entry.delta for entry in self.entered)
        each, spent = budget.divergence([run], self.relation), self._divergence(budget)
        room = (budget.budget - spent) / each if budget.allows(spent, delta=own) else 0.0
        adaptive = min(_MOST_RUNS, max(0, int(room + 1e-9)))
        if self.groups or self.entered:
            return adaptive, adaptive
        planned = int(gaussian_mu(epsilon=self.total, delta=self.delta) ** 2 * run.noise_multiplier**2 + 1e-9)
        return adaptive, min(_MOST_RUNS, max(adaptive, planned))

    def _divergence(self, budget: RenyiFilter) -> float:
        """Return what is spent or reserved of the budget.

        Runs that PLD alone let in, together, count in full even if they released less: whether they would was not known
        when they began, and then no filter covered them.
        """
        spent = sum(entry.epsilon for entry in self.entered)
        for runs in self.groups:
            allowed = budget.divergence([event for run in runs for event in run.allowed], self.relation)
            released = budget.divergence([event for run in runs for event in run.events], self.relation)
            spent += released if budget.allows(allowed) else allowed
        return spent


def read_accounts(statements: Iterable[Statement]) -> dict[str, Account]:
    """Return the account of each data set."""
    accounts: dict[str, Account] = {}
    for statement in statements:
        apply(statement, accounts)
    return accounts


def apply(statement: Statement, accounts: dict[str, Account]) -> None:
    """Enter a statement into its account; a statement about something unknown raises KeyError."""
    match statement:
        case Registered():
            before = accounts.get(statement.dataset)
            if before is not None and not before.untouched:
                raise InputError(f"the ledger is damaged: {statement.dataset} is registered twice; restore a backup")
            accounts[statement.dataset] = Account(
                dataset=statement.dataset,
                epsilon=statement.epsilon,
                delta=statement.delta,
                relation=statement.relation,
                unit=statement.unit,
                order=statement.order,
                registered=statement.at,
                records={} if before is None else before.records,
                reservations={} if before is None else before.reservations,
            )
        case RecordsSeen():
            accounts[statement.dataset].records |= statement.records
        case TotalChanged():
            accounts[statement.dataset].epsilon = statement.epsilon
            accounts[statement.dataset].order = statement.order
        case Regrouped():
            accounts[statement.dataset].records = dict.fromkeys(accounts[statement.dataset].records, "")
        case Entered():
            accounts[statement.dataset].entered.append(statement)
        case Reserved():
            made = statement.made
            epsilon, delta = statement.epsilon, statement.delta
            asked = None if epsilon is None or delta is None else (epsilon, delta)
            reservation = Reservation(statement.reservation, statement.at, statement.planned, made, made, asked)
            accounts[statement.dataset].reservations[statement.reservation] = reservation
        case Taken():
            reservation = _find(statement.reservation, accounts)
            reservation.run, reservation.token, reservation.place = statement.run, statement.token, statement.place
        case Completed():
            reservation = _find(statement.reservation, accounts)
            reservation.events, reservation.completed = statement.made, True


def _share(divergence: float, budget: RenyiFilter) -> float:
    return min(1.0, divergence / budget.budget) if budget.budget > 0 else 1.0


def whole_percent(share: float) -> int:
    """Return what is spent of a budget in per cent, upwards; what is left is the rest of 100, and so downwards."""
    return math.ceil(100 * share - 1e-9)  # less the round-off of sums


def _find(reservation: str, accounts: dict[str, Account]) -> Reservation:
    return next(a.reservations[reservation] for a in accounts.values() if reservation in a.reservations)


def _planned(
    events: Sequence[Event], entered: Sequence[Entered], delta: float, relation: Relation, accountant: Accountant
) -> float:
    left = delta - sum(entry.delta for entry in entered)
    if left <= 0:
        return float("inf")
    of_events = epsilon(merged(events), delta=left, relation=relation, accountant=accountant)
    return of_events + sum(entry.epsilon for entry in entered)
