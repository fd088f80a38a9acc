"""What a private image adds to a noisy embedding, what a crash leaves of it, and which public images it draws."""

import dataclasses

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.methods import AggregatedEmbeddings, AggregatedGenerator, Embedding, ImageFacts
from dpdm.methods.embedding import Space
from dpdm.methods.unit_rows import UnitRows, nearness
from dpdm.privacy import NonPrivate, PoissonSums
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.folder import PrivateFolder
from dpdm.types import InputError

PIXELS = Embedding(features="pixels")
TOY = {"embedding": PIXELS, "queries": 8, "directions": 6, "neighbours": 5}


def noise(count, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labelled(count=12, **fields):
    labels = np.arange(count) % 2
    return ImageDataset(images=noise(count, seed=5), labels=labels, num_classes=2, name="private", **fields)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


SHOWN = ImageDataset(images=noise(60), name="shown", public=True)
ROWS = unit(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))


def of_class(data, label=0, units=None, weigh=None):
    units = np.arange(data.num_units) if units is None else units
    return UnitRows(data, ROWS).of_class(units, label, weigh or (lambda rows: torch.ones(len(rows)).double()))


def test_an_image_adds_its_row_to_its_class_alone():
    added = of_class(labelled(), 1, np.array([1, 2, 7]))
    torch.testing.assert_close(added, torch.stack([ROWS[1], torch.zeros(4), ROWS[7]]).double())


def test_a_group_adds_the_mean_of_its_images_and_a_blank_image_nothing():
    groups, blank = np.repeat([1, 0, 2], 4), np.arange(12) == 2
    added = of_class(labelled(groups=groups, blank=blank))
    torch.testing.assert_close(added[1], ROWS[0].double() / 4)
    torch.testing.assert_close(added[0], ROWS[[4, 6]].double().sum(0) / 4)
    assert (added.norm(dim=1) <= 1).all()


@pytest.mark.parametrize("locality", [0.0, 3.0, 1000.0])
def test_a_row_weighs_one_at_most_by_itself_and_public_rows(locality):
    public, query = unit(torch.randn(50, 4)), unit(torch.randn(1, 4))[0]
    weigh = nearness(public, query, rank=7, locality=locality)
    weights, reach = weigh(ROWS.double()), (public @ query).sort().values[-7]
    assert torch.equal(weights[3:4], weigh(ROWS[3:4].double()))
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[ROWS @ query >= reach] == 1).all()
    expected = (locality * ((ROWS @ query).double() - reach)).clamp(max=0).exp()
    torch.testing.assert_close(weights, expected, atol=1e-4, rtol=1e-4)


def test_leading_directions_are_those_in_which_public_rows_differ_and_rows_stay_of_unit_length():
    features = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    features[:, :3] += 40 * torch.randint(2, (500, 3)).float()
    labels = (features[:, :3] > 20).long() @ torch.tensor([1, 2, 4])
    whole = Space.spanned_by(features, labels.numpy())
    shown, led = whole.leading(whole.unit(features), 3)
    rows = led.unit(features)
    assert rows.shape == shown.shape == (500, 3)
    assert ((rows.norm(dim=1) - 1).abs() < 2e-3).all()
    assert ((rows * shown).sum(1) > 0.999).all()
    assert torch.equal(led.unit(features[7:9]), rows[7:9])
    means = torch.stack([rows[labels == label].mean(0) for label in range(8)])
    assert (means.norm(dim=1) > 0.9).all()  # nothing but what tells these classes apart is left


def test_drawn_is_what_lies_near_an_embedding_of_the_class_and_never_what_was_lost():
    generator = AggregatedGenerator(ImageFacts((1, 8, 8), ("a", "b")), 6, 3, 2)
    generator.images += torch.arange(12, dtype=torch.uint8).view(6, 2, 1, 1, 1) * 20
    generator.weights.copy_(torch.tensor([[1.0, 0], [0.5, 0.5], [0, 0], [0, 1], [0.2, 0.8], [0, 0]]))
    labels = torch.arange(2000) % 2
    drawn = ((generator.draw(labels, random=torch.Generator().manual_seed(0))[:, 0, 0, 0] + 1) * 127.5).round() / 20
    assert set(drawn[labels == 0].tolist()) == {0.0, 8.0, 9.0}
    assert set(drawn[labels == 1].tolist()) == {2.0, 3.0, 7.0}
    assert (drawn == 9).sum() / (drawn == 8).sum() == pytest.approx(4, rel=0.3)


