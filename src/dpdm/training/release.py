"""What may be published of a run, and how images are made from it: post-processing only."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch

from dpdm.config import AnyPreconditioning, AnySampler, Config, Prior, decode, read_toml
from dpdm.diffusion import GaussianMixture, MomentMatched, PreconditionedDenoiser
from dpdm.evaluation import save_grid
from dpdm.files import digest, read_json, write_atomically, write_json, write_toml
from dpdm.networks import Network
from dpdm.privacy.processes import Processes
from dpdm.training.hardware import Precision, autocast, choose_device
from dpdm.types import Images, InputError, Labels, require_positive, require_seed, tensor_to_images

_PRIOR = "preconditioning.prior."
_SCHEMA = 4  # of a release's files
FILES = ("config.toml", "model.safetensors", "samples.png")  # what `privacy.json` holds digests of


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
    parts = {key: settings[key] for key in ("network", "preconditioning", "loss", "sampler")}
    config = decode(Config, {"data": {"source": declared["name"]}, **parts})
    return config, ImageFacts(tuple(declared["shape"]), tuple(declared["class_names"]))


def build_denoiser(
    network: Network, preconditioning: AnyPreconditioning, facts: ImageFacts, prior: Prior | GaussianMixture | None
) -> PreconditionedDenoiser:
    """Return the untrained denoiser; where a prior is only planned, with one of its size that knows nothing."""
    module = network.build(facts.shape, num_classes=facts.num_classes, images_in=preconditioning.images_in)
    if not isinstance(preconditioning, MomentMatched):
        return PreconditionedDenoiser(module, preconditioning)
    if not isinstance(prior, GaussianMixture):
        centres, dimensions = (prior or Prior()).centres, math.prod(facts.shape)
        prior = GaussianMixture.placeholder(dimensions, num_classes=facts.num_classes, centres=centres)
    return PreconditionedDenoiser(module, preconditioning.about(prior))


def release_folder(run: Path | str) -> Path:
    """Return the folder of what may be published: that of a finished run, or `run` itself.

    Raises:
        InputError: There is no finished run.
    """
    folder = Path(run) if (Path(run) / "privacy.json").is_file() else Path(run) / "release"
    if not (folder / "privacy.json").is_file():
        unfinished = (Path(run) / "private" / "journal.jsonl").exists()
        raise InputError(
            f"{run} holds {'an unfinished run: repeat its train command to go on' if unfinished else 'no run'}"
        )
    return folder


def read_claim(folder: Path) -> dict[str, Any]:
    """Return what `privacy.json` holds, or raise InputError if it is not of this version."""
    privacy = read_json(folder / "privacy.json")
    if privacy.get("schema") != _SCHEMA:
        raise InputError(f"{folder} was written by another version of dpdm, whose files this one cannot read")
    return privacy


def require_digests(folder: Path, privacy: dict[str, Any]) -> None:
    """Raise InputError unless settings, weights and picture are those that the claim was written for."""
    digests = privacy.get("sha256")
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, or not a file of its own")
        if not isinstance(digests, dict) or digests.get(name) != digest(folder / name):
            raise InputError(f"{folder / name} is not the file that privacy.json was written for: its digest differs")


@dataclass(frozen=True, eq=False, repr=False)
class Release:
    """A trained generator with its claim.

    Args:
        denoiser: The averaged network inside its preconditioning.
        facts: Shape (channel, height, width) and class names of its images.
        privacy: The claim for machines; `statement` is the one for people.
        settings: All settings and declared facts of the run, as `config.toml` holds them.
        sampler: What `sample` uses unless told otherwise.

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
            sampler: How; the release's own unless told.
            labels: Their classes; each class equally often, in turn, unless told.
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
            generator = torch.Generator(device).manual_seed(int(seeds[number].generate_state(1, np.uint64)[0] >> 1))
            part = torch.from_numpy(chosen[start : start + part_size]).to(device)
            noise = torch.randn((len(part), *self.facts.shape), generator=generator, device=device)
            with autocast(precision, device):
                x = sampler(self.denoiser, noise, part, generator=generator, null_label=self.null_label)
            yield tensor_to_images(x), chosen[start : start + part_size]

    def save(self, folder: Path) -> None:
        """Write settings, weights, a picture and, last, the claim with their digests."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: t.contiguous().cpu() for name, t in self.denoiser.state_dict().items()}
        write_toml(folder / "config.toml", self.settings)
        write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(safetensors.torch.save(weights)))
        self.save_picture(folder / "samples.png")
        digests = {name: digest(folder / name) for name in FILES}
        write_json(folder / "privacy.json", {"schema": _SCHEMA, **self.privacy, "sha256": digests})

    def save_picture(self, path: Path) -> None:
        """Write a PNG of ten images of each class, of the first ten classes where there are more."""
        rows = max(1, min(10, self.facts.num_classes))
        images, labels = self.sample(10 * rows, labels=np.arange(10 * rows) % rows, seed=0)
        save_grid(path, images, labels, num_classes=rows)

    @staticmethod
    def load(run: Path | str) -> "Release":
        """Return the release of a finished run's folder, or of the folder `release/` itself.

        Raises:
            InputError: There is no finished run, or its release is damaged.
        """
        folder = release_folder(run)
        privacy = read_claim(folder)
        require_digests(folder, privacy)
        settings = read_toml(folder / "config.toml")
        try:
            config, facts = from_settings(settings)
            tensors = safetensors.torch.load_file(folder / "model.safetensors")
            prior = None
            if isinstance(config.preconditioning, MomentMatched):
                of_prior = {name.removeprefix(_PRIOR): t for name, t in tensors.items() if name.startswith(_PRIOR)}
                prior = GaussianMixture.from_tensors(of_prior, num_classes=facts.num_classes)
                expected = max(1, facts.num_classes) * decode(Prior, settings["prior"]).centres, math.prod(facts.shape)
                if prior.centres.shape != expected:
                    raise ValueError("another prior than the settings'")
            denoiser = build_denoiser(config.network, config.preconditioning, facts, prior)
            # More precise numbers than the network's would be cut off in silence: what they hold is no weight.
            kinds = {name: t.dtype for name, t in denoiser.state_dict().items()}
            if any(kinds.get(name, t.dtype) != t.dtype for name, t in tensors.items()):
                raise TypeError("weights of another precision")
            denoiser.load_state_dict(tensors)
            denoiser.requires_grad_(False).eval()
            privacy["statement"]
        except (safetensors.SafetensorError, LookupError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"{folder} is damaged ({type(error).__name__}): its files do not fit together") from None
        return Release(denoiser.to(choose_device("auto")), facts, privacy, settings, config.sampler)
