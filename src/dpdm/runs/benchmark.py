"""The stamp of a release of a benchmark: how many runs there are on the same images, and what all cost together."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dpdm.config import decode_plan
from dpdm.ledger import Account, Ledger, RunIdentity
from dpdm.privacy import OperatingSystemEntropy
from dpdm.privacy.accounting import round_up, upwards
from dpdm.runs.public import claim_of, read_parts
from dpdm.runs.release import Release, open_without_public
from dpdm.runs.run_folder import release_folder
from dpdm.types import InputError

_KEY = "benchmark"
_MOST_RUNS = 10**6


class Benchmark(NamedTuple):
    """What a ledger knew of the runs on a benchmark when it was asked: number, and (ε, δ) of all together."""

    runs: int
    epsilon: float
    delta: float

    @classmethod
    def of(cls, account: Account | None) -> "Benchmark | None":
        """Return what is spent or reserved of a benchmark; None of other data."""
        if account is None or not account.benchmark:
            return None
        runs = sum(len(planned) for planned in account.groups) + len(account.entered)
        return cls(runs, round_up(account.epsilon_if_planned), account.delta)

    def claim(self, claim: Mapping[str, Any]) -> dict[str, Any]:
        """Return a claim with the stamp before its statement."""
        runs = f"{self.runs:,} run{'s' if self.runs != 1 else ''}"
        together = f"{runs} on these images, ε ≤ {upwards(self.epsilon)} together at δ = {self.delta}"
        return {**claim, "statement": f"BENCHMARK: {together}; of this one: {claim['statement']}"}


def with_stamp(settings: dict[str, Any], benchmark: Benchmark | None) -> dict[str, Any]:
    """Return the settings of a release with its stamp, if there is one, in place of an older one."""
    facts = {key: value for key, value in settings["facts"].items() if key != _KEY}
    return settings | {"facts": facts if benchmark is None else facts | {_KEY: benchmark._asdict()}}


def read_stamp(settings: Mapping[str, Any]) -> Benchmark | None:
    """Return the stamp in the settings of a release, if there is one.

    Raises:
        InputError: It is none.
    """
    table = settings["facts"].get(_KEY)
    if table is None:
        return None
    try:
        stamp = Benchmark(**table)
    except TypeError:
        stamp = Benchmark(0, 0.0, 0.0)
    whole = type(stamp.runs) is int and type(stamp.epsilon) is type(stamp.delta) is float
    if not whole or not 0 < stamp.runs <= _MOST_RUNS or round(stamp.epsilon, 4) != stamp.epsilon:
        raise InputError("config.toml holds something in facts.benchmark that is no sum of runs")
    return stamp


def stamped(release: Release, benchmark: Benchmark | None) -> Release:
    """Return a release without a stamp with that of its benchmark, if it is of one."""
    if benchmark is None:
        return release
    return replace(release, claim=benchmark.claim(release.claim), settings=with_stamp(release.settings, benchmark))


def counted_in(ledger: Ledger, run: Path) -> Account:
    """Return the account in which a run has reserved.

    Raises:
        InputError: It has not, in this ledger: so the sums here lack it.
    """
    identity = RunIdentity.read(run / "private")
    if identity is None:
        raise InputError(f"{run} holds no run that a ledger counts: is the path right?")
    return ledger.account_of(identity.run)


def stamp_again(run: Path, ledger: Ledger) -> None:
    """Write the release of a finished run with the sum of all runs up to now, in the ledger that counts it.

    After a crash in between there is no release: the run makes it again of what it has kept.

    Raises:
        InputError: This ledger does not count it.
    """
    folder, benchmark = release_folder(run), Benchmark.of(counted_in(ledger, run))
    release = open_without_public(folder, None)
    if benchmark is None or read_stamp(release.settings) == benchmark:
        return
    plan, parts = decode_plan(release.settings["plan"]), read_parts(release.settings["facts"]["public"])
    claim = claim_of(plan, parts, entropy=OperatingSystemEntropy())
    new = stamped(replace(release, claim=claim, settings=with_stamp(release.settings, None)), benchmark)
    (folder / "privacy.json").unlink()  # without which there is no release
    new.save(folder)