def test_a_generator_that_knows_nothing_draws_black_images():
    generator = AggregatedGenerator(ImageFacts((1, 8, 8), ()), 3, 3, 2)
    assert (generator.draw(torch.zeros(4, dtype=torch.long), random=torch.Generator()) == -1).all()


def without_noise(count, batch=5):
    """Return the embeddings of a run whose batches are whole."""
    method = AggregatedEmbeddings(**TOY)
    sums = PoissonSums(name="noisy embeddings", count=8, expected_batch_size=batch)
    plan = NonPrivate(dataset_size=batch, releases=(sums,))
    return Trainer(method=method, plan=plan, public=SHOWN, run=None, ledger=None).fit(labelled(count)).generator


def test_a_sum_is_divided_by_the_expected_number_whoever_is_there():
    few, many = without_noise(10), without_noise(40)
    assert torch.equal(many.embeddings[0], many.embeddings[2])  # batches are whole
    assert (few.embeddings.norm(dim=1) < 2.01).all()
    assert many.embeddings.norm(dim=1).mean() > few.embeddings.norm(dim=1).mean()
    alone = without_noise(1)  # of the first class, and none of the second
    assert alone.embeddings[::2].norm(dim=1).numpy() == pytest.approx(np.full(4, 1 / 5), rel=1e-2)
    assert not alone.embeddings[1::2].any()


def made(epsilon=30.0, **changes):
    """Dark private images, of two classes by their top; public ones are dark and bright."""
    random = np.random.default_rng(0)
    dark, bright = (random.integers(low, low + 60, (400, 8, 8, 1), np.uint8) for low in (0, 180))
    labels = np.arange(400) % 2
    private, lit = dark.copy(), dark.copy()
    private[labels == 1, :4] += 60
    lit[:, :4] += 60
    public = ImageDataset(images=np.concatenate([dark, bright, lit]) + np.uint8(1), name="grey", public=True)
    data = ImageDataset(images=private, labels=labels, num_classes=2, name="private")
    method = AggregatedEmbeddings(**TOY | {"directions": 4} | changes)
    plan = method.plan(epsilon=epsilon, dataset_size=400, delta=1e-5)
    return Trainer(method=method, plan=plan, public=public, run=None, ledger=None).fit(data)


@pytest.mark.parametrize("locality", [0.0, 1.0])
def test_public_images_are_drawn_that_look_like_the_class(locality):
    images, labels = made(locality=locality).sample(200, seed=0)
    tops, bottoms = images[:, :4].mean((1, 2, 3)), images[:, 4:].mean((1, 2, 3))
    assert (bottoms < 90).mean() > 0.95  # none of the bright third
    assert ((tops > 60) == (labels == 1)).mean() > 0.95


class Killed(BaseException):
    """What a power cut is to a process."""


def test_what_a_crash_loses_stays_spent_is_not_drawn_from_and_the_release_verifies(tmp_path, monkeypatch):
    method, data = AggregatedEmbeddings(**TOY), labelled(12)
    plan, keep = method.plan(epsilon=3.0, dataset_size=12, delta=1e-13), PrivateFolder.keep_sum
    trainer = Trainer(method=method, plan=plan, public=SHOWN, run=tmp_path / "run", ledger=None)

    def dies(self, name, noisy):
        if name.endswith("/4"):
            raise Killed  # reserved, made, and not yet kept
        keep(self, name, noisy)

    monkeypatch.setattr(PrivateFolder, "keep_sum", dies)
    with pytest.raises(Killed):
        trainer.fit(data)
    before = sorted((tmp_path / "run" / "private" / "sums" / "noisy embeddings").iterdir())
    assert [path.stem for path in before] == ["1", "2", "3"]
    monkeypatch.setattr(PrivateFolder, "keep_sum", keep)
    progress = list(trainer.steps(data))
    assert [(each.steps_spent, each.updates) for each in progress[2:5]] == [(3, 3), (4, 3), (5, 4)]
    assert verify_release(tmp_path / "run").dataset_size == 12
    generator = Release.load(tmp_path / "run").generator
    lost = generator.weights.sum(1) == 0
    assert lost.nonzero()[:, 0].tolist() == [3]
    assert not generator.embeddings[3].any()
    assert not generator.images[3].any()


def test_pictures_are_made_four_times_only(tmp_path):
    method = AggregatedEmbeddings(**TOY)
    plan = method.plan(epsilon=3.0, dataset_size=12, delta=1e-13)
    Trainer(method=method, plan=plan, public=SHOWN, run=tmp_path / "run", ledger=None).fit(labelled(12))
    pictures = sorted(path.name for path in (tmp_path / "run" / "watch").glob("*.png"))
    assert pictures == ["step-2.png", "step-4.png", "step-6.png", "step-8.png"]


