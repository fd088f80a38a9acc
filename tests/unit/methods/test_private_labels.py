"""Which public images get which label, what is drawn of them, and when private images choose the prior instead."""

import math

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.methods import Embedding, ImageFacts, LabelledGenerator, Labels, Prior
from dpdm.methods.labelled import agreement_of, nearer_kinds
from dpdm.methods.public_classes import clearest, nearest_classes
from dpdm.privacy import OperatingSystemEntropy
from dpdm.runs import Trainer
from dpdm.types import InputError

PIXELS = Embedding(features="pixels")


def stripes(count, seed, *, noise=40):
    """Images of three classes: stripes along, across, and none."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(0, noise, (count, 8, 8, 3), dtype=np.uint8)
    images[labels == 0, ::2] += 150
    images[labels == 1, :, ::2] += 150
    return images, labels


def private(count=300):
    images, labels = stripes(count, 0)
    return ImageDataset(images=images, labels=labels, num_classes=3, name="private")


def public(count=600, **more):
    return ImageDataset(images=stripes(count, 1)[0], name="shown", public=True, **more)


def fit(data, shown, *, epsilon=20.0, **settings):
    method = Labels(embedding=PIXELS, **{"per_class": 50, "from_prior": 0} | settings)
    plan = method.plan(epsilon=epsilon, dataset_size=len(data))
    return Trainer(method=method, plan=plan, public=shown, ledger=None, entropy=OperatingSystemEntropy()).fit(data)


@pytest.mark.parametrize(("labelled", "per_class"), [(False, 50), (True, 50), (False, 400)])
def test_public_images_get_the_label_of_the_private_class_that_they_show(labelled, per_class):
    """Also if more are kept for each class than show it: two hundred of the public images do."""
    more = {"labels": (stripes(600, 1)[1] + 1) % 3, "num_classes": 3} if labelled else {}
    release = fit(private(), public(**more), per_class=per_class)
    images, labels = release.sample(300, seed=0)
    bright = images.astype(int).mean(3)
    along = bright[:, ::2].mean((1, 2)) - bright[:, 1::2].mean((1, 2)) > 100
    across = abs(bright[:, :, ::2].mean((1, 2)) - bright[:, :, 1::2].mean((1, 2))) > 100  # mirrored or not
    assert (along == (labels == 0)).all()
    assert (across == (labels == 1)).all()
    assert release.generator.class_shares == pytest.approx([1 / 3] * 3, abs=0.1)
    assert release.generator.remark == ""


def test_a_release_says_that_its_public_images_are_far():
    """All private images lie on one side of the public ones, whatever their class."""
    images = np.random.default_rng(0).integers(250, 256, (600, 8, 8, 3), np.uint8)
    data = ImageDataset(images=images, labels=np.arange(600) % 3, num_classes=3, name="bright")
    assert "the public images are far from the private ones" in fit(data, public()).generator.remark


@pytest.mark.parametrize("truth", [0.0, 0.006, 0.077])
@pytest.mark.parametrize("noise_std", [0.001, 0.01, 0.03])
def test_noise_does_not_make_public_images_look_far(truth, noise_std):
    """As of a few hundred private images: noise alone is longer than what CIFAR-10's have in common."""
    random = torch.Generator().manual_seed(0)
    mean = torch.zeros(1280, dtype=torch.float64)
    mean[0] = math.sqrt(truth)
    found = [
        float(agreement_of(mean + noise_std * torch.randn(1280, generator=random).double(), noise_std=noise_std))
        for _ in range(1000)
    ]
    assert sum(agreement > truth for agreement in found) <= 10
    assert np.mean(found) > truth - 8 * (36 * noise_std**2 + noise_std * math.sqrt(truth)) - 1e-9
    assert float(agreement_of(mean, noise_std=0.0)) == pytest.approx(truth)


def test_every_image_is_public_or_its_mirror_image():
    shown = public()
    images, _ = fit(private(), shown).sample(100, seed=0)
    known = {image.tobytes() for image in shown.images}
    as_they_are = [image.tobytes() in known for image in images]
    assert all(image.tobytes() in known or image[:, ::-1].tobytes() in known for image in images)
    assert 20 < sum(as_they_are) < 80


def test_an_image_is_drawn_for_the_class_that_it_shows_most_or_of_the_clearest_ten():
    generator = LabelledGenerator(ImageFacts((3, 8, 8), ("a", "b", "c")), 200, 0.0, None)
    generator.margins.copy_(torch.linspace(1, -1, 200).repeat(3, 1) + torch.tensor([[0.5], [0.0], [-0.95]]))
    showing = [int((each > 0).sum()) for each in generator.margins]
    assert 0 < showing[2] < 10 < showing[1] < showing[0] < 200
    assert generator.drawn_from.tolist() == [showing[0], showing[1], 10]
    few = LabelledGenerator(generator.facts, 7, 0.0, None)
    assert few.drawn_from.tolist() == [7, 7, 7]


def test_the_clearest_images_of_a_class_come_first():
    rows = torch.tensor([[1.0, 0], [0.8, 0.1], [0, 1], [0.5, 0.5]])
    chosen, margins = clearest(rows, torch.eye(2).double(), 3)
    assert chosen.tolist() == [[0, 1, 3], [2, 3, 1]]
    assert torch.allclose(margins, torch.tensor([[1, 0.7, 0], [1, 0, -0.7]]))


