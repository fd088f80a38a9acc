"""What a record adds to the one sum of moments, what a noisy sum tells, and how images come to have its moments."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts, Layers, Prior, StatisticMatching, statistics
from dpdm.methods.beginning import Known, beginning
from dpdm.methods.layers import View, squashed
from dpdm.methods.matching import Matching, Moves, moved
from dpdm.methods.moments import Gaussians, Layout, divergence, log_density
from dpdm.privacy.processes import Processes
from dpdm.privacy.sums import clipped_sum
from dpdm.runs import Trainer
from dpdm.types import InputError

LAYERS = Layers(network="random-convnet", size=8, directions=6, pairs=5, own_pairs=4)
FACTS = ImageFacts((1, 8, 8), ("dark", "bright"))
CPU = torch.device("cpu")


def noise(count, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, 8, 8, 1), dtype=np.uint8)


def looked_at(images):
    rows = LAYERS.compute(FACTS.shape)(images)
    view = View.of(rows, LAYERS.widths(FACTS.shape), LAYERS.directions)
    return rows, view


def layout_of(view, classes=2, own=2):
    return Layout(tuple(view.sizes), LAYERS.pairs, own, LAYERS.own_pairs, classes)


# --- layers --------------------------------------------------------------------------------------------------------


def test_a_row_is_the_same_to_the_bit_whoever_is_beside_it():
    images = noise(40)
    rows, view = looked_at(images)
    seen = view.exact(rows)
    order = np.random.default_rng(1).permutation(40)
    assert torch.equal(LAYERS.compute(FACTS.shape)(images[order]), rows[order])
    assert torch.equal(view.exact(rows[order]), seen[order])
    assert torch.equal(view.exact(rows[7:8]), seen[7:8])


def test_directions_are_those_in_which_public_images_differ_with_equal_spread():
    rows, view = looked_at(noise(400))
    assert view.sizes == [6, 6, 6]
    seen = view.exact(rows)
    unsquashed = seen / (1 - seen.square()).sqrt()
    assert unsquashed.mean(0).abs().max() < 1e-3
    assert torch.allclose(unsquashed.std(0), torch.tensor(0.5).double(), atol=0.06)
    assert seen.abs().max() < 1


def test_what_can_be_differentiated_is_what_is_exact():
    images = noise(20)
    rows, view = looked_at(images)
    x = torch.from_numpy(images).movedim(-1, 1).float()
    assert torch.allclose(view.of_layers(LAYERS.build(FACTS.shape, ())(x)).double(), view.exact(rows), atol=1e-4)


def test_a_squash_keeps_small_numbers_and_bounds_all():
    y = torch.tensor([-1e9, -0.01, 0.0, 0.01, 1e9])
    assert torch.allclose(squashed(y), torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": ""}, "layers.network"),
        ({"network": "start", "size": 32}, "layers.size is for"),
        ({"sha256": "0" * 64}, "layers.sha256"),
        ({"network": "start", "sha256": "0"}, "layers.sha256"),
        ({"size": 4}, "size"),
        ({"directions": 300}, "directions"),
        ({"directions": 0}, "directions"),
        ({"own_pairs": 2.5}, "own_pairs"),
        ({"own": 4}, "own"),
    ],
)
def test_settings_of_layers_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        Layers(**changes)


def test_a_claim_names_the_network_that_somebody_trained():
    assert StatisticMatching(layers=LAYERS).networks == ()
    assert StatisticMatching().networks == ("efficientnet-lite0",)


# --- the vector of a record ----------------------------------------------------------------------------------------


def test_a_record_is_one_vector_clipped_as_a_whole():
    """One image at the maximum everywhere: in every layer, in every moment, and in its class."""
    layout = Layout((6, 5, 4), 5, 2, 4, 3)
    seen = torch.ones(1, 15).double()
    norm = 2.0
    parts = lambda: layout.rows(seen, torch.tensor([1]), torch.ones(1).double(), norm)  # noqa: E731
    ((rows, weights),) = parts()
    assert rows.shape == (1, layout.dimensions)
    assert weights.tolist() == [1.0]
    length = rows.norm()
    assert length > 3 * norm
    total, sensitivity = clipped_sum(parts(), dimensions=layout.dimensions, max_norm=norm)
    assert sensitivity == norm
    assert total.norm() == pytest.approx(norm)
    assert torch.allclose(total, rows[0] * norm / length)


def test_a_record_adds_nothing_to_the_blocks_of_other_classes():
    layout = Layout((6, 5, 4), 5, 2, 4, 3)
    seen = torch.rand(1, 15).double()
    ((rows, _),) = layout.rows(seen, torch.tensor([1]), torch.ones(1).double(), 1.0)
    blocks = rows[0, layout.common :].view(3, -1)
    assert blocks[1].count_nonzero() == layout.of_class + 1
    assert blocks[0].count_nonzero() == blocks[2].count_nonzero() == 0


def test_most_public_images_are_about_as_long_as_what_they_are_clipped_to():
    rows, view = looked_at(noise(200))
    layout, seen = layout_of(view), view.exact(rows)
    norm = layout.norm(seen)
    ((vectors, _),) = layout.rows(seen, torch.zeros(200).long(), torch.ones(200).double(), norm)
    assert vectors.norm(dim=1).median() == pytest.approx(norm, rel=0.05)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_sum_without_noise_tells_the_moments(classes):
    rows, view = looked_at(noise(300))
    layout, seen = layout_of(view, classes), view.exact(rows)
    labels = torch.arange(300) % classes
    norm = 1e3  # so that nothing is clipped
    parts = layout.rows(seen, labels, torch.ones(300).double(), norm)
    released, _ = clipped_sum(parts, dimensions=layout.dimensions, max_norm=norm)
    found = layout.statistics(released, noise_std=0.0, norm=norm)
    assert torch.allclose(found.counts, torch.bincount(labels).double())
    z = seen[:, :6]
    assert torch.allclose(found.layers[0].means, z.mean(0), atol=1e-6)
    assert torch.allclose(found.layers[0].covariances, torch.cov(z[:, :5].T, correction=0), atol=1e-6)
    mine = seen[labels == 0][:, -6:]
    assert torch.allclose(found.own[-1].means[0], mine.mean(0), atol=1e-6)
    assert torch.allclose(found.own[-1].covariances[0], torch.cov(mine[:, :4].T, correction=0), atol=0.02)


def test_noise_alone_tells_gaussians_that_can_be_matched():
    layout = Layout((6, 5), 5, 1, 4, 3)
    random = torch.Generator().manual_seed(0)
    released = 1e3 * torch.randn(layout.dimensions, generator=random, dtype=torch.float64)
    found = layout.statistics(released, noise_std=1e3, norm=2.0)
    for gaussian in (*found.layers, *found.own):
        assert gaussian.means.abs().max() <= 1
        assert torch.linalg.eigvalsh(gaussian.covariances).min() > 0
    assert (found.counts >= 20).all()


def test_a_covariance_of_noise_is_that_within_all_classes():
    layout = Layout((4,), 4, 1, 4, 2)
    released = torch.zeros(layout.dimensions).double()
    released[layout.common :].view(2, -1)[:, -1] = 1000 / math.hypot(1, 7)
    own = layout.statistics(released, noise_std=10.0, norm=1.0).own[0]
    assert torch.allclose(own.covariances[0], own.covariances[1])


# --- divergence ----------------------------------------------------------------------------------------------------


def gaussian(seed, size=5):
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=random, dtype=torch.float64)
    return Gaussians(torch.randn(size, generator=random, dtype=torch.float64), root @ root.T + torch.eye(size).double())


def test_the_divergence_is_that_of_gaussians():
    one, other = gaussian(0), gaussian(1)
    few = one.covariances + 1e-2 * torch.eye(5).double()
    expected = kl_divergence(MultivariateNormal(one.means, few), MultivariateNormal(*other))
    assert divergence(one, other) == pytest.approx(float(expected))
    assert 0 <= divergence(one, one) < 1e-3


def test_a_density_is_that_of_a_gaussian():
    z, one = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), gaussian(2)
    expected = MultivariateNormal(*one).log_prob(z) + 2.5 * math.log(2 * math.pi)
    assert torch.allclose(log_density(z, one), expected)


# --- images to begin with, and matching ----------------------------------------------------------------------------


def of_two_classes(number=120):
    """Dark and bright images, their layers, and what a sum without noise tells of them."""
    images = np.concatenate([noise(number // 2, 1, 0, 120), noise(number // 2, 2, 130, 256)])
    labels = torch.arange(number) // (number // 2)
    rows, view = looked_at(images)
    layout, seen = layout_of(view), view.exact(rows)
    parts = layout.rows(seen, labels, torch.ones(number).double(), 1e3)
    released, _ = clipped_sum(parts, dimensions=layout.dimensions, max_norm=1e3)
    return images, labels, view, layout, seen, layout.statistics(released, noise_std=0.0, norm=1e3)


def test_images_begin_as_the_public_ones_that_are_like_their_class():
    images, _, _, layout, seen, told = of_two_classes()
    random = torch.Generator().manual_seed(0)
    begun = beginning(Known(images, None), seen, layout, told, FACTS, 10, random)
    assert begun.shape == (2, 10, 1, 8, 8)
    assert begun[0].float().mean() < 100
    assert begun[1].float().mean() > 150


def test_where_public_images_have_these_classes_an_image_begins_as_one_of_its_own():
    images, labels, _, layout, seen, told = of_two_classes()
    swapped = 1 - labels
    begun = beginning(Known(images, swapped), seen, layout, told, FACTS, 10, torch.Generator().manual_seed(0))
    assert begun[0].float().mean() > 150


def test_a_class_of_few_public_images_begins_as_each_of_them_again():
    images, _, _, layout, seen, told = of_two_classes()
    begun = beginning(Known(images, None), seen, layout, told, FACTS, 150, torch.Generator().manual_seed(0))
    assert begun.shape[:2] == (2, 150)


def matching_of(passes=6):
    _, _, view, layout, _, told = of_two_classes()
    start = torch.from_numpy(noise(40, 5, 60, 200)).movedim(-1, 1).reshape(2, 20, 1, 8, 8)
    return Matching(
        start, told, layout, view, LAYERS.build(FACTS.shape, ()), Moves(1, True, 0), passes, Processes.joined()
    )


def test_matching_lowers_the_divergence_and_moves_classes_apart():
    matching = matching_of(passes=40)
    losses = []
    while not matching.finished:
        losses.append(matching.update())
    assert losses[-1] < 0.6 * losses[0]
    dark, bright = matching.images().float().flatten(1).mean(1).tolist()
    assert bright > dark + 25


def test_a_matching_goes_on_where_it_was_interrupted():
    whole, first, second = matching_of(), matching_of(), matching_of()
    while not whole.finished:
        whole.update()
    for _ in range(3):
        first.update()
    second.load_state_dict(first.state_dict())
    while not second.finished:
        second.update()
    assert torch.equal(whole.images(), second.images())


def test_images_are_moved_with_their_edges_and_mirrored():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(3, 1, 3, 3)
    down, across = torch.tensor([1, 0, 0]), torch.tensor([0, -1, 0])
    found = moved(x, down, across, torch.tensor([False, False, True]))[:, 0]
    assert found[0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert found[1].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert found[2].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]


def matched(epsilon, channels=1, **changes):
    images = np.concatenate([noise(300, 1, 0, 120), noise(300, 2, 130, 256)]).repeat(channels, axis=3)
    data = ImageDataset(images=images, labels=np.arange(600) // 300, num_classes=2, name="private")
    shown = ImageDataset(images=noise(300, 3, 40, 220).repeat(channels, axis=3), name="grey", public=True)
    method = StatisticMatching(**{"layers": LAYERS, "population": 20, "passes": 10, "candidates": 200} | changes)
    plan = method.plan(epsilon=epsilon, dataset_size=600, delta=1e-5)
    public = shown if method.starts_from_images else None
    return Trainer(method=method, plan=plan, public=public, run=None, ledger=None).fit(data)


@pytest.mark.parametrize("prior", [None, Prior(centres=1)])
def test_images_come_to_look_like_their_class(prior):
    images, labels = matched(20.0, prior=prior).sample(100, seed=0)
    means = images.mean((1, 2, 3))
    assert means[labels == 1].mean() > means[labels == 0].mean() + 8


@pytest.mark.parametrize(("channels", "flip", "mirrors"), [(1, None, False), (3, None, True), (3, False, False)])
def test_images_in_colour_are_mirrored_unless_the_settings_say_otherwise(channels, flip, mirrors, monkeypatch):
    made = []
    monkeypatch.setattr(statistics, "Moves", lambda *values: made.append(Moves(*values)) or made[-1])
    matched(20.0, channels=channels, passes=1, flip=flip)
    assert [each.flip for each in made] == [mirrors]


def test_shares_of_classes_follow_the_noisy_counts():
    assert matched(20.0).generator.class_shares == pytest.approx((0.5, 0.5), abs=0.05)


# --- plan, time, settings ------------------------------------------------------------------------------------------


def test_all_moments_are_one_sum_after_those_of_a_prior():
    alone = StatisticMatching().plan(epsilon=1.0, dataset_size=50_000)
    assert [release.name for release in alone.full] == ["layer moments"]
    assert alone.full[0].noise_multiplier == pytest.approx(3.73, abs=0.01)
    after = StatisticMatching(prior=Prior(centres=1)).plan(epsilon=1.0, dataset_size=50_000)
    assert [release.name for release in after.full][-1] == "layer moments"
    assert len(after.full) == 5
    assert after.epsilon() <= 1


@pytest.mark.parametrize(
    ("minutes", "population", "passes"), [(60, 1658, 100), (5, 24, 100), (4.5, 20, 49), (4.2, 4, 20)]
)
def test_time_goes_to_images_and_only_then_to_updates(minutes, population, passes, monkeypatch):
    monkeypatch.setattr(statistics, "pace_of", lambda layers, shape, device: (0.01, 0.01))
    method = StatisticMatching(candidates=5_000)
    found = method.fitted(FACTS, records=20_000, device=CPU, seconds=60 * minutes)
    assert (found.population, found.passes) == (population, passes)
    assert 0.9 * 60 * minutes < found.seconds(FACTS, records=20_000, device=CPU) <= 60 * minutes
    assert found.as_begun({"population": 7, "passes": 8, "shift": 5}) == dataclasses.replace(
        found, population=7, passes=8
    )


def test_a_time_in_which_nothing_can_be_done_is_refused(monkeypatch):
    monkeypatch.setattr(statistics, "pace_of", lambda layers, shape, device: (0.01, 0.01))
    with pytest.raises(InputError, match="too short for one image of each class: give more minutes"):
        StatisticMatching(candidates=5_000).fitted(FACTS, records=20_000, device=CPU, seconds=200)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"population": 0}, "population must be"),
        ({"population": 10**6}, "population × classes"),
        ({"passes": 10**6}, "passes"),
        ({"candidates": 0}, "candidates must be"),
        ({"shift": 9}, "shift"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        StatisticMatching(**changes).require_images(FACTS)


def test_images_of_four_channels_are_refused_before_anything_is_spent():
    with pytest.raises(InputError, match="grey or colour"):
        LAYERS.build((4, 8, 8), ())


def test_so_many_classes_that_memory_would_end_are_refused():
    with pytest.raises(InputError, match="moments of all classes"):
        StatisticMatching(population=1).require_images(ImageFacts((3, 32, 32), tuple(map(str, range(20_000)))))


def test_the_estimate_of_memory_grows_with_all_that_is_held():
    of = lambda **changes: StatisticMatching(**changes).memory(FACTS, public=10**6, records=10**6)  # noqa: E731
    base = of()
    assert base < 2**32
    assert of(population=10_000) > base
    assert of(candidates=100_000) > base
    assert of(layers=Layers(size=128)) > base