def refused(says, *, queries=8, public=SHOWN, **changes):
    method = AggregatedEmbeddings(**TOY | changes)
    plan = dataclasses.replace(method, queries=queries).plan(epsilon=3.0, dataset_size=12, delta=1e-13)
    trainer = Trainer(method=method, plan=plan, public=public, run=None, ledger=None)
    with pytest.raises(InputError, match=says):
        trainer.rehearse(labelled(12))


def test_what_cannot_go_to_its_end_is_refused_before_the_first_sum():
    refused("the plan is not of 8 noisy embeddings of norm 1 each", queries=9)
    refused("pixels has 64 features: set directions", directions=65)
    refused("shown has 60 images for the class 0: set neighbours", neighbours=61)
    few = ImageDataset(images=noise(60), labels=np.zeros(60, int), num_classes=2, name="ones", public=True)
    refused("ones has 0 images for the class 1: set neighbours", public=few)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"queries": 0}, "queries must be"),
        ({"queries": 10_001}, "queries must be at most"),
        ({"directions": 1025}, "directions must be at most"),
        ({"neighbours": 2.5}, "neighbours must be a whole number"),
        ({"queries": 10_000, "neighbours": 101}, "queries × neighbours"),
        ({"sharpness": -1.0}, "sharpness must be"),
        ({"locality": float("nan")}, "locality must be"),
        ({"queries": 2}, "fewer than 3 classes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        AggregatedEmbeddings(**changes).require_images(ImageFacts((1, 8, 8), ("a", "b", "c")))


def test_a_plan_has_the_queries_and_a_quarter_of_the_images_in_a_batch():
    (sums,) = AggregatedEmbeddings(queries=30).plan(epsilon=1.0, dataset_size=1000, delta=1e-5).poisson
    assert (sums.name, sums.count, sums.expected_batch_size, sums.max_norm) == ("noisy embeddings", 30, 250, 1.0)
    plan = AggregatedEmbeddings(queries=30).plan(epsilon=1.0, dataset_size=1000, delta=1e-5, expected_batch_size=100)
    assert plan.sample_rate == 0.1
    with pytest.raises(InputError, match="set queries"):
        AggregatedEmbeddings().plan(epsilon=1.0, dataset_size=1000, steps=5)


@pytest.fixture(scope="module")
def released():
    method = AggregatedEmbeddings(**TOY)
    plan = method.plan(epsilon=3.0, dataset_size=12, delta=1e-13)
    release = Trainer(method=method, plan=plan, public=SHOWN, run=None, ledger=None).fit(labelled(12))
    return method, plan, release


def lose(tensors):
    tensors["weights"][2] = 0
    tensors["embeddings"][2] = 0


CHANGES = {
    "a negative weight": lambda tensors: tensors["weights"][0].copy_(torch.tensor([2.0, -1, 0, 0, 0])),
    "weights that do not add up": lambda tensors: tensors["weights"][0].mul_(0.5),
    "an embedding that is too long": lambda tensors: tensors["embeddings"][0].add_(1e6),
    "an image that no query chose": lose,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors_that_no_run_comes_to_are_refused(change, released):
    method, plan, release = released
    tensors = {name: tensor.clone() for name, tensor in release.generator.state_dict().items()}

    def read(name, rows=slice(None)):
        return tensors[name][rows]

    method.require_possible(read, plan, release.facts, "it")
    change(tensors)
    with pytest.raises(InputError, match="it holds noisy embeddings, or images near them, that no run comes to"):
        method.require_possible(read, plan, release.facts, "it")


def test_a_release_with_more_embeddings_than_its_plan_paid_for_is_refused(released):
    method, plan, release = released
    less = plan.with_steps(7)
    with pytest.raises(InputError, match="no run comes to"):
        method.require_possible(lambda name, rows=slice(None): release.generator.state_dict()[name][rows], less, (), "")


def test_the_estimate_of_memory_grows_with_all_that_is_held():
    facts = ImageFacts((3, 32, 32), tuple("0123456789"))
    base = AggregatedEmbeddings().memory(facts, public=50_000, records=50_000)
    assert 2 * 4 * 1280 * 50_000 < base < 2**31
    assert AggregatedEmbeddings(queries=1000).memory(facts, public=50_000, records=50_000) > base
    assert AggregatedEmbeddings().memory(facts, public=60_000, records=50_000) > base
    assert AggregatedEmbeddings().memory(facts, public=50_000, records=60_000) > base
