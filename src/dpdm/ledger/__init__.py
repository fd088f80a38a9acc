"""What runs have spent on each data set, across runs, searches and machines."""

from dpdm.ledger.account import Account, Reservation, Spent
from dpdm.ledger.ledger import Ledger, Records

__all__ = ["Account", "Ledger", "Records", "Reservation", "Spent"]
