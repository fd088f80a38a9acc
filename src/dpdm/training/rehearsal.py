"""Whatever can refuse a run is tried on made-up images, before anything is spent or reserved in a ledger.

What the records are decides nothing here: no function of this module is given any.
"""

import copy
import random
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch
from torch import Tensor, nn

from dpdm.config import AnySampler
from dpdm.diffusion import DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.networks import Network, OwnNetwork, code_of
from dpdm.privacy import MechanismRun
from dpdm.training.hardware import autocast, memory_there
from dpdm.training.release import ImageFacts, Release
from dpdm.training.step_cost import BYTES_OF_A_PARAMETER, bytes_of_one
from dpdm.training.verification import understood
from dpdm.training.weights import require_weight_names
from dpdm.types import InputError, refusing

if TYPE_CHECKING:
    from dpdm.training.trainer import Trainer

_COPIES = 2  # noisy copies of an example: more would take long, and are told from two by nothing
_ROWS = 6  # in all, unless three examples have more
_SMALL_FILES = 2**24  # bytes: journal, losses and norms, pictures
_SETTINGS = ("preconditioning", "prior", "loss", "training", "sampler", "samplers")


def rehearse(
    trainer: "Trainer", denoiser: PreconditionedDenoiser, release: Release, mechanism: MechanismRun, folder: Path | None
) -> None:
    """Raise InputError if a run cannot go to its end here, or its release could not be opened again.

    Args:
        trainer: The run's settings.
        denoiser: What is trained.
        release: What would be published if training ended now.
        mechanism: What takes the steps.
        folder: Where the release is written for a moment; None: where the system keeps such files.
    """
    facts, device = release.facts, next(iter(denoiser.state_dict().values())).device
    if trainer.run is not None:
        _require_room(Path(trainer.run), denoiser)
    if trainer.mechanism.steps:
        with refusing("the network fails on made-up images"), autocast(trainer.training.precision, device):
            _require_gradients(trainer.loss, denoiser, facts)
            require_memory(denoiser, device, one=bytes_of_one(trainer.loss, denoiser, facts))
            few = replace(trainer.loss, noise_multiplicity=min(_COPIES, trainer.loss.noise_multiplicity))
            batch = made_up_batch(few, denoiser, facts, grouped=trainer.mechanism.unit == "group")
            mechanism.rehearse(trainer.loss, denoiser, batch)  # which takes any number of copies
    for name, sampler in {"sampler": trainer.sampler, **trainer.samplers}.items():
        with refusing(f"{name} fails on made-up images" if name == "sampler" else f"samplers.{name} fails"):
            _sample(sampler, release)
    with refusing("a release of this network could not be opened again"):
        _save_and_open(release, trainer.network, folder)


def require_readable(trainer: "Trainer", settings: dict[str, Any]) -> None:
    """Raise InputError unless `settings`, as files hold them, say again what the trainer was given."""
    values = {key: getattr(trainer, key) for key in _SETTINGS if key != "samplers"}
    for name, value in {
        **values,
        **{f"samplers.{name}": sampler for name, sampler in trainer.samplers.items()},
    }.items():
        if value is not None and type(value).__module__.partition(".")[0] != "dpdm":
            raise InputError(f"{name} is a {type(value).__name__}, which no release can name: give one of dpdm's own")
    with refusing("these settings cannot be written into a release"):
        read = understood(tomllib.loads(tomli_w.dumps(settings)))
        other = [key for key in _SETTINGS if getattr(read.config, key) != getattr(trainer, key)]
        if other:
            raise InputError(f"{' and '.join(other)} would come back from a release as others")