def test_public_images_come_of_the_public_classes_that_private_ones_vote_for():
    images, labels = stripes(900, 1)
    shades = np.arange(900) // 3 % 3  # each public class has one shade of one kind of stripes
    shown = ImageDataset(
        images=(images // (1 + 2 * shades[:, None, None, None])).astype(np.uint8),
        labels=3 * shades + labels,
        num_classes=9,
        name="shown",
        public=True,
    )
    release = fit(private(3000), shown, per_class=90, public_classes=1)
    assert [entry.name for entry in Labels(public_classes=1).plan(epsilon=1.0, dataset_size=9).releases][-2:] == [
        "prototypes",
        "votes for public classes",
    ]
    brightness = release.generator.images.float().mean((2, 3, 4))
    of_own_shade = brightness[:2] > 80  # those of other shades are darker
    assert of_own_shade.all()
    assert (brightness[2] > 14).all()


def test_a_private_image_votes_for_the_public_classes_that_it_is_nearest_to():
    class Rows:
        def parts(self):
            yield slice(0, 2), torch.tensor([[1.0, 0], [0, 1.0]])

    means = torch.tensor([[0, 1.0], [0.96, 0.28], [0.6, 0.8], [-1, 0]])
    ((chosen, weighed),) = nearest_classes(Rows(), torch.tensor([0, 2]), torch.ones(2).double(), means, 2)
    assert [set(row) for row in chosen.tolist()] == [{1, 2}, {8, 10}]
    assert weighed.tolist() == [1, 1]


def test_images_of_the_classes_voted_for_come_first_and_fill_up_by_others():
    rows = torch.tensor([[1.0, 0], [0.8, 0.1], [0, 1], [0.4, 0.5]])
    within = torch.tensor([[False, True, False, False], [False, False, False, True]])
    chosen, margins = clearest(rows, torch.eye(2).double(), 2, within)
    assert chosen.tolist() == [[0, 1], [2, 3]]
    assert clearest(rows, torch.eye(2).double(), 1, within)[0].tolist() == [[1], [3]]
    assert (margins[:, :-1] >= margins[:, 1:]).all()
    shown_less = torch.tensor([[False, False, False, True], [False, False, False, False]])
    assert clearest(rows, torch.eye(2).double(), 2, shown_less)[0].tolist() == [[0, 1], [2, 3]]


def test_the_prior_makes_its_share_of_the_images():
    shown = public()
    release = fit(private(), shown, from_prior=0.5, prior=Prior(centres=1, share=0.5))
    images, _ = release.sample(400, seed=0)
    known = {image.tobytes() for image in shown.images} | {image[:, ::-1].tobytes() for image in shown.images}
    assert 140 < sum(image.tobytes() in known for image in images) < 260


@pytest.mark.parametrize("like", [True, False])
def test_private_images_choose_the_prior_where_public_ones_are_far(like):
    shown = public() if like else ImageDataset(images=255 - stripes(600, 1)[0] // 8, name="shown", public=True)
    settings = {"from_prior": 0.5, "prior": Prior(centres=1, share=0.01, max_deviation=1.0), "choice": 0.1}
    release = fit(private(3000), shown, epsilon=50.0, **settings)
    chose_prior = float(release.generator.from_prior) == 1
    assert chose_prior is not like
    assert ("private images chose the prior" in release.generator.remark) is not like


def test_a_vote_is_for_the_kind_with_the_nearest_candidate_of_the_own_class():
    class Rows:
        def parts(self):
            yield slice(0, 3), torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])

    one, other = torch.tensor([[[0.9, 0.0]], [[0.0, 0.1]]]), torch.tensor([[[0.5, 0.5]], [[0.0, 0.6]]])
    labels, weights = torch.tensor([0, 1, 1]), torch.ones(3).double()
    ((chosen, weighed),) = nearer_kinds(Rows(), labels, weights, [one, other])
    assert chosen.tolist() == [[0], [1], [0]]
    assert torch.equal(weighed, weights)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"per_class": 0}, "per_class"),
        ({"from_prior": 1.0}, "from_prior must be from 0 to 0.99"),
        ({"from_prior": 0, "choice": 0.1}, "choice is between the prior and public images: set from_prior too"),
        ({"prior": Prior(share=0.9), "choice": 0.2}, "leave nothing for prototypes"),
        ({"prior": Prior(share=0.9), "public_classes": 2}, "leave nothing for prototypes"),
        ({"public_classes": -1}, "public_classes must be a whole number, 0 or more, not -1"),
        ({"public_classes": 0.5}, "public_classes must be a whole number"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(given, says):
    with pytest.raises(InputError, match=says):
        Labels(**given)


def test_of_few_public_images_each_is_kept_and_those_of_its_class_are_drawn():
    shown = public(40)
    images, labels = fit(private(), shown, per_class=50).sample(2000, seed=0)
    drawn = {(image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}
    of_classes = stripes(40, 1)[1].tolist()
    seen = zip(shown.images, of_classes, strict=True)
    assert drawn == {(each.tobytes(), label) for image, label in seen for each in (image, image[:, ::-1])}


def test_images_that_cannot_be_labelled_are_refused_before_anything_is_spent():
    with pytest.raises(InputError, match="shown has no classes to vote for: leave out public_classes"):
        fit(private(), public(), public_classes=2)
    with pytest.raises(InputError, match="have no two: give labels"):
        Labels().require_images(ImageFacts((3, 8, 8), ()))
    with pytest.raises(InputError, match="per_class"):
        Labels(per_class=10**6).require_images(ImageFacts((3, 8, 8), ("a", "b")))
