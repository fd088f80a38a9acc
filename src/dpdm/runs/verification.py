"""Whether the files of a release agree with one another and with its claim, and what that claim says in plain words.

That training ran as the files say, no look at the files can show. The files are a stranger's: each is read within
bounds, the cheapest refusals come first, and whatever is understood is written anew and must be the same bytes.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from dpdm.config import decode_method, decode_plan, encode, encode_method
from dpdm.files import json_text
from dpdm.methods import Budget, ImageFacts, Method, PublicPart
from dpdm.privacy import AnyPlan, OperatingSystemEntropy, Plan, ShardSums
from dpdm.privacy.accounting import round_up, true_positive_rates
from dpdm.privacy.releases import Release as Planned
from dpdm.runs.as_exported import require_export
from dpdm.runs.benchmark import Benchmark, read_stamp, with_stamp
from dpdm.runs.exported import require_manifest
from dpdm.runs.public import as_settings, claim_of, read_parts
from dpdm.runs.release import (
    FILES,
    SCHEMA,
    facts_of,
    read_claim,
    read_settings,
    require_layout,
    require_weights_digest,
)
from dpdm.runs.run_folder import is_exported, release_folder
from dpdm.runs.weights import Layout, all_finite, reader
from dpdm.types import InputError, require_seed

_FALSE_ALARMS = (0.01, 0.001)
_DIGIT = 1e-4  # the last one that a run prints of ε: another processor may come to the next
_ROUND_OFF = 1e-15  # of a δ that PLD computes by sums of float64, ten times over
_OF_THE_SYSTEM = {"security.selinux", "security.capability", "security.ima", "security.evm"}  # attributes it gives


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A claim that its files bear out, and the names that they hold, which nothing can check.

    Args:
        statement: The claim in one line.
        epsilon: ε by PLD, computed anew from the events.
        epsilon_rdp: ε by RDP, computed anew.
        true_positive_rates: The most true positives an attacker can have, by false-positive rate.
        unit: What one unit of protection is, an image or a group of images.
        relation: What "neighbouring" means.
        dataset_size: The declared number of units.
        name: What the release calls the data set.
        class_names: What it calls the classes.
        samplers: What it calls its samplers beside the usual one.
        seed: The declared seed of the initial weights.
        public: What it was made with that is declared public, which no claim protects.
        starts: The declared name of each public network that it may have begun with, and the SHA-256 of its weights.
        own_network: The declared name of the network's class, if its code is not dpdm's; "" if it is.
        own_weights: What it calls its weights, with types and shapes.
        prompt: What a text encoder was told of the images, if one was; {class} stands for the name of a class.
        exported: Whether it is an exported pipeline. That its weights follow from those of the release was not checked.
    """

    statement: str
    epsilon: float
    epsilon_rdp: float
    true_positive_rates: dict[float, float]
    unit: str
    relation: str
    dataset_size: int
    name: str = ""
    class_names: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    seed: int = 0
    public: tuple[PublicPart, ...] = ()
    starts: tuple[tuple[str, str], ...] = ()
    own_network: str = ""
    own_weights: tuple[str, ...] = ()
    prompt: str = ""
    exported: bool = False

    @property
    def protects(self) -> str:
        """What one unit of protection is, in short sentences."""
        group, number = self.unit == "group", f"{self.dataset_size:,} {self.unit}s"
        one = (
            "group of images with their labels, such as all images of one person."
            if group
            else "image with its label. A person with several images is protected less."
        )
        told = f"One unit of protection is one {one} ε limits how surely anyone can tell whether"
        if self.relation == "replace_special":
            used = "the images or blanks in their place were" if group else "the image or a blank in its place was"
            return f"{told} {used} used. The exact number, {number}, is public."
        return f"{told} the {'images were' if group else 'image was'} used at all. About {number} were declared."

    @property
    def bounds(self) -> str:
        """What ε bounds, in short sentences: the most that an attacker finds."""
        known = {"image": "training image", "group": "group of training images"}[self.unit]
        found = [
            f"Wrongly accusing {100 * false:g} % of the unused ones finds at most {percent(true)} of the used ones."
            for false, true in self.true_positive_rates.items()
        ]
        attacker = f"An attacker has this folder, knows every other {known}, and guesses whether a given one was used."
        return " ".join([attacker, *found])


