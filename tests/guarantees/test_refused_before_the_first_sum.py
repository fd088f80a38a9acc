"""Whatever can refuse a run refuses before its first noisy sum: nothing is spent, reserved, or left in its folder.

Each case is one example of a kind that used to show only after the prior was released, or after the whole plan.
"""

import dataclasses
import functools
import math
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from test_processes import launch
from torch import nn

from diffusers_pipelines import save_pipeline
from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import DDIM, EDM, VE, DenoisingLoss, MomentMatched
from dpdm.ledger import Ledger
from dpdm.ledger.records import Records
from dpdm.methods import Diffusion, Evolution, Prior, Retrieval
from dpdm.methods.retrieval import Trajectories
from dpdm.networks import MLP, DiffusersFolder, Own
from dpdm.privacy import DPSGD
from dpdm.runs import Release, Trainer, rehearsal, tuning, verify_release
from dpdm.types import InputError

PRIOR = Prior(centres=1)
SCANS = ImageDataset(
    images=np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8),
    labels=np.arange(12) % 2,
    num_classes=2,
    name="scans",
)


def plan(**changes):
    fields = {"dataset_size": 12, "expected_batch_size": 4, "steps": 3, "noise_multiplier": 3.0, "delta": 1e-3}
    return DPSGD(**fields | {"releases": PRIOR.releases(epsilon=1, delta=1e-3)} | changes)


def trainer(run, *, performance=None, **changes):
    given = {
        "network": Sound,
        "preconditioning": MomentMatched(),
        "prior": PRIOR,
        "loss": DenoisingLoss(noise_multiplicity=2),
        "sampler": DDIM(steps=2),
    }
    of_method = {f.name for f in dataclasses.fields(Diffusion)}
    method = Diffusion(**given | {name: value for name, value in changes.items() if name in of_method})
    rest = {"plan": plan(), "ledger": None} | {n: value for n, value in changes.items() if n not in of_method}
    machine = Machine(**{"device": "cpu", "precision": "float32"} | (performance or {}))
    return Trainer(method=method, machine=machine, run=run, **rest)


class Sound(nn.Module):
    """A network of one's own, with nothing wrong."""

    def __init__(self, shape, *, num_classes, images_in):
        super().__init__()
        pixels = math.prod(shape)
        self.shape = shape
        self.first = nn.Linear(images_in * pixels, 8)
        self.classes = nn.Embedding(num_classes + 1, 8)
        self.last = nn.Linear(8, pixels)
        self.more()

    def more(self):
        """Add what a case needs."""

    def hidden(self, x, c_noise, labels):
        return torch.tanh(self.first(x.flatten(1)) + c_noise[:, None] + self.classes(labels))

    def forward(self, x, c_noise, labels):
        return self.last(self.hidden(x, c_noise, labels)).unflatten(1, self.shape)


class _BatchNorm(Sound):
    def more(self):
        self.norm = nn.BatchNorm1d(8)

    def hidden(self, *inputs):
        return self.norm(super().hidden(*inputs))


class _Dropout(Sound):
    def more(self):
        self.dropout = nn.Dropout(0.5)

    def hidden(self, *inputs):
        return self.dropout(super().hidden(*inputs))


class _Draws(Sound):
    def hidden(self, *inputs):
        hidden = super().hidden(*inputs)
        return hidden + torch.randn_like(hidden)


class _FillsABuffer(Sound):
    def more(self):
        self.register_buffer("average", torch.zeros(8))

    def hidden(self, *inputs):
        hidden = super().hidden(*inputs)
        self.average.lerp_(hidden.detach().mean(0), 0.1)
        return hidden


class _Complex(Sound):
    def more(self):
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def hidden(self, *inputs):
        return (super().hidden(*inputs) * self.phase).real


class _WeightPastItsLayer(Sound):
    def hidden(self, *inputs):
        return super().hidden(*inputs) @ self.last.weight.T @ self.last.weight


class _Flat(Sound):
    def forward(self, *inputs):
        return super().forward(*inputs).flatten(1)


class _OneForAll(Sound):
    """Which broadcasting would spread over the batch."""

    def forward(self, *inputs):
        return super().forward(*inputs)[:1]


class _OnePixel(Sound):
    def forward(self, *inputs):
        return super().forward(*inputs)[..., :1, :1]


class _WholeNumbers(Sound):
    def forward(self, *inputs):
        return super().forward(*inputs).round().long()


class _Pair(Sound):
    def forward(self, *inputs):
        return super().forward(*inputs), None


