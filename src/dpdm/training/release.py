"""What may be published of a run, and how images are made from it: post-processing only."""

import hashlib
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dpdm.config import AnyPreconditioning, AnySampler, Config, Prior, decode
from dpdm.data.dataset import MAX_SIDE, MIN_SIDE
from dpdm.diffusion import GaussianMixture, MatchedPreconditioning, MomentMatched, PreconditionedDenoiser
from dpdm.files import digest, read_at_most, read_json, write_json, write_toml
from dpdm.networks import Network, Own, OwnNetwork, Zero, build_network
from dpdm.privacy.processes import Processes
from dpdm.training.hardware import Precision, autocast, choose_device
from dpdm.training.run_folder import release_folder
from dpdm.training.weights import (
    Layout,
    differences,
    layout_of,
    read_layout,
    read_weights,
    require_plain,
    save_weights,
)
from dpdm.types import (
    MOST_CLASSES,
    Images,
    InputError,
    Labels,
    is_of_memory,
    require_name,
    require_names_of_classes,
    require_positive,
    require_seed,
    tensor_to_images,
)

PRIOR = "preconditioning.prior."
"""What the names of a prior's tensors begin with."""

NETWORK = "network."
"""What the names of a network's tensors begin with."""

FILES = ("config.toml", "model.safetensors")
"""The files that `privacy.json` holds digests of."""

SCHEMA = 5
"""Of a release's files."""

_MOST_TEXT = 2**22  # bytes of settings or of a claim: ten thousand long names of classes
_MOST_KEYS = 500  # of settings with all samplers that there may be
_NUMBER = r"-?\d{1,19}|-?\d{1,17}(?:\.\d{1,22})?(?:e[-+]\d{1,3})?"  # none that is longer fits 64 bits
_SCALAR = rf'(?:"[^"\\\n]*(?:\\.[^"\\\n]*)*"|true|false|inf|{_NUMBER})'
_LINE = re.compile(  # of settings as they are written: a head, a key, an entry of a list, or its end
    rf"(?:\[[\w-]+(?:\.[\w-]+){{0,2}}\]|[\w-]+ = (?:{_SCALAR}|\[\]?)"
    rf"|    (?:{_SCALAR}|\{{ [\w-]+ = {_SCALAR} \}}),|\])?",
    re.ASCII,
)


class ImageFacts(NamedTuple):
    """The declared facts of a data set that a generator needs."""

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 without labels."""
        return len(self.class_names)


def from_settings(settings: dict[str, Any]) -> tuple[Config, ImageFacts]:
    """Return what a generator needs of a run's settings, as `config.toml` holds them."""
    declared = settings["data"]
    needed = ["network", "preconditioning", "loss", "sampler", *(["prior"] if "prior" in settings else [])]
    parts = {key: settings[key] for key in needed}
    config = decode(Config, {"data": {"source": declared["name"]}, **parts})
    return config, facts_of(declared)


def facts_of(declared: dict[str, Any]) -> ImageFacts:
    """Return the declared facts that settings hold under `data`.

    Raises:
        InputError: They are none: sides without end, or names that nobody can read.
    """
    shape, names = declared["shape"], declared["class_names"]
    require_name(declared["name"], "config.toml: the data set")
    if not isinstance(names, list) or len(names) > MOST_CLASSES:
        raise InputError(
            f"config.toml holds something in data.class_names that is no list of up to {MOST_CLASSES:,} names"
        )
    require_names_of_classes(names, "config.toml: a class")
    sound = isinstance(shape, list) and [type(side) for side in shape] == [int] * 3
    if not sound or shape[0] not in (1, 3, 4) or not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[1:]):
        raise InputError(
            "config.toml holds something in data.shape: not 1, 3 or 4 channels and two sides "
            f"from {MIN_SIDE} to {MAX_SIDE:,}"
        )
    return ImageFacts(tuple(shape), tuple(names))


