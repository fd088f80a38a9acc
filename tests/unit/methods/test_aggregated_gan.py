"""What a critic's lower layers release of a batch, what is above them, and that a generator learns by it."""

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.methods import AggregatedGAN, ImageFacts, Optimizer
from dpdm.methods.adversary import Pairs, made_up_pairs
from dpdm.methods.aggregates import ContrastLoss, Critic, LowerLayers, RowLoss
from dpdm.methods.classifier import Labelled
from dpdm.privacy import NonPrivate, PoissonSums, clipped_grad_sum
from dpdm.runs import Trainer
from dpdm.types import InputError
from shades import NAMES, assert_goes_on, shades

FACTS = ImageFacts((1, 8, 8), NAMES)
TOY = {"width": 16, "latent": 2, "discriminator_width": 4, "batch_size": 16, "updates": 2}


def layers(*, classes=2, shape=(1, 8, 8)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LowerLayers(ImageFacts(shape, tuple(map(str, range(classes)))), width=4)


def some_images(count, shape=(1, 8, 8), *, seed=0):
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Labelled(images, torch.arange(count) % 2)


def test_the_gradient_of_the_rows_is_the_sum_of_features_of_each_class():
    lower, batch = layers(classes=3).train_only(layers=False), some_images(5)
    features = lower.features(batch.x)
    assert torch.allclose(features.norm(dim=1), torch.ones(5))
    part = clipped_grad_sum(RowLoss(), lower, batch, max_grad_norm=1.0)
    rows = part.vector.view(3, -1)
    for label in range(3):
        assert torch.allclose(rows[label], features[batch.labels == label].sum(0).double(), atol=1e-6)
    half = clipped_grad_sum(RowLoss(), lower, batch, max_grad_norm=0.5)
    assert torch.allclose(2 * half.vector, part.vector, atol=1e-6)


def test_no_image_adds_more_than_one_to_an_aggregate_and_one_that_is_no_number_adds_nothing():
    lower = layers().train_only(layers=False)
    for x in (torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 1e6), torch.full((1, 1, 8, 8), torch.nan)):
        part = clipped_grad_sum(RowLoss(), lower, Labelled(x, torch.tensor([1])), max_grad_norm=1.0)
        length = float(part.vector.norm())
        assert length <= 1
        assert (length == 0) == bool(x.isnan().any())


def test_convolutions_and_rows_take_turns():
    lower = layers()
    for turn in (True, False):
        lower.train_only(layers=turn)
        assert {name.split(".")[0] for name, p in lower.named_parameters() if p.requires_grad} == {
            "halvings" if turn else "rows"
        }


def test_a_pair_loses_what_its_two_images_differ_by_in_its_class():
    lower, (x, labels) = layers(), some_images(4)
    torch.nn.init.normal_(lower.rows.weight, generator=torch.Generator().manual_seed(1))
    pairs = Pairs(torch.stack([x, x.flip(0)], dim=1), labels)
    with torch.no_grad():
        away = lower.features(x.flip(0)) - lower.features(x)
        expected = (lower.rows.weight[labels] * away).sum(1)
        assert torch.allclose(ContrastLoss()(lower, pairs), expected, atol=1e-5)


def test_a_critic_knows_the_mean_of_its_aggregates_and_how_frequent_classes_are():
    lower = layers()
    critic = Critic(lower)
    features = lower.features(some_images(8).x).detach()
    for shares in ((0.25, 0.75), (0.35, 0.65)):
        critic.saw(torch.stack([share * features[k::2].mean(0) for k, share in enumerate(shares)]))
    assert critic.shares.tolist() == pytest.approx([0.3, 0.7], abs=1e-5)
    assert torch.allclose(critic.mean[0], 0.3 * features[::2].mean(0), atol=1e-6)
    critic.forget()
    critic.saw(torch.zeros_like(critic.mean))
    assert not critic.mean.any()
    assert critic.shares.tolist() == pytest.approx([0.3, 0.7], abs=1e-5)  # counts do not depend on the layers
    critic.counts.copy_(torch.tensor([-1.0, 1.0]))
    assert critic.shares[0] == pytest.approx(0.005, rel=0.01)


def test_the_distance_is_least_where_generated_images_have_the_released_means():
    lower, (x, _) = layers(), some_images(64)
    critic, classes = Critic(lower), torch.tensor([0, 1])
    means = lower.features(x).detach().view(2, 32, -1).mean(1)
    critic.saw(0.5 * means)
    others = [some_images(64, seed=seed).x * 0.5 for seed in range(3)]
    assert all(critic.distance(x, classes) < critic.distance(other, classes) for other in others)
    critic.point(others[0], classes)
    assert torch.allclose(lower.rows.weight.norm(dim=1), torch.ones(2), atol=1e-5)
    towards = (means - lower.features(others[0]).view(2, 32, -1).mean(1)).mul(lower.rows.weight).sum(1)
    assert (towards > 0).all()
    critic.point(x[:32], torch.tensor([1]))
    assert not lower.rows.weight[0].any()  # of a class without generated images nothing is known