class _Detached(Sound):
    def forward(self, *inputs):
        return super().forward(*inputs).detach()


class _NoBlank(Sound):
    def forward(self, x, *inputs):
        if x.isnan().any():
            raise ValueError("not a number")
        return super().forward(x, *inputs)


class _NoNumbers(Sound):
    def more(self):
        self.register_buffer("told", torch.zeros(0, 1961, 12, 24))


class _Frozen(Sound):
    def more(self):
        self.requires_grad_(False)


class _WithoutNullClass(Sound):
    def more(self):
        self.classes = nn.Embedding(self.classes.num_embeddings - 1, 8)


class _Lazy(Sound):
    def more(self):
        self.classes = nn.LazyLinear(8)


class _ExtraState(Sound):
    def get_extra_state(self):
        return {"note": "text"}


class _StrangeName(Sound):
    def more(self):
        self.register_buffer("a\x1b[1mnote", torch.zeros(1))


class _Expanded(Sound):
    """One number that stands for eight: no file can be read into it."""

    def more(self):
        self.register_buffer("scale", torch.ones(1).expand(8))


class _ComplexBuffer(Sound):
    def more(self):
        self.register_buffer("phases", torch.ones(8, dtype=torch.complex128))


class _Hidden(Sound):
    """What its output depends on is in no state_dict."""

    def more(self):
        self.register_buffer("features", torch.randn(8), persistent=False)

    def hidden(self, *inputs):
        return super().hidden(*inputs) + self.features


class _NotCopied(Sound):
    def __deepcopy__(self, memo):
        raise RuntimeError("this network has a file open")


