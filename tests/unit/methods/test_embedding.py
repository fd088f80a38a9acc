"""That a row depends on its image alone, to the bit, and that the space of public images is round."""

import dataclasses

import numpy as np
import pytest
import torch

from dpdm.methods import Embedding
from dpdm.methods import embedding as module
from dpdm.methods.embedding import Embedded, Space
from dpdm.types import InputError


def noise(count, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("features", ["efficientnet-lite0", "random-convnet", "pixels"])
def test_a_row_depends_on_its_image_alone_to_the_bit(features, threads):
    images, others = noise(40), noise(40, seed=1)
    compute = Embedding(features=features, size=32).compute((3, 32, 32))
    rows = compute(images)[:32]
    for count in (1, 2):
        threads(count)
        moved = compute(np.concatenate([others[:7], images[:32], others[:9]]))[7:39]
        assert torch.equal(rows, moved)


def test_a_trained_network_computes_in_bfloat16_where_the_processor_does_and_no_other_features_do(monkeypatch):
    images = noise(20)
    rows = {}
    for native in (False, True):
        monkeypatch.setattr(module, "has_bfloat16", lambda device, native=native: native)
        for features in ("efficientnet-lite0", "random-convnet", "pixels"):
            rows[features, native] = Embedding(features=features, size=64).compute((3, 32, 32))(images)
    assert torch.equal(rows["pixels", True], rows["pixels", False])
    assert torch.equal(rows["random-convnet", True], rows["random-convnet", False])
    one, other = rows["efficientnet-lite0", True], rows["efficientnet-lite0", False]
    assert one.dtype == torch.float32
    assert 1e-4 < (one - other).norm() / other.norm() < 0.2
    assert not torch.equal(one, one.bfloat16().float())  # means are of more digits than maps


@pytest.mark.parametrize(
    "mixed",
    [
        lambda rows: rows + 0.1 * len(rows),
        lambda rows: rows + torch.eye(len(rows))[:, :1],
        lambda rows: rows / rows.amax().clamp(min=1),
    ],
    ids=["number", "place", "largest of all"],
)
def test_features_that_know_their_neighbours_are_computed_one_by_one(monkeypatch, mixed):
    def built(value, shape):
        return lambda images: mixed(torch.from_numpy(images.reshape(len(images), -1)).float())

    monkeypatch.setattr(module, "built_features", built)
    images, compute = noise(40, (8, 8, 1)), Embedding(features="pixels").compute((1, 8, 8))
    rows = compute(images)
    for count in (1, 5, 16, 23):
        assert torch.equal(compute(images[:count]), rows[:count])
        assert torch.equal(compute(images[-count:]), rows[-count:])


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1e-4
        return x.float().flatten(1) / 255 + self.seen


class Drawing(torch.nn.Module):
    def forward(self, x):
        return x.float().flatten(1) + 1e-3 * torch.randn(len(x), 1)


class Divided(torch.nn.Module):
    def forward(self, x):
        return x.float().flatten(1) / (255 - x.float().flatten(1).mean(1, keepdim=True))


@pytest.mark.parametrize(("network", "says"), [(Counting(), "when it is looked at again"), (Drawing(), "draws from")])
def test_a_file_that_counts_or_draws_is_refused(tmp_path, network, says):
    torch.jit.script(network).save(tmp_path / "own.pt")
    with pytest.raises(InputError, match=says):
        Embedding(features=str(tmp_path / "own.pt")).compute((3, 8, 8))


def test_an_image_without_finite_features_has_a_row_of_zeros(tmp_path):
    torch.jit.script(Divided()).save(tmp_path / "own.pt")
    images = np.concatenate([noise(3, (8, 8, 3)), np.full((1, 8, 8, 3), 255, np.uint8)])
    rows = Embedding(features=str(tmp_path / "own.pt")).compute((3, 8, 8))(images)
    assert rows[:3].any(1).all()
    assert not rows[3].any()


def test_products_of_unit_rows_are_exact_in_any_order(threads):
    rows = torch.randn(300, 700, generator=torch.Generator().manual_seed(0)) * 5
    space = Space.spanned_by(rows)
    unit = space.unit(rows)
    assert torch.allclose(unit.norm(dim=1), torch.ones(300), atol=2e-2)
    assert torch.equal((unit @ unit.T).double(), unit.double() @ unit.double().T)
    for count in (1, 2):
        threads(count)
        assert torch.equal(space.unit(rows[3:4]), unit[3:4])
        assert torch.equal(space.unit(rows.flip(0)).flip(0), unit)


def test_public_images_are_round_in_their_space_and_classes_apart():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 4
    within = torch.randn(2000, 12, generator=random) * torch.linspace(0.2, 3, 12)
    rows = within + 8 * torch.eye(12)[labels]
    space = Space.spanned_by(rows, labels.numpy())
    round_ = (within.double() * space.scale) @ space.whitening
    covariance = round_.T @ round_
    assert float(covariance.diagonal().max() / covariance.diagonal().min()) < 12  # 225 before
    unit = space.unit(rows)
    prototypes = torch.stack([unit[labels == label].mean(0) for label in range(4)])
    assert ((unit @ prototypes.T).argmax(1) == labels).float().mean() > 0.95


def test_black_and_equal_images_make_finite_rows():
    rows = torch.zeros(5, 6)
    assert Space.spanned_by(rows).unit(rows).isfinite().all()
    assert Space.spanned_by(torch.ones(1, 6)).unit(torch.full((1, 6), 1e30)).isfinite().all()


def test_rows_of_private_images_come_part_by_part(monkeypatch):
    monkeypatch.setattr(module, "_PART", 3)
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    parts = [*Embedded(rows, 8, None).parts()]
    assert [part for part, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert np.array_equal(torch.cat([rows for _, rows in parts]).numpy(), rows)
    assert [*Embedded(rows[:0], 0, None).parts()] == []


def test_a_claim_names_the_network_and_a_release_no_folder(tmp_path):
    assert [part.name for part in Embedding().parts()] == ["efficientnet-lite0"]
    assert len(Embedding().parts()[0].sha256) == 64
    for features in ("pixels", "random-convnet"):
        assert Embedding(features=features).parts() == ()
        assert Embedding(features=features).said().features == features
    network = torch.jit.trace(torch.nn.Sequential(Halved(), torch.nn.Flatten()), torch.zeros(2, 3, 8, 8).byte())
    network.save(tmp_path / "own.pt")
    own = Embedding(features=str(tmp_path / "own.pt"))
    assert own.said() == dataclasses.replace(own, features="own.pt")
    assert [part.name for part in own.parts()] == list(own.said().network) == ["own.pt"]
    assert own.compute((3, 8, 8))(noise(20, (8, 8, 3))).shape == (20, 192)


class Halved(torch.nn.Module):
    def forward(self, x):
        return x.float() / 2


@pytest.mark.parametrize(
    ("given", "says"),
    [({"size": 4}, "size must be from 8 to 512"), ({"features": ""}, "features must be"), ({"size": 1000}, "size")],
)
def test_what_no_embedding_is_made_of_is_one_line(given, says):
    with pytest.raises(InputError, match=says):
        Embedding(**given)


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="cannot be read as a TorchScript file: is the path right"):
        Embedding(features="efficientnet").compute((3, 32, 32))
    with pytest.raises(InputError, match="cannot be read as a TorchScript file"):
        Embedding(features="efficientnet").parts()


def test_a_file_of_features_is_read_once_so_what_a_claim_names_is_what_computes(tmp_path):
    """A file that is put in its place while a run starts changes neither."""

    class Scaled(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return x.float().flatten(1)[:, :4] * self.by

    torch.jit.script(Scaled(1.0)).save(tmp_path / "own.pt")
    embedding, images = Embedding(features=str(tmp_path / "own.pt")), noise(2, (8, 8, 3))
    (claimed,) = embedding.parts()
    expected = Embedding(features=str(tmp_path / "own.pt")).compute((3, 8, 8))(images)
    torch.jit.script(Scaled(2.0)).save(tmp_path / "own.pt")
    assert torch.equal(embedding.compute((3, 8, 8))(images), expected)
    assert embedding.parts() == (claimed,)
    assert Embedding(features=str(tmp_path / "own.pt")).parts() != (claimed,)
