"""What a vote of private images for public ones is, and where the next candidates come from."""

import dataclasses

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.methods import Embedding, Evolution, ImageFacts, Prior
from dpdm.methods.embedding import of_unit_length
from dpdm.methods.evolution import chosen_by, perplexity
from dpdm.methods.nearest import columns_of, nearest_votes, neighbours, squared_distances, whole_features
from dpdm.runs import Trainer
from dpdm.types import InputError


def noise(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [((8, 8, 1), 64), ((16, 16, 3), 768), ((28, 28, 1), 196), ((32, 32, 3), 768), ((33, 100, 1), 11 * 34)],
)
def test_features_are_sums_of_pixels_in_squares(shape, numbers):
    images = noise(5, shape)
    features = whole_features(images)
    assert features.shape == (5, numbers)
    assert torch.equal(features, features.round())
    if max(shape) <= 64:  # squares of up to 16 pixels
        assert np.array_equal(features.sum(1).numpy(), images.reshape(5, -1).sum(1))


@pytest.mark.parametrize(("shape", "least"), [((9, 9, 1), 1), ((1024, 1024, 3), 4000), ((4096, 2048, 4), 4000)])
def test_numbers_are_small_enough_for_exact_distances_at_any_size(shape, least):
    features = whole_features(np.full((1, *shape), 255, np.uint8))
    assert least <= features.max() <= 4096
    assert torch.equal(features, features.round())
    assert 2 * features.shape[1] * 4096**2 < 2**53
    assert 2 * 4 * 16 * 4096 * 4096**2 < 2**53  # of an image of four channels, 4096 pixels long and hardly high


def test_distances_are_exact_in_any_order():
    x, y = (whole_features(noise(50, (32, 32, 3), seed)).double() for seed in (0, 1))
    found = squared_distances(x, y, y.square().sum(1)) + x.square().sum(1, keepdim=True)
    assert torch.equal(found, (x[:, None] - y).square().sum(2))
    assert torch.equal(squared_distances(x[:1], y, y.square().sum(1)), squared_distances(x, y, y.square().sum(1))[:1])


def test_distances_of_rows_of_unit_length_are_exact_in_float32():
    random = torch.Generator().manual_seed(0)
    alike = torch.randn(1, 1280, generator=random, dtype=torch.float64)
    x, y = (of_unit_length(alike + torch.randn(40, 1280, generator=random).double() / 9) for _ in range(2))
    y = torch.cat([y, -x, of_unit_length(torch.eye(40, 1280).double())])
    of_floats = squared_distances(x, y, y.square().sum(1)).double()
    x, y = x.double(), y.double()
    assert torch.equal(of_floats, squared_distances(x, y, y.square().sum(1)))
    assert torch.equal(of_floats + x.square().sum(1, keepdim=True), (x[:, None] - y).square().sum(2))


def test_a_private_image_votes_for_the_nearest_candidate_of_its_class():
    private = noise(30, (8, 8, 1))
    labels, weights = np.arange(30) % 3, np.ones(30)
    data = ImageDataset(images=private, labels=labels, num_classes=3, name="private")
    candidates = whole_features(noise(12, (8, 8, 1), 1)).view(3, 4, 64)
    (bins, weighed), *others = nearest_votes(data, whole_features(private).numpy(), candidates)
    assert not others
    assert np.array_equal(weighed, weights)
    assert np.array_equal(bins[:, 0] // 4, labels)
    for x, label, chosen in zip(whole_features(private), labels, bins[:, 0] % 4, strict=True):
        assert (candidates[label] - x).square().sum(1).argmin() == chosen


def test_counts_below_the_threshold_are_none():
    assert chosen_by(torch.tensor([5.0, 1.0, 15.0]).double(), least=2.0).tolist() == [0.25, 0, 0.75]
    assert chosen_by(torch.tensor([1.0, -1.0, 3.0]).double(), least=4.0).tolist() == [0.25, 0, 0.75]
    assert chosen_by(torch.tensor([-1.0, -1.0]).double(), least=4.0).tolist() == [0.5, 0.5]


def test_perplexity_counts_equal_candidates():
    assert perplexity(torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]).double()) == pytest.approx(4)
    assert perplexity(torch.tensor([1.0, 0.0]).double()) == pytest.approx(1)


