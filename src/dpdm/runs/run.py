"""One run: its folder, mechanism, reservation and watch. It begins, and it settles or completes.

Before a method can reach the mechanism, all that may be released is reserved in the ledger.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpdm.config import Machine, encode
from dpdm.data import ImageDataset
from dpdm.ledger import Records, RunIdentity
from dpdm.ledger.counting import counted
from dpdm.methods import ImageGenerator, Progress
from dpdm.methods.values import PublicPart, PublicStart
from dpdm.privacy import MechanismRun, Noisy, Plan
from dpdm.privacy.diagnostics import Diagnostics
from dpdm.privacy.figures import figures_of
from dpdm.privacy.mechanism import LoadRows
from dpdm.privacy.processes import Processes
from dpdm.privacy.sums import BoundedSum
from dpdm.runs.benchmark import Benchmark, stamped
from dpdm.runs.cost import physical_batch_size
from dpdm.runs.folder import PrivateFolder, State
from dpdm.runs.hardware import autocast, keep_freed_memory
from dpdm.runs.kept import KeptRows, keep_rows
from dpdm.runs.known import KnownImages
from dpdm.runs.public import claim_of, read_parts, taking_part_of
from dpdm.runs.rehearsal import rehearse, require_memory
from dpdm.runs.release import Release
from dpdm.runs.watch import Watch
from dpdm.types import Images, InputError

if TYPE_CHECKING:
    from dpdm.runs.trainer import Trainer


_ROWS_AT_ONCE = 4096
"""Records whose vectors are in memory at a time, in a sum over a batch."""


class RunLost(InputError):
    """Crashes have spent what a run needs to go on."""


class SumLost(OSError):
    """A noisy sum was released and could not be kept, and cannot be made again."""


class Run:
    """The one run behind `methods.Run`.

    Args:
        mechanism: What makes the planned sums.
        machine: Device, precision and memory.
        device: Where networks are.
        seed: Of what is public.
        place: How messages call the run.
        public: Images that are declared public, for a method that starts from some.
        starts: Networks that were trained on public images, for a method that begins with one of them.
        folder: What it keeps to itself.
        watch: What anyone may see while it goes.
        num_records: Returns the number of this process's records: secret.
        begin: Reserves the plan before anything is spent.

    Guarantees:
        * Each noisy sum of a method without steps is on disk before anything that follows from it.
        * A run that is stopped and resumed never makes more noisy sums than its plan has.
        * Nothing is released before the plan is reserved.
    """

    def __init__(
        self,
        mechanism: MechanismRun,
        *,
        machine: Machine,
        device: torch.device,
        seed: int,
        place: str,
        public: ImageDataset | None,
        starts: tuple[PublicStart, ...],
        folder: PrivateFolder,
        watch: Watch,
        num_records: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.processes, self.device, self.seed = mechanism.processes, device, seed
        self.public, self.starts = public, starts
        self._mechanism, self._machine, self._place = mechanism, machine, place
        self._folder, self._watch, self._num_records = folder, watch, num_records
        self._begin, self._begun = begin, False
        self._state: State = {}
        self.updates = 0
        self._seen = 0  # noisy sums that the method has asked for, without steps
        self._lost = 0  # and those of them that a crash has spent
        self._as_release: Callable[[ImageGenerator], Release] | None = None

    @classmethod
    def in_memory(
        cls,
        mechanism: MechanismRun,
        *,
        machine: Machine,
        device: torch.device,
        seed: int,
        num_records: int,
        public: ImageDataset | None = None,
        starts: tuple[PublicStart, ...] = (),
    ) -> "Run":
        """Return a run that nothing is kept of: no folder, no ledger, nothing to watch."""
        return cls(
            mechanism,
            machine=machine,
            device=device,
            seed=seed,
            place="a run in memory",
            public=public,
            starts=starts,
            folder=PrivateFolder(None, {}),
            watch=Watch(None, mechanism.plan, private=False, tensorboard=False),
            num_records=num_records,
        )

    @property
    def mechanism(self) -> MechanismRun:
        """What makes the planned sums; reached for the first time, the plan is reserved."""
        self._reserved()
        return self._mechanism

    def _reserved(self) -> None:
        if not self._begun:
            self._begin()
            self._begun = True

    def autocast(self) -> torch.autocast:
        """Return the context for calls of a network."""
        return autocast(self._machine.precision, self.device)

    def physical_batch_size(self, copies: int, bytes_of_one: Callable[[], int]) -> int:
        """Return how many examples to take at once, each with so many copies, which keeps so many bytes."""
        return physical_batch_size(self._machine, self.device, copies, bytes_of_one)

    def require_memory(self, module: nn.Module, bytes_of_one: int = 0) -> None:
        """Raise InputError unless the device has room for a step of `module` on one example, which takes so much."""
        require_memory(module, self.device, one=bytes_of_one)

    def once(self, name: str, make: Callable[[], BoundedSum]) -> Noisy:
        """Return the planned release `name`: made now, or as it was made before the run was interrupted.

        Raises:
            RunLost: A crash spent it before it was saved.
            SumLost: It cannot be saved, for want of room, say.
            InputError: It was kept, and the journal counts no release of it.
        """
        noisy = self._made_or_kept(
            self._number_of(name), name, lambda: self.mechanism.release(name, make(), num_records=self._num_records)
        )
        if noisy is None:
            raise RunLost(f"{self._place}: a crash spent {name!r} before it was saved: start a new run")
        return noisy

    def of_batch(self, name: str, number: int, *, dimensions: int, load: LoadRows) -> Noisy | None:
        """Return sum `number` (from 0) of the planned sums `name` over Poisson batches: made now, or as it was kept.

        Returns:
            None where a crash spent it before it was saved: it is never made again.

        Raises:
            SumLost: It cannot be saved, for want of room, say.
            InputError: It was kept, and the journal counts no release of it; or see `MechanismRun.batch_sum`.
        """
        noisy = self._made_or_kept(
            self._number_of(name) + number,
            f"{name}/{number + 1}",
            lambda: self.mechanism.batch_sum(
                name,
                dimensions=dimensions,
                num_records=self._num_records,
                load=load,
                physical_batch_size=_ROWS_AT_ONCE,
            ),
        )
        self._lost += noisy is None
        return noisy

    def _made_or_kept(self, made: int, key: str, make: Callable[[], Noisy]) -> Noisy | None:
        """Return the noisy sum before which `made` others are: as it was kept under `key`, or made and kept now."""
        mechanism = self.mechanism
        self._seen = made + 1
        with self.processes.refused_together():
            found = self._folder.kept_sum(key)
        kept = self.processes.object_from_first(found)
        if mechanism.spent > made:
            return kept
        if kept is not None:
            raise InputError(
                f"{self._place}: {key!r} was kept and the journal counts no release of it: it was lost or restored "
                "from a backup; start a new run, and count both"
            )
        noisy = make()
        if self.processes.first:
            try:
                self._folder.keep_sum(key, noisy)
            except OSError as error:
                raise SumLost(error.errno, error.strerror, key) from None
        return noisy

    def keep(
        self, name: str, images: Images, make: Callable[[Images], Float32[Tensor, "images columns"]], *, made_by: str
    ) -> KeptRows:
        """Return one row of numbers for each image: as kept in private/, or made now and kept there.

        The plan is reserved first: what a ledger refuses has cost nobody the time of rows.
        """
        self._reserved()
        path = self._folder.path
        return keep_rows(None if path is None else path / "kept" / name, images, make, made_by=made_by, name=name)

    def _number_of(self, name: str) -> int:
        before = 0
        for release in self._mechanism.plan.releases:
            if release.name == name:
                return before
            before += release.count
        raise InputError(f"the plan releases no {name!r}")

    def resume(self, **state: nn.Module | torch.optim.Optimizer) -> int:
        """Load what was saved of these; return how many updates they have seen. They are what is saved from now on.

        Raises:
            RunLost: Crashes spent the whole plan before there was a checkpoint.
            InputError: The checkpoint is damaged, of another network, or older than the journal.
        """
        mechanism, self._state = self._mechanism, state
        with self.processes.refused_together():
            updates = self._folder.restore(state)
        self.updates = self.processes.object_from_first(updates)
        self.processes.share(self._state.values())
        if self.updates > mechanism.steps_spent:
            raise InputError(
                f"{self._place}: the checkpoint has seen {self.updates} steps and the journal counts "
                f"{mechanism.steps_spent}: it was lost or restored from a backup; start a new run, and count both"
            )
        if state and mechanism.finished and mechanism.plan.steps and not self.updates:
            raise RunLost(f"{self._place}: crashes spent the whole plan before a checkpoint: start a new run")
        if not mechanism.finished:
            self._folder.save(state, self.updates)
        if not self.updates:  # once more: nothing may be spent where a checkpoint cannot take the place of another
            self._folder.save(state, self.updates)
        return self.updates

    def took_step(self, diagnostics: Diagnostics, generator: ImageGenerator, *, learning_rate: float) -> Progress:
        """Note a step: losses in private/, ε and pictures in watch/, and a checkpoint now and then."""
        self.updates += 1
        spent, plan = self._mechanism.steps_spent, self._mechanism.plan
        self._folder.record(spent, diagnostics, self._mechanism)
        self._watch.record(spent, learning_rate, lambda: self.release(generator))
        self._folder.save_now_and_then(self._state, self.updates)
        return Progress(spent, plan.steps, self.updates, self._watch.epsilon(spent), diagnostics)

    def made_sum(self, generator: ImageGenerator) -> Progress:
        """Note a noisy sum of a method that takes no steps, and draw what it has come to, into watch/."""
        if self._watch.has_picture(self._seen):
            self._watch.draw(self._seen, lambda: self.release(generator))
        return self._sums_seen()

    def worked(self) -> Progress:
        """Note that work on what was released has gone on: a checkpoint now and then."""
        self._folder.save_now_and_then(self._state, self.updates)
        return self._sums_seen()

    def named(self, generator: ImageGenerator) -> tuple[PublicPart, ...] | None:
        """Return the public parts that the run's claim names, as they were when it began; None of a run in memory."""
        return None if self._as_release is None else self.release(generator).public

    def _sums_seen(self) -> Progress:
        return Progress(self._seen, self._mechanism.plan.planned, self._seen - self._lost, None, None)

    def release(self, generator: ImageGenerator) -> Release:
        """Return what would be published if the run ended now."""
        assert self._as_release is not None, "a run in memory has no release"
        return self._as_release(generator)


