"""The ledger: what every run has spent on a data set, across runs, searches and machines.

A run reserves all that it may release before its first noisy sum, and completes with what it has released. In between
a crash costs the whole reservation, until `settle` reads the run's journal.
"""

import hmac
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import sqlalchemy as sql
from numpy.typing import NDArray

from dpdm.ledger.account import Account, Reservation, Spent, read_accounts, read_history
from dpdm.ledger.entries import (
    Completed,
    Entered,
    RecordsSeen,
    Registered,
    Reserved,
    Statement,
    Taken,
    TotalChanged,
    decode_statement,
    encode_events,
    encode_statement,
)
from dpdm.ledger.storage import Entry, Storage
from dpdm.privacy import DPSGD, Relation
from dpdm.privacy.accounting import Event, PoissonGaussianSteps
from dpdm.types import Images, InputError

_VARIABLE = "DPDM_LEDGER"
_PART = 4096


def _on_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Records:
    """What a ledger has to know of the records of a run.

    Args:
        dataset: The declared name of the data set.
        images: All of them: secret; a digest under the ledger's key is what is kept.
        groups: Which group each image belongs to, (number,), where a group is the unit of protection; secret as well.
        public: Whether the data set is published already, so that its total is not limited.
    """

    dataset: str
    images: Images
    groups: NDArray[np.int64] | None = None
    public: bool = False


