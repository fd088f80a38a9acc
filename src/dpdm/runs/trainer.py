"""A method, a plan and images in; a release out. `Trainer.steps` yields progress: bars and logs are its callers'."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch

from dpdm.config import Config, Machine, encode_config, require_exact_size, require_same_unit
from dpdm.data import ImageDataset, fit_of, read_location, require_outside, require_same_shape
from dpdm.ledger import Ledger, Records
from dpdm.methods import Diffusion, ImageFacts, ImageGenerator, Method, Progress
from dpdm.methods.values import PublicStart
from dpdm.networks.checkpointing import compute_again
from dpdm.privacy import AnyPlan, Earlier, OperatingSystemEntropy
from dpdm.privacy.clipping import reject_cross_example_layers
from dpdm.privacy.entropy import Entropy
from dpdm.privacy.figures import kept_as
from dpdm.privacy.processes import Processes
from dpdm.runs.drawn import open_begun_with
from dpdm.runs.folder import ASKED_FOR, PrivateFolder
from dpdm.runs.hardware import choose_device
from dpdm.runs.public import parts_of, require_counted, require_others, require_public
from dpdm.runs.rehearsal import rehearse, require_memory, require_names, require_readable
from dpdm.runs.release import Release
from dpdm.runs.run import Run, begun
from dpdm.runs.start import open_starts
from dpdm.runs.verification import release_settings, require_planned
from dpdm.runs.watch import require_tensorboard
from dpdm.runs.weights import require_storable
from dpdm.types import InputError, refusing, require_name, require_seed


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a generator under a plan.

    Args:
        method: The method: `Diffusion(...)`, `PriorAlone(...)`, `Evolution(...)` and others.
        plan: All that the run may release: `method.plan(epsilon=...)`, or `NonPrivate(...)`.
        machine: Device, precision and memory. A resumed run may use others.
        seed: Seed of initial weights and other public randomness, never of privacy noise.
        public: Images declared public, for a method that starts from some (`Evolution`). The run blanks a private image
            that equals one of them before the first sum: it takes no part, and no claim protects it.
        earlier: The cost of a release that drew `public` (`dpdm.runs.drawn.open_drawn`). The plan counts it.
        reference: Public images by which a search compares its runs (`Tuner`): the claim names them.
        run: Folder of the run: `private/` for journal, checkpoint and losses, `watch/` for what anyone may see
            meanwhile, `release/` for what may be published. None keeps everything in memory, and nothing can resume.
        entropy: Source of batches, noise and diffusion draws. Any but the operating system's voids the claim.
        ledger: The ledger in which a run with a claim reserves before its first noisy sum (default: the user's own,
            `Ledger.default`). None counts nothing.
        asked: The settings that a person gave, which `private/config.toml` keeps beside what follows from them.

    Under torchrun every process gets all images, keeps its own part, and returns the same release. The first process
    writes the files. A group of images is selected as a whole if it is the unit of the plan. It lies with one process,
    and has one gradient, of copies of its images.

    Guarantees:
        * Given the noisy sums, releases and control flow agree in two worlds that differ in one unit, an image or a
          group.
        * A run that is stopped and resumed never makes more noisy sums than its plan has.
        * After every step the parameters are equal to the bit on all processes.
        * A rehearsal on made-up images refuses all that it can before the first noisy sum, and before the ledger counts
          the run. The run's folder is then as before.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
        >>> method = PriorAlone(prior=Prior(centres=1))
        >>> plan = method.plan(epsilon=1.0, dataset_size=64, delta=1e-3)
        >>> release = Trainer(method=method, plan=plan, ledger=None).fit(ImageDataset(images=images, name="scans"))
        >>> print(release.statement)
        (0.9998, 0.001)-DP, add or remove one image, 4 Gaussian releases, PLD accountant
    """

    method: Method = field(default_factory=Diffusion)
    plan: AnyPlan
    machine: Machine = field(default_factory=Machine)
    seed: int = 0
    public: ImageDataset | None = None
    earlier: tuple[Earlier, ...] = ()
    reference: ImageDataset | None = None
    run: Path | str | None = None
    entropy: Entropy = field(default_factory=OperatingSystemEntropy)
    ledger: Ledger | None = field(default_factory=Ledger.default)
    asked: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls,
        config: Config,
        data: ImageDataset,
        *,
        run: Path | str | None = None,
        plan: AnyPlan | None = None,
        reference: ImageDataset | None = None,
        ledger: Callable[[], Ledger | None] = Ledger.default,
    ) -> "Trainer":
        """Return the trainer that `config` describes.

        Args:
            config: The settings.
            data: The images.
            run: The run's folder.
            plan: The plan (default: that of `config`, with the number of images in `data` if no size is declared).
            reference: Public images by which a search compares its runs.
            ledger: Opens the ledger (default: the user's own).
        """
        asked, begun_with = encode_config(config), None
        if config.public is not None:
            begun_with = open_begun_with(config.public, data.shape, data.class_names, fit_of(data.location))
        return cls(
            method=config.method,
            asked={key: asked[key] for key in ASKED_FOR if key in asked},
            plan=plan or config.plan(lambda: data.num_units),
            machine=config.machine,
            seed=config.seed,
            public=None if begun_with is None else begun_with.images,
            earlier=() if begun_with is None else begun_with.earlier,
            reference=reference,
            run=run,
            ledger=ledger(),
        )

    def __post_init__(self) -> None:
        wanted: dict[str, tuple[type, ...]] = {
            "method": (Method,),
            "plan": get_args(AnyPlan),
            "machine": (Machine,),
            "run": (str, Path, NoneType),
            "ledger": (Ledger, NoneType),
        }
        for name, kinds in wanted.items():
            if not isinstance(getattr(self, name), kinds):
                known = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                raise InputError(f"{name} must be {known}, not {type(getattr(self, name)).__name__}")
        if not callable(getattr(self.entropy, "stream", None)):
            raise InputError("entropy must be a source of random bytes")
        require_seed(seed=self.seed)
        require_planned(self.method, self.plan)
        require_public(self.method, self.plan, self.public, self.reference, self.earlier)

    @cached_property
    def starts(self) -> tuple[PublicStart, ...]:
        """The public starts of the method: read once."""
        return open_starts(self.method.start_folders)

    @property
    def public_images(self) -> tuple[ImageDataset, ...]:
        """The images declared public that the run uses."""
        return tuple(images for images in (self.public, self.reference) if images is not None)

    @property
    def public_records(self) -> list[Records]:
        """All images declared public that the run uses, for a ledger to check."""
        sets = [each for images in self.public_images for each in (images, *images.made_of)]
        known = [ways for start in self.starts for ways in start.known]
        return [*map(Records.of, sets), *(Records(name, digests=ways) for name, ways in known)]

    def build(self, data: ImageDataset) -> tuple[ImageGenerator, torch.device]:
        """Return the untrained generator, and where it is trained.

        Raises:
            InputError: These settings do not fit these images, or this machine.
        """
        if not isinstance(data, ImageDataset):
            raise InputError(f"images are given as an ImageDataset (dpdm.open_dataset), not as {type(data).__name__}")
        if data.drawn:
            raise InputError(
                f"{data.name} was drawn from a release: begin a run with it (--public), and protect other images"
            )
        require_same_unit(self.plan, data)
        require_name(data.name, "the data set (data.name)")
        require_exact_size(self.plan, data)
        if self.run is not None and data.location:
            require_outside(Path(self.run), read_location(data.location).source)
        if self.machine.tensorboard:
            require_tensorboard()
        facts = ImageFacts(data.shape, data.class_names)
        for images in self.public_images:
            require_same_shape(data, images)
            require_others(data, images)
        self.method.require_images(facts)
        require_counted(self.plan, self.starts, self.earlier)
        device = choose_device(self.machine.device)
        if self.method.code is None:
            with torch.device("meta"):  # before there are weights, which may be too many
                planned = self.method.untrained(facts)
            require_storable(planned.state_dict())
            require_memory(planned, device)
        generator = self.method.untrained(facts, seed=self.seed)
        require_names(generator, self.method)
        with refusing(f"the network cannot be moved to the device {device}"):
            generator.to(device)
        if self.machine.checkpointing:
            compute_again(generator)
        reject_cross_example_layers(generator)
        require_storable(generator.state_dict())
        require_readable(self, self.settings(data, generator), generator)
        return generator, device

    def rehearse(self, data: ImageDataset) -> dict[str, Any]:
        """Refuse what a run would refuse before its first noisy sum, without beginning one; return its settings.

        Raises:
            InputError: The settings do not fit these images or this machine, or nothing could open the release again.
        """
        with Processes.joined().refused_together():
            generator, device = self.build(data)
        mechanism = self.plan.start(entropy=self.entropy, strategy=self.machine.clipping)
        public = {"public": self.public, "starts": self.starts}
        run = Run.in_memory(mechanism, machine=self.machine, device=device, seed=self.seed, num_records=0, **public)  # type: ignore[arg-type]
        with mechanism.processes.refused_together():
            release = Release(generator, {"statement": "of nothing"}, self.settings(data, generator))
            rehearse(self, run, release, mechanism, None)
        return release.settings

    def fit(self, data: ImageDataset) -> Release:
        """Train to the end of the plan, from where an interrupted run stopped, and return the release."""
        steps = self.steps(data)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                release: Release = end.value
                return release

    def steps(self, data: ImageDataset) -> Generator[Progress, None, Release]:
        """Yield after every step; the generator's return value is the `Release`.

        Closing the generator between steps saves a checkpoint, and the same call goes on from it.
        """
        trainer = as_begun(self)
        with begun(trainer, data) as (run, untrained, own):
            generator = yield from trainer.method.train(untrained, own, run)
            release = run.release(generator.eval())
        if self.run is not None and run.processes.first:
            release.save(Path(self.run) / "release")
        return release

    def said(self, generator: ImageGenerator) -> Method:
        """Return the method in the form that settings store."""
        return self.method.said(generator, self.starts)

    def settings(self, data: ImageDataset, generator: ImageGenerator) -> dict[str, Any]:
        """Return all settings and declared facts, as a release's `config.toml` holds them."""
        method, public = self.said(generator), parts_of(self.public_images, self.starts, self.method, generator)
        return release_settings(method, self.plan, self.seed, data.name, generator.facts, public)


def as_begun(trainer: Trainer) -> Trainer:
    """Return the trainer with the plan that its run began with; else as it is.

    A plan's noise is computed once. What is kept is taken wherever a person asks for the same, since another processor
    would come to other last digits. And all processes take the plan of the first one.

    Raises:
        InputError: The processes of this run were asked for different plans.
    """
    processes, plan = Processes.joined(), trainer.plan
    kept: AnyPlan | None = None
    with processes.refused_together():
        private = None if trainer.run is None else Path(trainer.run) / "private"
        if processes.first and private is not None:
            kept = PrivateFolder.kept_plan(private, plan)
    first = processes.object_from_first(kept or plan)
    processes.require(kept_as(plan, first) is not None, "their settings")
    return replace(trainer, plan=first)