class Settings(NamedTuple):
    """What `config.toml` says, understood, and the one text that says it."""

    plan: AnyPlan
    method: Method
    facts: ImageFacts
    seed: int
    public: tuple[PublicPart, ...]
    benchmark: Benchmark | None
    text: str


def understood(settings: dict[str, Any]) -> Settings:
    """Return what a release's settings say.

    Raises:
        InputError: They are no run's: a name that nobody can read, a value that does not fit.
    """
    facts, name = facts_of(settings["facts"]), settings["facts"]["name"]
    plan, seed = decode_plan(settings["plan"]), settings["seed"]
    if type(seed) is not int:
        raise InputError(f"config.toml holds a seed that is no whole number: {seed!r}")
    require_seed(seed=seed)
    method, public = decode_method(settings), read_parts(settings["facts"]["public"])
    require_planned(method, plan)
    benchmark = read_stamp(settings)
    whole = with_stamp(release_settings(method, plan, seed, name, facts, public), benchmark)
    if settings != whole:
        unknown = sorted(key for key in settings.keys() | whole.keys() if settings.get(key) != whole.get(key))
        raise InputError(f"config.toml holds something in {', '.join(unknown)} that no run writes there")
    return Settings(plan, method, facts, seed, public, benchmark, tomli_w.dumps(whole))


def release_settings(
    method: Method, plan: AnyPlan, seed: int, name: str, facts: ImageFacts, public: Sequence[PublicPart]
) -> dict[str, Any]:
    """Return what a release's `config.toml` holds: what verification asks for, and nothing else."""
    return {
        "method": method.kind,
        "seed": seed,
        "facts": {
            "name": name,
            "shape": list(facts.shape),
            "class_names": list(facts.class_names),
            "public": as_settings(public),
        },
        "plan": encode(plan),
        **encode_method(method),
    }


def require_planned(method: Method, plan: AnyPlan) -> None:
    """Raise InputError unless the plan releases what the method does, by name, kind and order."""
    none_needed = method.start_folders and not plan.steps  # a public network may be all there is
    wanted = method.releases(Budget(1.0, 1e-5, plan.dataset_size, steps=0 if none_needed else None))
    planned, needed = ([(type(release), _named(release)) for release in each] for each in (plan.releases, wanted))
    if planned != needed:
        has, needs = (", ".join(name for _, name in each) for each in (planned, needed))
        raise InputError(
            f"the plan releases {has}, and its settings need {needs}: give the plan that method.plan(epsilon=...) makes"
        )


def _named(release: Planned) -> str:
    return f"{release.name} over {release.shards} shards" if isinstance(release, ShardSums) else release.name


