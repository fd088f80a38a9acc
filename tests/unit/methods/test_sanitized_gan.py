"""Where images lie among shards, what critics say, and that a generator learns by what of it is released."""

import dataclasses
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts, Optimizer, SanitizedGAN
from dpdm.methods import shards as shards_module
from dpdm.methods.shards import Critics, Fakes, ShardLoader, Upstream, UpstreamLoss, members, seeded
from dpdm.methods.values import Budget
from dpdm.privacy import DPSGD, NonPrivate, ShardSums
from dpdm.runs import Trainer
from dpdm.runs.tuning import _planned
from dpdm.runs.verification import require_planned
from dpdm.runs.worth import noise_to_signal
from dpdm.types import InputError
from shades import NAMES, assert_goes_on, shades

CPU = torch.device("cpu")
FACTS = ImageFacts((1, 8, 8), NAMES)
TOY = {"shards": 8, "width": 16, "latent": 2, "discriminator_width": 4, "batch_size": 16, "critic_updates": 2}


def noise(count, *, seed=0, **given):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return ImageDataset(images=images, labels=np.arange(count) % 2, num_classes=2, name="noise", **given)


def by_shard(data, *, seed=0):
    """Return the bytes of the images in each shard."""
    found = members(data, shards=4, seed=seed)
    return [sorted(data.images[index].tobytes() for index in of) for of in found]


def test_each_image_lies_in_one_shard_and_where_follows_from_itself_alone():
    data = noise(200)
    whole = members(data, shards=4, seed=0)
    assert sorted(np.concatenate(whole).tolist()) == list(range(200))
    assert min(map(len, whole)) > 30
    without = by_shard(data.part(np.arange(1, 200)))
    gone = [set(one) - set(other) for one, other in zip(by_shard(data), without, strict=True)]
    assert sorted(map(len, gone)) == [0, 0, 0, 1]
    order = np.random.default_rng(1).permutation(200)
    assert by_shard(data.part(order)) == by_shard(data)
    assert by_shard(data, seed=1) != by_shard(data)


def test_a_group_lies_in_one_shard_whatever_its_order_and_whatever_other_groups_there_are():
    data = noise(60, groups=np.arange(60) % 20)
    of = members(data, shards=4, seed=0)
    assert all(
        len({shard for shard, own in enumerate(of) if np.isin(own, group).any()}) == 1
        for group in (np.flatnonzero(data.groups == number) for number in range(20))
    )
    turned = data.part(np.arange(20))
    turned = dataclasses.replace(
        turned, images=turned.images[::-1], labels=turned.labels[::-1], groups=turned.groups[::-1]
    )
    assert by_shard(turned) == by_shard(data)
    fewer = by_shard(data.part(np.arange(19)))
    assert sum(one != other for one, other in zip(by_shard(data), fewer, strict=True)) == 1


def test_an_image_that_is_blank_lies_in_no_shard():
    blank = np.zeros(60, dtype=bool)
    blank[[3, 4, 44]] = True
    assert np.concatenate(members(noise(60, blank=blank), shards=4, seed=0)).size == 57
    groups = np.arange(60) % 20
    assert np.concatenate(members(noise(60, blank=groups == 3, groups=groups), shards=4, seed=0)).size == 57


def loader(data, *, shards=3, length=0.5):
    method = SanitizedGAN(**TOY)
    generator = method.untrained(FACTS)
    torch.manual_seed(0)
    critics = Critics(FACTS, number=shards, width=4, rate=1e-3, side=8)
    made, labels = method._made(generator, critics, seed=0)
    of = members(data, shards=shards, seed=0)
    return ShardLoader(data, of, critics, generator, (made.detach(), labels), length, 2, CPU)


def bytes_of(count, seed=0):
    return io.BytesIO(np.random.default_rng(seed).bytes(16 * count)).read