def build_denoiser(
    network: Network | OwnNetwork,
    preconditioning: AnyPreconditioning,
    facts: ImageFacts,
    prior: Prior | GaussianMixture | None,
) -> PreconditionedDenoiser:
    """Return the untrained denoiser; where a prior is only planned, with one of its size that knows nothing."""
    images_in = preconditioning.images_in
    module = build_network(network, facts.shape, num_classes=facts.num_classes, images_in=images_in).train()
    if not isinstance(preconditioning, MomentMatched):
        return PreconditionedDenoiser(module, preconditioning)
    if not isinstance(prior, GaussianMixture):
        centres, dimensions = (prior or Prior()).centres, math.prod(facts.shape)
        prior = GaussianMixture.placeholder(dimensions, num_classes=facts.num_classes, centres=centres)
    return PreconditionedDenoiser(module, preconditioning.about(prior))


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
        return tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{folder}/config.toml is not valid TOML, or not as a run writes it ({error})") from None


def require_weights_digest(folder: Path, privacy: dict[str, Any]) -> None:
    """Raise InputError unless the weights are those that the claim was written for."""
    path = folder / "model.safetensors"
    _require_digest(path, privacy, digest(path))


def _require_digest(path: Path, privacy: dict[str, Any], found: str) -> None:
    digests = privacy.get("sha256")
    if not isinstance(digests, dict) or digests.get(path.name) != found:
        raise InputError(f"{path} is not the file that privacy.json was written for: its digest differs")