@pytest.mark.parametrize("reach", [1, 3, 100])
def test_neighbours_are_near(reach):
    features = torch.arange(20.0)[:, None] ** 2
    known, parents = torch.arange(0, 20, 2), torch.tensor([0, 4, 18] * 200)
    children = neighbours(features, known, parents, reach, torch.Generator().manual_seed(0))
    for parent in (0, 4, 18):
        near = sorted(range(0, 20, 2), key=lambda other: abs(other**2 - parent**2))[:reach]
        assert set(children[parents == parent].tolist()) == set(near)


def evolved(epsilon, **changes):
    """Dark private images, of two classes by their top; public ones are dark and bright."""
    random = np.random.default_rng(0)
    dark, bright = (random.integers(low, low + 60, (400, 8, 8, 1), np.uint8) for low in (0, 180))
    labels = np.arange(800) % 2
    private = np.concatenate([dark, dark])
    private[labels == 1, :4] += 60
    public = np.concatenate([dark, bright, dark])
    public[800:, :4] += 60
    data = ImageDataset(images=private, labels=labels, num_classes=2, name="private", public=False)
    shown = ImageDataset(images=public + np.uint8(1), name="grey", public=True)
    method = Evolution(**{"rounds": 3, "population": 20} | changes)
    plan = method.plan(epsilon=epsilon, dataset_size=800, delta=1e-5)
    return Trainer(method=method, plan=plan, public=shown, run=None, ledger=None).fit(data)


def test_the_population_moves_to_what_private_images_look_like():
    images, labels = evolved(epsilon=20).sample(200, seed=0)
    tops, bottoms = images[:, :4].mean((1, 2, 3)), images[:, 4:].mean((1, 2, 3))
    assert (bottoms < 90).mean() > 0.95  # none of the bright third
    assert ((tops > 60) == (labels == 1)).mean() > 0.95


def test_with_hardly_any_budget_the_population_is_as_the_public_images_are():
    images, _ = evolved(epsilon=0.01, rounds=1, population=5_000).sample(400, seed=0)
    assert 0.15 < (images[:, 4:].mean((1, 2, 3)) > 120).mean() < 0.55


def test_shares_of_classes_are_released_with_the_votes():
    shares = evolved(epsilon=20).generator.class_shares
    assert shares == pytest.approx((0.5, 0.5), abs=0.05)
    assert sum(shares) == pytest.approx(1)


def test_a_class_of_no_public_image_is_refused_before_the_first_sum():
    data = ImageDataset(
        images=noise(10, (8, 8, 1)), labels=np.arange(10) % 2, num_classes=2, class_names=("ant", "bee"), name="few"
    )
    ants = ImageDataset(
        images=noise(9, (8, 8, 1), 1), labels=np.zeros(9, int), num_classes=2, class_names=("ant", "bee"), name="ants"
    )
    method = Evolution(rounds=2, population=3)
    plan = method.plan(epsilon=3.0, dataset_size=10, delta=1e-3)
    with pytest.raises(InputError, match="ants has no image of the class bee"):
        Trainer(method=method, plan=plan, public=ants, run=None, ledger=None).fit(data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": 2.0}, "rounds must be a whole number"),
        ({"population": 10.5}, "population must be a whole number"),
        ({"rounds": 101}, "rounds"),
        ({"population": 0}, "population must be"),
        ({"population": 10**6 + 1}, "population × classes"),
        ({"votes": 0}, "votes must be"),
        ({"lookahead": -1}, "lookahead must be"),
        ({"lookahead": 0.5}, "lookahead must be a whole number"),
        ({"lookahead": 101}, "lookahead"),
        ({"augment": 1.5}, "augment must be from 0 to 1"),
        ({"augment": float("nan")}, "augment must be from 0 to 1"),
        ({"embedding": "pixels"}, "embedding must be Embedding or None, not str"),
        ({"prior": 0.2}, "prior must be Prior or None, not float"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        Evolution(**changes).require_images(ImageFacts((1, 8, 8), ()))


def test_a_run_of_it_takes_no_steps():
    with pytest.raises(InputError, match="evolution"):
        Evolution().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=5)


def test_each_round_has_the_same_noise():
    plan = Evolution(rounds=3).plan(epsilon=1.0, dataset_size=100, delta=1e-5)
    first, *others = plan.full
    assert first.name == "votes, round 1"
    assert all(dataclasses.replace(other, name=first.name) == first for other in others)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 40), (4, 33, 32), (1, 64, 64)])