def test_a_critic_learns_from_its_own_shard_and_leaves_all_others_as_they_were():
    load = loader(noise(30))
    before = load.critics.weights.clone()
    rows = load(np.array([1]), bytes_of(1))
    assert rows.gradients.shape == (1, 16, 1, 8, 8)
    changed = (load.critics.weights != before).any(1).tolist()
    assert changed == [False, True, False]
    assert load.critics.seen.tolist() == [0, 2, 0]


def test_what_a_critic_says_does_not_depend_on_who_else_is_asked():
    one, both = loader(noise(30)), loader(noise(30))
    drawn = np.random.default_rng(0).bytes(32)
    alone = one(np.array([2]), io.BytesIO(drawn[16:]).read)
    assert torch.equal(alone.gradients[0], both(np.array([0, 2]), io.BytesIO(drawn).read).gradients[1])


def test_a_shard_without_images_says_nothing():
    load = loader(noise(1))
    rows = load(np.arange(3), bytes_of(3)).gradients
    assert rows.flatten(1).any(1).sum() == 1
    assert load(np.arange(0), bytes_of(0)).gradients.shape == (0, 16, 1, 8, 8)


def test_a_shard_of_many_images_needs_no_more_memory_than_a_small_one(monkeypatch):
    """All copies of one image lie in one shard; that there are many of them must not be what a run fails of."""
    one = noise(1).images
    data = ImageDataset(images=np.repeat(one, 500, axis=0), labels=np.zeros(500, int), num_classes=2, name="copies")
    made, shown = [], loader(data)
    sound = shards_module.levels_to_tensor
    monkeypatch.setattr(shards_module, "levels_to_tensor", lambda images: made.append(len(images)) or sound(images))
    assert shown(np.arange(3), bytes_of(3)).gradients.flatten(1).any(1).sum() == 1
    assert made == [16, 16]


def test_a_release_of_other_shards_than_its_settings_say_is_refused():
    method = SanitizedGAN(**TOY)
    plan = method.plan(epsilon=1.0, dataset_size=60, steps=4)
    require_planned(method, plan)
    other = dataclasses.replace(plan, releases=(dataclasses.replace(plan.releases[0], shards=10**6),))
    with pytest.raises(InputError, match="plan releases steps over 1000000 shards, and its settings need steps over"):
        require_planned(method, other)


def test_a_search_plans_more_shards_than_ten_thousand():
    config = SimpleNamespace(method=SanitizedGAN(shards=20_000), privacy=SimpleNamespace(steps=4))
    assert [entry.shards for entry in _planned(config)] == [20_000]


def test_what_a_run_says_of_its_vectors_is_of_half_the_norm():
    plan = SanitizedGAN(**TOY).plan(epsilon=1.0, dataset_size=60, steps=4)
    as_records = plan.noise_multiplier * math.sqrt(100) / plan.expected_batch_size
    assert noise_to_signal(plan, 100) == pytest.approx(2 * as_records)


def test_a_critic_tells_bright_images_from_dark_ones_with_a_slope_near_one():
    torch.manual_seed(0)
    critics = Critics(ImageFacts((1, 8, 8), ()), number=2, width=4, rate=3e-3, side=8)
    generator = SanitizedGAN(**TOY).untrained(ImageFacts((1, 8, 8), ())).requires_grad_(requires_grad=False)
    for p in generator.parameters():
        p.zero_()  # grey images
    real, labels = torch.full((20, 1, 8, 8), 0.8), torch.zeros(20, dtype=torch.long)
    random = seeded(0)
    for _ in range(300):
        critics.learn(1, real[:16], labels[:16], generator, random)
    gradient = critics.ask(1, torch.full((9, 1, 8, 8), 0.2), labels[:9])
    assert (gradient.flatten(1).sum(1) < 0).all()  # so that a step against it makes them brighter
    assert float(gradient.norm()) == pytest.approx(1)
    values = [critics._values(critics.weights[1], torch.full((1, 1, 8, 8), shade), labels[:1]) for shade in (0.1, 0.3)]
    assert float(values[1] - values[0]) == pytest.approx(0.2 * 8, rel=0.5)  # the distance of these images


