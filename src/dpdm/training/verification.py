"""Whether the files of a release agree with one another and with its claim, and what that claim says in plain words.

That training ran as the files say, no look at the files can show.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tomli_w

from dpdm.config import Config, Training, decode, decode_plan, encode, read_toml, require_prior_planned
from dpdm.diffusion import FromPrior
from dpdm.files import json_text
from dpdm.networks import Zero
from dpdm.privacy import DPSGD, Mechanism, OperatingSystemEntropy
from dpdm.privacy.accounting import true_positive_rates
from dpdm.training.release import FILES, Release, read_claim, release_folder, require_digests
from dpdm.types import InputError

_FALSE_ALARMS = (0.01, 0.001)
_TOLERANCE = 1e-3  # by which a stated ε may be above the computed one: versions of the accountant differ
_VALUES = ("prior", "network", "preconditioning", "loss", "training", "sampler", "samplers")
_LARGEST_PICTURE = 2**28  # bytes
_RGB = bytes([8, 2, 0, 0, 0])  # eight bits, three colours, and the one way to compress, filter and interlace


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A claim that its files bear out.

    Args:
        statement: The claim in one line.
        epsilon: ε by PLD, computed anew from the events.
        epsilon_rdp: ε by RDP, computed anew.
        true_positive_rates: The most true positives an attacker can have, by false-positive rate.
        unit: What one unit of protection is, an image or a group of images.
        relation: What "neighbouring" means.
        dataset_size: The declared number of units.
    """

    statement: str
    epsilon: float
    epsilon_rdp: float
    true_positive_rates: dict[float, float]
    unit: str
    relation: str
    dataset_size: int

    @property
    def protects(self) -> str:
        """What one unit of protection is, in one sentence."""
        group = self.unit == "group"
        one = (
            "group of images with their labels (all images of one person, if groups are persons)"
            if group
            else "image with its label (a person with several images among them is protected less)"
        )
        told, number = f"One unit of protection is one {one}: ε limits how surely anyone can tell", self.dataset_size
        if self.relation == "replace_special":
            shown = "they show from blanks in their place" if group else "it shows from a blank in its place"
            return f"{told} what {shown}; that there were {number:,} {self.unit}s is public."
        return (
            f"{told} whether {'they were' if group else 'it was'} among the training images at all; their number was "
            f"declared as about {number:,} {self.unit}s."
        )

    @property
    def bounds(self) -> str:
        """What ε bounds, in one sentence."""
        of = [
            f"at most {percent(true)} of the used ones while wrongly accusing {100 * false:g} % of the unused ones"
            for false, true in self.true_positive_rates.items()
        ]
        known = {"image": "training image", "group": "group of training images"}[self.unit]
        return (
            f"Whoever holds all of this folder, knows every other {known}, and guesses whether a given one was "
            f"used, finds {', and '.join(of)}."
        )


def verify_release(run: Path | str) -> Verified:
    """Check the files of a release against one another and against its claim.

    ε is computed anew, by PLD and by RDP, from the events in `privacy.json`; these must be those of the plan in
    `config.toml`; the digests of all files must be right, the weights fit the settings, and nothing else may lie there.

    Args:
        run: A run's folder, or the folder `release/` itself.

    Raises:
        InputError: There is no release, it claims nothing, or something about it is not as it should be: names what.
            Settings, weights and picture may hold nothing beside what they are for.
    """
    folder = release_folder(run)
    privacy = read_claim(folder)
    if privacy.get("private") is not True:
        raise InputError(f"{folder} is NOT PRIVATE and must not be published: {privacy.get('statement')}")
    _require_files(folder, privacy)
    settings = read_toml(folder / "config.toml")
    try:
        plan = decode_plan(settings["privacy"])
        config = decode(Config, {"data": {"source": "?"}, **{key: settings[key] for key in settings if key in _VALUES}})
        require_prior_planned(config.prior, config.preconditioning, plan)
        _require_steps_for_a_network(folder, config, plan)
        _require_no_more(folder, settings, config, plan)
        assert isinstance(plan, DPSGD)
        _require_same_claim(folder, privacy, plan.claim(entropy=OperatingSystemEntropy()))
        true = true_positive_rates(plan.events(), false_positive_rates=_FALSE_ALARMS, relation=plan.relation)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError) as error:
        raise InputError(f"{folder} is damaged ({type(error).__name__}): its plan cannot be read") from None
    _require_weights_alone(folder, Release.load(folder))
    _require_as_written(folder / "config.toml", tomli_w.dumps(settings))
    _require_as_written(folder / "privacy.json", json_text(privacy))
    return Verified(
        statement=privacy["statement"],
        epsilon=plan.epsilon(),
        epsilon_rdp=plan.epsilon(accountant="rdp"),
        true_positive_rates=dict(zip(_FALSE_ALARMS, true, strict=True)),
        unit=plan.unit,
        relation=plan.relation,
        dataset_size=plan.dataset_size,
    )


def _require_files(folder: Path, privacy: dict[str, Any]) -> None:
    """Raise InputError unless `folder` holds a release's files, these are those of the claim, and nothing else."""
    found = {path.name for path in folder.iterdir()}
    for name in sorted(found - {*FILES, "privacy.json"}):
        raise InputError(f"{folder / name} does not belong to a release: take it away, it is covered by no claim")
    for name in (*FILES, "privacy.json"):
        if name not in found or (folder / name).is_symlink() or not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, or not a file of its own")
    require_digests(folder, privacy)
    if set(privacy["sha256"]) != set(FILES):
        raise InputError(f"{folder}/privacy.json has digests of files that do not belong to a release")


