"""Training a start on public images: resumed, shared, around priors with the noise of private ones."""

import dataclasses
import json
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_processes import launch
from two_worlds import images

from dpdm.config import Machine, read_toml
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, DenoisingLoss, V
from dpdm.files import digest, write_toml
from dpdm.methods import Diffusion, ImageFacts, Prior, Start
from dpdm.methods.start import require_start
from dpdm.networks import MLP
from dpdm.privacy.processes import Processes
from dpdm.runs import Trainer, pretraining, verify_release
from dpdm.runs.pretraining import Pretraining, noisy_prior
from dpdm.runs.start import START, open_start
from dpdm.types import InputError

PUBLIC = dataclasses.replace(images(90, seed=7), name="shown", public=True)
FACTS = ImageFacts(PUBLIC.shape, PUBLIC.class_names)
METHOD = Diffusion(network=MLP(width=8, blocks=1), prior=Prior(centres=2, rounds=1))
QUICK = Machine(device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(pretraining, "_BATCH", 16)
    monkeypatch.setattr(pretraining, "_NEW_PRIOR", 5)


def training(**changes):
    given = {"public": PUBLIC, "facts": FACTS, "method": METHOD, "minutes": 0.005, "machine": QUICK}
    return Pretraining(**given | changes)


def test_a_start_says_what_it_was_made_with_and_for(tmp_path):
    progress = list(training().steps(tmp_path / "start"))
    assert [each.updates for each in progress] == list(range(1, len(progress) + 1))
    assert progress[-1].seconds >= 0.3
    assert sorted(path.name for path in (tmp_path / "start").iterdir()) == [START, "weights.safetensors"]
    table = tomllib.loads((tmp_path / "start" / START).read_text())
    assert table["public"] == [{"name": "shown", "sha256": PUBLIC.digest(), "images": 90}]
    assert (table["epsilon"], table["dataset_size"]) == ([0.2, 10.0], [2000, 100000])
    assert table["facts"] == {"shape": [1, 8, 8], "class_names": ["0", "1", "2"][: len(FACTS.class_names)]}
    assert table["updates"] == len(progress)
    start = open_start(tmp_path / "start")
    assert start.classes == FACTS.class_names
    assert start.part.images == 90
    ((name, known),) = start.known
    assert name == "shown"
    assert known.shape == (90, 1, 32)
    first = METHOD.untrained(FACTS).denoiser.network.state_dict()
    assert first.keys() == start.weights.keys()
    assert any(not torch.equal(first[name], start.weights[name]) for name in first)


def test_it_learns(tmp_path):
    """Around a prior of one centre, a network of a few hundred updates removes some loss."""
    method = dataclasses.replace(METHOD, network=MLP(width=32, blocks=2), prior=Prior(centres=1))
    steps = training(method=method, minutes=1.0).steps(tmp_path / "start")
    losses = [next(steps).loss for _ in range(300)]
    steps.close()
    assert np.mean(losses[-100:]) < 0.97 * np.mean(losses[:20])


def test_what_is_interrupted_goes_on_and_what_is_finished_is_kept(tmp_path):
    folder, whole = tmp_path / "start", training(minutes=0.01)
    first = whole.steps(folder)
    for _ in range(4):
        stopped = next(first)
    first.close()
    assert (folder / "making").is_dir()
    others = dataclasses.replace(images(90, seed=8), name="shown", public=True)
    with pytest.raises(InputError, match="another run \\(public_images"):  # or a claim would not name the first ones
        next(training(minutes=0.01, public=others).steps(folder))
    with pytest.raises(InputError, match="holds no start"):
        open_start(folder)
    going_on = list(whole.steps(folder))
    assert going_on[0].updates == stopped.updates + 1
    assert going_on[0].seconds > stopped.seconds
    with pytest.raises(InputError, match="holds a start already"):
        next(whole.steps(folder))
    assert open_start(folder).part.name == "shown"


def test_training_that_diverges_leaves_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining._Loop, "rate", float("nan"))
    with pytest.raises(InputError, match="diverged at update 2"):
        list(training().steps(tmp_path / "start"))
    assert not (tmp_path / "start" / START).exists()


