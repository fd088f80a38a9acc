"""Record and replay: one training run in two worlds that differ in one record, or one group of them (the last one).

World D records what enters and leaves `MechanismRun.release`. World D' is told D's noisy sums, whatever its own sums
are. Then all that is outside of `release` must agree bit for bit, and the sums may differ by the sensitivity at most.

    d = World()
    outcome_d = run(RecordingPlan.of(d, dataset_size=...), data)
    e = World(replay=d)
    outcome_e = run(RecordingPlan.of(e, dataset_size=...), neighbour)
    assert differences(d, e) == []

The seeded entropy makes the selection and the draws of common records equal, as they precede the differing record's.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from dpdm import terminal
from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, DenoisingLoss, MomentMatched, PreconditionedDenoiser
from dpdm.methods import Codec, Diffusion, ImageFacts, PriorAlone, Start
from dpdm.networks import MLP
from dpdm.networks.codec import ConvCodec
from dpdm.privacy import InsecureSeededEntropy, MechanismRun, Plan
from dpdm.runs import Trainer
from dpdm.runs import folder as folder_module
from dpdm.runs.start import save_start

LOSS = DenoisingLoss(noise_multiplicity=3, label_dropout=0.2)
NUM_CLASSES = 3


class Call(NamedTuple):
    """One call of `release`."""

    total: Tensor
    sensitivity: float
    noisy: Tensor


class World:
    """What one run's mechanism was given and returned, and what could be observed of the run otherwise."""

    def __init__(self, *, replay: "World | None" = None) -> None:
        self.replay = replay
        self.calls: list[Call] = []
        self.observed: dict[str, Any] = {}

    def answer(self, total: Tensor, sensitivity: float, noisy: Tensor) -> Tensor:
        """Keep this call, and return the noisy sum: this world's own, or the replayed world's."""
        if self.replay is not None:
            frozen = self.replay.calls
            noisy = frozen[len(self.calls)].noisy if len(self.calls) < len(frozen) else torch.zeros_like(total)
        self.calls.append(Call(total.clone(), sensitivity, noisy.clone()))
        return noisy.clone()


class RecordingRun(MechanismRun):
    """A run whose releases pass through `plan.world`."""

    def _release(self, total, *, sensitivity):
        noisy = super()._release(total, sensitivity=sensitivity)
        return self.plan.world.answer(total, sensitivity, noisy)


class RecordingPlan(Plan):
    """A plan whose runs record, or replay, a world; otherwise a `Plan` as any."""

    world: World
    run_class: type[RecordingRun]

    @classmethod
    def of(cls, world: World, *, run_class: type[RecordingRun] = RecordingRun, **fields) -> "RecordingPlan":
        plan = cls.dp_sgd(**fields) if "steps" in fields else cls(**fields)
        object.__setattr__(plan, "world", world)
        object.__setattr__(plan, "run_class", run_class)
        return plan

    def start(self, journal=None, *, entropy=None, strategy=None):
        assert entropy is not None, "two worlds are comparable only under seeded entropy"
        return self.run_class(self, journal, entropy=entropy, strategy=strategy)


def differences(d: World, e: World, *, tolerance: float = 1e-6) -> list[str]:
    """Return everything that tells the two worlds apart beyond what the noise covers; [] if the claim holds."""
    found = []
    if len(d.calls) != len(e.calls):
        found.append(f"{len(d.calls)} and {len(e.calls)} releases")
    for step, (a, b) in enumerate(zip(d.calls, e.calls, strict=False)):
        if a.sensitivity != b.sensitivity:
            found.append(f"step {step}: sensitivity {a.sensitivity} and {b.sensitivity}")
        if a.total.shape != b.total.shape:
            found.append(f"step {step}: sums of shape {a.total.shape} and {b.total.shape}")
            continue
        if not (a.total.isfinite().all() and b.total.isfinite().all()):
            found.append(f"step {step}: a sum is not finite")
        distance = torch.linalg.vector_norm(a.total - b.total).item()
        if not distance <= a.sensitivity * (1 + tolerance):
            found.append(f"step {step}: the sums differ by {distance}, sensitivity {a.sensitivity}")
    if d.observed.keys() != e.observed.keys():
        found.append(f"observed {sorted(d.observed)} and {sorted(e.observed)}")
    found += [
        f"{key} differs" for key in d.observed.keys() & e.observed.keys() if not same(d.observed[key], e.observed[key])
    ]
    return found


def same(a: Any, b: Any) -> bool:
    """Return whether two nested values are equal bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def moved(d: World, e: World) -> list[float]:
    """Return by how much the sums differ in each step."""
    return [torch.linalg.vector_norm(a.total - b.total).item() for a, b in zip(d.calls, e.calls, strict=True)]


@dataclass(frozen=True)
class Records:
    """Images (number, 1, 6, 6) in float64 and labels."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def without_last(self) -> "Records":
        return Records(self.x[:-1], self.labels[:-1])

    def plus(self, x: Tensor, label: int = 0) -> "Records":
        return Records(torch.cat([self.x, x.reshape(1, 1, 6, 6)]), torch.cat([self.labels, torch.tensor([label])]))


