"""What runs have spent on each data set, across runs, searches and machines."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.ledger.account import Account, Reservation
    from dpdm.ledger.book import Ledger
    from dpdm.ledger.counting import counted
    from dpdm.ledger.identity import RunIdentity
    from dpdm.ledger.records import Records
    from dpdm.ledger.shown import Shown, Spent

__all__ = ["Account", "Ledger", "Records", "Reservation", "RunIdentity", "Shown", "Spent", "counted"]

__getattr__ = lazily(
    __name__,
    {
        "account": "Account Reservation",
        "book": "Ledger",
        "counting": "counted",
        "identity": "RunIdentity",
        "records": "Records",
        "shown": "Shown Spent",
    },
)
