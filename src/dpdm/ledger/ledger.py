"""The ledger: what every run has spent on a data set, across runs, searches and machines.

A run reserves all that it may release before its first noisy sum, and completes with what it has released. In between
a crash costs the whole reservation, until `settle` reads the run's journal.
"""

import os
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs

from dpdm.ledger.account import Account, Reservation, read_accounts, whole_percent
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
    decode_statement,
    encode_events,
    encode_statement,
)
from dpdm.ledger.in_folder import InLedger
from dpdm.ledger.records import (
    Records,
    account_of,
    fingerprint,
    has_others,
    naming_first,
    newly_seen,
    require_own_name,
    require_same_kind,
    require_unknown,
)
from dpdm.ledger.shown import Shown, Spent, show_accounts
from dpdm.ledger.storage import Entry, Head, Storage, read_place, require_goes_on
from dpdm.privacy.accounting import Event, PoissonGaussianSteps, Relation, RepeatedSelection, noise_of, round_up
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError, require_positive

if TYPE_CHECKING:
    from dpdm.privacy import Plan

_VARIABLE = "DPDM_LEDGER"


def _default_path() -> Path | None:
    """Return the place of the user's own ledger; None for one without a home folder, whom the system does not know."""
    try:
        path = platformdirs.user_data_path("dpdm") / "ledger.sqlite"
    except RuntimeError:
        return None
    return path if path.is_absolute() else None