class _Raises(Sound):
    def forward(self, *inputs):
        raise KeyError("mid\nblock")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MySampler(DDIM):
    """A sampler of one's own, which no release could name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPreconditioning(EDM):
    """The same."""


def no_memory(patch):
    patch.setattr(rehearsal, "memory_there", lambda device: 1000)


def no_room(patch):
    patch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 1000))


def read_only(patch):
    sound = Path.mkdir

    def mkdir(self, *arguments, **options):
        if self.name == "private":
            raise PermissionError(13, "Permission denied")
        return sound(self, *arguments, **options)

    patch.setattr(Path, "mkdir", mkdir)


def no_cuda(patch):
    patch.setattr(torch.cuda, "is_available", lambda: False)


def no_tensorboard(patch):
    patch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)


def sampler_raises(patch):
    patch.setattr(DDIM, "_integrate", lambda *arguments: [][0])


def sampler_of_another_size(patch):
    patch.setattr(DDIM, "_integrate", lambda self, denoiser, x, *rest: x[:, :, :4])


def release_unwritable(patch):
    def save(self, folder):
        raise OSError(28, "No space left on device")

    patch.setattr(Release, "save", save)


def release_unreadable(patch):
    def damaged(*arguments):
        raise InputError("the release is damaged")

    patch.setattr(rehearsal, "open_without_public", damaged)


def tf32(patch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    patch.setattr(torch, "_dpdm_before", before, raising=False)


def tf32_by_environment(patch):
    patch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")


NETWORKS = {
    "batch normalisation": (_BatchNorm, "BatchNorm1d"),
    "dropout": (_Dropout, "raw"),
    "draws": (_Draws, "raw"),
    "fills a buffer from its input": (_FillsABuffer, "average"),
    "complex parameters": (_Complex, "complex"),
    "a weight past its layer": (_WeightPastItsLayer, "one-backward-each"),
    "flat output": (_Flat, "must return one image for each"),
    "one output for all rows": (_OneForAll, "must return one image for each"),
    "one pixel for each image": (_OnePixel, "must return one image for each"),
    "whole numbers": (_WholeNumbers, "of floats, not"),
    "a pair": (_Pair, "not tuple"),
    "detached output": (_Detached, "no gradient"),
    "no blank images": (_NoBlank, "fails on an image of NaN, as blank ones are: ValueError: not a number"),
    "a shape without numbers": (_NoNumbers, "'denoiser.network.told' has no numbers"),
    "all frozen": (_Frozen, "nothing to train"),
    "no null class": (_WithoutNullClass, "IndexError"),
    "parameters without a shape": (_Lazy, "no tensor"),
    "state that is no tensor": (_ExtraState, "no tensor"),
    "a weight with a name for nobody": (_StrangeName, "letters, digits and _"),
    "memory that is shared within a tensor": (_Expanded, "could not be opened again"),
    "a complex buffer": (_ComplexBuffer, "phases"),
    "state outside its state_dict": (_Hidden, "does not draw the same"),
    "cannot be copied": (_NotCopied, "cannot be copied"),
    "raises": (_Raises, "KeyError"),
    "a function of other arguments": (lambda shape: Sound(shape, num_classes=2, images_in=2), "makes no network"),
    "a function that makes no module": (lambda shape, **sizes: shape, "no torch.nn.Module"),
    "no code": ("unet", "neither a torch.nn.Module nor a function"),
    "a name without code": (Own(type="package.Net"), "its code is needed"),
}
OTHERS = {
    "a device that is not there": ({"performance": {"device": "cuda"}}, no_cuda, "no CUDA device"),
    "TensorBoard that is not there": ({"performance": {"tensorboard": True}}, no_tensorboard, "pip install"),
    "too little memory": ({}, no_memory, "of memory, and there are 0.0 MiB"),
    "too little disk": ({}, no_room, "make room there"),
    "a folder that is read-only": ({}, read_only, "cannot be written"),
    "a sampler that raises": ({}, sampler_raises, "sampler fails on made-up images: IndexError"),
    "a sampler of other images": ({}, sampler_of_another_size, "must return images of shape"),
    "a named sampler that raises": ({"samplers": {"best": DDIM(steps=2)}}, sampler_raises, "fails"),
    "a release that cannot be written": ({}, release_unwritable, "No space left"),
    "a release that cannot be read": ({}, release_unreadable, "the release is damaged"),
    "a sampler of one's own": (
        {"sampler": MySampler(steps=2)},
        None,
        "sampler is a MySampler, which no release can name",
    ),
    "a preconditioning of one's own": (
        {"preconditioning": MyPreconditioning(), "prior": None, "plan": plan(releases={})},
        None,
        "preconditioning is a MyPreconditioning",
    ),
    "a size that is not exact": ({"plan": plan(relation="replace_special", dataset_size=13)}, None, "as exact"),
    "a plan without noise": ({"plan": plan(noise_multiplier=None)}, None, "no noise yet"),
    "TF32 by a script": ({}, tf32, "set_float32_matmul_precision"),
    "TF32 by the environment": ({}, tf32_by_environment, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
}
CASES = {name: ({"network": network}, None, said) for name, (network, said) in NETWORKS.items()} | OTHERS


@pytest.fixture
def ledger(tmp_path):
    book = Ledger(str(tmp_path / "ledger.sqlite"), tell=lambda line: None)
    book.register(Records.of(SCANS), epsilon=50.0, delta=1e-3, relation="add_or_remove_one")
    return book


@pytest.fixture(autouse=True)
def _precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("unchecked")
def test_what_can_refuse_a_run_does_so_before_anything_is_spent_counted_or_left(case, tmp_path, ledger, monkeypatch):
    changes, patch, said = CASES[case]
    before = ledger.storage.entries()
    if patch is not None:
        patch(monkeypatch)
    with pytest.raises(InputError, match=said) as refused:
        trainer(tmp_path / "run", ledger=ledger, **changes).fit(SCANS)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert ledger.storage.entries() == before


def test_rows_of_private_images_are_made_for_no_run_that_the_ledger_refuses(tmp_path, monkeypatch):
    book = Ledger(str(tmp_path / "small.sqlite"), tell=lambda line: None)
    book.register(Records.of(SCANS), epsilon=0.1, delta=1e-3, relation="add_or_remove_one")
    method = Evolution(population=2, rounds=1)
    asked = method.plan(epsilon=1.0, dataset_size=12, delta=1e-3)
    public = dataclasses.replace(SCANS.part(range(6)), public=True, name="others")
    monkeypatch.setattr("dpdm.runs.run.keep_rows", lambda *_, **__: pytest.fail("rows were made"))
    run = Trainer(
        method=method, plan=asked, public=public, run=tmp_path / "run", ledger=book, machine=Machine(device="cpu")
    )
    with pytest.raises(InputError, match="does not fit"):
        run.fit(SCANS)
    assert not (tmp_path / "run").exists()


def test_trajectories_of_public_images_are_made_for_no_run_that_the_ledger_refuses(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    book = Ledger(str(tmp_path / "small.sqlite"), tell=lambda line: None)
    book.register(Records.of(SCANS), epsilon=0.1, delta=1e-3, relation="add_or_remove_one")
    network = DiffusersFolder(source=save_pipeline(tmp_path / "pipeline"))
    method = Diffusion(network=network, retrieval=Retrieval(keep=4), loss=DenoisingLoss(noise_multiplicity=2))
    asked = method.plan(epsilon=1.0, dataset_size=12, delta=1e-3, steps=2, expected_batch_size=4)
    public = dataclasses.replace(SCANS.part(range(6)), public=True, name="others")
    monkeypatch.setattr(Trajectories, "fill", lambda *_, **__: pytest.fail("trajectories were made"))
    machine = Machine(device="cpu", precision="float32")
    run = Trainer(method=method, plan=asked, public=public, run=tmp_path / "run", ledger=book, machine=machine)
    with pytest.raises(InputError, match="does not fit"):
        run.fit(SCANS)
    assert not (tmp_path / "run").exists()


def test_after_a_refusal_the_folder_is_free_and_the_next_try_goes_to_its_end(tmp_path, ledger):
    with pytest.raises(InputError):
        trainer(tmp_path / "run", ledger=ledger, network=_Hidden).fit(SCANS)
    trainer(tmp_path / "run", ledger=ledger).fit(SCANS)
    assert verify_release(tmp_path / "run").dataset_size == 12


def test_a_run_that_goes_on_is_rehearsed_too_and_a_refusal_leaves_it_whole(tmp_path, ledger):
    steps = trainer(tmp_path / "run", ledger=ledger).steps(SCANS)
    next(steps)
    steps.close()
    private = tmp_path / "run" / "private"
    before, entries = (
        {path.name: path.read_bytes() for path in private.rglob("*") if path.is_file()},
        ledger.storage.entries(),
    )
    Renamed = type("Sound", (_Dropout,), {"__module__": Sound.__module__, "__qualname__": Sound.__qualname__})
    with pytest.raises(InputError):
        trainer(tmp_path / "run", ledger=ledger, network=Renamed).fit(SCANS)
    assert {path.name: path.read_bytes() for path in private.rglob("*") if path.is_file()} == before
    assert ledger.storage.entries() == entries
    trainer(tmp_path / "run", ledger=ledger).fit(SCANS)
    verify_release(tmp_path / "run")


def test_another_class_or_other_shapes_cannot_go_on_with_a_run(tmp_path):
    """Resuming: the weights of one network are no other's."""

    class Another(Sound):
        pass

    class Wider(Sound):
        def more(self):
            self.last = nn.Linear(8, self.last.out_features, bias=False)

    steps = trainer(tmp_path / "run").steps(SCANS)
    next(steps)
    steps.close()
    journal = (tmp_path / "run" / "private" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"network.type is test_refused.*\.Sound there and .*Another here"):
        trainer(tmp_path / "run", network=Another).fit(SCANS)
    Wider.__qualname__ = Sound.__qualname__
    with pytest.raises(InputError, match=r"another network: last\.bias is none in the network given"):
        trainer(tmp_path / "run", network=Wider).fit(SCANS)
    assert (tmp_path / "run" / "private" / "journal.jsonl").read_bytes() == journal
    trainer(tmp_path / "run").fit(SCANS)


