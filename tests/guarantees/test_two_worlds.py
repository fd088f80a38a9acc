"""The claim itself: given the noisy sums, two runs that differ in one record cannot be told apart."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from two_worlds import (
    IMAGE_NEIGHBOURS,
    IMAGES,
    LOSS,
    NEIGHBOURS,
    NUM_CLASSES,
    PLAN,
    D,
    RecordingPlan,
    World,
    batch_sizes,
    differences,
    extreme,
    fit,
    loader,
    moved,
    plus,
    records,
    stopped_clock,
    train,
)

from dpdm import cli
from dpdm.data import ImageDataset, save_npz
from dpdm.methods import Prior
from dpdm.privacy import InsecureSeededEntropy, LayerWise
from dpdm.runs import Trainer
from strategies import every_strategy

BASE = records(12, classes=NUM_CLASSES - 1)  # class 2 does not occur
NO_EFFECT = {"nan", "one nan pixel", "inf", "minus inf", "norm overflows float64"}


@every_strategy
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_cannot_be_told_apart(name, strategy):
    d = train(World(), D, strategy=strategy)
    e = train(World(replay=d), NEIGHBOURS[name], strategy=strategy)
    assert differences(d, e) == []
    assert len(d.calls) == 8
    beyond_float32 = isinstance(strategy, LayerWise) and name == "gradient of 1e30"  # its square is: left out
    if name in NO_EFFECT or beyond_float32:
        assert max(moved(d, e)) < 1e-12
    else:
        assert max(moved(d, e)) > 1e-3, "the record that differs was never selected: the test shows nothing"


def test_a_record_that_is_blanked_out_cannot_be_told_apart():
    plan = {"relation": "replace_special"}
    d = train(World(), D, plan=plan)
    e = train(World(replay=d), NEIGHBOURS["blanked"], plan=plan)
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3
    assert d.observed["plan"]["relation"] == "replace_special"


def test_the_first_record_of_a_class_cannot_be_told_apart():
    assert BASE.labels.max() == NUM_CLASSES - 2
    d = train(World(), BASE)
    e = train(World(replay=d), BASE.plus(extreme(0.5), NUM_CLASSES - 1))
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_record_that_fills_an_empty_batch_cannot_be_told_apart(number):
    plan = {"dataset_size": 20, "expected_batch_size": 5, "steps": 12}
    before, after = (batch_sizes(n, sample_rate=0.25, steps=12, seed=0) for n in (number, number + 1))
    assert any(a == 0 < b for a, b in zip(before, after, strict=True))
    d = train(World(), records(number), plan=plan)
    e = train(World(replay=d), records(number).plus(extreme(0.7)), plan=plan)
    assert differences(d, e) == []
    assert len(d.calls) == 12


def test_a_batch_that_is_always_empty_takes_every_step():
    plan = {"dataset_size": 10**6, "expected_batch_size": 1, "delta": 1e-7}
    d = train(World(), records(5), plan=plan)
    e = train(World(replay=d), records(4), plan=plan)
    assert differences(d, e) == []
    assert len(d.calls) == 8
    assert all((call.total == 0).all() for call in d.calls)


def test_a_number_of_records_across_a_rounding_edge_cannot_be_told_apart():
    plan = {"dataset_size": 10, "expected_batch_size": 4}
    assert int(0.4 * 12) != int(0.4 * 13)
    d = train(World(), D, plan=plan)
    e = train(World(replay=d), D.plus(extreme(0.3)), plan=plan)
    assert differences(d, e) == []


@pytest.mark.parametrize("physical_batch_size", [1, 100])
def test_physical_batch_size_does_not_weaken_the_bound(physical_batch_size):
    d = train(World(), D, physical_batch_size=physical_batch_size)
    e = train(World(replay=d), D.without_last(), physical_batch_size=physical_batch_size)
    assert differences(d, e) == []


@pytest.mark.parametrize("clip", [1e-8, 1e-3, 50.0])
def test_the_bound_holds_at_any_clipping_norm(clip):
    d = train(World(), D, plan={"max_grad_norm": clip})
    e = train(World(replay=d), D.plus(extreme(1e6)), plan={"max_grad_norm": clip})
    assert differences(d, e) == []
    assert max(moved(d, e)) > clip / 2  # the bound is also tight


# --- the package's own training loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_NEIGHBOURS)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("centres", [1, 3])
def test_a_prior_in_two_worlds(name, centres, steps, tmp_path):
    assert_prior_in_two_worlds(IMAGE_NEIGHBOURS[name], centres, steps, tmp_path)


def test_a_prior_of_low_frequencies_in_two_worlds(tmp_path, monkeypatch):
    monkeypatch.setattr("dpdm.methods.prior.MOST_COORDINATES", 16)
    checkered = np.indices((8, 8)).sum(0) % 2 * 255  # all of it lies outside of the basis
    assert_prior_in_two_worlds(plus(IMAGES, checkered.astype(np.uint8), 1), 3, 3, tmp_path)


def assert_prior_in_two_worlds(neighbour, centres, steps, tmp_path):
    settings = {"prior": Prior(centres=centres, rounds=2), "plan": PLAN | {"steps": steps}}
    d = fit(World(), IMAGES, tmp_path / "d", **settings)
    e = fit(World(replay=d), neighbour, tmp_path / "e", **settings)
    assert differences(d, e) == []
    releases = 4 if centres == 1 else 6
    assert len(d.calls) == releases + steps
    for distance, call in zip(moved(d, e), d.calls[:releases], strict=False):
        assert distance > 1e-3 * call.sensitivity


@pytest.mark.parametrize("name", IMAGE_NEIGHBOURS)
def test_the_trainer_in_two_worlds(name, tmp_path):
    d = fit(World(), IMAGES, tmp_path / "d")
    e = fit(World(replay=d), IMAGE_NEIGHBOURS[name], tmp_path / "e")
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3
    assert len(d.calls) == 6
    assert any("journal" in name for name in d.observed["files"])
    assert any(name.startswith("release") for name in d.observed["files"])


@pytest.mark.parametrize("name", IMAGE_NEIGHBOURS)
@pytest.mark.parametrize(
    ("strategy", "tolerance"), [("one-backward-each", 1e-6), ("vectorized", 0.02), ("layer-wise", 0.02)]
)
def test_the_trainer_in_two_worlds_in_bfloat16(name, strategy, tolerance, tmp_path):
    """In batches the rounding of the others' gradients depends on who is beside them: the documented sharp edge."""
    settings = {"precision": "bfloat16", "strategy": strategy}
    d = fit(World(), IMAGES, tmp_path / "d", **settings)
    e = fit(World(replay=d), IMAGE_NEIGHBOURS[name], tmp_path / "e", **settings)
    assert differences(d, e, tolerance=tolerance) == []
    assert max(moved(d, e)) > 1e-3
    exact = fit(World(), IMAGES, tmp_path / "exact")
    assert not torch.equal(exact.calls[0].total, d.calls[0].total), "bfloat16 was not in use: the test shows nothing"


