"""What a ledger's entries say: a closed set, and whatever is not in it is refused."""

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from dpdm.privacy.accounting import Event, Relation, decode_event, encode_event
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError, require_positive

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A data set, its total (ε, δ), and what the total is about; no ε for a public one, on which nothing is limited."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    dataset: str
    epsilon: float | None
    delta: float
    relation: Relation
    unit: str
    order: float | None
    kind: Literal["registered"] = "registered"
    at: str = field(default_factory=_now)

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
class RecordsSeen:
    """The records of a data set, by digests under the ledger's key; for each, one of their groups, or nothing."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    dataset: str
    records: dict[str, str]
    kind: Literal["records"] = "records"
    at: str = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class TotalChanged:
    """Its owner gave a data set another total, and with it the order at which most runs fit into that."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    dataset: str
    epsilon: float
    order: float
    kind: Literal["total"] = "total"
    at: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, order=self.order)


@dataclass(frozen=True, kw_only=True)
class Regrouped:
    """Its owner allows the records of a data set to be in other groups than before."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    dataset: str
    kind: Literal["regrouped"] = "regrouped"
    at: str = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class _OfEvents:
    """What is said of the events of one reservation; those that cannot be accounted for are refused."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    reservation: str
    events: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        _ = self.made

    @property
    def made(self) -> list[Event]:
        """The events."""
        return [decode_event(event) for event in self.events]


@dataclass(frozen=True, kw_only=True)
class Reserved(_OfEvents):
    """What a run may release at most; `planned` names the runs that were reserved together, beforehand, or is empty.

    Its noise may have been calibrated to `epsilon` at `delta`: that is what a person asked for, here or elsewhere.
    """

    dataset: str
    planned: str
    epsilon: float | None = None
    delta: float | None = None
    kind: Literal["reserved"] = "reserved"
    at: str = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A run took a reservation, or goes on with it under a new `token`; `place` is its folder, for people."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    reservation: str
    run: str
    token: str
    place: str
    kind: Literal["taken"] = "taken"
    at: str = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class Completed(_OfEvents):
    """A run will release nothing more; these events are what it has released."""

    kind: Literal["completed"] = "completed"
    at: str = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class Entered:
    """What was released of a data set by other means, as its own (ε, δ), about the same unit and relation."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT
    dataset: str
    what: str
    epsilon: float
    delta: float
    kind: Literal["entered"] = "entered"
    at: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        if not 0 <= self.delta < 1 or math.isnan(self.delta):
            raise InputError(f"delta must be in [0, 1), not {self.delta}")


Statement = Registered | RecordsSeen | TotalChanged | Regrouped | Reserved | Taken | Completed | Entered
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


def encode_statement(statement: Statement) -> dict[str, Any]:
    """Return the content that `decode_statement` takes."""
    return asdict(statement)


def encode_events(events: list[Event]) -> tuple[dict[str, Any], ...]:
    """Return events as entries hold them."""
    return tuple(map(encode_event, events))
