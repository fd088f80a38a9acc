"""What a run writes is verified; what could not be verified is refused before anything is spent."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dpdm.config import Privacy
from dpdm.data import ImageDataset
from dpdm.diffusion import DDIM, Churn, DenoisingLoss, MatchedSolver
from dpdm.methods import Diffusion, Optimizer, Prior, PriorAlone
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import DPSGD
from dpdm.privacy.accounting import downwards, round_up, upwards
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.verification import _may_be_stated
from dpdm.types import InputError, require_name

pytestmark = pytest.mark.proof

RNG = np.random.default_rng(0)


def images(count=40, shape=(8, 8, 1), classes=2, **facts):
    """Squares of four levels, brighter for later classes."""
    labels = RNG.integers(0, classes, count) if classes else None
    small = RNG.integers(0, 200, (count, shape[0] // 4, shape[1] // 4, shape[2]), dtype=np.uint8)
    whole = small.repeat(4, 1).repeat(4, 2)
    if classes:
        whole = whole + (50 * labels / classes).astype(np.uint8)[:, None, None, None]
    return ImageDataset(images=whole, labels=labels, num_classes=classes, **{"name": "squares"} | facts)


def trained(data, run, *, prior=None, steps=0, **settings):
    """Train on `data` as its owner would in Python: the prior alone, unless there are steps."""
    prior = prior or Prior(centres=2, rounds=2)
    privacy = {"epsilon": 1.0, "delta": 1e-3, "max_grad_norm": 1} | settings.pop("privacy", {})
    method = PriorAlone(prior=prior)
    if steps:
        privacy = {"expected_batch_size": 8, "steps": steps} | privacy
        settings = {"network": MLP(width=8, blocks=1), "sampler": DDIM(steps=2)} | settings
        of_method = {
            key: settings.pop(key) for key in ("network", "sampler", "samplers", "optimizer") if key in settings
        }
        method = Diffusion(prior=prior, loss=DenoisingLoss(noise_multiplicity=1), **of_method)
    unit = "image" if data.groups is None else "group"
    plan = Privacy(**privacy).plan(method, lambda: data.num_units, unit=unit)
    return Trainer(method=method, plan=plan, run=run, **settings).fit(data)


HONEST = {
    "grey": (images, {}),
    "colour": (lambda: images(shape=(16, 16, 3)), {}),
    "more pixels than coordinates": (lambda: images(shape=(32, 32, 3)), {}),
    "large": (lambda: images(shape=(48, 40, 1)), {}),
    "five images": (lambda: images(5, classes=0), {"privacy": {"delta": 1e-2}}),
    "no classes": (lambda: images(classes=0), {}),
    "one class": (lambda: images(classes=1), {}),
    "many classes": (lambda: images(classes=12), {}),
    "all images alike": (lambda: ImageDataset(images=np.full((30, 8, 8, 1), 255, np.uint8), name="white"), {}),
    "groups": (lambda: images(groups=np.arange(40) // 2), {}),
    "one centre": (images, {"prior": Prior(centres=1)}),
    "many centres": (images, {"prior": Prior(centres=30, rounds=1)}),
    "much noise": (images, {"privacy": {"epsilon": 0.01}}),
    "hardly any noise": (images, {"privacy": {"epsilon": 1000.0}}),
    "noise on a grid": (images, {"privacy": {"noise": "grid"}, "steps": 2}),
    "a declared size": (images, {"privacy": {"dataset_size": 50}}),
    "a network": (images, {"steps": 2, "network": CompactUNet(), "sampler": Churn(steps=2, s_churn=1)}),
    "a U-Net": (images, {"steps": 2, "network": UNet(width=4, multipliers=(1, 1), blocks=1, attention=(4,))}),
    "whole numbers for others": (
        images,
        {
            "steps": 2,
            "optimizer": Optimizer(learning_rate=1, decay=1, warmup=0),
            "prior": Prior(centres=2, max_deviation=1),
        },
    ),
    "whole numbers of another library": (images, {"steps": np.int64(2), "network": MLP(width=np.int64(8), blocks=1)}),
    "letters of two spellings": (lambda: images(class_names=("a\u0308nt", "bee"), name="mu\u0308cken"), {}),
    "samplers": (
        images,
        {"steps": 2, "samplers": {"slow": DDIM(steps=3, guidance=0), "near-the-prior": MatchedSolver(steps=2)}},
    ),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_release_is_verified_and_is_its_own_again(name, tmp_path):
    make, settings = HONEST[name]
    data = make()
    trained(data, tmp_path / "run", **settings)
    found = verify_release(tmp_path / "run")
    assert (found.name, found.class_names) == (data.name, data.class_names)
    assert list((tmp_path / "run" / "watch").glob("*.png"))  # where a person looks for a picture
    Release.load(tmp_path / "run").save(tmp_path / "again")
    for file in (tmp_path / "run" / "release").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_two_classes_of_one_name_are_refused_with_the_images():
    with pytest.raises(InputError, match="'ant', and so is another: give each class a name of its own"):
        images(class_names=("ant", "ant"))
    with pytest.raises(InputError, match="and so is another"):
        images(class_names=("\u00e4nt", "a\u0308nt"))  # which Unicode calls one


@pytest.mark.parametrize(("proved", "said"), [(0.99999, "0.999"), (2.0, "2.000"), (0.0, "0.000"), (3.14159, "3.141")])
def test_a_bound_that_was_proved_is_said_downwards(proved, said):
    assert downwards(proved) == said


BAD_NAMES = [
    "a" * 256,
    "\u202etac",
    "an\x1b[31mt",
    "ant\n",
    " ant",
    "a\u200bnt",
    "ant\ufe0f",
    "\ud800",
    "ü" * 128,
    "\U0001d159",
    "a\U00016fe4",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_release_may_hold_is_refused_before_anything_is_spent(name, tmp_path):
    with pytest.raises(InputError, match="visible characters") as refused:
        images(class_names=("ant", name))
    assert str(refused.value).isprintable()
    with pytest.raises(InputError, match="visible characters"):
        trained(images(name=name), tmp_path / "run")
    assert not (tmp_path / "run" / "private" / "journal.jsonl").exists()


@pytest.mark.parametrize("name", ["Fast", "", "a" * 33, "a b", "ä", "a.b", "-a", "2nd"])
def test_a_sampler_of_such_a_name_is_refused_before_anything_is_spent(name, tmp_path):
    with pytest.raises(InputError, match="a sampler is called"):
        trained(images(), tmp_path / "run", steps=2, samplers={name: DDIM(steps=2)})
    assert not (tmp_path / "run").exists()


def test_more_samplers_than_a_release_may_hold_are_refused(tmp_path):
    with pytest.raises(InputError, match="at most 16"):
        trained(images(), tmp_path / "run", steps=2, samplers={f"s{number}": DDIM(steps=2) for number in range(17)})


@pytest.mark.parametrize("name", ["ant", "Ameise ä", "蟻", "🐜", "T-shirt/top", "..", "a" * 255])
def test_what_a_person_can_read_is_a_name(name):
    require_name(name, "a class")


def test_verify_says_all_that_it_cannot_check(dpdm, tmp_path):
    data = images(class_names=("ant, or bee", "ünd"), name="two kinds")
    trained(data, tmp_path / "run", steps=2, seed=2**63 - 1, samplers={"near-the-prior": MatchedSolver(steps=2)})
    code, out, err = dpdm("verify", tmp_path / "run")
    assert code == 0, err
    for said in ('"two kinds"', '"ant, or bee", "ünd"', '"near-the-prior"', str(2**63 - 1), "declared"):
        assert said in out
    found = json.loads(dpdm("verify", tmp_path / "run", "--json")[1])
    assert found["name"] == "two kinds"
    assert found["class_names"] == ["ant, or bee", "ünd"]
    assert (found["samplers"], found["seed"]) == (["near-the-prior"], 2**63 - 1)


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(123.45612, "123.4562"), (12345.64, "12345.64"), (9.99999, "10"), (1.0, "1"), (1e9, "1000000000")],
)
def test_a_bound_is_said_in_full_and_rounded_up(epsilon, said):
    assert upwards(epsilon) == said
    assert float(said) >= epsilon


@pytest.mark.parametrize("cost", [0.99973, 9.9999998, 123.45612, 1e-6, 4e4 + 1e-5])
def test_a_stated_epsilon_is_one_that_a_run_writes_of_this_cost(cost):
    """It may be one digit above; below it may be by round-off alone, and it has four decimals."""
    right = round_up(cost)
    assert _may_be_stated(right, cost, 1e-5)
    assert _may_be_stated(round(right + 1e-4, 4), cost, 1e-5)
    assert not _may_be_stated(round(right + 2e-4, 4), cost, 1e-5)
    assert not _may_be_stated(round(right - 1e-4, 4), cost, 1e-5)
    assert not _may_be_stated(right + 1e-7, cost, 1e-5)
    assert not _may_be_stated(str(right), cost, 1e-5)
    assert not _may_be_stated(float("nan"), cost, 1e-5)
    assert _may_be_stated(1.0, 1 + 1e-12, 1e-5)  # another processor's sum of the same numbers
    assert not _may_be_stated(1.0, 1 + 1e-9, 1e-5)


def test_a_plan_has_one_spelling_and_no_number_without_a_meaning():
    fields = {"dataset_size": 10, "expected_batch_size": 2, "delta": 1e-3}
    plan = DPSGD(**fields, steps=1, max_grad_norm=1, noise_multiplier=5)
    assert repr(plan) == repr(DPSGD(**fields, steps=1, max_grad_norm=1.0, noise_multiplier=5.0))
    before = {"first": 5}
    assert DPSGD(**fields, steps=0, noise_multiplier=5.0, releases=before).noise_multiplier is None
    with pytest.raises(InputError, match="at most 1,000,000"):
        DPSGD(**fields, steps=10**12, noise_multiplier=5.0)


LARGE = """
import json, resource, sys, time
from dpdm.runs import verify_release
verify_release(sys.argv[2])  # and all libraries are there
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
verify_release(sys.argv[1])
print(json.dumps([time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.slow
def test_a_release_of_300_megabytes_is_verified_in_little_memory(tmp_path):
    trained(images(), tmp_path / "run", steps=2)
    small = Release.load(tmp_path / "run")
    network = MLP(width=4300, blocks=1)
    torch.manual_seed(0)
    small.generator.denoiser.network = network.build((1, 8, 8), num_classes=2, images_in=2)
    small.settings["network"] |= {"width": 4300}
    small.save(tmp_path / "large")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 290_000_000
    line = [sys.executable, "-c", LARGE, str(tmp_path / "large"), str(tmp_path / "run")]
    seconds, kilobytes = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    assert kilobytes < 200_000
    assert seconds < 60
