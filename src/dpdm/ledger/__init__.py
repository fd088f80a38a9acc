"""What runs have spent on each data set, across runs, searches and machines."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.ledger.account import Account, Reservation
    from dpdm.ledger.in_folder import InLedger
    from dpdm.ledger.ledger import Ledger
    from dpdm.ledger.records import Records
    from dpdm.ledger.shown import Shown, Spent

__all__ = ["Account", "InLedger", "Ledger", "Records", "Reservation", "Shown", "Spent"]

__getattr__ = lazily(
    __name__,
    {
        "account": "Account Reservation",
        "in_folder": "InLedger",
        "ledger": "Ledger",
        "records": "Records",
        "shown": "Shown Spent",
    },
)