def test_a_search_rehearses_every_candidate_before_it_draws_how_many_runs_there_are(tmp_path, monkeypatch):
    """A search pays its whole price once it has begun."""
    seen = []
    monkeypatch.setattr(Trainer, "rehearse", lambda self, data: seen.append(self.seed) or {"facts": {"public": []}})
    monkeypatch.setattr(tuning.Tuner, "_begin", lambda self, *what: (_ for _ in ()).throw(InputError("begun")))
    from dpdm.config import load_config
    from dpdm.privacy.search import Search

    candidates = [load_config("digits", method="prior", overrides=[f"seed={seed}"]) for seed in (1, 2)]
    tuner = tuning.Tuner(
        candidates=candidates, search=Search(mean=2.0, score_noise_multiplier=10.0), run=tmp_path / "s", ledger=None
    )
    with pytest.raises(InputError, match="begun"):
        tuner.fit(candidates[0].data.open(), lambda *run: None)
    assert seen == [1, 2]


ONE_REFUSES = """
import torch
torch.set_num_threads(1)
from test_refused_before_the_first_sum import SCANS, Sound, _Flat, trainer
from dpdm.networks import MLP
from dpdm.runs.hardware import joined_processes
from dpdm.types import InputError

class Mine(Sound):
    def forward(self, *inputs):
        made = super().forward(*inputs)
        return made.flatten(1) if processes.rank == 1 else made

with joined_processes() as processes:
    try:
        trainer("run", network=Mine).fit(SCANS)
    except InputError as error:
        with open(f"refused{processes.rank}", "w") as file:
            file.write(str(error))
"""


