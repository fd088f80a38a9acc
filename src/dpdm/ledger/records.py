"""Which account a run's images belong to, and whether the ledger has seen them before."""

import hmac
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dpdm.data import is_built_in
from dpdm.ledger.account import Account, Accounts
from dpdm.ledger.entries import RecordsSeen, Statement
from dpdm.privacy.accounting import Relation
from dpdm.types import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpdm.data import ImageDataset
    from dpdm.privacy import Plan
    from dpdm.types import Images

_ANOTHER_NAME = "name yours anew, by --set data.name=... (in Python, name=...)"


@dataclass(frozen=True)
class Records:
    """What a ledger has to know of the records of a run.

    Args:
        dataset: The declared name of the data set.
        images: All of them: secret; digests under the ledger's key are what is kept.
        groups: Which group each image belongs to, (number,), where a group is the unit of protection; secret as well.
        public: Whether the data set is published already, so that its total is not limited.
        sources: What the images were before they were framed, as `ImageDataset.sources` has it; secret as well.
        digests: What images that are not at hand are known by, (number, ways, 32): their pixels first.
    """

    dataset: str
    images: "Images | None" = None
    groups: "NDArray[np.int64] | None" = None
    public: bool = False
    sources: "NDArray[np.uint8] | None" = None
    digests: "NDArray[np.uint8] | None" = None

    @classmethod
    def of(cls, data: "ImageDataset") -> "Records":
        """Return the records of a data set, under its own name."""
        return cls(data.name, data.images, data.groups, data.public, data.sources)


def fingerprint(records: Records, key: bytes) -> RecordsSeen:
    """Return what the ledger keeps to know records again, in any order.

    That is up to three digests: of the images, of what they were before they were framed, and of their files. Each is a
    keyed digest of a sum of keyed digests. Without the key, nobody can try whether certain images give it, nor add up
    the digests of two data sets.
    """
    from dpdm.data import pixel_digests

    ways = [] if records.images is None else [pixel_digests(records.images)]
    for known in (records.digests, records.sources):
        ways += [] if known is None else [*known.transpose(1, 0, 2)]
    return RecordsSeen(dataset=records.dataset, records=dict(_seen(way, records.groups, key) for way in ways))


def _seen(of_each: "NDArray[np.uint8]", groups: "NDArray[np.int64] | None", key: bytes) -> tuple[str, str]:
    """Return the digest of records, by the digest of each, and that of their groups, which is empty without groups."""
    keyed = (_keyed(key, digest.tobytes()) for digest in of_each)  # one at a time: there may be very many
    if groups is None:
        return _sum(key, "records", keyed), ""
    of_groups: dict[int, int] = {}
    for group, digest in zip(groups, keyed, strict=True):
        of_groups[group] = of_groups.get(group, 0) + digest
    in_groups = (_keyed(key, f"group {total % 2**256:064x}".encode()) for total in of_groups.values())
    return _sum(key, "records", of_groups.values()), _sum(key, "groups", in_groups)


def _sum(key: bytes, what: str, digests: Iterable[int]) -> str:
    """Return a digest of a sum of digests; a bare sum would be that of its parts, for all to see."""
    return f"{_keyed(key, f'{what} {sum(digests) % 2**256:064x}'.encode()):064x}"


def _keyed(key: bytes, content: bytes) -> int:
    return int.from_bytes(hmac.digest(key, content, "sha256"), "big")


def account_of(accounts: Accounts, plan: "Plan", records: Records) -> str:
    """Return the name of a run's account.

    A public data set has one account for each kind of claim, since claims of different kinds do not add up. A benchmark
    has one, and so one kind: its runs are added up.
    """
    account = accounts.get(records.dataset)
    if account is None or account.epsilon is not None or account.benchmark or not records.public:
        return records.dataset
    same = (account.relation, account.unit) == (plan.relation, plan.one_unit)
    return records.dataset if same else f"{records.dataset} ({plan.relation} of {plan.one_unit})"


def record_new_fingerprint(accounts: Accounts, account: Account, seen: RecordsSeen, told: list[str]) -> list[Statement]:
    """Return the entry for records that this data set has not had before: they count for the same total."""
    before = {digest: account.records[digest] for digest in seen.records if digest in account.records}
    for digest, groups in before.items():
        if groups and seen.records[digest] not in ("", groups):
            raise InputError(
                f"{account.dataset} had the same images in other groups before, and claims about two kinds of groups "
                "do not add up: give data.group as before; if names were only corrected, who owns the data may allow "
                f"it, by dpdm ledger regroup {account.dataset!r}"
            )
    require_unknown(accounts, seen, private=account.epsilon is not None)
    if account.benchmark:
        require_its_own(accounts, account, seen)
    if has_others(account, seen) and account.epsilon is not None:
        told.append(
            f"ledger: {account.dataset} has other records than before. If these are other people's, stop and "
            f"{_ANOTHER_NAME}; else they count for the same total"
        )
    news = {
        digest: groups
        for digest, groups in seen.records.items()
        if not before.get(digest) and (groups or digest not in before)
    }
    return [replace(seen, records=news)] if news else []