def made_up_batch(
    loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts, *, grouped: bool = False
) -> NoisyBatch:
    """Return noisy copies of images that nobody took: black, white, and random pixels, with classes of all kinds.

    They are fixed: whether a run may begin is not left to chance.
    """
    generator = torch.Generator().manual_seed(0)
    examples = max(3, _ROWS // loss.noise_multiplicity)
    x = torch.randint(256, (examples, *facts.shape), generator=generator).float().div(127.5).sub(1)
    x[0], x[1] = -1, 1
    copies, null = loss.noise_multiplicity, facts.num_classes
    last = null if loss.label_dropout or not null else null - 1
    labels = torch.linspace(0, last, examples * copies).round().long()
    labels = labels[torch.randperm(len(labels), generator=generator)].view(examples, copies)
    batch = replace(loss, label_dropout=0.0).draw(  # of labels that are given
        x[:, None].expand(-1, copies, *facts.shape) if grouped else x,
        labels,
        null_label=null,
        noise_levels=denoiser.preconditioning.noise_levels,
        random_bytes=random.Random(0).randbytes,
    )
    device = next(iter(denoiser.state_dict().values())).device
    return NoisyBatch(*(t.to(device) for t in batch))


def _first(number: int, batch: NoisyBatch) -> NoisyBatch:
    return NoisyBatch(*(t[:number] for t in batch))


def require_names(denoiser: nn.Module) -> None:
    """Raise InputError unless weights are tensors with names that a person can read in a release."""
    require_weight_names(denoiser.state_dict())
    for name, value in denoiser.state_dict().items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            raise InputError(f"the network's state_dict has no tensor as {name!r}: a release holds tensors alone")
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise InputError(f"the network's {name!r} is {value.dtype}, {value.layout}: a release holds real numbers")


def _require_room(run: Path, denoiser: PreconditionedDenoiser) -> None:
    """Raise InputError unless the disk has room for two checkpoints, the release, and what is small."""
    place = run.absolute()
    while not place.exists():
        place = place.parent
    network, prior = (
        sum(t.nbytes for name, t in denoiser.state_dict().items() if name.startswith("network.") == own)
        for own in (True, False)
    )
    there = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) if run.exists() else 0
    needed, free = 9 * network + 2 * prior + _SMALL_FILES - there, shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{run} needs about {_size(needed)} of its disk, and {_size(free)} are free: make room there")


def require_memory(denoiser: nn.Module, device: torch.device, *, one: int = 0) -> None:
    """Raise InputError unless the device has the memory for a step on one example, which takes `one` bytes itself."""
    parameters = sum(p.numel() for p in denoiser.parameters())
    needed, there = one + BYTES_OF_A_PARAMETER * parameters, memory_there(device)
    if needed > there:
        raise InputError(
            f"a step on one image needs about {_size(needed)} of memory, and there are {_size(there)}: take a smaller "
            f"network than one of {parameters:,} parameters, or a smaller loss.noise_multiplicity"
        )


def _require_gradients(loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Raise InputError unless the loss of a noisy copy has a gradient for some trainable parameter."""
    trainable = [p for p in denoiser.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("the network has no trainable parameter: there is nothing to train")
    one = replace(loss, noise_multiplicity=1)
    losses = one(denoiser, _first(2, made_up_batch(one, denoiser, facts)))
    found = torch.autograd.grad(losses.sum(), trainable, allow_unused=True) if losses.requires_grad else ()
    if all(gradient is None for gradient in found):
        raise InputError("no gradient of the loss reaches a trainable parameter: does the network detach its output?")


@torch.no_grad()
def _sample(sampler: AnySampler, release: Release) -> None:
    """Raise an error unless the sampler makes an image, in at most two steps."""
    if (steps := getattr(sampler, "steps", None)) is not None:
        sampler = replace(sampler, steps=min(2, steps))
    device = next(iter(release.denoiser.state_dict().values())).device
    generator = torch.Generator(device).manual_seed(0)
    start = torch.randn((1, *release.facts.shape), generator=generator, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    images = sampler(release.denoiser, start, labels, generator=generator, null_label=release.null_label)
    if images.shape != start.shape:
        raise InputError(f"a sampler must return images of shape {tuple(start.shape)}, not {tuple(images.shape)}")


@torch.no_grad()
def _save_and_open(release: Release, network: Network | OwnNetwork | None, folder: Path | None) -> None:
    """Write a release as the run will, read it as anyone will, and raise InputError unless both are the same.

    Its weights are moved a little first: an untrained network may draw the same whatever else it lacks.
    """
    moved = copy.deepcopy(release.denoiser)
    generator = torch.Generator().manual_seed(0)
    for p in moved.parameters():
        if p.is_floating_point():
            p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
    with tempfile.TemporaryDirectory() if folder is None else _emptied(folder / "rehearsal") as place:
        try:
            replace(release, denoiser=moved).save(Path(place))
        except OSError as error:
            raise InputError(f"{place} cannot hold a release ({error.strerror}): make room there") from None
        try:
            opened = Release.load(Path(place), network=code_of(network)).denoiser
        except InputError as error:
            said = str(error).replace(str(place), "it")
            raise InputError(f"a release of this network could not be opened again: {said}") from error
    opened.to(next(iter(moved.state_dict().values())).device)
    before, after = moved.state_dict(), opened.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise InputError("the network's weights are not the same once a release of it was written and read")
    if code_of(network) is None:
        return
    batch = _first(2, made_up_batch(DenoisingLoss(noise_multiplicity=1), moved, release.facts))
    noisy, sigma, labels = batch.x + batch.noise[:, 0], batch.sigma[:, 0], batch.labels[:, 0]
    if not torch.allclose(moved(noisy, sigma, labels), opened(noisy, sigma, labels), 1e-3, 1e-3, equal_nan=True):
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
