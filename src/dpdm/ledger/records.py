"""Whose a run's records are: which data set's, whether they were seen before, and what kind of claim is about them."""

import hmac
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpdm.data import ImageDataset
from dpdm.ledger.account import Account
from dpdm.ledger.entries import RecordsSeen, Statement
from dpdm.privacy import DPSGD, Relation
from dpdm.types import Images, InputError

_PART = 4096


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

    @classmethod
    def of(cls, data: ImageDataset) -> "Records":
        """Return the records of a data set, under its own name."""
        return cls(data.name, data.images, data.groups, data.public)


def fingerprint(records: Records, key: bytes) -> RecordsSeen:
    """Return what the ledger keeps to know records again, in any order: sums of digests under its key.

    Without the key, nobody can try whether certain images, or certain groups of them, give these digests.
    """
    shape, of_each = str(records.images.shape[1:]).encode(), []
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


def account_of(accounts: dict[str, Account], plan: DPSGD, records: Records) -> str:
    """Return the name of a run's account: its data set's, or one by its kind too if that is public and of another.

    Nothing limits the runs on public data, and all that is lost is a sum that would have no meaning.
    """
    account = accounts.get(records.dataset)
    if account is None or account.epsilon is not None or not records.public:
        return records.dataset
    same = (account.relation, account.unit) == (plan.relation, plan.one_unit)
    return records.dataset if same else f"{records.dataset} ({plan.relation} of {plan.one_unit})"


def newly_seen(accounts: dict[str, Account], account: Account, seen: RecordsSeen, told: list[str]) -> list[Statement]:
    """Return the entry for records that this data set has not had before: they count for the same total."""
    if seen.records in account.records:
        groups = account.records[seen.records]
        if groups and seen.groups and groups != seen.groups:
            raise InputError(
                f"{account.dataset} had the same images in other groups before, and claims about two kinds of groups "
                "do not add up: give data.group as before; if names were only corrected, who owns the data may allow "
                f"it, by dpdm ledger regroup {account.dataset!r}"
            )
        return [seen] if seen.groups and not groups else []
    require_unknown(accounts, seen)
    if account.epsilon is not None:
        told.append(f"ledger: {account.dataset} has other records than before, and goes on with the same total")
    return [seen]


def require_unknown(accounts: dict[str, Account], seen: RecordsSeen) -> None:
    """Raise InputError if these records are those of another data set whose total is limited."""
    for account in accounts.values():
        if account.dataset != seen.dataset and account.epsilon is not None and seen.records in account.records:
            raise InputError(
                f"the records of {seen.dataset} are registered as {account.dataset}: go on under that name, by "
                f"--set data.name={account.dataset!r}"
            )


def require_same_kind(account: Account, plan: DPSGD, records: Records) -> None:
    """Raise InputError unless a plan's claim is of the kind that a data set is registered for."""
    if (account.epsilon is None) != records.public:
        raise InputError(
            f"{account.dataset} is registered as a {'public' if account.epsilon is None else 'private'} data set: name "
            "yours anew, by --set data.name=..."
        )
    if (account.relation, account.unit) != (plan.relation, plan.one_unit):
        as_before = [
            *(["data.group"] if account.unit != plan.one_unit else []),
            *(["--dataset-size, or none,"] if account.relation != plan.relation else []),
        ]
        raise InputError(
            f"{account.dataset} is registered for claims about {_in_words(account.relation)} {account.unit}, and this "
            f"run's is about {_in_words(plan.relation)} {plan.one_unit}: claims of two kinds do not add up; give "
            f"{' and '.join(as_before)} as before"
        )


def _in_words(relation: Relation) -> str:
    return {"add_or_remove_one": "adding or removing", "replace_special": "blanking out"}[relation]


def _keyed(key: bytes, content: bytes) -> int:
    return int.from_bytes(hmac.digest(key, content, "sha256"), "big")


def _hexadecimal(total: int) -> str:
    return f"{total % 2**256:064x}"
