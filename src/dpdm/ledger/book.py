"""The ledger: what every run has spent on a data set, across runs, searches and machines.

A run reserves all that it may release before its first noisy sum, and completes with what it has released. In between
a crash costs the whole reservation, until `settle` reads the run's journal.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from dpdm.ledger import decisions
from dpdm.ledger.account import Account, Accounts, Reservation, find_run, read_accounts, require_account, whole_percent
from dpdm.ledger.entries import (
    FactsDeclared,
    GroupsReleased,
    OtherReleaseEntered,
    Registered,
    Statement,
    decode_statement,
)
from dpdm.ledger.records import Records, fingerprint, require_no_total, require_own_name
from dpdm.ledger.shown import Shown, Spent, show_accounts
from dpdm.ledger.storage import Entry, Head, Storage, read_place, require_goes_on
from dpdm.privacy.accounting import Event, Relation, upwards
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
        url: `postgresql+psycopg://user@host/database`, or a file's path. A relative path counts from the working
            directory at this call.
        tell: A function that gets lines for people (default: print them to standard error).

    Guarantees:
        * Any number of processes may reserve at once: no total is passed, and no reservation is lost.
        * A reservation stays spent through any crash, until the run completes or is settled.

    Raises:
        InputError: From every method, if the ledger is damaged, of a newer version, or refuses.
        OSError: From every method, if the ledger cannot be reached.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Ledger(f"{folder}/ledger.sqlite").accounts()
        {}
    """

    url: str
    tell: Callable[[str], None] = field(default=_on_standard_error, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _absolute(self.url))

    @classmethod
    def default(cls, place: str | None = None, *, tell: Callable[[str], None] = _on_standard_error) -> "Ledger | None":
        """Return the ledger at `place` (default: at DPDM_LEDGER, else in the user's data folder).

        `none` there returns None: nothing is counted then.

        Raises:
            InputError: The variable holds a relative path, which would be another ledger in each folder. Or there is
                neither the variable nor a home folder.
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

    def accounts(self) -> Accounts:
        """Return the account of each data set, by name."""
        return read_accounts(_statements(self.storage.entries()))

    def account(self, dataset: str) -> Account:
        """Return the account of one data set."""
        return require_account(self.accounts(), dataset)

    def account_of(self, run: str) -> Account:
        """Return the account in which a run has reserved."""
        return self._require_run(self.accounts(), run)[0]

    def reservation(self, run: str) -> Reservation:
        """Return what a run has reserved."""
        return self._require_run(self.accounts(), run)[1]

    def shown(self, only: str | None = None) -> dict[str, Shown]:
        """Return the figures of each data set, or of one, for people."""
        entries = self.storage.entries()
        statements = _statements(entries)
        if only is not None:
            require_account(read_accounts(statements), only)
        return show_accounts(entries, statements, self.storage, only)

    def history(self, dataset: str) -> list[Spent]:
        """Return what a data set had spent or reserved after each of its entries."""
        return self.shown(dataset)[dataset].history

    def register(
        self,
        records: Records,
        *,
        epsilon: float | None,
        delta: float,
        relation: Relation,
        unit: str = "one image",
        facts: Sequence[FactsDeclared] = (),
    ) -> None:
        """Give a data set its total (ε, δ), and perhaps facts, before anything is spent on it.

        If nothing is spent or reserved, it may be registered again for claims of another kind.

        Raises:
            InputError: It is registered already, or its records are, under another name.
        """
        require_own_name(records)
        seen = fingerprint(records, self.storage.key())
        new = Registered.total(records.dataset, epsilon, delta, relation, unit)
        self._append(lambda accounts: decisions.register(accounts, new, seen, facts))

    def declare_benchmark(self, records: Records, *, delta: float, relation: Relation, unit: str = "one image") -> None:
        """Make public records a benchmark, for good, before anything is released of them.

        Raises:
            InputError: They are private, or the ledger has other entries of theirs, under whatever name.
        """
        require_own_name(records)
        if not records.public:
            raise InputError(f"{records.dataset} is private: only images that are declared public can be a benchmark")
        seen, ledger = fingerprint(records, self.storage.key()), self.storage.shown
        new = Registered.total(records.dataset, None, delta, relation, unit)
        self._append(lambda accounts: decisions.declare_benchmark(accounts, new, seen, ledger=ledger))

    def change_total(self, dataset: str, *, epsilon: float) -> None:
        """Give a data set another ε, which stays on record: a filter wants its total fixed before the first run."""
        require_positive(epsilon=epsilon)
        self._append(lambda accounts: decisions.change_total(accounts, dataset, epsilon))

    def allow_other_groups(self, dataset: str) -> None:
        """Allow other groups of the records of a data set, such as after a correction of names.

        Only the owner can know that the new groups still mean the same thing (persons, not visits).
        """

        def decide(accounts: Accounts) -> list[Statement]:
            require_account(accounts, dataset)
            return [GroupsReleased(dataset=dataset)]

        self._append(decide)

    def require_public(self, images: Sequence[Records]) -> None:
        """Raise InputError if images meant as public ones belong to a data set with a total."""
        key, accounts = self.storage.key(), self.accounts()
        for each in images:
            require_no_total(accounts, fingerprint(each, key))

    def reserve(
        self,
        run: str,
        plan: "Plan",
        records: Records,
        *,
        place: str,
        public: Sequence[Records] = (),
        token: str = "",
        tokens_before: Sequence[str] = ("",),
        begun: bool = False,
        head: Head | None = None,
    ) -> Head:
        """Reserve all that a run may release, and return the ledger's head. Each run has one reservation.

        The ledger registers a new data set, with the run's own (ε, δ) as its total.

        Args:
            run: The identity of the run.
            plan: The run's plan.
            records: The data set.
            place: The run's folder, for people.
            public: The images declared public that the run uses.
            token: A new token for every start of the run, which its folder already holds.
            tokens_before: The earlier tokens in the folder. A copy that stayed behind lacks the last one.
            begun: Whether the run has made noisy sums before. Its reservation must then be there.
            head: The head that this returned to the run before. The ledger must still hold it.

        Raises:
            InputError: The total allows no more, or is about another relation or unit. Or the run was settled, or began
                in another ledger or a newer state of this one. Or images declared public belong to a total.
        """
        require_own_name(records)
        key = self.storage.key()
        seen, told, shown = fingerprint(records, key), list[str](), self.storage.shown
        public_seen = [fingerprint(images, key) for images in public]
        request = decisions.Request(run, plan, records, seen, public_seen, place, token, tokens_before, begun)
        seen_head = self._append(lambda accounts: decisions.reserve(accounts, request, told, ledger=shown), head)
        account = self.account_of(run)
        if account.epsilon is not None:
            told.append(
                f"ledger: {whole_percent(account.share)} % of the budget of {account.dataset}, a total of "
                f"({upwards(account.epsilon)}, {account.delta}), is spent or reserved"
            )
        for line in told:
            self.tell(line)
        return seen_head

    def complete(
        self, run: str, events: Sequence[Event], *, tokens: Sequence[str] = ("",), head: Head | None = None
    ) -> None:
        """Replace a run's reservation by what it has released. It may release nothing more.

        Args:
            run: The run.
            events: What the run has released: its plan's events, or fewer steps if it was stopped.
            tokens: The tokens in its folder. The ledger's last token must be one of them.
            head: The head that `reserve` returned to the run. The ledger must still hold it.

        Raises:
            InputError: The run has reserved nothing, or less than this, or has gone on elsewhere. Or the ledger is an
                older state of the one that the run knows.
        """
        self._append(lambda accounts: decisions.complete(self._require_run(accounts, run)[1], events, tokens), head)

    def enter(self, dataset: str, *, what: str, epsilon: float, delta: float) -> None:
        """Enter a release of a data set that was made by other means, with its own (ε, δ)."""
        entry = OtherReleaseEntered(dataset=dataset, what=what, epsilon=epsilon, delta=delta)

        def decide(accounts: Accounts) -> list[Statement]:
            require_account(accounts, dataset).require_room(entered=[entry])
            return [entry]

        self._append(decide)

    def _require_run(self, accounts: Accounts, run: str) -> tuple[Account, Reservation]:
        found = find_run(accounts, run)
        if found is None:
            raise InputError(f"the ledger {self.storage.shown} has no reservation of this run: is it the right one?")
        return found

    def _append(self, decide: Callable[[Accounts], list[Statement]], head: Head | None = None) -> Head:
        """Append what `decide` makes of all accounts, in a ledger that goes on from `head`; return the head of then."""

        def checked(entries: list[Entry]) -> list[dict[str, Any]]:
            require_goes_on(entries, head, self.storage.shown)
            made = [asdict(statement) for statement in decide(read_accounts(_statements(entries)))]
            for content in made:  # what nobody could read again must not be written
                decode_statement(content, number=len(entries) + 1)
            return made

        *_, last = self.storage.append(checked)
        return Head(last.number, last.digest)


def _absolute(url: str) -> str:
    """Return a ledger's place in words that mean the same wherever they are read, or raise InputError."""
    if not url.strip():
        raise InputError("the place of the ledger is empty: give the path of a file, or none, or leave it out")
    return str(read_place(url))


def _statements(entries: Sequence[Entry]) -> list[Statement]:
    return [decode_statement(entry.content, number=entry.number) for entry in entries]