@contextmanager
def begun(trainer: "Trainer", data: ImageDataset) -> Iterator[tuple[Run, ImageGenerator, ImageDataset]]:
    """Begin a run, or go on with it; yield it with the generator that it trains, and this process's part of the images.

    On leaving, a run that was closed between steps is saved and settled, one that went to its end is completed in the
    ledger. What a rehearsal can refuse is refused before the ledger counts the run; its folder is then as before.
    """
    processes, plan = Processes.joined(), trainer.plan
    with processes.refused_together():
        generator, device = trainer.build(data)
        settings = trainer.settings(data, generator)
        claim = claim_of(plan, read_parts(settings["facts"]["public"]), entropy=trainer.entropy)
    weights = [(name, t.shape, t.dtype) for name, t in generator.state_dict().items()]
    processes.require_same(repr((settings, weights)), "their settings")
    if processes.size > 1:
        processes.require_same(data.digest(), "their images")
    taking_part = taking_part_of(data, trainer.public, trainer.starts)
    own = taking_part.part(processes.shard(data.num_units))
    known = KnownImages(data, own, processes)
    folder, watch = _opened(trainer, data, settings, processes, private=claim["private"] is True)
    keep_freed_memory()
    mechanism = plan.start(folder.journal, entropy=trainer.entropy, strategy=trainer.machine.clipping)
    counting = ExitStack()
    run = Run(
        mechanism,
        machine=trainer.machine,
        device=device,
        seed=trainer.seed,
        place=str(trainer.run),
        public=trainer.public,
        starts=trainer.starts,
        folder=folder,
        watch=watch,
        num_records=own.num_units,
        begin=lambda: stamps.append(_reserve(trainer, known, mechanism, folder, counting)),
    )
    stamps = list[Benchmark | None]()
    run._as_release = lambda made: stamped(Release(made, claim, settings), *stamps or [None])
    with counting:  # the ledger hears of the end last, and before anything is released
        try:
            if not mechanism.finished:
                with _leaving_the_folder_free(folder, mechanism), processes.refused_together():
                    rehearse(trainer, run, run.release(generator), mechanism, folder.path)
            folder.report_duplicates(taking_part, known, processes)
            yield run, generator, own
            folder.save(run._state, run.updates)
        except GeneratorExit:
            # A clean stop: nothing is in flight, so what was reserved beyond can be given back.
            folder.save(run._state, run.updates)
            mechanism.settle()
            raise
        finally:
            folder.record_disclosures(mechanism)
            mechanism.close()
            folder.close()
            watch.close()


