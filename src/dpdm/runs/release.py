"""What may be published of a run, and how images are made from it: post-processing only."""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dpdm.config import decode_method, decode_plan
from dpdm.data.dataset import MAX_SIDE, MIN_SIDE
from dpdm.files import digest, read_at_most, read_json, write_json, write_toml
from dpdm.methods import AnySampler, DenoisingGenerator, ImageFacts, ImageGenerator, Method, PublicPart
from dpdm.methods.stored import places_of
from dpdm.networks import DiffusersFolder, OwnNetwork, TextToImageFolder, digest_of_part
from dpdm.privacy import AnyPlan
from dpdm.privacy.processes import Processes
from dpdm.runs.hardware import Precision, autocast, choose_device
from dpdm.runs.public import read_parts, require_needed
from dpdm.runs.run_folder import folder_with_weights, pipeline_of
from dpdm.runs.weights import Layout, differences, layout_of, read_layout, read_weights, require_plain, save_weights
from dpdm.types import (
    MOST_CLASSES,
    Images,
    InputError,
    Labels,
    is_of_memory,
    require_counts,
    require_name,
    require_names_of_classes,
    require_seed,
    tensor_to_images,
)

FILES = ("config.toml", "model.safetensors")
"""The files that `privacy.json` holds digests of."""

_NO_RUNS = 2**62 + 11  # a seed: what a state_dict lacks must not come back by that of the run

SCHEMA = 7
"""Of a release's files."""

_MOST_TEXT = 2**22  # bytes of settings or of a claim: ten thousand long names of classes
_MOST_KEYS = 2000  # of settings with all samplers, and all public parts with their sources, that there may be
_NUMBER = r"-?\d{1,19}|-?\d{1,17}(?:\.\d{1,22})?(?:e[-+]\d{1,3})?"  # none that is longer fits 64 bits
_SCALAR = rf'(?:"[^"\\\n]*(?:\\.[^"\\\n]*)*"|true|false|inf|{_NUMBER})'
_LINE = re.compile(  # of settings as they are written: a head, a key, an entry of a list, or its end
    rf"(?:\[[\w-]+(?:\.[\w-]+){{0,2}}\]|\[\[[\w-]+(?:\.[\w-]+){{1,2}}\]\]|[\w-]+ = (?:{_SCALAR}|\[\]?)"
    rf"|    (?:{_SCALAR}|\{{ [\w-]+ = {_SCALAR}(?:, [\w-]+ = {_SCALAR}){{0,6}} \}}),|\])?",
    re.ASCII,
)


def facts_of(declared: dict[str, Any]) -> ImageFacts:
    """Return the declared facts that settings hold under `facts`.

    Raises:
        InputError: They are none: sides without end, or names that nobody can read.
    """
    shape, names = declared["shape"], declared["class_names"]
    require_name(declared["name"], "config.toml: the data set")
    if not isinstance(names, list) or len(names) > MOST_CLASSES:
        raise InputError(
            f"config.toml holds something in facts.class_names that is no list of up to {MOST_CLASSES:,} names"
        )
    require_names_of_classes(names, "config.toml: a class")
    sound = isinstance(shape, list) and [type(side) for side in shape] == [int] * 3
    if not sound or shape[0] not in (1, 3, 4) or not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[1:]):
        raise InputError(
            "config.toml holds something in facts.shape: not 1, 3 or 4 channels and two sides "
            f"from {MIN_SIDE} to {MAX_SIDE:,}"
        )
    return ImageFacts(tuple(shape), tuple(names))


def read_claim(folder: Path) -> dict[str, Any]:
    """Return what `privacy.json` holds, or raise InputError if it is not of this version."""
    privacy = read_json(folder / "privacy.json", most=_MOST_TEXT)
    if privacy.get("schema") != SCHEMA:
        raise InputError(f"{folder} was written by another version of dpdm, whose files this one cannot read")
    return privacy


def read_settings(folder: Path, privacy: dict[str, Any]) -> dict[str, Any]:
    """Return what `config.toml` holds.

    Raises:
        InputError: It is not the file that the claim was written for, or no run writes such a file.
    """
    content = read_at_most(folder / "config.toml", _MOST_TEXT)
    _require_digest(folder / "config.toml", privacy, hashlib.sha256(content).hexdigest())
    try:
        lines = (text := content.decode()).split("\n")
        keys = sum(not line.startswith("    ") for line in lines)
        if keys > _MOST_KEYS or not all(map(_LINE.fullmatch, lines)):  # none takes a parser long
            raise ValueError("comments, or lines of another form")
        settings = tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{folder}/config.toml is not valid TOML, or not as a run writes it ({error})") from None
    require_whole_folder(settings, f"{folder}/config.toml")
    return settings


def require_whole_folder(settings: Mapping[str, Any], where: str) -> None:
    """Raise InputError if settings of a release leave out what was in a diffusers folder: nobody's disk is looked at.

    Without it, what they mean would follow from a folder of whoever reads them.
    """
    network = settings.get("network")
    for folder in (DiffusersFolder, TextToImageFolder):
        if isinstance(network, Mapping) and network.get("kind") == folder.kind:
            for key in folder.needed:
                if key not in network:
                    raise InputError(f"{where} is of a run with a diffusers folder, and lacks network.{key}")