def _require_as_written(path: Path, content: str) -> None:
    """Raise InputError unless a file is to the byte what its content is written as: comments say more than that."""
    if path.read_bytes() != content.encode():
        raise InputError(f"{path} is not as a run writes it: comments or spaces in it are covered by no claim")


def _require_no_more(folder: Path, settings: dict[str, Any], config: Config, plan: Mechanism) -> None:
    """Raise InputError if settings, weights or picture carry anything beside what they are for."""
    facts = settings["data"]
    names, sides = facts["class_names"], facts["shape"]
    texts = isinstance(names, list) and all(isinstance(text, str) for text in (facts["name"], *names))
    if not texts or not isinstance(sides, list) or not all(type(side) is int for side in sides):
        raise InputError(f"{folder}/config.toml holds something in data that no run writes there")
    whole = {
        "data": {"name": facts["name"], "shape": facts["shape"], "class_names": facts["class_names"]},
        "privacy": encode(plan),
        **({"prior": encode(config.prior)} if config.prior else {}),
        **{key: encode(getattr(config, key)) for key in ("network", "preconditioning", "loss", "training", "sampler")},
        "samplers": {name: encode(sampler) for name, sampler in config.samplers.items()},
    }
    # An earlier version may have lacked a setting of speed or quality, which is then at its default.
    stated = settings | {"training": encode(Training()) | settings["training"]}
    if stated != whole:
        unknown = sorted(key for key in stated.keys() | whole.keys() if stated.get(key) != whole.get(key))
        raise InputError(f"{folder}/config.toml holds something in {', '.join(unknown)} that no run writes there")
    if not _is_picture_alone((folder / "samples.png").read_bytes()):
        raise InputError(f"{folder}/samples.png is no PNG, or holds more than a picture")


def _require_steps_for_a_network(folder: Path, config: Config, plan: Mechanism) -> None:
    """Raise InputError if a plan without steps comes with a trained network, or one with steps without."""
    if isinstance(config.network, Zero) != (plan.steps == 0):
        raise InputError(
            f"{folder} has a trained network, and its plan pays for no step"
            if plan.steps == 0
            else f"{folder} has no network, and its plan has {plan.steps:,} steps"
        )
    if plan.steps == 0 and not isinstance(config.sampler, FromPrior):
        raise InputError(f"{folder} was trained without steps, and its sampler is not that of a prior")


def _require_weights_alone(folder: Path, release: Release) -> None:
    """Raise InputError unless the weights are numbers, and their file to the byte what a run writes of them."""
    path, weights = folder / "model.safetensors", release.denoiser.state_dict()
    if not all(t.isfinite().all() for t in weights.values()):
        raise InputError(f"{path} holds weights that are not finite: a generator that draws nothing")
    if safetensors.torch.save({name: t.contiguous().cpu() for name, t in weights.items()}) != path.read_bytes():
        raise InputError(f"{path} holds more than weights, or is not as a run writes it")


def _is_picture_alone(content: bytes) -> bool:
    """Tell whether a PNG is an RGB picture of eight bits and nothing beside: neither text, palette nor more pixels.

    Source:
        W3C Portable Network Graphics, section 5: eight bytes of signature, then length, type, data, checksum.
    """
    signature, rest = content[:8], content[8:]
    chunks: list[tuple[bytes, bytes]] = []
    while len(rest) >= 12 and chunks[-1:] != [(b"IEND", b"")]:
        end = 8 + int.from_bytes(rest[:4], "big")
        chunks.append((rest[4:8], rest[8:end]))
        if zlib.crc32(rest[4:end]).to_bytes(4, "big") != rest[end : end + 4]:
            return False
        rest = rest[end + 4 :]
    kinds, pixels = [kind for kind, _ in chunks], b"".join(data for kind, data in chunks if kind == b"IDAT")
    if signature != b"\x89PNG\r\n\x1a\n" or rest or len(kinds) < 3 or chunks[-1] != (b"IEND", b""):
        return False
    header = chunks[0][1]
    if kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"] or len(header) != 13 or header[8:] != _RGB:
        return False
    width, height = struct.unpack(">II", header[:8])
    size = height * (1 + 3 * width)
    inflate = zlib.decompressobj()
    try:
        found = len(inflate.decompress(pixels, size + 1)) if size <= _LARGEST_PICTURE else -1
    except zlib.error:
        return False
    return found == size and inflate.eof and not inflate.unused_data


def _require_same_claim(folder: Path, privacy: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise InputError unless `privacy.json` says what follows from the plan."""
    stated = {key: value for key, value in privacy.items() if key not in ("schema", "sha256")}
    for key in ("epsilon", "epsilon_rdp"):
        here, there = expected[key], stated.get(key)
        if not isinstance(there, float | int) or not here * (1 - 1e-6) <= there <= here * (1 + _TOLERANCE) + 1e-4:
            raise InputError(f"{folder}/privacy.json states {key} = {there}, and its events cost {here}")
    if expected.keys() != stated.keys():
        raise InputError(
            f"{folder}/privacy.json states {', '.join(sorted(expected.keys() ^ stated.keys()))}, or lacks it"
        )
    opening = f"({expected['epsilon']}, "
    expected |= {"statement": expected["statement"].replace(opening, f"({stated['epsilon']}, ")}
    expected |= {key: stated[key] for key in ("epsilon", "epsilon_rdp")}
    for key in sorted(expected):
        if expected[key] != stated[key]:
            raise InputError(
                f"{folder}/privacy.json states {key} = {stated[key]}, and config.toml makes it {expected[key]}"
            )


def percent(rate: float) -> str:
    """Say a bound in per cent, rounded up."""
    hundredths = -int(-10_000 * rate // 1)
    return f"{hundredths / 100:g} %"