def test_the_distance_draws_no_images_together():
    """Of few images it is on average what it is of many: means of few would be nearer to one another."""
    critic = Critic(layers())
    critic.saw(torch.ones_like(critic.mean) * 0.1)
    images, both = some_images(2000).x, torch.tensor([0, 1])
    with torch.no_grad():
        many = float(critic.distance(images, both))
        few = np.mean([float(critic.distance(part, both)) for part in images.split(4)])
    lengths = [1 / (number - 1) for number in (2, 1000)]  # what m features of length one add, whatever they are
    assert few - many == pytest.approx(lengths[0] - lengths[1], abs=0.01)


def test_a_generator_learns_the_shade_of_each_class():
    plan = NonPrivate(dataset_size=64, releases=(PoissonSums(count=90, expected_batch_size=32, max_norm=1.0),))
    machine = Machine(device="cpu", precision="float32", strategy="layer-wise")
    method = AggregatedGAN(**TOY, generator_rate=1e-2, optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.8))
    made = Trainer(method=method, plan=plan, machine=machine, ledger=None).fit(shades(64))
    images, labels = made.sample(40, seed=0)
    dark, bright = (images[labels == label].mean() for label in (0, 1))
    assert dark < 90
    assert bright > 145
    assert made.generator.class_shares == pytest.approx((0.5, 0.5), abs=0.03)


@pytest.mark.parametrize("taken", [2, 3])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(taken, tmp_path):
    assert_goes_on(AggregatedGAN(**TOY, lower_every=3), tmp_path, taken=taken)


@pytest.mark.parametrize(("every", "expected"), [(0, "aaaaa"), (2, "alala"), (3, "aalaa")])
def test_the_lower_layers_take_their_turn_by_the_number_of_the_step(every, expected, monkeypatch):
    seen = []
    sound = LowerLayers.train_only

    def watched(self, *, layers):
        seen.append("al"[layers])
        return sound(self, layers=layers)

    method = AggregatedGAN(**TOY, lower_every=every)
    plan = method.plan(epsilon=3.0, dataset_size=32, delta=1e-13, steps=5, expected_batch_size=8)
    steps = Trainer(method=method, plan=plan, ledger=None).steps(shades(32))
    monkeypatch.setattr(LowerLayers, "train_only", watched)
    list(steps)
    assert "".join(seen[-5:]) == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 4}, "width"),
        ({"latent": 10**6}, "latent"),
        ({"discriminator_width": 0}, "discriminator_width"),
        ({"batch_size": 7}, "batch_size"),
        ({"updates": 10**6}, "updates"),
        ({"lower_every": 1}, "lower_every = 1 leaves no step for an aggregate"),
        ({"lower_every": -2}, "lower_every"),
        ({"generator_rate": 1.0}, "generator_rate"),
        ({"optimizer": None}, "optimizer must be Optimizer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        AggregatedGAN(**settings)


def test_where_there_are_many_classes_an_update_has_some_of_them():
    method = AggregatedGAN(**TOY)
    generator = method.untrained(FACTS)
    images, classes = method._images(generator, torch.Generator().manual_seed(0))
    assert (len(images), sorted(classes.tolist())) == (16, [0, 1])
    many = method.untrained(FACTS._replace(class_names=tuple("0123456789")))
    images, classes = method._images(many, torch.Generator().manual_seed(0))
    assert (len(images), len(set(classes.tolist()))) == (16, 2)


def test_a_plan_takes_steps_alone():
    with pytest.raises(InputError, match=r"privacy.steps = 0 trains no network"):
        AggregatedGAN().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=0)
    (steps,) = AggregatedGAN().plan(epsilon=3.0, dataset_size=100, delta=1e-13, steps=7).releases
    assert steps.count == 7
    assert AggregatedGAN().memory(FACTS, public=0, records=9) < AggregatedGAN(width=999).memory(
        FACTS, public=0, records=9
    )


def test_made_up_pairs_show_all_classes():
    pairs = made_up_pairs(4, AggregatedGAN(**TOY).untrained(FACTS))
    assert pairs.images.shape == (4, 2, 1, 8, 8)
    assert pairs.labels.tolist() == [0, 1, 0, 1]