def verify_release(run: Path | str) -> Verified:
    """Check the files of a release against one another and against its claim.

    ε is computed anew, by PLD and by RDP, from the events in `privacy.json`; these must be those of the plan in
    `config.toml`. The stated ε may be one digit above, and below by what the rounding of float64 can make of it.

    Args:
        run: A run's folder, its `release/`, or a pipeline that was exported from it.

    Guarantees:
        * Settings and claim are the bytes that a run writes of what they say, and the weights' file is that of its
          numbers: nothing else is in them.
        * A pipeline holds the files of an export, by the digests beside them, and no others. Its public parts are those
          of the claim. All its other texts, and the names, types and shapes of its weights, follow from settings and
          claim (`dpdm.runs.as_exported`).
        * Whatever is not so is refused before anything of its size is made.

    Not checked:
        * That the weights of a pipeline follow from those of the release: their names differ, or low rank is merged.

    Raises:
        InputError: There is no release, it claims nothing, or something about it is not as it should be: names what.
    """
    folder = release_folder(run)
    privacy = read_claim(folder)
    if privacy.get("private") is not True:
        raise InputError(f"{folder} is NOT PRIVATE and must not be published: {privacy.get('statement')}")
    exported = is_exported(folder)
    if exported:
        _require_exported(folder)
    else:
        _require_files(folder, privacy)
    settings = read_settings(folder, privacy)
    try:
        plan, method, facts, seed, public, benchmark, text = understood(settings)
        _require_as_written(folder / "config.toml", text)
        layout = None if exported else require_layout(folder / "model.safetensors", method, plan, facts, public)
        assert isinstance(plan, Plan)
        _require_same_claim(folder, privacy, plan, public, benchmark)
        if layout is not None:
            _require_weights(folder, privacy, layout, plan, method, facts)
        else:
            require_export(folder, method, plan, facts, public, settings, privacy)
        true = true_positive_rates(plan.events(), false_positive_rates=_FALSE_ALARMS, relation=plan.relation)
    except InputError as error:
        said = str(error)
        if str(folder) not in said:
            said = f"{folder}/{said}" if said.startswith("config.toml") else f"{folder}/config.toml: {said}"
        raise InputError(said) from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError) as error:
        raise InputError(f"{folder} is damaged ({type(error).__name__}): no run comes to its numbers") from None
    return Verified(
        statement=str(privacy["statement"]),
        epsilon=plan.epsilon(),
        epsilon_rdp=plan.epsilon(accountant="rdp"),
        true_positive_rates=dict(zip(_FALSE_ALARMS, true, strict=True)),
        unit=plan.unit,
        relation=plan.relation,
        dataset_size=plan.dataset_size,
        name=str(settings["facts"]["name"]),
        class_names=facts.class_names,
        samplers=tuple(getattr(method, "samplers", ())),
        seed=seed,
        public=public,
        starts=tuple(zip(method.start_folders, method.start_digests, strict=True)),
        own_network="" if method.foreign is None else str(settings["network"]["type"]),
        own_weights=() if method.foreign is None or layout is None else _said(layout, method.foreign),
        prompt=str(settings.get("network", {}).get("prompt", "")),
        exported=exported,
    )


def _said(layout: Layout, foreign: str) -> tuple[str, ...]:
    """Return names, types and shapes of a network's weights: words, for all that anyone can check."""
    return tuple(
        f"{name.removeprefix(foreign)} {str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape)) or 'number'}"
        for name, (dtype, shape) in sorted(layout.items())
        if name.startswith(foreign)
    )


def _require_exported(folder: Path) -> None:
    """Raise InputError unless a folder holds the files of an exported pipeline, and nothing else."""
    for path in require_manifest(folder):
        _require_own(path)


def _require_files(folder: Path, privacy: dict[str, Any]) -> None:
    """Raise InputError unless `folder` holds a release's files, these are those of the claim, and nothing else."""
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if entry.name not in (*FILES, "privacy.json") or number > len(FILES):
                raise InputError(
                    f"{folder / entry.name} does not belong to a release: take it away, it is covered by no claim"
                )
    for name in (*FILES, "privacy.json"):
        path = folder / name
        try:
            found = path.lstat()
        except OSError:
            raise InputError(f"{path} is missing, or not a file of its own") from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is missing, or not a file of its own")
    for path in (folder, *(folder / name for name in (*FILES, "privacy.json"))):
        _require_own(path)
    digests = privacy.get("sha256")
    if isinstance(digests, dict) and digests.keys() - {*FILES}:
        raise InputError(f"{folder}/privacy.json has digests of files that do not belong to a release")