@dataclass(frozen=True)
class Ledger:
    """The book of what runs have spent on data sets.

    Args:
        url: A file's path, or `postgresql+psycopg://user@host/database`.
        tell: Called with a line for people when something is worth telling; standard error gets it unless told.

    Guarantees:
        * However many processes reserve at once, no total is passed, and no reservation is lost.
        * What has been reserved stays spent through any crash, until it is completed or settled.

    Raises:
        InputError: From every method, if the ledger is damaged or of a newer version, or says no.
        OSError: From every method, if the ledger cannot be reached.
    """

    url: str
    tell: Callable[[str], None] = field(default=_on_standard_error, compare=False, repr=False)

    @classmethod
    def default(cls, place: str | None = None) -> "Ledger | None":
        """Return the ledger at `place`, or at what DPDM_LEDGER says, or in the user's data folder.

        None if that says `none`: then nothing is counted.
        """
        place = place or os.environ.get(_VARIABLE) or str(platformdirs.user_data_path("dpdm") / "ledger.sqlite")
        return None if place == "none" else cls(place)

    @cached_property
    def storage(self) -> Storage:
        """Where the entries are."""
        if "://" in self.url:
            return Storage(self.url)
        return Storage(sql.URL.create("sqlite", database=str(Path(self.url).expanduser().absolute())))

    def accounts(self) -> dict[str, Account]:
        """Return the account of each data set, by name."""
        return read_accounts(_statements(self.storage.entries()))

    def account(self, dataset: str) -> Account:
        """Return the account of one data set."""
        return _known(self.accounts(), dataset)

    def history(self, dataset: str) -> list[Spent]:
        """Return what had been spent or reserved of a data set after each of its entries."""
        return read_history(_statements(self.storage.entries()), dataset)

    def register(
        self, records: Records, *, epsilon: float | None, delta: float, relation: Relation, unit: str = "one image"
    ) -> None:
        """Give a data set its total (ε, δ), before anything is spent on it.

        Raises:
            InputError: It is registered already, or its records are, under another name.
        """
        seen = self.seen(records)
        new = Registered.total(records.dataset, epsilon, delta, relation, unit)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            if records.dataset in accounts:
                raise InputError(
                    f"{records.dataset} is registered already: change its total by "
                    f"dpdm ledger total {records.dataset!r} --epsilon ..."
                )
            return _registration(accounts, new, seen)

        self._append(decide)

    def change_total(self, dataset: str, *, epsilon: float) -> None:
        """Give a data set another ε, which stays on record: a filter wants its total fixed before the first run.

        Its owner may also give it the same ε anew, which allows the same images to be in other groups than before.
        """

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            if _known(accounts, dataset).epsilon is None:
                raise InputError(f"{dataset} is public: it has no total")
            return [TotalChanged(dataset=dataset, epsilon=epsilon)]

        self._append(decide)

    def reserve(
        self,
        run: str,
        plan: DPSGD,
        records: Records,
        *,
        place: str,
        token: str = "",
        tokens_before: Sequence[str] = ("",),
        begun: bool = False,
    ) -> None:
        """Reserve all that a run may release; the same run again is the same reservation.

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

        Raises:
            InputError: The total allows no more, or is about another relation or unit; or the run was settled, or began
                in another ledger.
        """
        events, seen = plan.events(), self.seen(records)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            mine = _of_run(accounts, run)
            if mine is not None:
                if mine.completed:
                    raise InputError(
                        f"{place} was completed or settled in the ledger {self.storage.shown}, and cannot go on: start "
                        "a new run"
                    )
                if mine.allowed != events:
                    raise InputError(f"{place} has reserved other events in the ledger: start a new run")
                _require_no_copy(mine, place, tokens_before)
                return [Taken(reservation=mine.name, run=run, token=token, place=place)]
            if begun:
                raise InputError(
                    f"{place} began in another ledger than {self.storage.shown}, or that was lost: name the one that "
                    "it began in by --ledger"
                )
            dataset = _account_of(accounts, plan, records)
            first = dataset not in accounts
            made = self._registered(accounts, plan, records, replace(seen, dataset=dataset)) if first else []
            account = read_accounts(made)[dataset] if first else accounts[dataset]
            _require_same_kind(account, plan, records)
            made += self._records_seen(accounts, account, replace(seen, dataset=dataset))
            for key, reservation in account.reservations.items():
                if reservation.state == "reserved" and reservation.allowed == events:
                    return [*made, Taken(reservation=key, run=run, token=token, place=place)]
            # The first run's claim is the total, which PLD lets in; otherwise that is for runs reserved beforehand.
            new, planned = uuid.uuid4().hex, uuid.uuid4().hex if first else ""
            account.require_room([Reservation("", "", planned, events, events)])
            encoded = encode_events(events)
            return [
                *made,
                Reserved(dataset=dataset, reservation=new, planned=planned, events=encoded),
                Taken(reservation=new, run=run, token=token, place=place),
            ]

        account = _known(read_accounts(_statements(self._append(decide))), records.dataset)
        if account.epsilon is not None:
            self.tell(
                f"ledger: {100 * account.share:.0f} % of the budget of {records.dataset}, a total of "
                f"({account.epsilon:g}, {account.delta:g}), is spent or reserved"
            )

    def reserve_together(self, plan: DPSGD, records: Records, *, times: int) -> None:
        """Reserve several runs of one plan beforehand, so that PLD may compose them; runs take them as they begin."""
        events = plan.events()

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            account = _known(accounts, records.dataset)
            _require_same_kind(account, plan, records)
            planned = uuid.uuid4().hex
            account.require_room([Reservation("", "", planned, events, events)] * times)
            encoded = encode_events(events)
            return [
                Reserved(dataset=records.dataset, reservation=uuid.uuid4().hex, planned=planned, events=encoded)
                for _ in range(times)
            ]

        if times < 1:
            raise InputError(f"times must be 1 or more, not {times}")
        self._append(decide)

    def cancel(self, dataset: str) -> int:
        """Give back all reservations of a data set that no run has taken; return how many there were."""
        waiting: list[Reservation] = []

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            waiting[:] = [r for r in _known(accounts, dataset).reservations.values() if r.state == "reserved"]
            if not waiting:
                raise InputError(f"no reservation of {dataset} waits for a run: there is nothing to give back")
            return [Completed(reservation=reservation.name, events=()) for reservation in waiting]

        self._append(decide)
        return len(waiting)

    def complete(self, run: str, events: Sequence[Event], *, tokens: Sequence[str] = ("",)) -> None:
        """Replace what a run has reserved by what it has released; it will release nothing more.

        Args:
            run: The run.
            events: What it has released: its plan's, and fewer steps if it was stopped.
            tokens: Those that its folder holds, of which the ledger's last must be one.

        Raises:
            InputError: The run has reserved nothing, or less than this, or has gone on elsewhere.
        """

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            for account in accounts.values():
                for key, reservation in account.reservations.items():
                    if reservation.run != run:
                        continue
                    if reservation.completed and reservation.events == list(events):
                        return []
                    if reservation.completed:
                        raise InputError(
                            f"{reservation.place} was completed or settled in the ledger and cannot go on: start anew"
                        )
                    if not _within(events, reservation.allowed):
                        raise InputError(f"{reservation.place} cannot have released this: it has reserved less")
                    if reservation.token not in tokens:
                        raise InputError(f"{reservation.place} has gone on since this copy was made: complete it there")
                    return [Completed(reservation=key, events=encode_events(list(events)))]
            raise InputError(f"the ledger {self.storage.shown} has no reservation of this run")

        self._append(decide)

    def enter(self, dataset: str, *, what: str, epsilon: float, delta: float) -> None:
        """Enter what was released of a data set by other means, as its own (ε, δ)."""
        entry = Entered(dataset=dataset, what=what, epsilon=epsilon, delta=delta)

        def decide(accounts: dict[str, Account]) -> Sequence[Statement]:
            _known(accounts, dataset).require_room(entered=[entry])
            return [entry]

        self._append(decide)

    def seen(self, records: Records) -> RecordsSeen:
        """Return what the ledger keeps to know records again, in any order: sums of digests under its key.

        Without the key, nobody can try whether certain images, or certain groups of them, give these digests.
        """
        key, shape, of_each = self.storage.key(), str(records.images.shape[1:]).encode(), []
        for start in range(0, len(records.images), _PART):
            for image in np.asarray(records.images[start : start + _PART]):
                of_each.append(_keyed(key, shape + image.tobytes()))
        of_groups: dict[int, int] = {}
        if records.groups is not None:
            for group, digest in zip(records.groups.tolist(), of_each, strict=True):
                of_groups[group] = of_groups.get(group, 0) + digest
        in_groups = sum(_keyed(key, f"group {_hexadecimal(total)}".encode()) for total in of_groups.values())
        return RecordsSeen(
            dataset=records.dataset,
            records=_hexadecimal(sum(of_each)),
            groups=_hexadecimal(in_groups) if of_groups else "",
        )

    def _registered(
        self, accounts: dict[str, Account], plan: DPSGD, records: Records, seen: RecordsSeen
    ) -> list[Statement]:
        """Return the registration of a data set that is not there, with the plan's own claim for its total."""
        epsilon = None if records.public else plan.epsilon()
        total = "public, so nothing limits its runs" if epsilon is None else f"({epsilon:.4g}, {plan.delta:g}) in all"
        self.tell(f"ledger: {seen.dataset} is new in {self.storage.shown}: {total}")
        new = Registered.first_run(seen.dataset, epsilon, plan.delta, plan.relation, plan.one_unit)
        return _registration(accounts, new, seen)

    def _records_seen(self, accounts: dict[str, Account], account: Account, seen: RecordsSeen) -> list[Statement]:
        """Return the entry for records that this data set has not had before: they count for the same total."""
        if seen.records in account.records:
            groups = account.records[seen.records]
            if groups and seen.groups and groups != seen.groups:
                raise InputError(
                    f"{account.dataset} had the same images in other groups before, and claims about two kinds of "
                    "groups do not add up: give data.group as before; if it was corrected, who owns the data may allow "
                    f"it, by dpdm ledger total {account.dataset!r} --epsilon {account.total:g}"
                )
            return [] if groups else [seen] * bool(seen.groups)
        _require_unknown(accounts, seen)
        self.tell(f"ledger: {account.dataset} has other records than before, and goes on with the same total")
        return [seen]

    def _append(self, decide: Callable[[dict[str, Account]], Sequence[Statement]]) -> list[Entry]:
        def checked(entries: list[Entry]) -> list[dict[str, Any]]:
            made = [encode_statement(statement) for statement in decide(read_accounts(_statements(entries)))]
            for content in made:  # what nobody could read again must not be written
                decode_statement(content, number=len(entries) + 1)
            return made

        return self.storage.append(checked)


