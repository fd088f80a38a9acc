"""What rows of features are, that a generator's images are compared in the same, and what it learns of noisy sums."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dpdm.config import load_config
from dpdm.data import ImageDataset
from dpdm.data.procedural import watched
from dpdm.evaluation import EfficientNetLite0, RandomConvNet
from dpdm.evaluation.layers import LayerMeans, layers_of
from dpdm.methods import NTK, Embedding, Fourier, ImageFacts, MeanEmbedding, PublicFeatures, SmallGenerator
from dpdm.methods.class_means import ClassMeans, discrepancies
from dpdm.methods.feature_maps import _drawn, _exactly_one
from dpdm.privacy import FullSum, NonPrivate
from dpdm.runs import Trainer
from dpdm.types import InputError, images_to_tensor
from plans import in_memory

CPU = torch.device("cpu")
FEATURES = {
    "fourier": Fourier(number=30, bandwidths=(0.3, 0.9)),
    "ntk": NTK(width=6),
    "random network": PublicFeatures(embedding=Embedding(features="random-convnet", size=8)),
    "pixels": PublicFeatures(embedding=Embedding(features="pixels")),
}
every_map = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)


def noise(count, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def run_in_memory():
    return in_memory(NonPrivate(dataset_size=9, releases=(FullSum(name="any"),)).start(), 9)


def rows_of(features, images, seed=0):
    data = ImageDataset(images=images, name="noise")
    built = features.built(ImageFacts(data.shape, ()), seed, CPU)
    return torch.cat([rows for _, rows in built.rows(run_in_memory(), data)]).double()


@every_map
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 12, 3)])
def test_rows_have_length_one_and_as_many_numbers_as_is_said(features, shape):
    rows = rows_of(features, noise(7, shape))
    assert rows.shape == (7, features.dimensions((shape[2], *shape[:2])))
    assert torch.allclose(rows.norm(dim=1), torch.ones(7, dtype=torch.float64), atol=1e-6)


@every_map
def test_a_row_depends_on_its_image_alone_to_the_bit(features):
    images = noise(300)
    whole = rows_of(features, images)
    for start, stop in ((0, 1), (7, 8), (5, 150), (255, 257)):
        assert torch.equal(rows_of(features, images[start:stop]), whole[start:stop])


@every_map
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 12, 3)])
def test_a_generator_is_compared_in_the_same_features(features, shape):
    images = noise(12, shape)
    facts = ImageFacts((shape[2], *shape[:2]), ())
    x = images_to_tensor(images).unflatten(0, (3, 4)).requires_grad_()
    means = features.built(facts, 0, CPU).means(x)
    assert torch.allclose(means.double(), rows_of(features, images).unflatten(0, (3, 4)).mean(1), atol=1e-5)
    means.square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_products_of_fourier_features_are_a_gaussian_kernel():
    images = noise(6)
    rows = rows_of(Fourier(number=40_000, bandwidths=(0.8,)), images)
    x = torch.from_numpy(images).double().flatten(1).div(127.5)
    squares = torch.cdist(x, x).square() / x.shape[1]
    assert torch.allclose(rows @ rows.T, torch.exp(-squares / (2 * 0.8**2)), atol=0.02)


def test_several_bandwidths_share_the_frequencies():
    images = noise(6)
    one, other, both = (rows_of(Fourier(number=40_000, bandwidths=b), images) for b in ((0.5,), (1.5,), (0.5, 1.5)))
    assert torch.allclose(both @ both.T, (one @ one.T + other @ other.T) / 2, atol=0.02)


def test_a_tangent_row_is_the_gradient_of_a_network_as_autograd_has_it():
    images, width = noise(3), 5
    rows = rows_of(NTK(width=width), images, seed=4)
    random = torch.Generator().manual_seed(4)
    signs = (torch.randint(2, (width,), generator=random) * 2 - 1).double().requires_grad_()
    weights = (_drawn((1, 1, 65), width, 4) / 2**19).requires_grad_()
    for image, row in zip(images, rows, strict=True):
        x = torch.cat([torch.from_numpy(image).double().flatten() / 255, torch.ones(1, dtype=torch.float64)])
        by_weights, by_signs = torch.autograd.grad(torch.relu(x @ weights) @ signs, (weights, signs))
        gradient = torch.cat([by_weights.T.flatten(), by_signs])
        assert torch.allclose(row, gradient / gradient.norm(), atol=1e-12)


def test_an_image_that_switches_no_unit_on_adds_nothing():
    built = NTK(width=1).built(ImageFacts((1, 8, 8), ()), 0, CPU)
    built._weights[:] = -1
    black = ImageDataset(images=np.zeros((2, 8, 8, 1), np.uint8), name="black")
    ((_, rows),) = built.rows(run_in_memory(), black)
    assert not rows.any()


def test_first_and_second_moments_have_equal_parts_of_a_row():
    embedding = Embedding(features="pixels")
    rows = rows_of(PublicFeatures(embedding=embedding), noise(5))
    features = embedding.compute((1, 8, 8))(noise(5)).double()
    for part, expected in ((rows[:, :64], features), (rows[:, 64:], features.square())):
        unit = expected / expected.norm(dim=1, keepdim=True)
        assert torch.allclose(part * math.sqrt(2), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "size"),
    [("efficientnet-lite0", 32), ("efficientnet-lite0", 57), ("random-convnet", 8), ("random-convnet", 29)],
)
def test_a_row_has_the_maps_of_all_layers_at_all_positions(network, size):
    embedding, shape = Embedding(features=network, size=size), (1, 28, 28)
    levels = torch.from_numpy(noise(2, (28, 28, 1))).movedim(3, 1).float()
    known = {"efficientnet-lite0": EfficientNetLite0, "random-convnet": RandomConvNet}
    layers = layers_of(known[network](size=size)).maps(levels)
    expected = torch.cat([layer.flatten(1) for layer in layers], dim=1)
    assert len({layer.shape[2:] for layer in layers}) >= 3
    assert torch.equal(embedding.maps(shape, CPU)(levels), expected)
    assert PublicFeatures(embedding=embedding).dimensions(shape) == 2 * expected.shape[1]


def test_the_page_on_methods_tells_how_long_a_row_is():
    page = (Path(__file__).parents[3] / "docs" / "method.md").read_text()
    number = Embedding(features="efficientnet-lite0", size=32).number_of_maps((1, 28, 28))
    assert f"EfficientNet-Lite0 have {number:,} numbers" in " ".join(page.split())


def test_a_row_of_maps_has_length_one_however_many_positions_there_are():
    for size in (8, 64):
        rows = rows_of(PublicFeatures(embedding=Embedding(features="random-convnet", size=size)), noise(2))
        assert torch.allclose(rows.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-12)


def test_maps_are_scaled_to_length_one_by_exact_sums():
    """In another order, as other cores would take it, a naive sum of squares has other last digits."""
    rows = torch.rand(3, 50_000, dtype=torch.float64).pow(4)
    order = torch.randperm(50_000)
    assert torch.equal(_exactly_one(rows[:, order]), _exactly_one(rows)[:, order])
    assert torch.allclose(_exactly_one(rows), torch.nn.functional.normalize(rows, dim=1), atol=1e-6)
    assert not _exactly_one(torch.zeros(1, 4, dtype=torch.float64)).any()
    tiny = torch.tensor([[3e-90, 4e-90]], dtype=torch.float64)
    assert torch.allclose(_exactly_one(tiny), torch.tensor([[0.6, 0.8]], dtype=torch.float64))


def test_maps_that_are_not_finite_add_nothing(monkeypatch):
    sound = LayerMeans.maps

    def broken(self, images):
        layers = sound(self, images)
        layers[0][images.amax((1, 2, 3)) == 255] = math.inf
        return layers

    monkeypatch.setattr(LayerMeans, "maps", broken)
    images = noise(3) // 2
    images[1, 0, 0] = 255
    assert rows_of(FEATURES["random network"], images).any(dim=1).tolist() == [True, False, True]


def test_maps_of_images_smaller_than_the_layers_halve_are_refused():
    method = MeanEmbedding(features=PublicFeatures(embedding=Embedding(size=31)))
    with pytest.raises(InputError, match="size of at least 32"):
        method.require_images(ImageFacts((1, 28, 28), ()))


def test_maps_are_not_kept_and_say_how_far_they_are_in_percent(tmp_path):
    data = ImageDataset(images=noise(30), name="noise")
    method = MeanEmbedding(features=FEATURES["random network"], updates=2, batch_size=16, latent=2, width=16)
    told = []
    with watched(lambda *stage: told.append(stage)):
        plan = method.plan(epsilon=1, dataset_size=30)
        Trainer(method=method, plan=plan, run=tmp_path / "run", ledger=None).fit(data)
    assert [stage for stage in told if "features" in stage[0]] == [
        ("features, in percent", done, 100) for done in range(1, 101)
    ]
    assert not (tmp_path / "run" / "private" / "kept").exists()


def test_the_discrepancy_is_estimated_without_bias_but_for_a_constant():
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=random) + 0.5, dim=1)
    truth, released = rows.mean(0), torch.tensor([[0.1, 0.2, 0.3]])
    means = rows.view(50_000, 4, 3).mean(1)
    found = discrepancies(means, released.expand(50_000, 3), 4).mean() + released.square().sum()
    assert found == pytest.approx(float((truth - released[0]).square().sum()) + 1 / 3, abs=5e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (4, 9, 30), (3, 7, 5), (1, 64, 16)])
def test_a_generator_makes_images_of_any_shape(shape):
    generator = SmallGenerator(ImageFacts(shape, ("a", "b")), latent=3, width=16)
    labels = torch.tensor([0, 1, 1])
    one, again = (generator.draw(labels, random=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (3, *shape)
    assert torch.equal(one, again)
    assert one.abs().max() <= 1
    assert not torch.equal(one[1], one[2])
    assert generator.draw(labels[:0], random=torch.Generator()).shape == (0, *shape)


def trained(epsilon, features, number=2000, **changes):
    """Two classes: bright above, and bright below."""
    images, labels = noise(number, seed=3) // 4, np.arange(number) % 2
    images[labels == 0, :4] += 150
    images[labels == 1, 4:] += 150
    data = ImageDataset(images=images, labels=labels, num_classes=2, name="halves")
    settings = {"updates": 150, "batch_size": 40, "latent": 3, "width": 32, "learning_rate": 1e-2}
    method = MeanEmbedding(features=features, **settings | changes)
    plan = method.plan(epsilon=epsilon, dataset_size=number, delta=1e-5)
    return Trainer(method=method, plan=plan, run=None, ledger=None).fit(data)


@every_map
def test_a_generator_learns_what_the_classes_look_like(features):
    features = Fourier(number=200, bandwidths=(0.7,)) if features.kind == "fourier" else features
    images, labels = trained(5.0, features).sample(200, labels=np.arange(200) % 2, seed=0)
    above, below = images[:, :4].mean((1, 2, 3)), images[:, 4:].mean((1, 2, 3))
    assert ((above > below) == (labels == 0)).mean() > 0.95
    assert np.maximum(above, below).mean() > 130
    assert np.minimum(above, below).mean() < 90


def test_shares_of_classes_are_released_with_the_sums():
    shares = trained(5.0, FEATURES["fourier"], updates=1).generator.class_shares
    assert shares == pytest.approx((0.5, 0.5), abs=0.05)
    assert sum(shares) == pytest.approx(1)


def test_shares_stay_positive_where_noise_hides_all():
    shares = trained(0.01, FEATURES["fourier"], number=100, updates=1).generator.class_shares
    assert min(shares) > 0


def test_more_classes_than_an_update_has_images_are_taken_in_turn():
    images, labels = noise(60), np.arange(60) % 20
    data = ImageDataset(images=images, labels=labels, num_classes=20, name="many")
    method = MeanEmbedding(features=FEATURES["fourier"], updates=3, batch_size=16, latent=2, width=16)
    release = Trainer(method=method, plan=method.plan(epsilon=1, dataset_size=60), run=None, ledger=None).fit(data)
    assert release.sample(40, seed=0)[0].shape == (40, 8, 8, 1)


def test_the_state_is_kept_that_is_nearest_to_a_second_planned_sum(monkeypatch):
    method = MeanEmbedding(features=FEATURES["fourier"], updates=40, batch_size=16, latent=2, width=16, stopping=0.2)
    plan = method.plan(epsilon=1, dataset_size=200)
    first, second = plan.releases
    assert (first.name, second.name) == ("features of each class", "features to stop by")
    assert second.noise_multiplier == pytest.approx(first.noise_multiplier * 2, rel=1e-3)  # √(0.8 / 0.2)
    states, distances = [], iter([5.0, 3.0, 4.0, *[6.0] * 17])

    def judged(self, generator, *, seed):
        states.append({name: tensor.clone() for name, tensor in generator.state_dict().items()})
        return next(distances)

    monkeypatch.setattr(ClassMeans, "discrepancy_of", judged)
    data = ImageDataset(images=noise(200), name="noise")
    kept = Trainer(method=method, plan=plan, run=None, ledger=None).fit(data).generator.state_dict()
    assert len(states) == 20
    assert all(torch.equal(kept[name], tensor) for name, tensor in states[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in states[-1].items())


def test_a_judge_tells_a_generator_that_has_learnt_from_one_that_has_not():
    generator = trained(5.0, FEATURES["fourier"]).generator
    fresh = SmallGenerator(generator.facts, latent=3, width=32)
    images, labels = trained(50.0, FEATURES["fourier"]).sample(400, seed=0)
    x = images_to_tensor(images)
    features = Fourier(number=200).built(generator.facts, 1, CPU)
    means = torch.cat([features.means(x[labels == label][None]) for label in (0, 1)])
    judge = ClassMeans(features, means, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert judge.discrepancy_of(generator, seed=0) == judge.discrepancy_of(generator, seed=0)
    assert judge.discrepancy_of(generator, seed=0) < judge.discrepancy_of(fresh, seed=0) - 0.1


def test_a_person_hears_how_far_the_generator_is():
    method = MeanEmbedding(features=FEATURES["fourier"], updates=40, batch_size=16, latent=2, width=16)
    data = ImageDataset(images=noise(20), name="noise")
    steps = Trainer(method=method, plan=method.plan(epsilon=1, dataset_size=20), run=None, ledger=None).steps(data)
    told = []
    with watched(lambda *stage: told.append(stage)):
        assert len([*steps]) == 20
    assert told[-1] == ("generator", 40, 40)


def test_settings_name_the_features():
    config = load_config("mnist-cpu", method="mean-embedding", overrides=["features.kind=ntk", "features.width=7"])
    assert config.method.features == NTK(width=7)
    overrides = ["features.kind=public", "features.embedding.features=random-convnet", "features.embedding.size=16"]
    config = load_config("mnist-cpu", method="mean-embedding", overrides=overrides)
    assert config.method.features == PublicFeatures(embedding=Embedding(features="random-convnet", size=16))


def test_a_trained_public_network_is_named_and_others_are_not():
    assert MeanEmbedding(features=PublicFeatures(embedding=Embedding())).networks == ("efficientnet-lite0",)
    for features in FEATURES.values():
        assert MeanEmbedding(features=features).networks == MeanEmbedding(features=features).network_parts() == ()


def test_a_file_of_features_is_refused_since_no_gradient_passes():
    method = MeanEmbedding(features=PublicFeatures(embedding=Embedding(features="somewhere/inception.pt")))
    with pytest.raises(InputError, match="no gradients pass"):
        method.require_images(ImageFacts((3, 32, 32), ()))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MeanEmbedding(updates=0), "updates must be"),
        (lambda: MeanEmbedding(updates=10**8), "updates"),
        (lambda: MeanEmbedding(batch_size=7), "batch_size"),
        (lambda: MeanEmbedding(width=4), "width"),
        (lambda: MeanEmbedding(latent=10**6), "latent"),
        (lambda: MeanEmbedding(learning_rate=1.0), "learning_rate"),
        (lambda: Fourier(number=0), "number must be"),
        (lambda: Fourier(bandwidths=()), "bandwidths must be"),
        (lambda: Fourier(number=1, bandwidths=(1.0, 2.0)), "bandwidths must be"),
        (lambda: Fourier(bandwidths=(0.0,)), "bandwidths"),
        (lambda: NTK(width=0), "width must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (Fourier(number=10**6), "features.number × pixels"),
        (NTK(width=2 * 10**5), "features.width × pixels"),
        (Fourier(number=10**5), "features × classes"),
    ],
)
def test_sums_that_no_memory_holds_are_refused(features, says):
    facts = ImageFacts((1, 28, 28), tuple(f"class {number}" for number in range(1000)))
    with pytest.raises(InputError, match=says):
        MeanEmbedding(features=features).require_images(facts)


def test_a_run_of_it_takes_no_steps_and_one_sum():
    with pytest.raises(InputError, match="mean-embedding"):
        MeanEmbedding().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=5)
    assert [release.name for release in MeanEmbedding().plan(epsilon=1.0, dataset_size=100).full] == [
        "features of each class"
    ]


def test_the_estimate_of_memory_grows_with_all_that_is_held():
    facts = ImageFacts((1, 28, 28), tuple("0123456789"))
    base = MeanEmbedding().memory(facts, public=0, records=60_000)
    assert 2**26 < base < 2**31
    assert MeanEmbedding(features=NTK(width=800)).memory(facts, public=0, records=60_000) > base
    assert MeanEmbedding(batch_size=2000).memory(facts, public=0, records=60_000) > base
    small, large = (
        MeanEmbedding(features=PublicFeatures(embedding=Embedding(size=size))).memory(facts, public=0, records=60_000)
        for size in (32, 64)
    )
    assert large > small + 4 * 8 * 5 * 8832 * 10  # four times as many numbers of each class