def require_layout(path: Path, config: Config, facts: ImageFacts) -> Layout:
    """Return the layout of a file of weights, or raise InputError if it is not that of the settings' denoiser.

    Nothing of the size of the weights is made: whoever writes settings may ask for a network without end.
    """
    layout = read_layout(path)
    try:
        prior = None
        if isinstance(config.preconditioning, MomentMatched):
            kept, lead = layout[f"{PRIOR}vectors"][1][1], layout[f"{PRIOR}axes"][1][2]
            if not lead <= kept <= math.prod(facts.shape):
                raise ValueError("more directions than pixels")
            sizes: dict[str, int] = {"kept": kept, "lead": lead, "centres": (config.prior or Prior()).centres}
            with torch.device("meta"):
                prior = GaussianMixture.placeholder(math.prod(facts.shape), num_classes=facts.num_classes, **sizes)
        own = isinstance(config.network, Own)  # whose code is not here: its weights are what the file says
        with torch.device("meta"):
            network = Zero() if own else config.network
            expected = layout_of(build_denoiser(network, config.preconditioning, facts, prior).state_dict())
        if own:
            weights = {name: entry for name, entry in layout.items() if name.startswith(NETWORK)}
            require_plain(weights)
            expected |= weights
        if expected != layout:
            raise ValueError("another network or prior than the settings'")
    except (LookupError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or is_of_memory(error):
            raise
        raise InputError(f"{path.parent} is damaged ({type(error).__name__}): its files do not fit together") from None
    return layout


@dataclass(frozen=True, eq=False, repr=False)
class Release:
    """A trained generator with its claim.

    Args:
        denoiser: The averaged network inside its preconditioning.
        facts: Shape (channel, height, width) and class names of its images.
        privacy: The claim for machines; `statement` is the one for people.
        settings: All settings and declared facts of the run, as `config.toml` holds them.
        sampler: What `sample` uses by default.

    Privacy:
        All of it may be published: it is post-processing of noisy sums and declared facts.
    """

    denoiser: PreconditionedDenoiser
    facts: ImageFacts
    privacy: dict[str, Any]
    settings: dict[str, Any]
    sampler: AnySampler

    def __repr__(self) -> str:
        return f"Release({self.privacy.get('statement')!r}, shape={self.facts.shape}, classes={self.facts.num_classes})"

    @property
    def statement(self) -> str:
        """The claim in one line."""
        return str(self.privacy["statement"])

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no label", if training had it."""
        trained = self.facts.num_classes and self.settings["loss"]["label_dropout"] > 0
        return self.facts.num_classes if trained else None

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is among the training images, as the prior has released it; None without a prior."""
        preconditioning = self.denoiser.preconditioning
        if not isinstance(preconditioning, MatchedPreconditioning) or not self.facts.num_classes:
            return None
        return tuple(preconditioning.prior.class_shares.tolist())

    def sample(
        self,
        count: int,
        *,
        sampler: AnySampler | None = None,
        labels: Labels | None = None,
        seed: int | None = None,
    ) -> tuple[Images, Labels]:
        """Make `count` images.

        Args:
            count: How many.
            sampler: How (default: the release's own).
            labels: Their classes (default: each class equally often, in turn). `choose_labels` makes others.
            seed: Makes the images repeatable.

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

        Each part has a generator of its own, so that several `processes`, every one of which makes its share of the
        parts, make the same images together as one alone.

        Raises:
            InputError: `count` is not positive, `labels` has another length or a class that does not exist, or the
                sampler asks for what was not trained.
        """
        require_positive(count=count)
        require_seed(seed=seed or 0)
        sampler = sampler or self.sampler
        sampler.require_trained(self.denoiser.preconditioning.noise_levels)
        classes = max(1, self.facts.num_classes)
        chosen = np.arange(count) % classes if labels is None else np.asarray(labels, dtype=np.int64)
        if chosen.shape != (count,) or not ((chosen >= 0) & (chosen < classes)).all():
            raise InputError(f"labels must be {count} integers from 0 to {classes - 1}")
        device = next(iter(self.denoiser.state_dict().values())).device
        seeds = np.random.SeedSequence(seed).spawn(-(-count // part_size))
        for number in processes.shard(len(seeds)):
            start = number * part_size
            generator = torch.Generator(device).manual_seed(int(seeds[number].generate_state(1, np.uint64)[0]) >> 1)
            part = torch.from_numpy(chosen[start : start + part_size]).to(device)
            noise = torch.randn((len(part), *self.facts.shape), generator=generator, device=device)
            with autocast(precision, device):
                x = sampler(self.denoiser, noise, part, generator=generator, null_label=self.null_label)
            yield tensor_to_images(x), chosen[start : start + part_size]

    def save(self, folder: Path) -> None:
        """Write settings, weights and, last, the claim with their digests."""
        folder.mkdir(parents=True, exist_ok=True)
        write_toml(folder / "config.toml", self.settings)
        save_weights(folder / "model.safetensors", self.denoiser.state_dict())
        digests = {name: digest(folder / name) for name in FILES}
        write_json(folder / "privacy.json", {"schema": SCHEMA, **self.privacy, "sha256": digests})

    @staticmethod
    def load(run: Path | str, *, network: OwnNetwork | None = None) -> "Release":
        """Return the release of a finished run's folder, or of the folder `release/` itself.

        Args:
            run: The folder.
            network: The code of a network that is not one of dpdm's: a module, which is copied, or what makes one.

        Raises:
            InputError: There is no finished run, its release is damaged, or the network is not what it was trained
                with: the names, shapes and kinds of its weights.
        """
        folder = release_folder(run)
        privacy = read_claim(folder)
        settings, path = read_settings(folder, privacy), folder / "model.safetensors"
        try:
            config, facts = from_settings(settings)
            if network is not None and not isinstance(config.network, Own):
                raise InputError(f"{folder} has a network of dpdm's own: leave out network=")
            layout = require_layout(path, config, facts)
            require_weights_digest(folder, privacy)
            prior = None
            if isinstance(config.preconditioning, MomentMatched):
                of_prior = read_weights(path, layout, below=PRIOR)
                prior = GaussianMixture.from_tensors(of_prior, num_classes=facts.num_classes)
            code = config.network if network is None else network
            denoiser = build_denoiser(code, config.preconditioning, facts, prior)
            if other := differences(layout_of(denoiser.state_dict()), layout):
                raise InputError(f"{folder} was trained with another network than the one given: {other}")
            denoiser.load_state_dict(read_weights(path, layout))
            denoiser.requires_grad_(False).eval()
            privacy["statement"]
        except InputError:
            raise
        except (LookupError, TypeError, RuntimeError, ValueError, ArithmeticError) as error:
            if is_of_memory(error):
                raise
            raise InputError(f"{folder} is damaged ({type(error).__name__}): its files do not fit together") from None
        return Release(denoiser.to(choose_device("auto")), facts, privacy, settings, config.sampler)