def _keyed(key: bytes, content: bytes) -> int:
    return int.from_bytes(hmac.digest(key, content, "sha256"), "big")


def _hexadecimal(total: int) -> str:
    return f"{total % 2**256:064x}"


def _account_of(accounts: dict[str, Account], plan: DPSGD, records: Records) -> str:
    """Return the name of a run's account: its data set's, or one by its kind too if that is public and of another.

    Nothing limits the runs on public data, and all that is lost is a sum that would have no meaning.
    """
    account = accounts.get(records.dataset)
    if not records.public or account is None or (account.relation, account.unit) == (plan.relation, plan.one_unit):
        return records.dataset
    return f"{records.dataset} ({plan.relation} of {plan.one_unit})"


def _registration(accounts: dict[str, Account], new: Registered, seen: RecordsSeen) -> list[Statement]:
    """Return the entries of a new data set, unless its records are known under another name."""
    _require_unknown(accounts, seen)
    return [new, seen]


def _require_unknown(accounts: dict[str, Account], seen: RecordsSeen) -> None:
    """Raise InputError if these records are those of another data set whose total is limited."""
    for account in accounts.values():
        if account.dataset != seen.dataset and account.epsilon is not None and seen.records in account.records:
            raise InputError(
                f"the records of {seen.dataset} are registered as {account.dataset}: go on under that name, by "
                f"--set data.name={account.dataset!r}"
            )


def _require_no_copy(mine: Reservation, place: str, tokens: Sequence[str]) -> None:
    """Raise InputError if a run goes on in two places, which would spend one reservation twice."""
    elsewhere = place != mine.place and (Path(mine.place) / "private").exists()
    if elsewhere or mine.token not in tokens:
        raise InputError(
            f"{place} is a copy of {mine.place}, which has gone on: both would spend one reservation twice; go on "
            "there, or start a new run"
        )


def _require_same_kind(account: Account, plan: DPSGD, records: Records) -> None:
    """Raise InputError unless a plan's claim is of the kind that a data set is registered for."""
    if (account.epsilon is None) != records.public:
        raise InputError(
            f"{account.dataset} is registered as a {'public' if account.epsilon is None else 'private'} data set: name "
            "yours anew, by --set data.name=..."
        )
    if (account.relation, account.unit) != (plan.relation, plan.one_unit):
        raise InputError(
            f"{account.dataset} is registered for {account.relation} of {account.unit}, and this run is for "
            f"{plan.relation} of {plan.one_unit}: claims of two kinds do not add up; give --dataset-size and "
            "data.group as before"
        )


def _statements(entries: Sequence[Entry]) -> list[Statement]:
    return [decode_statement(entry.content, number=entry.number) for entry in entries]


def _known(accounts: dict[str, Account], dataset: str) -> Account:
    if dataset not in accounts:
        raise InputError(
            f"the ledger has no data set {dataset!r}; it has {', '.join(sorted(accounts)) or 'none'}: register it first"
        )
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
