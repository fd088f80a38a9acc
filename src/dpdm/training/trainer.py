"""The training loop, on one screen: select, draw, clip, add noise, update, average.

`Trainer.steps` is a generator of progress; bars, logs and early stops are its callers'. `Trainer.fit` runs to the end.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from dpdm.config import (
    AnyPreconditioning,
    AnySampler,
    Config,
    Prior,
    Training,
    encode,
    require_exact_size,
    require_prior_planned,
    require_same_unit,
    require_samplers_trained,
)
from dpdm.data import ImageDataset, read_location, require_outside
from dpdm.diffusion import (
    DDIM,
    EDM,
    DenoisingLoss,
    FromPrior,
    GaussianMixture,
    MatchedPreconditioning,
    PreconditionedDenoiser,
)
from dpdm.ledger import InLedger, Ledger, Records
from dpdm.networks import CompactUNet, Network, OwnNetwork, Zero, code_of, said_of
from dpdm.privacy import DPSGD, Mechanism, MechanismRun, OperatingSystemEntropy
from dpdm.privacy.clipping import reject_cross_example_layers
from dpdm.privacy.entropy import Entropy
from dpdm.privacy.mechanism import Diagnostics, figures_of, kept_as
from dpdm.privacy.processes import Processes
from dpdm.training import ema
from dpdm.training.hardware import autocast, choose_device, keep_freed_memory
from dpdm.training.loader import Loader
from dpdm.training.prior import release_prior
from dpdm.training.private_folder import PrivateFolder
from dpdm.training.rehearsal import rehearse, require_memory, require_names, require_readable
from dpdm.training.release import ImageFacts, Release, build_denoiser
from dpdm.training.step_cost import physical_batch_size
from dpdm.training.watch import Watch, require_tensorboard
from dpdm.training.weights import require_storable
from dpdm.types import InputError, refusing, require_name


class RunLost(InputError):
    """Crashes have spent what a run needs to go on."""


class Progress(NamedTuple):
    """One step taken. `diagnostics` are secret, all else is public.

    `epsilon` is an upper bound for the steps so far: the value at the next of twenty points of the plan. It is None for
    a run that is kept in memory.
    """

    steps_spent: int
    steps: int
    updates: int
    epsilon: float | None
    diagnostics: Diagnostics


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a generator under a privacy mechanism.

    Args:
        network: What to train (default: `CompactUNet()`): one of the package's networks; a `torch.nn.Module`, of which
            a copy is trained from the weights it has; or what makes one (`MakeNetwork`), under `training.seed`. A plan
            without steps trains none: its network is `Zero`, and its sampler `FromPrior`, whatever is given here.
        preconditioning: How network and denoiser are related.
        mechanism: The plan: `DPSGD(...).calibrate(epsilon=...)`, or `NonPrivate(...)`.
        prior: What `mechanism.earlier` releases: of `MomentMatched` preconditioning, and of no other.
        loss: Noise multiplicity and label dropout.
        training: Speed and quality.
        sampler: What the release samples with by default.
        samplers: Others, by name, that the release keeps for whoever samples.
        run: Folder of the run; its `private/` gets journal, checkpoint and losses, its `watch/` what may be
            seen while it goes, its `release/` what may be published. None keeps everything in memory, and nothing can
            be resumed.
        entropy: Of batch selection, noise and diffusion draws; anything but the operating system voids the claim.
        ledger: Where what a run may release is reserved before its first noisy sum, if it claims anything (default: the
            user's own, `Ledger.default`). None counts nothing.

    Under torchrun every process is given the same images, all of them, keeps its own part, and returns the same
    release; the first one writes the files. Where images are in groups, the unit of the plan, a group is selected as a
    whole: it has one gradient, of copies of its images, and lies with one process.

    Guarantees:
        * In two worlds that differ in one unit, an image or a group, given the noisy sums, releases and control flow
          agree.
        * A run that is stopped and resumed never makes more noisy sums than its plan has.
        * After every step the parameters are equal to the bit on all processes.
        * What a rehearsal on made-up images can refuse, it refuses before the first noisy sum and before the ledger
          counts the run; the run's folder is then as before.
    """

    network: Network | OwnNetwork = field(default_factory=CompactUNet)
    preconditioning: AnyPreconditioning = field(default_factory=EDM)
    mechanism: Mechanism
    prior: Prior | None = None
    loss: DenoisingLoss = field(default_factory=DenoisingLoss)
    training: Training = field(default_factory=Training)
    run: Path | str | None = None
    sampler: AnySampler = field(default_factory=DDIM)
    samplers: dict[str, AnySampler] = field(default_factory=dict)
    entropy: Entropy = field(default_factory=OperatingSystemEntropy)
    ledger: Ledger | None = field(default_factory=Ledger.default)

    @classmethod
    def from_config(
        cls,
        config: Config,
        data: ImageDataset,
        *,
        run: Path | str | None = None,
        mechanism: Mechanism | None = None,
        ledger: Callable[[], Ledger | None] = Ledger.default,
    ) -> "Trainer":
        """Return the trainer that `config` describes; its plan unless given, for which `data` is counted if need be.

        Args:
            config: The settings.
            data: The images.
            run: The run's folder.
            mechanism: The plan (default: that of `config`).
            ledger: Opens the ledger (default: the user's own).
        """
        return cls(
            network=config.network,
            preconditioning=config.preconditioning,
            mechanism=mechanism or config.plan(lambda: data.num_units),
            prior=config.prior,
            loss=config.loss,
            training=config.training,
            sampler=config.sampler,
            samplers=config.samplers,
            run=run,
            ledger=ledger(),
        )

    def __post_init__(self) -> None:
        self._require_types()
        require_prior_planned(self.prior, self.preconditioning, self.mechanism)
        if not self.mechanism.steps:
            if code_of(self.network) is not None:
                raise InputError("a plan without steps trains no network: leave network out, or give the plan steps")
            object.__setattr__(self, "network", Zero())
            object.__setattr__(self, "sampler", FromPrior())
        elif isinstance(self.network, Zero):
            raise InputError("network.kind = zero has nothing to train: choose another network, or privacy.steps = 0")
        require_samplers_trained(self.sampler, self.samplers, self.preconditioning, self.loss)

    def _require_types(self) -> None:
        wanted: dict[str, tuple[type, ...]] = {
            "mechanism": get_args(Mechanism),
            "prior": (Prior, NoneType),
            "loss": (DenoisingLoss,),
            "training": (Training,),
            "run": (str, Path, NoneType),
            "samplers": (dict,),
            "ledger": (Ledger, NoneType),
        }
        for name, kinds in wanted.items():
            if not isinstance(getattr(self, name), kinds):
                known = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                raise InputError(f"{name} must be {known}, not {type(getattr(self, name)).__name__}")
        if not callable(self.sampler) or not callable(getattr(self.entropy, "stream", None)):
            raise InputError("sampler must be one of dpdm's samplers, and entropy a source of random bytes")

    def build(self, data: ImageDataset) -> tuple[ImageFacts, torch.device, PreconditionedDenoiser]:
        """Return the facts that a network is built for, where it is trained, and the untrained denoiser.

        Raises:
            InputError: These settings cannot be trained on these images, or here.
        """
        if not isinstance(data, ImageDataset):
            raise InputError(f"images are given as an ImageDataset (dpdm.open_dataset), not as {type(data).__name__}")
        require_same_unit(self.mechanism, data)
        require_name(data.name, "the data set (data.name)")
        require_exact_size(self.mechanism, data)
        if self.run is not None and data.location:
            require_outside(Path(self.run), read_location(data.location).source)
        if self.training.tensorboard:
            require_tensorboard()
        facts = ImageFacts(data.shape, data.class_names)
        if not facts.num_classes and any(s.guidance for s in (self.sampler, *self.samplers.values())):
            raise InputError("guidance goes away from images without label, and these have no classes: set it to 0")
        device = choose_device(self.training.device)
        if code_of(self.network) is None:
            with torch.device("meta"):  # before there are weights, which may be too many
                planned = build_denoiser(self.network, self.preconditioning, facts, self.prior)
            require_storable(planned.state_dict())
            require_memory(planned, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            denoiser = build_denoiser(self.network, self.preconditioning, facts, self.prior)
        require_names(denoiser)
        with refusing(f"the network cannot be moved to the device {device}"):
            denoiser.to(device)
        reject_cross_example_layers(denoiser)
        require_storable(denoiser.state_dict())
        require_readable(self, self._settings(data, denoiser))
        return facts, device, denoiser

    def rehearse(self, data: ImageDataset) -> None:
        """Refuse what a run would refuse before its first noisy sum, without beginning one.

        Raises:
            InputError: This cannot be trained on these images, or here, or its release could not be opened again.
        """
        with Processes.joined().refused_together():
            facts, _, denoiser = self.build(data)
        mechanism = self.mechanism.start(entropy=self.entropy, strategy=self.training.clipping)
        with mechanism.processes.refused_together():
            settings = self._settings(data, denoiser)
            release = Release(ema.start(denoiser).eval(), facts, {"statement": "of nothing"}, settings, self.sampler)
            rehearse(self, denoiser, release, mechanism, None)

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
        processes = Processes.joined()
        self = as_begun(self, data)
        with processes.refused_together():
            facts, device, denoiser = self.build(data)
            average = ema.start(denoiser)
            claim = self.mechanism.claim(entropy=self.entropy)
        settings = self._settings(data, denoiser)
        weights = [(name, t.shape, t.dtype) for name, t in denoiser.state_dict().items()]
        processes.require_same(repr((settings, weights)), "their settings")
        if processes.size > 1:
            processes.require_same(data.digest(), "their images")
        whole, data = data, data.part(processes.shard(data.num_units))
        with processes.refused_together():
            folder = PrivateFolder(
                None if self.run is None or not processes.first else Path(self.run) / "private",
                {**settings, "opened": data.location},
                asked=figures_of(self.mechanism).asked,
            )
        watch = Watch(
            None if self.run is None or not processes.first else Path(self.run) / "watch",
            self.mechanism,
            private=claim["private"] is True,
            tensorboard=self.training.tensorboard,
        )
        keep_freed_memory()
        optimizer = torch.optim.Adam([*denoiser.parameters()] or [torch.zeros(0)])  # nothing, in a run without steps
        state = denoiser.network, average.network, optimizer
        release = Release(average.eval(), facts, claim, settings, self.sampler)
        mechanism = self.mechanism.start(
            folder.journal,
            entropy=self.entropy,
            strategy=self.training.clipping,
        )
        load = Loader(data, self.loss, self.preconditioning.noise_levels, device)
        counted: Callable[[MechanismRun], None] = lambda run: None  # noqa: E731
        try:
            with processes.refused_together():
                updates = folder.restore(*state)
            updates = processes.object_from_first(updates)
            _share_from_first(processes, denoiser.network, average.network, optimizer)
            if updates > mechanism.steps_spent:
                raise InputError(
                    f"{self.run}: the checkpoint has seen {updates} steps and the journal counts "
                    f"{mechanism.steps_spent}: it was lost or restored from a backup; start a new run, and count both"
                )
            if mechanism.finished and self.mechanism.steps and not updates:
                raise RunLost(f"{self.run}: crashes spent the whole plan before a checkpoint: start a new run")
            if not mechanism.finished:
                with _leaving_the_folder_free(folder, mechanism), processes.refused_together():
                    rehearse(self, denoiser, release, mechanism, folder.path)
            at_once = physical_batch_size(self.training, self.loss, denoiser, facts) if self.mechanism.steps else 1
            if not mechanism.finished:
                folder.save(*state, updates)
            if not updates:  # once more: nothing may be spent where a checkpoint cannot take the place of another
                folder.save(*state, updates)
                folder.report_duplicates(whole)
            with _leaving_the_folder_free(folder, mechanism), processes.refused_together():
                counted = self._reserve(mechanism, whole, folder)
            if self.prior is not None:
                prior = self._prior(self.prior, mechanism, data, folder).to(device)
                for module in (denoiser, average):
                    assert isinstance(module.preconditioning, MatchedPreconditioning)
                    module.preconditioning.prior = prior
            if not self.mechanism.steps:
                watch.draw(0, release)
            while not mechanism.finished:
                rate = self.training.learning_rate_at(mechanism.steps_spent / self.mechanism.steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast(self.training.precision, device):
                    diagnostics = mechanism.backward(
                        self.loss,
                        denoiser,
                        num_records=data.num_units,
                        load=load,
                        physical_batch_size=at_once,
                    )
                optimizer.step()
                updates += 1
                ema.update(average, denoiser, updates=updates, decay=self.training.ema_decay)
                spent = mechanism.steps_spent
                progress = Progress(spent, self.mechanism.steps, updates, watch.epsilon(spent), diagnostics)
                folder.record(spent, diagnostics, mechanism)
                watch.record(spent, rate, release)
                try:
                    yield progress
                except GeneratorExit:
                    # A clean stop: nothing is in flight, so what was reserved beyond can be given back.
                    folder.save(*state, updates)
                    mechanism.settle()
                    raise
                folder.save_now_and_then(*state, updates)
            folder.save(*state, updates)
        except BaseException:
            if self.run is None:  # which nobody can go on with
                counted(mechanism)
            raise
        finally:
            folder.record_disclosures(mechanism)
            mechanism.close()
            folder.close()
            watch.close()
        counted(mechanism)  # the ledger first: if it cannot be reached, nothing is released
        if self.run is not None and processes.first:
            release.save(Path(self.run) / "release")
        return release

    def _reserve(
        self, mechanism: MechanismRun, data: ImageDataset, folder: PrivateFolder
    ) -> Callable[[MechanismRun], None]:
        """Reserve the plan in the ledger before anything is spent; return what tells it what was, in the end."""
        plan, ledger = self.mechanism, self.ledger
        if not isinstance(plan, DPSGD) or not self.entropy.secure or not mechanism.processes.first:
            return lambda run: None
        before = None if folder.path is None else InLedger.read(folder.path)
        if ledger is None or (mechanism.finished and before is None):  # the latter finished without a ledger
            if before is not None and not mechanism.finished:
                raise InputError(f"{self.run} began in a ledger: go on with it, by --ledger or DPDM_LEDGER")
            return lambda run: None
        name = before or InLedger.new()
        tokens_before = name.tokens
        if not mechanism.finished:
            name = name.started(folder.path)
            head = ledger.reserve(
                name.run,
                plan,
                Records.of(data),
                place="a run in memory" if self.run is None else str(Path(self.run).absolute()),
                token=name.tokens[-1],
                tokens_before=tokens_before,
                begun=before is not None and mechanism.spent > 0,
                head=name.head,
            )
            name = name.saw(head, folder.path)
        return lambda run: ledger.complete(name.run, plan.events_made(run.spent), tokens=name.tokens, head=name.head)

    def _prior(
        self, settings: Prior, mechanism: MechanismRun, data: ImageDataset, folder: PrivateFolder
    ) -> GaussianMixture:
        """Return the prior that this run released before, or else a new one."""
        prior = mechanism.processes.object_from_first(folder.restore_prior(num_classes=data.num_classes))
        if prior is None:
            if mechanism.spent:
                raise RunLost(f"{self.run}: a crash spent the prior before it was saved: start a new run")
            prior = release_prior(mechanism, data, settings, seed=self.training.seed)
            folder.save_prior(prior)
        elif mechanism.spent < len(self.mechanism.earlier):
            raise InputError(
                f"{self.run}: there is a prior and the journal counts no release of it: it was lost or restored from a "
                "backup; start a new run, and count both"
            )
        return prior

    def _settings(self, data: ImageDataset, denoiser: PreconditionedDenoiser) -> dict[str, Any]:
        """Return all settings and declared facts, as `config.toml` holds them; a resumed run must share them."""
        return {
            "data": {"name": data.name, "shape": list(data.shape), "class_names": list(data.class_names)},
            "privacy": encode(self.mechanism),
            **({"prior": encode(self.prior)} if self.prior else {}),
            "network": encode(said_of(self.network, denoiser.network)),
            "preconditioning": encode(self.preconditioning),
            "loss": encode(self.loss),
            "training": encode(self.training),
            "sampler": encode(self.sampler),
            "samplers": {name: encode(sampler) for name, sampler in self.samplers.items()},
        }


def as_begun(trainer: Trainer, data: ImageDataset) -> Trainer:
    """Return the trainer with the plan that its run began with, or that was reserved for it; else as it is.

    A plan's noise is computed once. What is kept is taken wherever a person asks for the same, since another processor
    would come to other last digits; and all processes take the first one's.

    Raises:
        InputError: The processes of this run were asked for different plans.
    """
    processes, plan, ledger = Processes.joined(), trainer.mechanism, trainer.ledger
    kept: Mechanism | None = None
    with processes.refused_together():
        private = None if trainer.run is None else Path(trainer.run) / "private"
        if processes.first and private is not None:
            kept = PrivateFolder.kept_plan(private, plan)
        new = private is None or not private.exists()
        if processes.first and new and ledger is not None and isinstance(plan, DPSGD) and trainer.entropy.secure:
            kept = ledger.reserved_plan(plan, Records.of(data))
    first = processes.object_from_first(kept or plan)
    processes.require(kept_as(plan, first) is not None, "their settings")
    return replace(trainer, mechanism=first)


@contextmanager
def _leaving_the_folder_free(folder: PrivateFolder, mechanism: MechanismRun) -> Iterator[None]:
    """Remove a run's folder if what happens within refuses the run, and nothing is spent or reserved."""
    begun = mechanism.spent > 0 or (folder.path is not None and InLedger.read(folder.path) is not None)
    try:
        yield
    except InputError:
        if not begun:
            folder.remove()
        raise


def _share_from_first(
    processes: Processes, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Give all processes the state of the first, which alone has a checkpoint."""
    if processes.size > 1:
        with torch.no_grad():
            for tensor in (*network.state_dict().values(), *average.state_dict().values()):
                tensor.copy_(processes.from_first(tensor))
        optimizer.load_state_dict(processes.object_from_first(optimizer.state_dict()))
