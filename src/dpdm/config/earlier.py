"""What releases cost with whose images a run begins: those of its starts, and those that `--public` draws."""

from collections.abc import Sequence
from pathlib import Path

from dpdm.config.target import read_toml
from dpdm.files import damaged
from dpdm.privacy import AnyPlan, Earlier, FullSum, Plan, PoissonSums, ShardSums
from dpdm.privacy.releases import noise_of
from dpdm.types import InputError

START = "start.toml"
"""The file that says what a start is."""

_CLAIM, _SETTINGS = "privacy.json", "config.toml"  # of a release


def is_release(source: str) -> bool:
    """Tell whether a source of images is the folder of a finished run, or its `release/`."""
    return _release_in(source) is not None


def released_by(source: str) -> tuple[Earlier, ...]:
    """Return the noisy sums that a run counts again if it begins with images of this release; none of other sources.

    Whether the release agrees with its claim is checked before an image of it is drawn (`dpdm.runs.drawn`).

    Raises:
        InputError: The release is damaged, claims nothing, or is the best of a search.
    """
    from dpdm.config.toml import decode_plan  # which knows the settings that ask this module

    if (folder := _release_in(source)) is None:
        return ()
    with damaged(folder / _SETTINGS, "name another run"):
        table = read_toml(folder / _SETTINGS)
        plan, name = decode_plan(table["plan"]), str(table["facts"]["name"])
    return sums_of(plan, name, source)


def sums_of(plan: AnyPlan, name: str, source: str) -> tuple[Earlier, ...]:
    """Return all noisy sums that a release of this plan rests on; `name` is what it calls its images.

    Raises:
        InputError: They are no list of noisy sums.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"{source} claims nothing: its images are as private as those that it was trained on")
    if any(isinstance(sums, ShardSums) for sums in plan.releases):
        raise InputError(f"{source} comes of noisy sums over shards, which no other run counts again: name another run")
    if plan.search is not None:
        raise InputError(f"{source} is the best run of a search, whose cost is no list of noisy sums: name another run")
    return (*plan.earlier, *(_earlier(sums, plan, name) for sums in plan.releases))


def _earlier(sums: FullSum | PoissonSums, plan: Plan, run: str) -> Earlier:
    noise, rate = noise_of(sums), plan.rate(sums) if isinstance(sums, PoissonSums) else 1.0
    said = {"count": sums.count, "dataset_size": plan.dataset_size, "relation": plan.relation, "unit": plan.unit}
    return Earlier(run=run, noise_multiplier=noise, sample_rate=rate, **said)  # type: ignore[arg-type]


def _release_in(source: str) -> Path | None:
    folder = Path(source).expanduser()
    return next((place for place in (folder, folder / "release") if (place / _CLAIM).is_file()), None)


def earlier_of(folders: Sequence[str]) -> tuple[Earlier, ...]:
    """Return the noisy sums that a run counts again if it begins with one of these starts.

    Raises:
        InputError: A folder holds no start, or a damaged one.
    """
    found: list[Earlier] = []
    for folder in folders:
        path = Path(folder).expanduser() / START
        if not path.is_file():
            raise InputError(f"{folder} holds no start: dpdm pretrain makes one there (or did not come to its end)")
        with damaged(path, "make the start again, by dpdm pretrain"):
            found += [Earlier(**entry) for entry in read_toml(path).get("earlier", [])]
    return tuple(found)
