"""Whatever can refuse a run is tried on made-up images, before anything is spent or reserved in a ledger.

What the records are decides nothing here: no function of this module is given any.
"""

import copy
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch
from torch import Tensor, nn

from dpdm.methods import ImageGenerator, Method
from dpdm.privacy import MechanismRun
from dpdm.runs.memory import memory_there
from dpdm.runs.release import Release, open_without_public
from dpdm.runs.verification import understood
from dpdm.runs.weights import layout_of, require_plain
from dpdm.types import InputError, refusing

if TYPE_CHECKING:
    from dpdm.runs.run import Run
    from dpdm.runs.trainer import Trainer

_OF_TRAINED, _OF_FROZEN = 44, 8
"""Bytes: weight, average, gradient, Adam's two in float32; sum, noise, noisy sum in float64. What is frozen has two."""

_SMALL_FILES = 2**24  # bytes: journal, losses and norms, pictures


def rehearse(trainer: "Trainer", run: "Run", release: Release, mechanism: MechanismRun, folder: Path | None) -> None:
    """Raise InputError if a run cannot go to its end here, or its release could not be opened again.

    Args:
        trainer: The run's settings.
        run: What its method will be given.
        release: What would be published if training ended now.
        mechanism: What takes the steps.
        folder: Where the release is written for a moment; None: where the system keeps such files.
    """
    if trainer.run is not None:
        _require_room(Path(trainer.run), release.generator)
    _require_host_memory(trainer, release)
    trainer.method.rehearse(release.generator, trainer.plan, mechanism, run)
    with refusing("a release of this network could not be opened again"):
        _save_and_open(release, trainer.method, folder)


def require_readable(trainer: "Trainer", settings: dict[str, Any], generator: ImageGenerator) -> None:
    """Raise InputError unless `settings`, as files hold them, say again what the trainer was given."""
    said = trainer.said(generator)
    for name, value in vars(said).items():
        for each in value.values() if isinstance(value, dict) else [value]:
            if type(each).__module__.partition(".")[0] not in ("dpdm", "builtins"):
                raise InputError(
                    f"{name} is a {type(each).__name__}, which no release can name: give one of dpdm's own"
                )
    with refusing("these settings cannot be written into a release"):
        read = understood(tomllib.loads(tomli_w.dumps(settings)))
        if read.method != said:
            other = [key for key, value in vars(said).items() if getattr(read.method, key, None) != value]
            raise InputError(f"{' and '.join(other)} would come back from a release as others")


def require_names(generator: ImageGenerator, method: Method) -> None:
    """Raise InputError unless weights are tensors with names that a person can read in a release."""
    for name, value in generator.state_dict().items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            raise InputError(f"the network's state_dict has no tensor as {name!r}: a release holds tensors alone")
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise InputError(f"the network's {name!r} is {value.dtype}, {value.layout}: a release holds real numbers")
    if (foreign := method.foreign) is not None:
        layout = layout_of(generator.state_dict())
        require_plain({name: entry for name, entry in layout.items() if name.startswith(foreign)})


def bytes_of_parameters(module: nn.Module) -> int:
    """Return what a step takes for the parameters of a module, whatever its batch."""
    return sum(p.numel() * (_OF_TRAINED if p.requires_grad else _OF_FROZEN) for p in module.parameters())


def require_memory(module: nn.Module, device: torch.device, *, one: int = 0) -> None:
    """Raise InputError unless the device has the memory for a step on one example, which takes `one` bytes itself."""
    parameters = sum(p.numel() for p in module.parameters())
    needed, there = one + bytes_of_parameters(module), memory_there(device)
    if needed > there:
        raise InputError(
            f"a step on one image needs about {_size(needed)} of memory, and there are {_size(there)}: take a smaller "
            f"network than one of {parameters:,} parameters, or a smaller loss.noise_multiplicity"
        )


def _require_host_memory(trainer: "Trainer", release: Release) -> None:
    """Raise InputError unless this machine has the memory that a method without a network says it needs."""
    public = 0 if trainer.public is None else len(trainer.public)
    needed = trainer.method.memory(release.facts, public=public, records=trainer.plan.dataset_size)
    there = memory_there(torch.device("cpu"))
    if needed > there:
        raise InputError(
            f"the method {trainer.method.kind} needs about {_size(needed)} of memory here, and there are "
            f"{_size(there)}: take a smaller population, fewer features, or fewer or smaller public images"
        )


def _require_room(run: Path, generator: ImageGenerator) -> None:
    """Raise InputError unless the disk has room for two checkpoints, the release, and what is small."""
    place = run.absolute()
    while not place.exists():
        place = place.parent
    state = generator.state_dict()
    trained = sum(p.nbytes for name, p in generator.named_parameters() if name in state)
    rest = sum(t.nbytes for t in state.values()) - trained
    there = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) if run.exists() else 0
    needed, free = 9 * trained + 3 * max(0, rest) + _SMALL_FILES - there, shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{run} needs about {_size(needed)} of its disk, and {_size(free)} are free: make room there")


@torch.no_grad()
def _save_and_open(release: Release, method: Method, folder: Path | None) -> None:
    """Write a release as the run will, read it as anyone will, and raise InputError unless both are the same.

    Its weights are moved a little first: an untrained network may draw the same whatever else it lacks.
    """
    moved = copy.deepcopy(release.generator)
    random = torch.Generator().manual_seed(0)
    for p in moved.parameters():
        if p.is_floating_point():
            p.add_(0.02 * torch.randn(p.shape, generator=random).to(p))
    with tempfile.TemporaryDirectory() if folder is None else _emptied(folder / "rehearsal") as place:
        try:
            Release(moved, release.claim, release.settings).save(Path(place))
        except OSError as error:
            raise InputError(f"{place} cannot hold a release ({error.strerror}): make room there") from None
        try:
            opened = open_without_public(Path(place), method.code).generator
        except InputError as error:
            said = str(error).replace(str(place), "it")
            raise InputError(f"a release of this network could not be opened again: {said}") from error
    before, after = moved.state_dict(), opened.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name].cpu(), after[name]) for name in before):
        raise InputError("the network's weights are not the same once a release of it was written and read")
    if method.code is None:
        return
    opened.to(moved.device)
    moved.eval()
    one, other = (method.answers(generator) for generator in (moved, opened))
    if not torch.allclose(one, other, 1e-3, 1e-3, equal_nan=True):
        raise InputError(
            "the network does not draw the same once its release was written and read: let all that it depends on be "
            "in its state_dict (a buffer that is not persistent is not)"
        )


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """Yield the folder, new, and remove it; an earlier process may have been killed before it did."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
