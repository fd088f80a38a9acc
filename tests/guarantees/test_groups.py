"""A group of images as the unit of protection: it is selected, clipped, summed and counted as one."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from two_worlds import (
    GROUP_NEIGHBOURS,
    GROUP_PLAN,
    GROUPED,
    IMAGES,
    LOSS,
    NUM_CLASSES,
    PLAN,
    D,
    World,
    differences,
    extreme,
    fit,
    moved,
    records,
    train,
)

from dpdm.config import decode_plan, encode
from dpdm.diffusion import EDM, DenoisingLoss
from dpdm.methods import Diffusion, Prior
from dpdm.methods.loader import Loader
from dpdm.networks import MLP
from dpdm.privacy import DPSGD, InsecureSeededEntropy, NonPrivate
from dpdm.privacy.processes import Processes
from dpdm.runs import Trainer
from dpdm.types import InputError
from strategies import every_strategy


@pytest.mark.parametrize("strategy", ["one-backward-each", "vectorized", "layer-wise"])
@pytest.mark.parametrize("name", GROUP_NEIGHBOURS)
@pytest.mark.proof
def test_the_trainer_in_two_worlds_that_differ_in_a_group(name, strategy, tmp_path):
    d = fit(World(), GROUPED, tmp_path / "d", plan=GROUP_PLAN, strategy=strategy)
    e = fit(World(replay=d), GROUP_NEIGHBOURS[name], tmp_path / "e", plan=GROUP_PLAN, strategy=strategy)
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3
    assert b'"unit": "one group of images"' in d.observed["files"]["release/privacy.json"]
    assert b'unit = "group"' in d.observed["files"]["release/config.toml"]


@pytest.mark.parametrize("centres", [1, 3])
@pytest.mark.parametrize("name", GROUP_NEIGHBOURS)
def test_a_prior_in_two_worlds_that_differ_in_a_group(name, centres, tmp_path):
    settings = {"prior": Prior(centres=centres, rounds=2), "plan": GROUP_PLAN | {"steps": 2}}
    d = fit(World(), GROUPED, tmp_path / "d", **settings)
    e = fit(World(replay=d), GROUP_NEIGHBOURS[name], tmp_path / "e", **settings)
    assert differences(d, e) == []
    releases = 3 if centres == 1 else 5
    for distance, call in zip(moved(d, e), d.calls[:releases], strict=False):
        assert distance > 1e-3 * call.sensitivity


def of_groups(groups):
    """Return `load` for a plain loop whose units are groups of records, in float64."""
    members = [torch.from_numpy(np.flatnonzero(groups == group)) for group in range(max(groups) + 1)]

    def loader(data):
        def load(indices, random_bytes):
            keys = random_bytes(16 * len(indices))
            sizes = np.array([len(members[i]) for i in indices])
            chosen = LOSS.choose(sizes, random_bytes=io.BytesIO(keys).read)
            images = torch.stack([members[i][row] for i, row in zip(indices, chosen, strict=True)])
            return LOSS.draw(
                data.records.x[images],
                data.records.labels[images],
                null_label=NUM_CLASSES,
                noise_levels=EDM().noise_levels,
                random_bytes=io.BytesIO(keys).read,
            )

        return load

    return loader


@dataclasses.dataclass
class Units:
    records: object
    number: int

    def __len__(self):
        return self.number


@every_strategy
@pytest.mark.parametrize("value", [1e6, 1e200, float("nan")])
def test_a_group_with_extreme_images_moves_a_sum_by_the_clipping_norm_at_most(value, strategy):
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 5])
    more = D
    for number in range(5):  # one of them is extreme: seldom all copies, often some
        more = more.plus(extreme(value) if number == 2 else records(1, seed=number).x)
    plan = {"unit": "group", "max_grad_norm": 1e-2}
    d = train(World(), Units(D, 6), load=of_groups(groups), plan=plan, strategy=strategy)
    neighbour = Units(more, 7)
    e = train(World(replay=d), neighbour, load=of_groups(np.append(groups, [6] * 5)), plan=plan, strategy=strategy)
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3


def test_all_copies_of_a_group_are_one_example_with_one_gradient():
    seen = []
    loader = Loader(GROUPED, LOSS, EDM().noise_levels, torch.device("cpu"))
    batch = loader(np.arange(6), InsecureSeededEntropy(0).stream("diffusion", 0))
    assert batch.x.shape == (6, LOSS.noise_multiplicity, 1, 8, 8)
    for group in range(6):
        here = {
            image.tobytes(): label
            for image, label in zip(
                GROUPED.images[GROUPED.groups == group], GROUPED.labels[GROUPED.groups == group], strict=True
            )
        }
        for x, label in zip(batch.x[group], batch.labels[group].tolist(), strict=True):
            pixels = ((x + 1) * 127.5).round().to(torch.uint8).numpy().transpose(1, 2, 0)
            assert pixels.tobytes() in here
            assert label in (here[pixels.tobytes()], NUM_CLASSES)
            seen.append(pixels.tobytes())
    assert len(set(seen)) > 6


def test_a_groups_draws_are_its_own_bytes_alone_and_do_not_depend_on_who_else_is_there():
    loader = Loader(GROUPED, LOSS, EDM().noise_levels, torch.device("cpu"))
    own = [bytes([group] * 16) for group in range(6)]

    def draws(*groups):
        left = iter(b"".join(own[group] for group in groups))
        return loader(np.array(groups), lambda count: bytes(next(left) for _ in range(count)))

    together, apart = draws(0, 3, 5), [draws(0), draws(3, 5)]
    for name, field in zip(together._fields, zip(*apart, strict=True), strict=True):
        assert torch.equal(getattr(together, name), torch.cat(field)), name


def test_every_image_of_a_group_is_chosen_equally_often_in_every_copy():
    loss, source = DenoisingLoss(noise_multiplicity=4), np.random.default_rng(0)
    chosen = loss.choose(np.full(6000, 3), random_bytes=source.bytes)
    assert chosen.shape == (6000, 4)
    counts = np.stack([np.bincount(column, minlength=3) for column in chosen.T])
    assert np.abs(counts - 2000).max() < 5 * (6000 * 2 / 9) ** 0.5
    together = np.bincount(3 * chosen[:, 0] + chosen[:, 1], minlength=9)
    assert np.abs(together - 6000 / 9).max() < 5 * (6000 * 8 / 81) ** 0.5


def test_a_group_of_one_image_is_drawn_as_the_image_is():
    alone = dataclasses.replace(IMAGES, groups=np.arange(12))
    batches = [
        Loader(data, LOSS, EDM().noise_levels, torch.device("cpu"))(
            np.arange(12), InsecureSeededEntropy(0).stream("diffusion", 0)
        )
        for data in (IMAGES, alone)
    ]
    assert torch.equal(batches[0].x[:, None].expand_as(batches[1].x), batches[1].x)
    for name in ("labels", "sigma", "noise"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_no_group_lies_on_two_processes_and_every_image_on_one(size):
    parts = [GROUPED.part(Processes(rank, size).shard(GROUPED.num_units)) for rank in range(size)]
    assert sum(part.num_units for part in parts) == 6
    found = {}
    for part in parts:
        for unit in range(part.num_units):
            mine = part.groups == unit
            found[frozenset(image.tobytes() for image in part.images[mine])] = part.labels[mine].tolist()
    everyone = {
        frozenset(image.tobytes() for image in GROUPED.images[GROUPED.groups == group]): GROUPED.labels[
            GROUPED.groups == group
        ].tolist()
        for group in range(6)
    }
    assert found == everyone


@pytest.mark.parametrize(("data", "unit"), [(GROUPED, "image"), (IMAGES, "group")], ids=["groups", "images"])
@pytest.mark.parametrize("kind", [DPSGD, NonPrivate.dp_sgd])
def test_a_plan_of_another_unit_than_the_data_is_refused_before_anything_is_written(data, unit, kind, tmp_path):
    noise = {"noise_multiplier": 1.0, "delta": 1e-3} if kind is DPSGD else {}
    plan = kind(dataset_size=12, expected_batch_size=5, steps=2, unit=unit, **noise)
    trainer = Trainer(
        method=Diffusion(network=MLP(width=8, blocks=1), preconditioning=EDM()), plan=plan, run=tmp_path / "run"
    )
    with pytest.raises(InputError, match="group"):
        trainer.fit(data)
    assert not (tmp_path / "run").exists()


def test_under_blank_one_out_it_is_groups_that_are_counted(tmp_path):
    for size, refused in ((12, True), (6, False)):
        plan = DPSGD(**GROUP_PLAN | {"dataset_size": size, "steps": 2, "relation": "replace_special"})
        trainer = Trainer(
            method=Diffusion(network=MLP(width=8, blocks=1), preconditioning=EDM()), plan=plan, run=tmp_path / str(size)
        )
        if refused:
            with pytest.raises(InputError, match="there are 6 groups"):
                trainer.fit(GROUPED)
        else:
            assert "blank out one group of images" in trainer.fit(GROUPED).statement


def test_a_plan_says_its_unit_and_an_unknown_one_is_refused():
    plan = DPSGD(**GROUP_PLAN)
    assert "add or remove one group of images" in plan.statement
    assert plan.claim(entropy=InsecureSeededEntropy(0))["unit"] == "one group of images"
    assert decode_plan(encode(plan)) == plan
    with pytest.raises(InputError, match="unit must be one of image, group, not 'person'"):
        DPSGD(**PLAN | {"unit": "person"})
