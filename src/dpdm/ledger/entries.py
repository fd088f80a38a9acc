"""What a ledger's entries say: a closed set, and whatever is not in it is refused."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from dpdm.privacy.accounting import Event, Relation, decode_event, encode_event
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError, require_positive


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What all entries have: when they were made, in UTC."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True, kw_only=True)
class _OfEvents(_Entry):
    """What is said of the events of one reservation; those that cannot be accounted for are refused."""

    reservation: str
    events: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        _ = self.made

    @property
    def made(self) -> list[Event]:
        """The events."""
        return [decode_event(event) for event in self.events]


@dataclass(frozen=True, kw_only=True)
class Registered(_Entry):
    """A data set, its total (ε, δ), and what the total is about; no ε for a public one, on which nothing is limited."""

    dataset: str
    epsilon: float | None
    delta: float
    relation: Relation
    unit: str
    order: float | None
    kind: Literal["registered"] = "registered"

    def __post_init__(self) -> None:
        require_positive(delta=self.delta)
        if self.epsilon is not None and self.order is not None:
            RenyiFilter(epsilon=self.epsilon, delta=self.delta, order=self.order)
        elif (self.epsilon, self.order) != (None, None):
            raise InputError(f"{self.dataset} has half a total: give both ε and an order of divergence, or none")

    @classmethod
    def total(cls, dataset: str, epsilon: float | None, delta: float, relation: Relation, unit: str) -> "Registered":
        """Return the registration of a total, with the order at which most runs fit into it."""
        order = None if epsilon is None else RenyiFilter.for_gaussians(epsilon=epsilon, delta=delta).order
        return cls(dataset=dataset, epsilon=epsilon, delta=delta, relation=relation, unit=unit, order=order)


@dataclass(frozen=True, kw_only=True)
class RecordsSeen(_Entry):
    """The records of a data set, by digests under the ledger's key; for each, one of their groups, or nothing."""

    dataset: str
    records: dict[str, str]
    kind: Literal["records"] = "records"


@dataclass(frozen=True, kw_only=True)
class BenchmarkDeclared(_Entry):
    """A public data set is one on which methods are compared: said as it is registered, and for good."""

    dataset: str
    kind: Literal["benchmark"] = "benchmark"


@dataclass(frozen=True, kw_only=True)
class FactsDeclared(_Entry):
    """What the owner of a data set declares of its images: shape (channels, height, width), and names of classes."""

    dataset: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True, kw_only=True)
class TotalChanged(_Entry):
    """Its owner gave a data set another total, and with it the order at which most runs fit into that."""

    dataset: str
    epsilon: float
    order: float
    kind: Literal["total"] = "total"

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, order=self.order)


@dataclass(frozen=True, kw_only=True)
class GroupsReleased(_Entry):
    """Its owner allows the records of a data set to be in other groups than before."""

    dataset: str
    kind: Literal["regrouped"] = "regrouped"


@dataclass(frozen=True, kw_only=True)
class Reserved(_OfEvents):
    """What a run may release at most.

    `planned` is empty, or names what PLD composed as one plan: the first run on a data set by itself. Earlier versions
    composed several runs, and kept the (ε, δ) that their noise was calibrated to.
    """

    dataset: str
    planned: str
    epsilon: float | None = None
    delta: float | None = None
    kind: Literal["reserved"] = "reserved"


@dataclass(frozen=True, kw_only=True)
class ReservationTaken(_Entry):
    """A run took a reservation, or goes on with it under a new `token`; `place` is its folder, for people."""

    reservation: str
    run: str
    token: str
    place: str
    kind: Literal["taken"] = "taken"


@dataclass(frozen=True, kw_only=True)
class Completed(_OfEvents):
    """A run will release nothing more; these events are what it has released."""

    kind: Literal["completed"] = "completed"


@dataclass(frozen=True, kw_only=True)
class OtherReleaseEntered(_Entry):
    """What was released of a data set by other means, as its own (ε, δ), about the same unit and relation."""

    dataset: str
    what: str
    epsilon: float
    delta: float
    kind: Literal["entered"] = "entered"

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        if not 0 <= self.delta < 1 or math.isnan(self.delta):
            raise InputError(f"delta must be in [0, 1), not {self.delta}")


Statement = (
    Registered
    | RecordsSeen
    | BenchmarkDeclared
    | FactsDeclared
    | TotalChanged
    | GroupsReleased
    | Reserved
    | ReservationTaken
    | Completed
    | OtherReleaseEntered
)
_STATEMENT: pydantic.TypeAdapter[Statement] = pydantic.TypeAdapter(
    Annotated[Statement, pydantic.Field(discriminator="kind")]
)


def decode_statement(content: dict[str, Any], *, number: int) -> Statement:
    """Return what an entry says.

    Raises:
        InputError: It is of an unknown kind, or says something impossible.
    """
    try:
        return _STATEMENT.validate_json(json.dumps(content))
    except pydantic.ValidationError:
        raise InputError(
            f"entry {number} of the ledger, of the kind {content.get('kind')!r}, is nothing that this version can "
            "account for: use a newer one, or restore a backup"
        ) from None


def encode_events(events: Sequence[Event]) -> tuple[dict[str, Any], ...]:
    """Return events as entries hold them."""
    return tuple(map(encode_event, events))