def records(number: int, *, seed: int = 0, classes: int = NUM_CLASSES) -> Records:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(number, 1, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1
    return Records(x, torch.randint(classes, (number,), generator=generator))


class Network(nn.Module):
    """The smallest network that has what real ones have: convolution, norm, label embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_CLASSES + 1, 4)
        self.into = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, c_noise, labels):
        hidden = self.norm(self.into(x)) + (self.embed(labels) + c_noise[:, None])[:, :, None, None]
        return self.out(nn.functional.silu(hidden))


def build(seed: int = 0) -> PreconditionedDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PreconditionedDenoiser(Network(), EDM()).double()


def loader(data: Records):
    """Return `load` for a plain loop: the diffusion's draws, in float64."""

    def load(indices, random_bytes):
        chosen = torch.from_numpy(indices)
        return LOSS.draw(
            data.x[chosen],
            data.labels[chosen],
            null_label=NUM_CLASSES,
            noise_levels=EDM().noise_levels,
            random_bytes=random_bytes,
        )

    return load


def train(
    world: World,
    data: Records,
    *,
    run_class: type[RecordingRun] = RecordingRun,
    strategy=None,
    load=None,
    after_backward=None,
    plan: dict[str, Any] | None = None,
    physical_batch_size: int = 3,
    seed: int = 0,
) -> World:
    """Train in a bare loop on `MechanismRun.backward`, and fill `world`."""
    settings = {"dataset_size": 12, "expected_batch_size": 5, "steps": 8, "noise_multiplier": 4.0, "delta": 1e-3}
    recording = RecordingPlan.of(world, run_class=run_class, **(settings | (plan or {})))
    denoiser = build()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    run = recording.start(entropy=InsecureSeededEntropy(seed), strategy=strategy)
    steps = 0
    while not run.finished and steps < 1000:
        diagnostics = run.backward(
            LOSS,
            denoiser,
            num_records=len(data),
            load=(load or loader)(data),
            physical_batch_size=physical_batch_size,
        )
        if after_backward is not None:
            after_backward(optimizer, diagnostics, data)
        optimizer.step()
        steps += 1
    world.observed = {
        "parameters": {name: p.detach().clone() for name, p in denoiser.named_parameters()},
        "optimizer": optimizer.state_dict(),
        "steps": steps,
        "steps spent": run.steps_spent,
        "plan": dataclasses.asdict(recording),
        "q": recording.sample_rate,
        "claim": recording.claim(entropy=InsecureSeededEntropy(seed)),
        "events": repr(recording.events()),
        "disclosures": list(run.disclosures),
    }
    return world


def batch_sizes(number: int, *, sample_rate: float, steps: int, seed: int) -> list[int]:
    """Return the batch sizes that a run under this seed sees."""
    from dpdm.privacy.batch_selection import poisson

    streams = [InsecureSeededEntropy(seed).stream("selection", step) for step in range(steps)]
    return [len(poisson(number, sample_rate=sample_rate, random_bytes=stream)) for stream in streams]


def extreme(value: float) -> Tensor:
    """Return an image full of `value`."""
    return torch.from_numpy(np.full((1, 6, 6), value))


D = records(12)
NEIGHBOURS = {
    "removed": D.without_last(),
    "added": D.plus(records(1, seed=5).x),
    "gradient of 1e30": D.plus(extreme(1e30)),
    "norm overflows float64": D.plus(extreme(1e200)),
    "nan": D.plus(extreme(float("nan"))),
    "one nan pixel": D.plus(torch.cat([torch.zeros(35), torch.tensor([float("nan")])]).double()),
    "inf": D.plus(extreme(float("inf"))),
    "minus inf": D.plus(extreme(float("-inf"))),
    "zero": D.plus(extreme(0.0)),
    "duplicate": D.plus(D.x[0], int(D.labels[0])),
    "blanked": D.without_last().plus(extreme(float("nan"))),
}


# --- the package's own training loop ------------------------------------------------------------------------------

PLAN = {"dataset_size": 12, "expected_batch_size": 5, "steps": 6, "noise_multiplier": 4.0, "delta": 1e-3}


def images(number: int, *, classes: int = 2, seed: int = 0) -> ImageDataset:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)
    return ImageDataset(images=pixels, labels=rng.integers(classes, size=number), num_classes=3, name="noise")


def plus(data: ImageDataset, image: np.ndarray, label: int) -> ImageDataset:
    return dataclasses.replace(
        data,
        images=np.concatenate([data.images, image.reshape(1, 8, 8, 1)]),
        labels=np.append(data.labels, label),
    )


