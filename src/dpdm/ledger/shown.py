"""What people are shown of an account: its history and figures, which dp-accounting computes once, and which are kept.

Nothing is decided on a kept figure: whoever reserves or refuses computes from the events.
"""

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import NamedTuple

from dpdm.ledger.account import Account, Accounts, apply
from dpdm.ledger.entries import Completed, GroupsReleased, OtherReleaseEntered, Reserved, Statement, TotalChanged
from dpdm.ledger.storage import Entry, Storage
from dpdm.privacy.accounting import upwards


class Spent(NamedTuple):
    """What had been spent or reserved after an entry: `share` of the budget, and ε by RDP."""

    at: str
    what: str
    share: float | None
    epsilon: float


class Shown(NamedTuple):
    """An account for people: `share` of its budget and `epsilon_if_planned` are as `Account` has them."""

    account: Account
    history: list[Spent]
    share: float | None
    epsilon_if_planned: float


def show_accounts(
    entries: Sequence[Entry], statements: Sequence[Statement], storage: Storage, only: str | None = None
) -> dict[str, Shown]:
    """Return what is shown of each data set.

    Args:
        entries: The chain.
        statements: What its entries say.
        storage: Where figures are kept, each under the digest of the chain up to the entry after which it holds.
        only: The data set whose figures are asked for (default: all of them).
    """
    kept, new = storage.figures(), dict[str, float]()
    accounts, histories, last = Accounts(), dict[str, list[Spent]](), dict[str, Entry]()

    def figure(account: Account, what: str, entry: Entry) -> float:
        name = f"{entry.digest} {what} by dp-accounting {version('dp-accounting')}"
        if name not in kept:
            kept[name] = new[name] = getattr(account, what)
        return kept[name]

    for entry, statement in zip(entries, statements, strict=True):
        account = apply(statement, accounts)
        name, what = account.dataset, _what_changed(statement, account)
        if not what or only not in (None, name):
            continue
        last[name] = entry
        share = figure(account, "share", entry) if account.filter else None
        epsilon = figure(account, "epsilon_by_rdp", entry)
        histories.setdefault(name, []).append(Spent(statement.at, what, share, epsilon))
    shown = {}
    for name, account in accounts.items():
        if only not in (None, name):
            continue
        history = histories.get(name, [])
        if account.untouched:  # so that there is nothing to compute
            share, planned = account.share, account.epsilon_if_planned
        else:
            share = figure(account, "share", last[name])
            planned = figure(account, "epsilon_if_planned", last[name])
        shown[name] = Shown(account, history, share if account.filter else None, planned)
    if new:
        with suppress(OSError):  # of whoever may read only
            storage.keep(new)
    return shown


def _what_changed(statement: Statement, account: Account) -> str:
    """Say what a statement is in its account's history; nothing if it changes no figure."""
    match statement:
        case Completed(reservation=name):
            reservation = account.reservations[name]
            return "gave a reservation back" if reservation.run is None else f"completed {reservation.place}"
        case Reserved():
            return "reserved"
        case OtherReleaseEntered(what=what):
            return what
        case TotalChanged(epsilon=total):
            return f"total of ε = {upwards(total)}"
        case GroupsReleased():
            return "other groups are allowed"
        case _:
            return ""