def _opened(
    trainer: "Trainer", data: ImageDataset, settings: dict[str, Any], processes: Processes, *, private: bool
) -> tuple[PrivateFolder, Watch]:
    """Open the folder of a run, of which only the first process keeps anything: `private/`, and `watch/`."""
    place = None if trainer.run is None or not processes.first else Path(trainer.run)
    with processes.refused_together():
        kept = {**settings, **trainer.asked, "machine": encode(trainer.machine), "opened": data.location}
        folders = [str(Path(folder).expanduser().resolve()) for folder in trainer.method.folders]
        kept |= {"start_folders": folders} if folders else {}
        asked = figures_of(trainer.plan).asked
        folder = PrivateFolder(None if place is None else place / "private", kept, asked=asked)
    watch = None if place is None else place / "watch"
    return folder, Watch(watch, trainer.plan, private=private, tensorboard=trainer.machine.tensorboard)


def _reserve(
    trainer: "Trainer", known: KnownImages, mechanism: MechanismRun, folder: PrivateFolder, counting: ExitStack
) -> Benchmark | None:
    """Reserve the plan in the ledger, if it claims anything, for as long as `counting` lasts; return a stamp for it."""
    plan, processes, stamp = trainer.plan, mechanism.processes, None
    claims = isinstance(plan, Plan) and trainer.entropy.secure
    asks = processes.any(claims and trainer.ledger is not None and not mechanism.finished)
    records = known.records() if asks else Records.of(known.data)
    with processes.refused_together():
        if isinstance(plan, Plan) and trainer.entropy.secure and processes.first:
            reservation = counted(
                trainer.ledger,
                plan,
                records,
                public=trainer.public_records,
                run=None if trainer.run is None else Path(trainer.run),
                begun=mechanism.spent > 0,
                finished=mechanism.finished,
                spent=lambda: mechanism.spent,
                undo=folder.remove,
            )
            stamp = Benchmark.of(counting.enter_context(reservation))
    return processes.object_from_first(stamp)


@contextmanager
def _leaving_the_folder_free(folder: PrivateFolder, mechanism: MechanismRun) -> Iterator[None]:
    """Remove a run's folder if what happens within refuses the run, and nothing is spent or reserved."""
    known = mechanism.spent > 0 or (folder.path is not None and RunIdentity.read(folder.path) is not None)
    try:
        yield
    except InputError:
        if not known:
            folder.remove()
        raise