def test_settings_that_begin_with_a_start_are_no_hindrance(tmp_path):
    method = dataclasses.replace(METHOD, start=Start(sources=("gone",), trains="head.bias"))
    steps = training(method=method).steps(tmp_path / "start")
    next(steps)
    assert all(p.requires_grad for p in steps.gi_frame.f_locals["loop"]._denoiser.network.parameters())
    steps.close()


def test_another_start_does_not_go_on_there(tmp_path):
    steps = training().steps(tmp_path / "start")
    next(steps)
    steps.close()
    with pytest.raises(InputError, match=r"holds another run \(minutes"):
        next(training(minutes=7.0).steps(tmp_path / "start"))


@pytest.mark.parametrize("named", ["other classes", "no classes", "more classes"])
def test_public_images_of_other_classes_teach_none(tmp_path, named):
    public = {
        "other classes": dataclasses.replace(PUBLIC, class_names=tuple("abc")[: PUBLIC.num_classes]),
        "no classes": dataclasses.replace(PUBLIC, labels=None, num_classes=0, class_names=()),
        "more classes": ImageDataset(
            images=PUBLIC.images, labels=np.arange(90) % 9, num_classes=9, name="nine", public=True
        ),
    }[named]
    for _ in (steps := training(public=public, minutes=0.002)).steps(tmp_path / "start"):
        pass
    assert not steps.labelled
    start = open_start(tmp_path / "start")
    assert start.classes == ()
    (table,) = [weights for name, weights in start.weights.items() if name.endswith("classes.weight")]
    assert (table == 0).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"minutes": 0}, "minutes must be"),
        ({"facts": ImageFacts((3, 8, 8), ())}, "has images of shape"),
        ({"public": PUBLIC.part(range(9))}, "has 9 images: take at least 64"),
        ({"method": dataclasses.replace(METHOD, network=torch.nn.Linear(2, 2))}, "one of dpdm's networks"),
    ],
)
def test_what_no_start_can_be_made_of_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        training(**changes)


def test_a_prior_has_the_noise_of_private_ones(monkeypatch):
    """The same images: at a small budget and few records their means are hidden, at a large one they are not."""

    def spread(epsilon, records):
        monkeypatch.setattr(pretraining, "EPSILONS", (epsilon, epsilon))
        monkeypatch.setattr(pretraining, "SIZES", (records, records))
        means = [noisy_prior(Prior(centres=1), PUBLIC, np.random.default_rng(n)).centres for n in range(3)]
        return float(torch.stack(means).std(dim=0).mean())

    few, many = spread(0.5, 2_000), spread(10.0, 100_000)
    assert few > 5 * many


def test_a_start_serves_a_run(tmp_path):
    for _ in training().steps(tmp_path / "start"):
        pass
    method = dataclasses.replace(METHOD, start=Start(sources=(str(tmp_path / "start"),)))
    plan = method.plan(epsilon=5.0, dataset_size=90, delta=1e-3, steps=0)
    made = Trainer(method=method, plan=plan, machine=QUICK, run=tmp_path / "run", ledger=None).fit(
        dataclasses.replace(images(90, seed=1), name="private")
    )
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert claim["public"] == [{"name": "shown", "sha256": PUBLIC.digest(), "images": 90}]
    assert made.sample(4, seed=0)[0].shape == (4, 8, 8, 1)


PLAIN = Diffusion(network=MLP(width=8, blocks=1), preconditioning=EDM())