def _on_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Ledger:
    """The book of what runs have spent on data sets.

    Args:
        url: A file's path, which is kept as it is seen from the working directory of now, or
            `postgresql+psycopg://user@host/database`.
        tell: Called with a line for people when something is worth telling (default: on standard error).

    Guarantees:
        * However many processes reserve at once, no total is passed, and no reservation is lost.
        * What has been reserved stays spent through any crash, until it is completed or settled.

    Raises:
        InputError: From every method, if the ledger is damaged or of a newer version, or says no.
        OSError: From every method, if the ledger cannot be reached.
    """

    url: str
    tell: Callable[[str], None] = field(default=_on_standard_error, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _absolute(self.url))

    @classmethod
    def default(cls, place: str | None = None, *, tell: Callable[[str], None] = _on_standard_error) -> "Ledger | None":
        """Return the ledger at `place`, or at what DPDM_LEDGER says, or in the user's data folder.

        None if that says `none`: then nothing is counted.

        Raises:
            InputError: The variable depends on where one stands: the same line would be another ledger in each folder;
                or there is no variable, and no home folder either.
        """
        if place is None:
            own = _default_path()
            if own is None and _VARIABLE not in os.environ:
                raise InputError(
                    "there is no home folder for the ledger: name a place for it by --ledger or "
                    f"{_VARIABLE}, or none for runs that are to be counted nowhere"
                )
            place = os.environ.get(_VARIABLE, str(own))
            if place != "none" and not (Path(place).is_absolute() or re.match(r"postgresql(\+\w+)?://", place)):
                raise InputError(
                    f"{_VARIABLE} says {place!r}, which is another ledger in each folder or for each user: give a path "
                    "that begins with /, postgresql+psycopg://user@host/database, or none"
                )
        return None if place == "none" else cls(place, tell)

    @cached_property
    def storage(self) -> Storage:
        """Where the entries are."""
        path = read_place(self.url)
        if isinstance(path, str):
            return Storage(path)
        if path == _default_path():  # any other folder that is not there is a mistake
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise OSError(
                    f"the ledger {path} cannot be made ({error.strerror}): name another place by --ledger or "
                    f"{_VARIABLE}; nothing was spent without it"
                ) from None
        return Storage(path)

    def accounts(self) -> dict[str, Account]:
        """Return the account of each data set, by name."""
        return read_accounts(_statements(self.storage.entries()))

    def account(self, dataset: str) -> Account:
        """Return the account of one data set."""
        return _known(self.accounts(), dataset)

    def shown(self, only: str | None = None) -> dict[str, Shown]:
        """Return what people are shown of each data set, or of one."""
        entries = self.storage.entries()
        statements = _statements(entries)
        if only is not None:
            _known(read_accounts(statements), only)
        return show_accounts(entries, statements, self.storage, only)

    def history(self, dataset: str) -> list[Spent]:
        """Return what had been spent or reserved of a data set after each of its entries."""
        return self.shown(dataset)[dataset].history

    def register(
        self, records: Records, *, epsilon: float | None, delta: float, relation: Relation, unit: str = "one image"
    ) -> None:
        """Give a data set its total (ε, δ), before anything is spent on it.

        One that is registered for claims of another kind is registered anew, if nothing is spent or reserved.

        Raises:
            InputError: It is registered already, or its records are, under another name.
        """
        require_own_name(records)
        seen = fingerprint(records, self.storage.key())
        new = Registered.total(records.dataset, epsilon, delta, relation, unit)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            with naming_first(accounts.get(records.dataset), seen):
                known = accounts.get(records.dataset)
                if known is not None and not (
                    known.untouched
                    and known.epsilon is not None
                    and (known.relation, known.unit) != (relation, unit)
                    and not has_others(known, seen)
                ):
                    raise InputError(
                        f"{records.dataset} is registered already: change its total by "
                        f"dpdm ledger total {records.dataset!r} --epsilon ..."
                    )
            require_unknown(accounts, seen)
            return [new, seen]

        self._append(decide)

    def change_total(self, dataset: str, *, epsilon: float) -> None:
        """Give a data set another ε, which stays on record: a filter wants its total fixed before the first run."""
        require_positive(epsilon=epsilon)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            account = _known(accounts, dataset)
            if account.epsilon is None:
                raise InputError(f"{dataset} is public: it has no total")
            order = RenyiFilter.for_gaussians(epsilon=epsilon, delta=account.delta).order
            return [TotalChanged(dataset=dataset, epsilon=epsilon, order=order)]

        self._append(decide)

    def allow_other_groups(self, dataset: str) -> None:
        """Let the records of a data set be in other groups than before, say because names were corrected.

        Only the owner can know that the new groups still mean the same thing (persons, not visits).
        """

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            _known(accounts, dataset)
            return [Regrouped(dataset=dataset)]

        self._append(decide)

    def reserve(
        self,
        run: str,
        plan: "Plan",
        records: Records,
        *,
        place: str,
        token: str = "",
        tokens_before: Sequence[str] = ("",),
        begun: bool = False,
        head: Head | None = None,
    ) -> Head:
        """Reserve all that a run may release, and return the ledger's head; the same run again is the same reservation.

        A reservation that was made beforehand for the same events is taken. A data set that is not there is registered,
        with the run's own (ε, δ) for its total.

        Args:
            run: What tells this run from all others.
            plan: What it may release.
            records: The data set.
            place: The run's folder, for people.
            token: New at every start of the run, and kept in its folder before this is called.
            tokens_before: Those that the folder held before: a copy that stayed behind lacks the last one.
            begun: Whether it has made noisy sums under its reservation before, which must then be there.
            head: What this returned to the run before, which must be in the ledger still.

        Raises:
            InputError: The total allows no more, or is about another relation or unit; or the run was settled, or began
                in another ledger, or in a newer state of this one.
        """
        require_own_name(records)
        events, of_records, told = plan.events(), fingerprint(records, self.storage.key()), list[str]()

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            dataset = account_of(accounts, plan, records)
            seen = replace(of_records, dataset=dataset)
            known, mine = accounts.get(dataset), _of_run(accounts, run)
            if mine is not None:
                self._require_going_on(mine, place, tokens_before, events)
                if known is None or mine not in known.reservations.values():
                    raise InputError(f"{place} has reserved of another data set than {dataset}: start a new run")
                require_same_kind(known, plan, records)
                new_records = newly_seen(accounts, known, seen, told)
                return [*new_records, Taken(reservation=mine.name, run=run, token=token, place=place)]
            if begun:
                raise InputError(
                    f"{place} began in another ledger than {self.storage.shown}, or that was lost: name the one that "
                    "it began in by --ledger"
                )
            made = [] if known else self._registration(accounts, plan, records, seen, told)
            account = known or read_accounts(made)[dataset]
            with naming_first(known, seen):
                require_same_kind(account, plan, records)
                made += newly_seen(accounts, account, seen, told)
                for key, reservation in account.reservations.items():
                    if reservation.state == "reserved" and reservation.allowed == events:
                        account.require_room()  # the total may have been lowered since
                        return [*made, Taken(reservation=key, run=run, token=token, place=place)]
                # The first run of all is planned, by itself: PLD may let it in.
                new, planned = uuid.uuid4().hex, "" if account.groups or account.entered else uuid.uuid4().hex
                account.require_room([Reservation("", "", planned, events, events)])
            encoded = encode_events(events)
            return [
                *made,
                Reserved(dataset=dataset, reservation=new, planned=planned, events=encoded, **_asked(plan)),
                Taken(reservation=new, run=run, token=token, place=place),
            ]

        seen_head = self._append(decide, head).head
        account = self.account_of(run)
        if account.epsilon is not None:
            told.append(
                f"ledger: {whole_percent(account.share)} % of the budget of {account.dataset}, a total of "
                f"({round_up(account.epsilon)}, {account.delta}), is spent or reserved"
            )
        for line in told:
            self.tell(line)
        return seen_head

    def reserved_plan(self, plan: "Plan", records: Records) -> "Plan | None":
        """Return the plan as a reservation has it that waits for a run; None if none was asked for the same.

        Noise that was calibrated elsewhere may have other last digits: whoever takes the reservation has to take these.
        """
        from dpdm.privacy.figures import Figures, figures_of, keep

        if not self.storage.exists:
            return None
        accounts = self.accounts()
        account = accounts.get(account_of(accounts, plan, records))
        for reservation in account.reservations.values() if account else ():
            asked, delta = reservation.asked or (None, plan.delta)
            if reservation.state != "reserved" or delta != plan.delta:
                continue
            noise = noise_of(reservation.allowed)[: len(figures_of(plan).noise)]
            kept = keep(plan, Figures(noise, asked))
            if kept is not None and kept.events() == reservation.allowed:
                return kept
        return None

    def reserve_together(self, plan: "Plan", records: Records, *, times: int) -> None:
        """Reserve several runs of one plan beforehand, so that PLD may compose them; runs take them as they begin."""
        events, seen = plan.events(), fingerprint(records, self.storage.key())

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            account = _known(accounts, records.dataset)
            if records.public and account.epsilon is None:
                raise InputError(f"{records.dataset} is public: nothing limits its runs, and none need be reserved")
            planned = uuid.uuid4().hex
            with naming_first(account, seen):
                require_same_kind(account, plan, records)
                account.require_room([Reservation("", "", planned, events, events)] * times)
            encoded = encode_events(events)
            return [
                Reserved(
                    dataset=records.dataset,
                    reservation=uuid.uuid4().hex,
                    planned=planned,
                    events=encoded,
                    **_asked(plan),
                )
                for _ in range(times)
            ]

        if times < 1:
            raise InputError(f"times must be 1 or more, not {times}")
        self._append(decide)

    def cancel(self, dataset: str, beginnings: Sequence[str] = ()) -> int:
        """Give back reservations that no run has taken; return how many there were.

        Args:
            dataset: The data set.
            beginnings: Of the reservations' names, as `dpdm ledger show` has them; all that wait, without any.

        Raises:
            InputError: None waits, or none whose name begins so; or giving them back would free nothing.
        """

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            account = _known(accounts, dataset)
            waiting = [r for r in account.reservations.values() if r.state == "reserved"]
            chosen = [r for r in waiting if not beginnings or any(map(r.name.startswith, beginnings))]
            if not chosen:
                raise InputError(f"no such reservation of {dataset} waits for a run: there is nothing to give back")
            before = account.share
            for reservation in chosen:
                reservation.events, reservation.completed = [], True
            if account.epsilon is not None and account.share >= before:
                raise InputError(
                    f"these runs on {dataset} fitted only because they were planned together, and one has begun: to "
                    "give others back would free nothing; let them wait for runs to come"
                )
            return [Completed(reservation=reservation.name, events=()) for reservation in chosen]

        return len(self._append(decide).statements)

    def reservation(self, run: str) -> Reservation:
        """Return what a run has reserved."""
        return self._required(self.accounts(), run)

    def account_of(self, run: str) -> Account:
        """Return the account in which a run has reserved."""
        accounts = self.accounts()
        mine = self._required(accounts, run)
        return next(account for account in accounts.values() if mine in account.reservations.values())

    def complete(
        self, run: str, events: Sequence[Event], *, tokens: Sequence[str] = ("",), head: Head | None = None
    ) -> None:
        """Replace what a run has reserved by what it has released; it will release nothing more.

        Args:
            run: The run.
            events: What it has released: its plan's, and fewer steps if it was stopped.
            tokens: Those that its folder holds, of which the ledger's last must be one.
            head: What `reserve` returned to the run, which must be in the ledger still.

        Raises:
            InputError: The run has reserved nothing, or less than this, or has gone on elsewhere; or the ledger is an
                older state of the one that the run knows.
        """

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            mine = self._required(accounts, run)
            if mine.token not in tokens:
                raise InputError(f"{mine.place} has gone on since this copy was made: complete it there")
            if mine.completed and mine.events == list(events):
                return []
            if mine.completed:
                raise InputError(f"{mine.place} was completed or settled in the ledger and cannot go on: start anew")
            if not _within(events, mine.allowed):
                raise InputError(f"{mine.place} cannot have released this: it has reserved less")
            done = Completed(reservation=mine.name, events=encode_events(list(events)))
            # How long a search took would tell how many runs it had, which nobody may know.
            search = any(isinstance(event, RepeatedSelection) for event in mine.allowed)
            return [replace(done, at=mine.at) if search else done]

        self._append(decide, head)

    def enter(self, dataset: str, *, what: str, epsilon: float, delta: float) -> None:
        """Enter what was released of a data set by other means, as its own (ε, δ)."""
        entry = Entered(dataset=dataset, what=what, epsilon=epsilon, delta=delta)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            _known(accounts, dataset).require_room(entered=[entry])
            return [entry]

        self._append(decide)

    def _registration(
        self, accounts: dict[str, Account], plan: "Plan", records: Records, seen: RecordsSeen, told: list[str]
    ) -> list[Statement]:
        """Return the registration of a data set that is not there, with the plan's own claim for its total."""
        require_unknown(accounts, seen)
        # A hair above: another processor, on which the same plan is reserved again, may compute other last digits.
        epsilon = None if records.public else plan.epsilon() * (1 + 1e-7)
        total = (
            "public, so nothing limits its runs"
            if epsilon is None
            else f"a total of ({round_up(epsilon)}, {plan.delta}), which is this run's claim (dpdm ledger register "
            "gives another, before the first run)"
        )
        told.append(f"ledger: {seen.dataset} is new in {self.storage.shown}: {total}")
        return [Registered.total(seen.dataset, epsilon, plan.delta, plan.relation, plan.one_unit), seen]

    def _required(self, accounts: dict[str, Account], run: str) -> Reservation:
        mine = _of_run(accounts, run)
        if mine is None:
            raise InputError(f"the ledger {self.storage.shown} has no reservation of this run: is it the right one?")
        return mine

    def _require_going_on(self, mine: Reservation, place: str, tokens: Sequence[str], events: list[Event]) -> None:
        """Raise InputError unless a run may go on under its reservation: it, and no copy of it."""
        if mine.completed:
            raise InputError(
                f"{place} was completed or settled in the ledger {self.storage.shown}, and cannot go on: start a new "
                "run"
            )
        if mine.allowed != events:
            raise InputError(f"{place} has reserved other events in the ledger: start a new run")
        there = InLedger.read(Path(mine.place) / "private") if place != mine.place else None
        if (there is not None and there.run == mine.run) or mine.token not in tokens:
            raise InputError(
                f"{place} is a copy of {mine.place}, which has gone on: both would spend one reservation twice; go on "
                "there, or start a new run"
            )

    def _append(
        self, decide: Callable[[dict[str, Account]], Sequence[Statement]], head: Head | None = None
    ) -> "_Appended":
        """Append what `decide` makes of all accounts, in a ledger that goes on from `head`."""
        decided: list[Statement] = []

        def checked(entries: list[Entry]) -> list[dict[str, Any]]:
            require_goes_on(entries, head, self.storage.shown)
            decided[:] = decide(read_accounts(_statements(entries)))
            made = [encode_statement(statement) for statement in decided]
            for content in made:  # what nobody could read again must not be written
                decode_statement(content, number=len(entries) + 1)
            return made

        *_, last = self.storage.append(checked)
        return _Appended(decided, Head(last.number, last.digest))


