"""What candidates of private evolution are made of, how they vary, and what a vote sees of them."""

import itertools

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.methods import Embedding, ImageFacts
from dpdm.methods.nearest import squared_distances
from dpdm.methods.populations import Pool
from dpdm.methods.variations import Looks, Variations
from dpdm.privacy import FullSum, Plan
from dpdm.runs.run import Run


def noise(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def run_of(public, seed=0):
    plan = Plan(dataset_size=10, delta=1e-3, releases=(FullSum(name="one", noise_multiplier=1.0),))
    machine, device = Machine(device="cpu"), torch.device("cpu")
    return Run.in_memory(plan.start(), machine=machine, device=device, seed=seed, num_records=10, public=public)


def varied(*, strength=0.0, embedding=None, shape=(8, 8, 1), seed=0, labels=None):
    classes = {} if labels is None else {"labels": labels, "num_classes": 2, "class_names": ("a", "b")}
    public = ImageDataset(images=noise(60, shape), name="shown", public=True, **classes)
    run, facts = run_of(public, seed), ImageFacts(public.shape, ("a", "b"))
    pool = Pool.of_public(public, facts)
    looks = Looks(run, embedding, pool, facts.shape)
    return pool, looks, Variations(pool, looks, run, strength=strength)


def test_images_of_a_class_stand_for_it_and_others_for_each():
    labels = np.arange(60) % 2
    pool, _, variations = varied(labels=labels)
    assert [each.tolist() for each in pool.of_class] == [list(range(0, 60, 2)), list(range(1, 60, 2))]
    children = variations.children(variations.first(30))
    assert all((labels[children.made_of[label]] == label).all() for label in (0, 1))
    pool, *_ = varied()
    assert [len(each) for each in pool.of_class] == [60, 60]


def test_without_strength_candidates_are_images_of_the_pool():
    pool, _, variations = varied()
    population = variations.first(20)
    for _ in range(2):
        images = variations.images(population)
        assert images.shape == (2, 20, 8, 8, 1)
        assert np.array_equal(images.numpy(), pool.images[population.made_of])
        population = variations.children(population, torch.full((2, 20), 0.05).double())


def test_a_weight_of_one_leaves_the_children_of_one():
    _, _, variations = varied()
    population = variations.first(60)
    weights = torch.zeros(2, 60).double()
    weights[:, 7] = 1
    children = variations.children(population, weights)
    assert (children.made_of == population.made_of[:, 7:8]).all(), "as many images as candidates: each is its nearest"


def test_moved_candidates_are_like_their_images_and_less_moved_from_round_to_round():
    smooth = ImageDataset(images=np.zeros((1, 28, 28, 1), np.uint8), name="bar", public=True)
    smooth.images[:, 8:20, 11:17] = 255
    facts, run = ImageFacts(smooth.shape, ()), run_of(smooth)
    pool = Pool.of_public(smooth, facts)
    variations = Variations(pool, Looks(run, None, pool, facts.shape), run, strength=1.0)
    far = []
    for _ in range(4):
        images = variations.images(variations.first(200)).float()
        far.append(float((images - torch.from_numpy(smooth.images)).abs().mean()))
        variations.narrow([1.0])
    assert all(later < 0.8 * before for before, later in itertools.pairwise(far))
    assert 0 < far[0] < 60


def test_in_colour_alone_candidates_are_mirrored():
    for channels, mirrored in ((1, False), (3, True)):
        _, _, variations = varied(strength=1.0, shape=(8, 8, channels))
        moves = variations.first(400).moves
        assert bool((torch.linalg.det(moves[..., :2]) < 0).any()) is mirrored


def test_a_move_is_made_from_where_the_parent_is():
    _, _, variations = varied(strength=1.0)
    parents = variations.first(50)
    variations.strength = 1e-6
    assert torch.allclose(variations.children(parents).moves, parents.moves, atol=1e-4)


@pytest.mark.parametrize(
    "embedding", [None, Embedding(features="random-convnet", size=8), Embedding(features="pixels")]
)
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_distances_to_candidates_are_exact_also_to_means_of_children(embedding, strength):
    _, looks, variations = varied(embedding=embedding, strength=strength)
    population = variations.first(20)
    x = looks.exact(looks.of_images(noise(15, (8, 8, 1), seed=3)))
    for ahead in (0, 3):
        rows = variations.looks(population, ahead=ahead)
        assert rows.shape == (2, 20, x.shape[1])
        y = looks.exact(rows[0])
        squares = y.square().sum(1)
        found = squared_distances(x, y, squares).double() + x.double().square().sum(1, keepdim=True)
        assert torch.equal(found, (x[:, None].double() - y).square().sum(2))
        for one, distances in zip(x, squared_distances(x, y, squares), strict=True):
            assert torch.equal(squared_distances(one[None], y, squares)[0], distances)


def test_draws_of_a_prior_are_those_of_its_classes_and_of_the_seed():
    facts = ImageFacts((1, 8, 8), ("dark", "bright"))
    mixture = GaussianMixture.placeholder(64, num_classes=2)
    mixture.centres.copy_(torch.tensor([-0.9, 0.9])[:, None].expand(2, 64))
    mixture.floor.fill_(1e-4)
    mixture.class_variances.fill_(1e-4)
    mixture.variances.fill_(1e-4)
    pools = [Pool.of_prior(mixture, facts, 5, run_of(None, seed)) for seed in (0, 0, 1)]
    assert pools[0].images.shape == (10, 8, 8, 1)
    assert [each.tolist() for each in pools[0].of_class] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert (pools[0].images[:5] < 60).all()
    assert (pools[0].images[5:] > 190).all()
    assert np.array_equal(pools[0].images, pools[1].images)
    assert not np.array_equal(pools[0].images, pools[2].images)