def test_features_have_as_many_columns_as_the_estimate_of_memory_takes(shape):
    channels, height, width = shape
    assert whole_features(np.zeros((2, height, width, channels), np.uint8)).shape == (2, columns_of(shape))


def test_the_estimate_of_memory_grows_with_all_that_is_held():
    facts = ImageFacts((1, 28, 28), tuple("0123456789"))
    base = Evolution(population=500).memory(facts, public=30_000, records=60_000)
    assert base > 4 * 196 * 90_000 + 10 * 500 * (784 + 4 * 196)  # features of all images, candidates and the generator
    assert base < 2**30
    assert Evolution(population=5000).memory(facts, public=30_000, records=60_000) > base
    assert Evolution(population=500).memory(facts, public=60_000, records=60_000) > base
    assert Evolution(population=500).memory(facts, public=30_000, records=10**6) > base + 4 * 196 * 900_000


def test_several_votes_are_for_the_nearest_candidates():
    private = noise(30, (8, 8, 1))
    data = ImageDataset(images=private, name="private")
    candidates = whole_features(noise(12, (8, 8, 1), 1))[None]
    ((bins, _),) = nearest_votes(data, whole_features(private).numpy(), candidates, 3)
    for x, chosen in zip(whole_features(private), bins, strict=True):
        assert set(chosen.tolist()) == set((candidates[0] - x).square().sum(1).argsort()[:3].tolist())


def test_more_votes_than_candidates_are_one_for_each():
    assert evolved(epsilon=20, votes=50).claim["epsilon"] <= 20


@pytest.mark.parametrize(
    "changes",
    [
        {"votes": 4, "augment": 0.3},
        {"lookahead": 2},
        {"embedding": Embedding(features="random-convnet", size=8)},
        {"embedding": Embedding(features="pixels"), "augment": 0.3, "lookahead": 2},
    ],
)
def test_the_population_moves_to_private_images_by_each_way_to_compare_and_vary(changes):
    images, labels = evolved(epsilon=50, rounds=4, **changes).sample(200, seed=0)
    # Whitened features weigh each pixel's own noise as much as its class: 0.86 ± 0.06 of many runs; chance is 0.5.
    assert (images[:, 4:].mean((1, 2, 3)) < 120).mean() > 0.9
    assert ((images[:, :4].mean((1, 2, 3)) > 60) == (labels == 1)).mean() > 0.62


def test_a_prior_of_the_same_plan_draws_the_candidates():
    random = np.random.default_rng(0)
    labels = np.arange(800) % 2
    private = random.integers(0, 60, (800, 8, 8, 1), np.uint8)
    private[labels == 1, :4] += 60
    data = ImageDataset(images=private, labels=labels, num_classes=2, name="private", public=False)
    method = Evolution(rounds=2, population=20, prior=Prior(centres=1, share=0.5))
    assert not method.starts_from_images
    assert Evolution().starts_from_images
    plan = method.plan(epsilon=20.0, dataset_size=800, delta=1e-5)
    assert [entry.name for entry in plan.releases][-3:] == [
        "covariance of each class",
        "votes, round 1",
        "votes, round 2",
    ]
    assert plan.epsilon() == pytest.approx(20.0, abs=0.01)
    images, labels = Trainer(method=method, plan=plan, run=None, ledger=None).fit(data).sample(200, seed=0)
    assert ((images[:, :4].mean((1, 2, 3)) > 60) == (labels == 1)).mean() > 0.95


def test_the_network_of_an_embedding_is_named():
    assert Evolution().networks == Evolution(embedding=Embedding(features="random-convnet")).networks == ()
    assert Evolution(embedding=Embedding()).networks == ("efficientnet-lite0",)
    own = Evolution(embedding=Embedding(features="/somewhere/own.pt"))
    assert own.networks == ("own.pt",)
    assert own.said(None).embedding.features == "own.pt"


def test_the_estimate_of_memory_knows_draws_and_features():
    facts = ImageFacts((1, 28, 28), tuple("0123456789"))
    base = Evolution(population=500).memory(facts, public=30_000, records=60_000)
    for more in ({"augment": 1.0}, {"lookahead": 2}, {"embedding": Embedding()}):
        assert Evolution(population=500, **more).memory(facts, public=30_000, records=60_000) > base
    drawn = Evolution(population=500, prior=Prior()).memory(facts, public=0, records=60_000)
    assert drawn > Evolution(population=500).memory(facts, public=0, records=60_000) + 6 * 10 * 500 * 784