IMAGES = images(12)
IMAGE_NEIGHBOURS = {
    "removed": dataclasses.replace(IMAGES, images=IMAGES.images[:-1], labels=IMAGES.labels[:-1]),
    "added": plus(IMAGES, np.arange(64, dtype=np.uint8), 1),
    "white": plus(IMAGES, np.full(64, 255, dtype=np.uint8), 0),
    "duplicate": plus(IMAGES, IMAGES.images[3], int(IMAGES.labels[3])),
    "first of its class": plus(IMAGES, IMAGES.images[3], 2),
}

GROUPED = dataclasses.replace(IMAGES, groups=np.array([0, 3, 0, 1, 2, 2, 0, 3, 4, 4, 3, 5]))


def plus_group(data: ImageDataset, members: np.ndarray, labels: list[int]) -> ImageDataset:
    return dataclasses.replace(
        data,
        images=np.concatenate([data.images, members.reshape(-1, 8, 8, 1)]),
        labels=np.append(data.labels, labels),
        groups=np.append(data.groups, [data.num_units] * len(labels)),
    )


GROUP_NEIGHBOURS = {
    "removed": GROUPED.part(range(5)),
    "a group of one": plus_group(GROUPED, np.full(64, 255, dtype=np.uint8), [0]),
    "a group of five of all classes": plus_group(GROUPED, images(5, seed=7).images, [2, 1, 0, 0, 1]),
    "a group of twenty alike": plus_group(GROUPED, np.full(20 * 64, 255, dtype=np.uint8), [2] * 20),
}
GROUP_PLAN = PLAN | {"unit": "group"}


@functools.cache
def public_start(
    network,
    public: ImageDataset,
    class_names: tuple[str, ...],
    *,
    scale: float = 0.1,
    first_scale: float = 1.0,
    name: str = "start",
    preconditioning=MomentMatched(),  # noqa: B008 (frozen)
) -> Start:
    """Return a start whose weights are random numbers, added to first ones, each times a scale."""
    folder = Path(tempfile.mkdtemp()) / name  # of one name, whichever process made it
    folder.mkdir()
    untrained = Diffusion(network=network, preconditioning=preconditioning).untrained
    first = untrained(ImageFacts(public.shape, class_names), seed=5).denoiser.network
    random = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(w.shape, generator=random) for name, w in first.state_dict().items()}
    weights = {name: first_scale * w + scale * drawn[name] for name, w in first.state_dict().items()}
    save_start(
        folder,
        weights,
        public,
        {"classes": [], "preconditioning": {"kind": preconditioning.kind}, "facts": {"shape": [*public.shape]}},
    )
    return Start(sources=(str(folder),))


@functools.cache
def public_codec(public: ImageDataset, *, name: str = "codec") -> Codec:
    """Return a codec with random weights."""
    folder = Path(tempfile.mkdtemp()) / name  # of one name, whichever process made it
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = ConvCodec(public.shape).state_dict()
    said = {"classes": [], "preconditioning": {"kind": "codec"}, "facts": {"shape": [*public.shape]}}
    save_start(folder, weights, public, said, name=f"{public.name} (codec)")
    return Codec(source=str(folder))


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Let no time pass: how long a step takes is no part of what a claim is about, and decides when a run saves."""
    still = SimpleNamespace(monotonic=lambda: 0.0)
    with mock.patch.object(folder_module, "time", still), mock.patch.object(terminal, "time", still):
        yield


@stopped_clock()
def fit(
    world: World, data: ImageDataset, folder, *, plan=PLAN, precision="float32", strategy="vectorized", prior=None
) -> World:
    """Train with `Trainer`, and observe all that leaves the mechanism."""
    releases = prior.releases(epsilon=1, delta=1e-3) if prior else {}
    network = Diffusion(
        network=MLP(width=8, blocks=1),
        preconditioning=MomentMatched() if prior else EDM(),
        prior=prior,
        loss=DenoisingLoss(noise_multiplicity=2),
    )
    trainer = Trainer(
        method=network if plan["steps"] else PriorAlone(prior=prior),
        plan=RecordingPlan.of(world, releases=releases, **plan),
        machine=Machine(device="cpu", precision=precision, strategy=strategy, physical_batch_size=2),
        run=folder,
        entropy=InsecureSeededEntropy(0),
    )
    steps = trainer.steps(data)
    progress = []
    while True:
        try:
            progress.append(tuple(next(steps)[:3]))
        except StopIteration as end:
            release = end.value
            break
    of_the_owner = {folder / "private" / "metrics.jsonl", folder / "private" / "duplicates.json"}
    public = [path for path in folder.rglob("*") if path.is_file() and path not in of_the_owner]
    world.observed = {
        "progress": progress,
        "weights": dict(release.generator.state_dict()),
        "settings": repr(release.settings),
        "claim": repr(release.claim),
        "files": {str(path.relative_to(folder)): path.read_bytes() for path in public},
    }
    return world