@stopped_clock()
def train_from_the_command_line(world: World, data: ImageDataset, folder, monkeypatch, capsys) -> World:
    """Run `dpdm train` on an .npz file of `data`, and observe all that it prints and publishes."""
    folder.mkdir()
    save_npz(folder / "photos.npz", data.images, data.labels, num_classes=3)
    from_config = Trainer.from_config

    def recorded(config, data, **how):
        trainer = from_config(config, data, **how)
        plan = {f.name: getattr(trainer.plan, f.name) for f in dataclasses.fields(trainer.plan)}
        mechanism = RecordingPlan.of(world, **plan)
        return dataclasses.replace(trainer, plan=mechanism, entropy=InsecureSeededEntropy(0))

    line = "train photos.npz --dataset-size 12 --epsilon 3 --run r --set privacy.delta=1e-3 --set privacy.steps=6"
    line += " --set privacy.expected_batch_size=5 --set network.kind=mlp --set network.width=8 --set sampler.steps=2"
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Trainer, "from_config", recorded)
        patch.setattr("sys.argv", ["dpdm", *line.split()])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    printed = capsys.readouterr()
    world.observed = {
        "exit code": code,
        "standard output": printed.out,
        "standard error": re.sub(r"about [\d.]+ (s|min|h) left", "", printed.err),
        "release": {path.name: path.read_bytes() for path in (folder / "r" / "release").iterdir()},
    }
    return world


@pytest.mark.parametrize("name", IMAGE_NEIGHBOURS)
@pytest.mark.proof
def test_the_command_line_in_two_worlds(name, tmp_path, monkeypatch, capsys):
    d = train_from_the_command_line(World(), IMAGES, tmp_path / "d", monkeypatch, capsys)
    e = train_from_the_command_line(World(replay=d), IMAGE_NEIGHBOURS[name], tmp_path / "e", monkeypatch, capsys)
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3
    assert len(d.calls) == 7 + 6  # the prior's come first
    assert "6 of 6" in d.observed["standard error"]
    assert d.observed["release"].keys() == {"config.toml", "privacy.json", "model.safetensors"}


def test_the_trainer_takes_steps_with_empty_batches(tmp_path):
    plan = PLAN | {"dataset_size": 10**6, "expected_batch_size": 1, "delta": 1e-7}
    d = fit(World(), IMAGES, tmp_path / "d", plan=plan)
    e = fit(World(replay=d), IMAGE_NEIGHBOURS["removed"], tmp_path / "e", plan=plan)
    assert differences(d, e) == []
    assert len(d.calls) == 6
    assert all((call.total == 0).all() for call in d.calls)


@pytest.mark.proof
def test_the_harness_sees_a_trainer_that_knows_the_number_of_records(tmp_path):
    d = fit(World(), IMAGES, tmp_path / "d", plan=PLAN)
    e = fit(World(replay=d), IMAGE_NEIGHBOURS["added"], tmp_path / "e", plan=PLAN | {"dataset_size": 13})
    assert "settings differs" in differences(d, e)


def test_the_loss_is_one_number_for_each_record_whatever_the_copies():
    batch = loader(D)(np.arange(4), InsecureSeededEntropy(1).stream("diffusion", 0))
    assert batch.sigma.shape == (4, LOSS.noise_multiplicity)