def _require_own(path: Path) -> None:
    """Raise InputError if a file is that of other folders too, or a file or a folder carries more than it holds."""
    if path.is_symlink():
        raise InputError(f"{path} is a link, and where it leads may be any words: verify the folder itself")
    if path.is_file() and path.lstat().st_nlink > 1:
        raise InputError(f"{path} is a file of other folders too (a hard link): verify a copy, made by cp -r")
    if _attributes(path) - _OF_THE_SYSTEM:
        raise InputError(
            f"{path} has extended attributes or an access list, which no run writes: verify a copy, made by cp -r"
        )


def _attributes(path: Path) -> set[str]:
    """Return the names of a file's extended attributes, where the system has any and tells them."""
    try:
        return set(os.listxattr(path, follow_symlinks=False))
    except (OSError, AttributeError):
        return set()


def _require_as_written(path: Path, content: str) -> None:
    """Raise InputError unless a file is to the byte what its content is written as: another spelling says more."""
    if path.read_bytes() != content.encode():
        raise InputError(f"{path} is not as a run writes it: another spelling or order in it is covered by no claim")


def _require_weights(
    folder: Path, privacy: dict[str, Any], layout: Layout, plan: Plan, method: Method, facts: ImageFacts
) -> None:
    """Raise InputError unless the weights are the claim's, and numbers that a run can come to."""
    path = folder / "model.safetensors"
    require_weights_digest(folder, privacy)
    if not all_finite(path, layout):
        raise InputError(f"{path} holds weights that are not finite: a generator that draws nothing")
    method.require_possible(reader(path, layout), plan, facts, str(path))


def _require_same_claim(
    folder: Path, privacy: dict[str, Any], plan: Plan, public: Sequence[PublicPart], benchmark: Benchmark | None
) -> None:
    """Raise InputError unless `privacy.json` is what a run with this plan writes."""
    stated = {key: value for key, value in privacy.items() if key not in ("schema", "sha256")}
    costs = {"epsilon_rdp": plan.epsilon(accountant="rdp"), "epsilon": plan.epsilon()}
    for key, cost in costs.items():
        if not _may_be_stated(stated.get(key), cost, plan.delta):
            raise InputError(f"{folder}/privacy.json states {key} = {stated.get(key)}, and its events cost {cost}")
    expected = claim_of(plan, public, entropy=OperatingSystemEntropy())
    if expected.keys() != stated.keys():
        raise InputError(
            f"{folder}/privacy.json states {', '.join(sorted(expected.keys() ^ stated.keys()))}, or lacks it"
        )
    opening = f"({expected['epsilon']}, "
    expected |= {"statement": str(expected["statement"]).replace(opening, f"({stated['epsilon']}, ")}
    expected |= {key: stated[key] for key in costs}
    if benchmark is not None:
        if benchmark.delta != plan.delta or not benchmark.epsilon >= stated["epsilon"] - 1.5 * _DIGIT:
            raise InputError(f"{folder}/config.toml states in facts.benchmark less than this one run costs")
        expected = benchmark.claim(expected)
    for key in sorted(expected):
        if expected[key] != stated[key]:
            raise InputError(
                f"{folder}/privacy.json states {key} = {stated[key]}, and config.toml makes it {expected[key]}"
            )
    digests = {name: privacy["sha256"].get(name) for name in FILES}
    _require_as_written(folder / "privacy.json", json_text({"schema": SCHEMA, **expected, "sha256": digests}))


def _may_be_stated(stated: object, cost: float, delta: float) -> bool:
    """Tell whether a run writes this ε for events that cost what was computed here.

    It writes four decimals, rounded up. What it had computed may be another float64, by so much as the round-off of δ
    makes of ε. So the stated ε may be one digit above the rounded cost, and below the cost by that round-off alone.
    """
    if type(stated) is not float or round(stated, 4) != stated:
        return False
    below = 1e-12 * cost + min(_DIGIT, _ROUND_OFF / delta)
    return cost - below <= stated <= round_up(cost) + 1.5 * _DIGIT


def percent(rate: float) -> str:
    """Say a bound in per cent, rounded up."""
    hundredths = -int(-10_000 * rate // 1)
    return f"{hundredths / 100:g} %"
