"""Which way is worth trying first: by what was measured of each on other images, and by declared facts alone.

`measured.toml` has the measurements. Nothing here opens an image.
"""

import math
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from dpdm.methods import ImageFacts

_AS_TELLING = math.log(4)  # how far a row's N ε may be from the asked one, and still be as good as the nearest
_STARTING = 30.0  # minutes that commands name where nobody gave any


@dataclass(frozen=True)
class Way:
    """One way from private images to synthetic ones."""

    name: str
    what: str
    commands: tuple[str, ...]
    public: bool = False
    classes: bool = False
    grey: bool = False
    trained: str | None = None

    @property
    def method(self) -> str:
        """The method that its last command trains by."""
        return self.trained or self.name


@dataclass(frozen=True)
class Row:
    """What classifiers reached on real test images that were taught by a way's images, in percent."""

    way: str
    images: str
    number: int
    channels: int
    epsilon: float
    cnn: float
    protocol: str
    measured: str
    logreg: float | None = None
    mlp: float | None = None
    prior: float | None = None
    minutes: float | None = None
    public: str | None = None

    @property
    def gain(self) -> float | None:
        """Points above the prior alone, by the same protocol."""
        return None if self.prior is None else self.cnn - self.prior


class Case(NamedTuple):
    """What is asked: declared facts, a budget, what is at hand, and settings that each command needs.

    `source` is where the images are. If they were measured themselves, their rows go before those of others.
    """

    target: str
    facts: ImageFacts
    number: int
    epsilon: float
    public: str | None = None
    minutes: float | None = None
    settings: tuple[str, ...] = ()
    source: str = ""


class Advice(NamedTuple):
    """A way, the rows that are nearest to the case, and why it is not to be tried first, if it is not."""

    way: Way
    rows: tuple[Row, ...]
    commands: tuple[str, ...]
    against: str | None
    own: bool = False
    """Whether the rows are of these images themselves."""

    @property
    def gain(self) -> float:
        """The mean of what its rows gained over the prior alone; -∞ where nothing of it is known."""
        gains = [row.gain for row in self.rows if row.gain is not None]
        return sum(gains) / len(gains) if gains else -math.inf


@cache
def measured() -> tuple[tuple[Way, ...], tuple[Row, ...]]:
    """Return all ways, and all that was measured of them."""
    content: dict[str, Any] = tomllib.loads((resources.files("dpdm") / "measured.toml").read_text(encoding="utf-8"))
    ways = tuple(Way(**{**way, "commands": tuple(way["commands"])}) for way in content["way"])
    return ways, tuple(Row(**row) for row in content["row"])


def advise(case: Case) -> list[Advice]:
    """Return the ways that can be taken, the best first.

    Those that were measured on the same images come first. Each part is ranked by the mean of what ways gained over the
    prior alone, in the rows nearest to the case. Then come those of which no gain was measured. Those that do not fit
    the minutes, or that were not measured on images of as many channels, come last.
    """
    ways, rows = measured()
    possible = [_advice(way, rows, case) for way in ways if _lacks(way, case) is None]
    return sorted(possible, key=lambda advice: (advice.against is not None, not advice.own, -advice.gain))


def left_out(case: Case) -> list[tuple[Way, str]]:
    """Return the other ways, each with what it lacks."""
    return [(way, lacks) for way in measured()[0] if (lacks := _lacks(way, case)) is not None]


def _lacks(way: Way, case: Case) -> str | None:
    """Return what a way needs and the case has not, if there is such a thing."""
    if way.grey and case.facts.shape[0] != 1:
        return "is for grey images"
    if way.public and case.public is None:
        return "needs public images: name some by --public"
    if way.classes and case.facts.num_classes < 2:
        return "needs images with classes"
    return None


def _advice(way: Way, rows: Sequence[Row], case: Case) -> Advice:
    alike = [row for row in rows if row.way == way.name and row.channels == case.facts.shape[0]]
    own = [row for row in alike if _plain(row.images) == _plain(case.source.partition(":")[0])]
    near = _nearest(own or alike, case)
    against = None
    if not near:
        against = f"not measured on {'grey' if case.facts.shape[0] == 1 else 'colour'} images"
    elif case.minutes is not None and (least := _least_minutes(near)) > case.minutes:
        against = f"took {least:g} minutes at least, and {case.minutes:g} are asked for"
    return Advice(way, near, tuple(_command(command, case) for command in way.commands), against, bool(own))


def _plain(name: str) -> str:
    """Return the letters and digits of a name: those of CIFAR-10 and of cifar10 are the same."""
    return "".join(filter(str.isalnum, name)).lower()


def _least_minutes(rows: Sequence[Row]) -> float:
    """Return the shortest time of training; none where nobody measured it."""
    return min((row.minutes for row in rows if row.minutes is not None), default=0.0)


def _command(command: str, case: Case) -> str:
    """Return a command for this case. What is trained privately is told the public figure for the number of images."""
    minutes = f"{_STARTING if case.minutes is None else case.minutes:g}"
    named = {"target": shlex.quote(case.target), "public": shlex.quote(case.public or "")}
    said = command.format(minutes=minutes, epsilon=f"{case.epsilon:g}", **named)
    more = [f"--set {shlex.quote(setting)}" for setting in case.settings]
    return " ".join([said, *([f"--dataset-size {case.number}"] if " train " in said else []), *more])


def _nearest(rows: Sequence[Row], case: Case) -> tuple[Row, ...]:
    """Return the rows whose N ε, which says how far a sum stands out of its noise, is as near as any other's."""

    def distance(row: Row) -> float:
        return abs(math.log(row.number * row.epsilon / (case.number * case.epsilon)))

    nearest = min(map(distance, rows), default=0.0)
    return tuple(row for row in rows if distance(row) <= max(nearest, _AS_TELLING))