@pytest.mark.proof
def test_if_one_process_refuses_all_do_and_none_waits(tmp_path):
    result = launch(2, ONE_REFUSES, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = [path.read_text() for path in sorted(tmp_path.glob("refused*"))]
    assert len(said) == 2
    assert said[0] == said[1]
    assert "must return one image for each" in said[0]
    assert not (tmp_path / "run").exists()


class _Tied(Sound):
    def more(self):
        self.twin = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.twin.weight

    def hidden(self, *inputs):
        return self.other(self.twin(super().hidden(*inputs)))


class _NotContiguous(Sound):
    def more(self):
        self.last.weight = nn.Parameter(torch.randn(8, self.last.out_features).T)


class _Double(Sound):
    def more(self):
        self.double()

    def hidden(self, x, c_noise, labels):
        return super().hidden(x.double(), c_noise.double(), labels)


class _Half(Sound):
    def more(self):
        self.bfloat16()

    def hidden(self, x, c_noise, labels):
        return super().hidden(x.bfloat16(), c_noise.bfloat16(), labels)


class _PartlyFrozen(Sound):
    def more(self):
        self.first.requires_grad_(False)
        self.order = nn.Parameter(torch.arange(8), requires_grad=False)
        self.register_buffer("positions", torch.arange(8))
        self.register_buffer("constant", torch.ones(8), persistent=False)

    def hidden(self, *inputs):
        return super().hidden(*inputs)[:, self.order] * self.constant


ACCEPTED = {
    "a class": Sound,
    "a function": lambda shape, **sizes: Sound(shape, **sizes),
    "part of a function": functools.partial(Sound),
    "a module": Sound((1, 8, 8), num_classes=2, images_in=2),
    "one of dpdm's, as a module": MLP(width=8, blocks=1).build((1, 8, 8), num_classes=2, images_in=2),
    "tied weights": _Tied,
    "weights that are not contiguous": _NotContiguous,
    "float64": _Double,
    "bfloat16": _Half,
    "frozen parameters, whole numbers among them, and buffers": _PartlyFrozen,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_network_of_ones_own_is_trained_and_its_release_is_exactly_its_state(name, tmp_path):
    network = ACCEPTED[name]
    before = {key: t.clone() for key, t in network.state_dict().items()} if isinstance(network, nn.Module) else {}
    made = trainer(tmp_path / "run", network=network, performance={"strategy": "one-backward-each"}).fit(SCANS)
    verify_release(tmp_path / "run")
    opened = Release.load(tmp_path / "run", network=network)
    weights, again = made.generator.state_dict(), opened.generator.state_dict()
    assert weights.keys() == again.keys()
    for key, t in weights.items():
        assert torch.equal(t, again[key]), key
        assert t.dtype == again[key].dtype, key
    assert (opened.sample(4, seed=1)[0] == made.sample(4, seed=1)[0]).all()
    for key, t in before.items():  # the module that was given is as it was
        assert torch.equal(network.state_dict()[key], t)
    frozen = {f"denoiser.network.{key}": t for key, t in before.items()}
    assert not frozen or any(not torch.equal(weights[key], t) for key, t in frozen.items())


def test_a_module_that_a_function_hands_out_again_and_again_is_left_alone(tmp_path):
    """Neither the rehearsal, training nor opening a release may write to it."""
    shared = Sound((1, 8, 8), num_classes=2, images_in=2)
    before = {key: t.clone() for key, t in shared.state_dict().items()}

    def network(shape, **sizes):
        return shared

    trainer(tmp_path / "run", network=network, performance={"strategy": "one-backward-each"}).fit(SCANS)
    Release.load(tmp_path / "run", network=network)
    assert all(torch.equal(t, before[key]) for key, t in shared.state_dict().items())
    assert shared.training
    assert all(p.requires_grad for p in shared.parameters())


def test_a_plan_without_steps_refuses_a_network_that_it_would_ignore():
    with pytest.raises(InputError, match=r"the plan releases .*, and its settings need .* steps"):
        trainer(None, plan=plan(steps=0, noise_multiplier=None))


def test_a_sampler_beyond_training_is_refused_before_anything_else():
    with pytest.raises(InputError, match="sigma_min"):
        trainer(None, preconditioning=VE(), prior=None, plan=plan(releases={}), sampler=DDIM(sigma_min=1e-4))
