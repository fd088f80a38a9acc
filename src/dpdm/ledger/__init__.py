"""What runs have spent on each data set, across runs, searches and machines."""

from dpdm.ledger.account import Account, Reservation, Spent
from dpdm.ledger.in_folder import InLedger
from dpdm.ledger.ledger import Ledger
from dpdm.ledger.records import Records

__all__ = ["Account", "InLedger", "Ledger", "Records", "Reservation", "Spent"]