def test_without_a_prior_a_network_is_pre_trained_and_tuned(tmp_path):
    """Ghalebikesabi et al. 2023: the same code, without prior and gains."""
    for _ in training(method=PLAIN).steps(tmp_path / "start"):
        pass
    assert open_start(tmp_path / "start").preconditioning == "edm"
    start = Start(sources=(str(tmp_path / "start"),), gains=False)
    method = dataclasses.replace(PLAIN, start=start)
    private = dataclasses.replace(images(90, seed=1), name="private")

    def fit(method, folder):
        plan = method.plan(epsilon=5.0, dataset_size=90, delta=1e-3, steps=2, expected_batch_size=9)
        assert [release.name for release in plan.releases] == ["steps"]
        return Trainer(method=method, plan=plan, machine=QUICK, run=folder, ledger=None).fit(private)

    made = fit(method, tmp_path / "run")
    assert [part.name for part in verify_release(tmp_path / "run").public] == ["shown"]
    state, weights = made.generator.denoiser.network.state_dict(), open_start(tmp_path / "start").weights
    assert all((state[name] - weights[name]).abs().max() < 0.1 for name in weights)
    with pytest.raises(InputError, match=r"is for preconditioning\.kind = edm, not v: make one"):
        fit(dataclasses.replace(method, preconditioning=V()), tmp_path / "other")
    with pytest.raises(
        InputError, match=r"is for preconditioning\.sigma_data = 0\.5773502691896257, not 0\.3: make one"
    ):
        fit(dataclasses.replace(method, preconditioning=EDM(sigma_data=0.3)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_guidance_needs_a_start_that_saw_images_without_their_label(tmp_path):
    for dropout in (0.0, 0.1):
        method = dataclasses.replace(PLAIN, loss=DenoisingLoss(label_dropout=dropout))
        for _ in training(method=method).steps(tmp_path / f"{dropout}"):
            pass
        start = open_start(tmp_path / f"{dropout}")
        assert start.label_dropout == dropout
        for classes, guided in (((), True), (("a", "b"), False), (("a", "b"), True)):
            like = {"codec": "", "guided": guided}
            if classes and guided and not dropout:
                with pytest.raises(InputError, match=r"label_dropout = 0\), and guidance needs it"):
                    require_start(start._replace(classes=classes), EDM(), **like)
            else:
                require_start(start._replace(classes=classes), EDM(), **like)


def test_a_start_that_knows_images_by_no_digests_is_damaged(tmp_path):
    for number, known in enumerate(
        (np.zeros((90, 32), np.uint8), np.zeros((90, 1, 31), np.uint8), np.zeros((90, 1, 32)))
    ):
        folder = tmp_path / f"{number}"
        for _ in training(method=PLAIN).steps(folder):
            pass
        weights = load_file(folder / "weights.safetensors")
        save_file(weights | {"known.0": torch.from_numpy(known)}, folder / "weights.safetensors")
        table = read_toml(folder / "start.toml")
        write_toml(folder / "start.toml", table | {"sha256": digest(folder / "weights.safetensors")})
        with pytest.raises(InputError, match="make the start again"):
            open_start(folder)


@pytest.mark.parametrize("changes", [{}, {"gains": False, "sources": ("a", "b")}])
def test_what_a_prior_is_needed_for_is_refused_without_one(changes):
    with pytest.raises(InputError, match=r"name one start, set start\.gains=false"):
        dataclasses.replace(PLAIN, start=Start(**{"sources": ("a",)} | changes))


def test_without_a_prior_there_must_be_steps():
    method = dataclasses.replace(PLAIN, start=Start(sources=("a",), gains=False))
    with pytest.raises(InputError, match="trains no network"):
        method.plan(epsilon=1.0, dataset_size=90, delta=1e-3, steps=0)


WORKER = """
from pathlib import Path
import torch
from dpdm.runs import pretraining
from dpdm.runs.hardware import joined_processes
from test_pretraining import training
torch.set_num_threads(1)
pretraining._BATCH, pretraining._NEW_PRIOR = 16, 5
with joined_processes() as processes:
    steps = training(minutes=9.0).steps(Path("start"))
    for _ in range(12):
        next(steps)
    weights = steps.gi_frame.f_locals["loop"].average.network.state_dict()
    torch.save(dict(weights), f"weights{processes.rank}.pt")
    steps.close()
"""


@pytest.mark.proof
def test_two_processes_make_one_start(tmp_path):
    done = launch(2, WORKER, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"weights{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = METHOD.untrained(FACTS).denoiser.network.state_dict()
    assert any(not torch.equal(one[name], first[name]) for name in first)


def test_one_very_noisy_prior_does_not_undo_what_others_taught(monkeypatch):
    """A loss of a thousand times the usual moves Adam's second moments by no more than a gradient of norm one does."""
    loop = pretraining._Loop(training(), Processes())
    loop.update(0, part=0.0)
    sound = pretraining.DenoisingLoss.__call__
    monkeypatch.setattr(pretraining.DenoisingLoss, "__call__", lambda *given: 1e3 * sound(*given))
    for number in range(1, 4):
        loop.update(number, part=0.0)
    moments = sum(float(state["exp_avg_sq"].sum()) for state in loop.optimizer.state.values())
    assert 0 < moments <= 4 * 1e-3 * pretraining._MOST_NORM**2 * 1.01  # (1 - β₂) Σ ‖g‖², of four updates