def require_weights_digest(folder: Path, privacy: dict[str, Any]) -> None:
    """Raise InputError unless the weights are those that the claim was written for."""
    path = folder / "model.safetensors"
    _require_digest(path, privacy, digest(path))


def _require_digest(path: Path, privacy: dict[str, Any], found: str) -> None:
    digests = privacy.get("sha256")
    if not isinstance(digests, dict) or digests.get(path.name) != found:
        raise InputError(f"{path} is not the file that privacy.json was written for: its digest differs")


def require_layout(
    path: Path, method: Method, plan: AnyPlan, facts: ImageFacts, public: Sequence[PublicPart]
) -> Layout:
    """Return the layout of a file of weights, or raise InputError if it is not that of the settings' generator.

    Nothing of the size of the weights is made: whoever writes settings may ask for a network without end.
    """
    layout = read_layout(path)
    try:
        foreign = {}
        if method.foreign is not None:  # whose code is not here: its weights are what the file says
            foreign = {name: entry for name, entry in layout.items() if name.startswith(method.foreign)}
            require_plain(foreign)
        generator = untrained(method, facts, _sizes(layout))
        require_needed(public, method, plan, generator)
        expected = layout_of(generator.state_dict())
        if expected | foreign != layout:
            raise ValueError("other weights than the settings'")
    except (LookupError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or is_of_memory(error):
            raise
        raise InputError(f"{path.parent} is damaged ({type(error).__name__}): its files do not fit together") from None
    return layout


def untrained(method: Method, facts: ImageFacts, sizes: Mapping[str, tuple[int, ...]] | None = None) -> ImageGenerator:
    """Return a method's generator without any numbers, and with nothing in the place of a network of other code."""
    with torch.device("meta"):
        known = method if method.foreign is None else method.with_code(nn.Identity())
        return known.untrained(facts, sizes=sizes)


def _sizes(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in layout.items()}


@dataclass(frozen=True, eq=False, repr=False)
class Release:
    """A trained generator with its claim.

    Args:
        generator: The generator that draws images. Its `state_dict` is all of it.
        claim: The claim for machines; `statement` is the one for people.
        settings: All settings and declared facts of the run, as `config.toml` holds them.

    Privacy:
        All of a release may be published: it is post-processing of noisy sums and declared facts.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
        >>> method = PriorAlone(prior=Prior(centres=1))
        >>> plan = method.plan(epsilon=1.0, dataset_size=64, delta=1e-3)
        >>> release = Trainer(method=method, plan=plan, ledger=None).fit(ImageDataset(images=images, name="scans"))
        >>> release.sample(5, seed=0)[0].shape
        (5, 8, 8, 1)
    """

    generator: ImageGenerator
    claim: dict[str, Any]
    settings: dict[str, Any]

    @property
    def facts(self) -> ImageFacts:
        """Shape (channel, height, width) and class names of its images."""
        return self.generator.facts

    @property
    def public(self) -> tuple[PublicPart, ...]:
        """The images and networks declared public that made it: no claim protects them."""
        return read_parts(self.settings["facts"]["public"])

    def __repr__(self) -> str:
        return f"Release({self.claim.get('statement')!r}, shape={self.facts.shape}, classes={self.facts.num_classes})"

    @property
    def statement(self) -> str:
        """The claim in one line."""
        return str(self.claim["statement"])

    def sample(
        self, count: int, *, sampler: AnySampler | None = None, labels: Labels | None = None, seed: int | None = None
    ) -> tuple[Images, Labels]:
        """Make `count` images.

        Args:
            count: Number of images.
            sampler: The sampler (default: the generator's own).
            labels: Their classes (default: each class equally often, in turn). `choose_labels` makes others.
            seed: Seed that makes the images repeatable (default: random).

        Returns:
            Images as `uint8` (count, height, width, channel), and their labels (all 0 without classes).
        """
        parts = list(self.sample_in_parts(count, sampler=sampler, labels=labels, seed=seed))
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])

    @torch.no_grad()
    def sample_in_parts(
        self,
        count: int,
        *,
        sampler: AnySampler | None = None,
        labels: Labels | None = None,
        seed: int | None = None,
        part_size: int = 250,
        precision: Precision = "auto",
        processes: Processes = Processes(),  # noqa: B008 (frozen)
    ) -> Iterator[tuple[Images, Labels]]:
        """Yield the images of `sample` part by part, so that the caller can show progress.

        Each part has its own random generator. So several `processes`, each with its share of the parts, make the same
        images as one process alone.

        Raises:
            InputError: `count` is not positive, `labels` has another length or an unknown class, or the sampler visits
                noise levels that were not trained.
        """
        require_counts(count=count, part_size=part_size)
        require_seed(seed=seed or 0)
        generator = self.generator if sampler is None else _sampled_by(self.generator, sampler)
        classes = max(1, self.facts.num_classes)
        chosen = np.arange(count) % classes if labels is None else np.asarray(labels, dtype=np.int64)
        if chosen.shape != (count,) or not ((chosen >= 0) & (chosen < classes)).all():
            raise InputError(f"labels must be {count} integers from 0 to {classes - 1}")
        device = generator.device
        root = np.random.SeedSequence(seed)
        seeds, places = root.spawn(-(-count // part_size)), places_of(chosen, int(root.generate_state(1)[0]) >> 1)
        for number in processes.shard(len(seeds)):
            start = number * part_size
            random = torch.Generator(device).manual_seed(int(seeds[number].generate_state(1, np.uint64)[0]) >> 1)
            part = torch.from_numpy(chosen[start : start + part_size]).to(device)
            with autocast(precision, device):
                x = generator.draw_at(places[start : start + part_size].to(device), part, random=random)
            yield tensor_to_images(x), chosen[start : start + part_size]

    def save(self, folder: Path) -> None:
        """Write settings, weights and, last, the claim with their digests."""
        folder.mkdir(parents=True, exist_ok=True)
        write_toml(folder / "config.toml", self.settings)
        save_weights(folder / "model.safetensors", self.generator.state_dict())
        digests = {name: digest(folder / name) for name in FILES}
        write_json(folder / "privacy.json", {"schema": SCHEMA, **self.claim, "sha256": digests})

    @staticmethod
    def load(
        run: Path | str,
        *,
        network: OwnNetwork | None = None,
        public: Mapping[str, Path | str] | Path | str | None = None,
    ) -> "Release":
        """Return the release of a finished run's folder, or of the folder `release/` itself.

        Args:
            run: The folder.
            network: The code of a network that is not one of dpdm's: a module, which is copied, or a function that
                makes one.
            public: The folder of the diffusers pipeline whose public parts the release needs and does not hold. Or
                these parts by the release's names for them. Default: the pipeline that the run was trained with, if
                `run` is the whole folder.

        Raises:
            InputError: There is no finished run, or its release is damaged. Or the network has other names, shapes or
                kinds of weights than the trained one. Or a public part is missing or another.
        """
        folder = folder_with_weights(run)
        release = open_without_public(folder, network)
        supply(release.generator, (pipeline_of(run) if public is None else public) or {}, folder)
        return replace(release, generator=release.generator.to(choose_device("auto")))


def open_without_public(folder: Path, network: OwnNetwork | None) -> Release:
    """Return the release in a folder, as `Release.load` does, but on the CPU and without its public parts."""
    claim = read_claim(folder)
    settings, path = read_settings(folder, claim), folder / "model.safetensors"
    try:
        method, facts = decode_method(settings), facts_of(settings["facts"])
        plan, parts = decode_plan(settings["plan"]), read_parts(settings["facts"]["public"])
        layout = require_layout(path, method, plan, facts, parts)
        require_weights_digest(folder, claim)
        if network is not None:
            method = method.with_code(network)
        generator = method.untrained(facts, seed=_NO_RUNS, sizes=_sizes(layout))
        if other := differences(layout_of(generator.state_dict()), layout):
            raise InputError(f"{folder} was trained with another network than the one given: {other}")
        generator.load_state_dict(read_weights(path, layout))
        generator.requires_grad_(False).eval()
        claim["statement"]
    except InputError:
        raise
    except (LookupError, TypeError, RuntimeError, ValueError, ArithmeticError) as error:
        if is_of_memory(error):
            raise
        raise InputError(f"{folder} is damaged ({type(error).__name__}): its files do not fit together") from None
    return Release(generator, claim, settings)


def supply(generator: ImageGenerator, public: Mapping[str, Path | str] | Path | str, folder: Path) -> None:
    """Give a generator its public parts, or raise InputError if one is missing, another file, or not needed."""
    if isinstance(public, Path | str):  # of which the parts have the names
        if not generator.parts:
            raise InputError(f"{folder} needs no public pipeline: leave {public} out")
        public = {part.name: Path(public) / part.name.rpartition("/")[2] for part in generator.parts}
    if unknown := public.keys() - {part.name for part in generator.parts}:
        raise InputError(f"{folder} needs no public file {', '.join(sorted(unknown))}: leave it out")
    for part in generator.parts:
        if part.name not in public:
            raise InputError(
                f"{folder} needs the public file {part.name} (SHA-256 {part.sha256}): name the pipeline that it is of "
                "by --public, or Release.load(run, public=...); or name the whole folder of the run, which knows it"
            )
        path = Path(public[part.name])
        found = digest_of_part(path) if path.is_dir() else digest(path) if path.is_file() else None
        if found != part.sha256:
            raise InputError(f"{path} is not the public file {part.name} of {folder}: its SHA-256 is {part.sha256}")
        generator.supply(part, path)


def _sampled_by(generator: ImageGenerator, sampler: AnySampler) -> ImageGenerator:
    if not isinstance(generator, DenoisingGenerator):
        raise InputError("this run has no sampler: its images are drawn at once")
    return generator.sampled_by(sampler)
