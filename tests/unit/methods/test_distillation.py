"""What distilled images are, how they are drawn, and that they follow sums of features."""

import numpy as np
import pytest
import torch

from dpdm.config import load_config
from dpdm.data import ImageDataset
from dpdm.evaluation import RandomConvNets
from dpdm.methods import Distillation, DistilledGenerator, Embedding, Fourier, ImageFacts, PublicFeatures
from dpdm.methods.embedding import depends_on_itself_alone
from dpdm.privacy import FullSum, NonPrivate
from dpdm.runs import Trainer
from dpdm.types import InputError

FACTS = ImageFacts((1, 8, 8), ("dark", "bright"))
IN_NETWORKS = PublicFeatures(embedding=Embedding(features="random-convnets", size=32))


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 20, 3)])
def test_random_networks_have_as_many_features_as_they_say_and_each_image_its_own(shape):
    compute = RandomConvNets(size=32).build()
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    rows = compute(images)
    assert rows.shape == (3, RandomConvNets.number)
    assert torch.allclose(rows[1:2], compute(images[1:2]), atol=1e-4)
    assert torch.equal(rows, RandomConvNets(size=32).build()(images))
    assert depends_on_itself_alone(
        Embedding(features="random-convnets", size=32).compute((shape[2], *shape[:2])), shape
    )
    with pytest.raises(InputError, match="at least 8"):
        RandomConvNets(size=7)


def test_networks_do_not_see_one_another():
    network = RandomConvNets(size=8)._network()
    x = torch.rand(1, 3, 8, 8)
    before = network(x)
    network[0].weight[:8] += 1.0  # the first network's first layer
    after = network(x)
    assert not torch.equal(before[:, :8], after[:, :8])
    assert torch.equal(before[:, 8:], after[:, 8:])


def test_a_drawn_image_is_one_of_its_class_moved_by_a_pixel_at_most():
    generator = DistilledGenerator(FACTS, 2, 1)
    generator.images.copy_(torch.randint(256, generator.images.shape))
    labels = torch.tensor([0, 1] * 40)
    drawn = generator.draw(labels, random=torch.Generator().manual_seed(0))
    moves, images = set(), generator.images.float()
    for image, label in zip(drawn, labels, strict=True):
        inner = image[0, 2:-2, 2:-2].add(1).mul(127.5).round()
        found = [
            (number, down, right)
            for number in range(2)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(inner, images[label, number, 0, 2 + down : 6 + down, 2 + right : 6 + right])
        ]
        assert len(found) == 1
        moves |= set(found)
    assert len(moves) > 12
    assert torch.equal(drawn, generator.draw(labels, random=torch.Generator().manual_seed(0)))
    still = DistilledGenerator(FACTS, 2, 0)
    still.load_state_dict(generator.state_dict())
    assert still.draw(labels, random=torch.Generator().manual_seed(0)).shape == drawn.shape


@pytest.mark.parametrize("features", [IN_NETWORKS, Fourier(number=60)], ids=["networks", "fourier"])
def test_images_follow_what_private_ones_look_like(features):
    left = np.zeros((64, 8, 8, 1), dtype=np.uint8)
    left[::2, :, :4], left[1::2, :, 4:] = 255, 255
    data = ImageDataset(images=left, labels=np.arange(64) % 2, num_classes=2, name="halves")
    method = Distillation(features=features, images=3, updates=60, learning_rate=0.1, shift=0)
    plan = NonPrivate(dataset_size=64, releases=(FullSum(name="features of each class"),))
    made, labels = Trainer(method=method, plan=plan, ledger=None).fit(data).sample(20, seed=0)
    difference = made[..., :4, :].mean((1, 2, 3)) - made[..., 4:, :].mean((1, 2, 3))
    assert (difference[labels == 0] > 30).all()
    assert (difference[labels == 1] < -30).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"images": 0}, "images"),
        ({"updates": 0}, "updates"),
        ({"shift": 99}, "shift"),
        ({"learning_rate": 9.0}, "rate"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        Distillation(**settings)


def test_more_than_memory_is_good_for_is_refused():
    with pytest.raises(InputError, match="images × classes"):
        Distillation(images=10**6).require_images(FACTS)
    with pytest.raises(InputError, match="features × classes"):
        Distillation(features=Fourier(number=10**6)).require_images(ImageFacts((1, 8, 8), tuple(map(str, range(99)))))
    assert Distillation(images=99).memory(FACTS, public=0, records=9) > Distillation().memory(
        FACTS, public=0, records=9
    )
    with pytest.raises(InputError, match="distillation"):
        Distillation().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=5)


def test_settings_name_the_features_and_a_claim_the_network_that_somebody_trained():
    config = load_config("mnist-cpu", method="distillation", overrides=["images=7", "features.embedding.size=16"])
    features = PublicFeatures(embedding=Embedding(features="random-convnets", size=16))
    assert config.method == Distillation(images=7, features=features)
    assert Distillation().networks == Distillation().network_parts() == ()
    trained = PublicFeatures(embedding=Embedding(features="somewhere/inception.pt"))
    assert Distillation(features=trained).networks == ("inception.pt",)
    assert Distillation(features=trained).said(None).features.embedding.features == "inception.pt"