def has_others(account: Account, seen: RecordsSeen) -> bool:
    """Whether a data set has records that are known, and these are none of them."""
    return bool(account.records) and not account.records.keys() & seen.records.keys()


@contextmanager
def naming_first(account: Account | None, seen: RecordsSeen) -> Iterator[None]:
    """Put what is most likely wrong in front of a refusal: the name, where a data set has other records than before."""
    try:
        yield
    except InputError as error:
        if account is None or not has_others(account, seen):
            raise
        raise InputError(
            f"other records are registered as {account.dataset}: if yours are other people's, {_ANOTHER_NAME}; if they "
            f"are of the same data set, {error}"
        ) from None


def require_unknown(accounts: Accounts, seen: RecordsSeen, *, private: bool) -> None:
    """Raise InputError if these records are another data set's, whose total is limited, or which is a benchmark.

    Where they are `private`, the same holds if a person declared them public: no total counts what was spent there.
    """
    for account in accounts.values():
        if account.dataset == seen.dataset or not account.records.keys() & seen.records.keys():
            continue
        if account.epsilon is not None or account.benchmark:
            raise InputError(
                f"the records of {seen.dataset} are registered as {account.dataset}: go on under that name, by "
                f"--set data.name={account.dataset!r}"
            )
        if private:
            raise InputError(
                f"the records of {seen.dataset} were declared public as {account.dataset}, and nothing limited its "
                "runs: no total can count what they spent. Take records on which nothing was spent"
            )


def require_its_own(accounts: Accounts, benchmark: Account, seen: RecordsSeen) -> None:
    """Raise InputError unless records are a benchmark's, and no other account's: its sum is of all their runs."""
    if has_others(benchmark, seen):
        raise InputError(f"{benchmark.dataset} is a benchmark of other images than these: {_ANOTHER_NAME}")
    for account in accounts.values():
        if account is not benchmark and account.records.keys() & seen.records.keys():
            raise InputError(
                f"these images of {benchmark.dataset}, a benchmark, have entries as {account.dataset} too, which its "
                "sum lacks: name a ledger for benchmarks by --ledger"
            )


def require_no_total(accounts: Accounts, public: RecordsSeen) -> None:
    """Raise InputError if images that a run uses as public ones are those of a data set with a total."""
    for account in accounts.values():
        if account.epsilon is not None and account.records.keys() & public.records.keys():
            raise InputError(
                f"the images of {public.dataset} are registered as {account.dataset}, which has a total: they are "
                "private, and no run can use them as public ones"
            )


def require_own_name(records: Records) -> None:
    """Raise InputError if private records go by the name of a public data set."""
    if not records.public and is_built_in(records.dataset):
        raise InputError(f"{records.dataset} is the name of a public data set, and these are private: {_ANOTHER_NAME}")


def require_same_kind(account: Account, plan: "Plan", records: Records) -> None:
    """Raise InputError unless a plan's claim is of the kind that a data set is registered for."""
    if (account.epsilon is None) != records.public:
        raise InputError(
            f"{account.dataset} is registered as a {'public' if account.epsilon is None else 'private'} data set: "
            f"{_ANOTHER_NAME}"
        )
    if (account.relation, account.unit) != (plan.relation, plan.one_unit):
        as_before = [
            *(["data.group"] if account.unit != plan.one_unit else []),
            *(["--dataset-size, or none,"] if account.relation != plan.relation else []),
        ]
        otherwise = (
            "register it again with the settings of this run: dpdm ledger register ... --epsilon ... (nothing of its "
            "budget is spent)"
            if account.untouched
            else "take images that nothing was spent on, under a name of their own: what is spent cannot be undone"
        )
        raise InputError(
            f"{account.dataset} is registered for claims about {_in_words(account.relation)} {account.unit}, and this "
            f"run's is about {_in_words(plan.relation)} {plan.one_unit}: claims of two kinds do not add up; give "
            f"{' and '.join(as_before)} as before, or {otherwise}"
        )


def _in_words(relation: Relation) -> str:
    return {"add_or_remove_one": "adding or removing", "replace_special": "blanking out"}[relation]