class _Appended(NamedTuple):
    """What was appended, and the ledger's head then."""

    statements: list[Statement]
    head: Head


def _absolute(url: str) -> str:
    """Return a ledger's place in words that mean the same wherever they are read, or raise InputError."""
    if not url.strip():
        raise InputError("the place of the ledger is empty: give the path of a file, or none, or leave it out")
    return str(read_place(url))


def _asked(plan: "Plan") -> dict[str, Any]:
    """Return what a plan's noise was calibrated to, as a reservation keeps it."""
    from dpdm.privacy.figures import figures_of

    epsilon = figures_of(plan).asked
    return {} if epsilon is None else {"epsilon": epsilon, "delta": plan.delta}


def _statements(entries: Sequence[Entry]) -> list[Statement]:
    return [decode_statement(entry.content, number=entry.number) for entry in entries]


def _known(accounts: dict[str, Account], dataset: str) -> Account:
    if dataset not in accounts:
        known = f"it has {', '.join(sorted(accounts))}" if accounts else "register it first"
        raise InputError(f"the ledger has no data set {dataset!r}: {known}")
    return accounts[dataset]


def _of_run(accounts: dict[str, Account], run: str) -> Reservation | None:
    return next((r for a in accounts.values() for r in a.reservations.values() if r.run == run), None)


def _within(events: Sequence[Event], allowed: Sequence[Event]) -> bool:
    """Whether `events` are the first of those allowed, the last of them perhaps with fewer steps."""
    if len(events) > len(allowed) or list(events[:-1]) != list(allowed[: len(events[:-1])]):
        return False
    for last, most in zip(events[-1:], allowed[len(events[:-1]) :], strict=False):
        if isinstance(last, PoissonGaussianSteps) and isinstance(most, PoissonGaussianSteps):
            return last.steps <= most.steps and replace(last, steps=most.steps) == most
        return last == most
    return True