@pytest.mark.parametrize(("shape", "side", "seen"), [((1, 28, 28), 14, (1, 14, 14)), ((3, 33, 40), 8, (3, 6, 8))])
def test_critics_see_means_of_squares_whose_gradient_is_as_long(shape, side, seen):
    critics = Critics(ImageFacts(shape, ("a", "b")), number=1, width=4, rate=1e-3, side=side)
    images = torch.randn(2, *shape, requires_grad=True)
    shown = critics.see(images)
    assert critics.shape == seen == tuple(shown.shape[1:])
    said = critics.ask(0, shown, torch.tensor([0, 1]))
    (through,) = torch.autograd.grad(shown, images, said)
    assert float(through.norm()) == pytest.approx(float(said.norm()), rel=1e-4)


def test_the_gradient_that_a_step_clips_is_what_the_critic_said_of_all_images_together():
    fakes = Fakes(3, FACTS.shape)
    said = torch.randn(2, 3, 1, 8, 8)
    losses = UpstreamLoss()(fakes, Upstream(said))
    assert losses.tolist() == [0, 0]
    assert torch.equal(torch.autograd.grad(losses[1], fakes.images)[0], said[1])


def test_a_generator_learns_the_shade_of_each_class():
    data = shades(64)
    method = SanitizedGAN(**TOY, warm_updates=20, generator_rate=5e-3, optimizer=Optimizer(ema_decay=0.9))
    plan = NonPrivate(dataset_size=64, releases=method.releases(Budget(1.0, 1e-5, 64, 150, 3)))
    made = Trainer(method=method, plan=plan, machine=Machine(device="cpu", precision="float32"), ledger=None).fit(data)
    images, labels = made.sample(40, seed=0)
    dark, bright = (images[labels == label].mean() for label in (0, 1))
    assert dark < 100
    assert bright > 150
    assert made.generator.class_shares is None


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    assert_goes_on(SanitizedGAN(**TOY), tmp_path)


def test_a_plan_has_sums_over_shards_by_default_a_tenth_of_them():
    plan = SanitizedGAN(shards=300).plan(epsilon=1.0, dataset_size=60000, steps=20)
    assert plan.poisson == (dataclasses.replace(plan.poisson[0], shards=300, expected_batch_size=30, count=20),)
    assert plan.poisson[0].radius == 0.5


def test_a_plan_of_other_sums_is_refused_before_anything_is_spent(tmp_path):
    other = ShardSums(shards=7, count=3, expected_batch_size=3, noise_multiplier=9.0)
    for plan in (
        DPSGD(dataset_size=64, expected_batch_size=3, steps=3, noise_multiplier=9.0, delta=1e-3),
        dataclasses.replace(
            SanitizedGAN(**TOY).plan(epsilon=1.0, dataset_size=64, delta=1e-3, steps=3), releases=(other,)
        ),
    ):
        with pytest.raises(InputError, match="plan"):
            Trainer(method=SanitizedGAN(**TOY), plan=plan, run=tmp_path / "run", ledger=None).fit(shades(64))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shards": 0}, "shards"),
        ({"shards": 10**7}, "shards"),
        ({"width": 4}, "width"),
        ({"latent": 10**6}, "latent"),
        ({"discriminator_width": 0}, "discriminator_width"),
        ({"side": 4}, "side"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"critic_updates": 0}, "critic_updates"),
        ({"warm_updates": -1}, "warm_updates"),
        ({"generator_rate": 1.0}, "generator_rate"),
        ({"optimizer": "adam"}, "optimizer must be Optimizer, not str"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        SanitizedGAN(**settings)


def test_impossible_plans_are_refused():
    with pytest.raises(InputError, match="steps = 0 trains no network"):
        SanitizedGAN().plan(epsilon=1.0, dataset_size=60000, steps=0)
    with pytest.raises(InputError, match="shards = 500 are more than the 150 records"):
        SanitizedGAN().plan(epsilon=1.0, dataset_size=150, delta=1e-3)
    with pytest.raises(InputError, match="is more than shards = 500"):
        SanitizedGAN().plan(epsilon=1.0, dataset_size=60000, expected_batch_size=512)
