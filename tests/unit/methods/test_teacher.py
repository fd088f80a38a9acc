"""What a teacher learns and labels, what is refused, and that the classes of public images do not matter."""

import dataclasses
import io

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts, TaughtGenerator, Teacher
from dpdm.methods.classifier import Labelled, LabelLoader, LabelLoss, small_cnn
from dpdm.methods.public_classes import surest
from dpdm.privacy import InsecureSeededEntropy, NonPrivate, PoissonSums
from dpdm.runs import Trainer
from dpdm.types import InputError
from shades import NAMES, assert_goes_on, shades

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = ImageFacts((1, 8, 8), NAMES)
TOY = {"per_class": 5, "width": 4}


def stripes(count=60, *, labels=None):
    """Return public images of stripes, each of a brightness of its own: of the 60, half are dark."""
    rows = 10 * (np.arange(8) % 2)[None, :, None, None] * np.ones((1, 1, 8, 1))
    images = (np.linspace(0, 240, count)[:, None, None, None] + rows).astype(np.uint8)
    named = {} if labels is None else {"labels": labels, "num_classes": 3}
    return ImageDataset(images=images, name="stripes", public=True, **named)


def trained(method, public, *, count=60, folder=None):
    plan = NonPrivate(dataset_size=64, releases=(PoissonSums(count=count, expected_batch_size=16, max_norm=1.0),))
    return Trainer(method=method, plan=plan, public=public, run=folder, ledger=None).fit(shades(64))


def test_public_images_get_the_class_that_they_look_like():
    made = trained(Teacher(**TOY), stripes())
    images, labels = made.sample(40, seed=0)
    dark, bright = (images[labels == label].mean() for label in (0, 1))
    assert dark < 110
    assert bright > 150
    known = {image.tobytes() for image in stripes().images}
    assert all(image.tobytes() in known for image in images), "an image is none of the public ones"
    assert made.generator.class_shares is None
    assert made.generator.remark == ""


def test_the_classes_of_public_images_do_not_matter(tmp_path):
    plan = Teacher(**TOY).plan(epsilon=3.0, dataset_size=64, delta=1e-13, steps=3, expected_batch_size=8)
    states = []
    for public in (stripes(), stripes(labels=np.arange(60) % 3)):
        trainer = Trainer(
            method=Teacher(**TOY), plan=plan, public=public, entropy=InsecureSeededEntropy(0), ledger=None
        )
        states.append(trainer.fit(shades(64)).generator.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_surest_images_of_a_class_are_those_furthest_above_its_best_rival():
    scores = torch.tensor([[3.0, 0.0, 2.5], [2.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 4.0, 9.0]])
    chosen, margins = surest(scores, 2)
    assert chosen.tolist() == [[1, 0], [2, 1], [3, 2]]
    assert margins.tolist() == [[2.0, 0.5], [0.5, -2.0], [5.0, -0.5]]


def test_a_class_that_public_images_do_not_show_is_told():
    generator = TaughtGenerator(FACTS, 12)
    generator.margins.copy_(torch.stack([torch.linspace(3, -0.1, 12), torch.linspace(1, -20, 12)]))
    assert generator.remark.startswith("of 1 of 2 classes the private teacher finds too few public images")


def test_a_group_shows_one_of_its_images_and_a_blank_one_is_no_number():
    load = LabelLoader(shades(6, groups=np.array([0, 0, 0, 0, 1, 1])), torch.device("cpu"))

    def drawn(seed):
        return load(np.array([0]), io.BytesIO(np.random.default_rng(seed).bytes(16)).read)

    seen = {(float(one.x.sum()), int(one.labels)) for one in map(drawn, range(30))}
    assert len(seen) == 4
    assert {label for _, label in seen} == {0, 1}
    blank = LabelLoader(shades(2, blank=np.array([False, True])), torch.device("cpu"))
    batch = blank(np.array([0, 1]), io.BytesIO(bytes(32)).read)
    assert batch.x.isnan().any((1, 2, 3)).tolist() == [False, True]


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 2), ((3, 33, 17), 5)])
def test_an_image_is_classified_by_itself(shape, classes):
    network = small_cnn(shape[0], classes, width=4)
    batch = Labelled(torch.rand(4, *shape), torch.arange(4) % classes)
    losses = LabelLoss()(network, batch)
    assert losses.shape == (4,)
    alone = LabelLoss()(network, Labelled(batch.x[2:3], batch.labels[2:3]))
    assert torch.allclose(losses[2:3], alone, atol=1e-6)
    assert torch.equal(next(small_cnn(1, 2, seed=3).parameters()), next(small_cnn(1, 2, seed=3).parameters()))
    assert not torch.equal(next(small_cnn(1, 2, seed=3).parameters()), next(small_cnn(1, 2, seed=4).parameters()))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    assert_goes_on(Teacher(**TOY), tmp_path, public=stripes())


def test_few_public_images_are_kept_all_and_none_are_refused(tmp_path):
    release = trained(Teacher(**TOY), stripes(3), folder=tmp_path / "run")
    assert {each.tobytes() for each in release.sample(200, seed=0)[0]} == {each.tobytes() for each in stripes(3).images}
    with pytest.raises(InputError, match="public"):
        trained(Teacher(**TOY), None)


def test_a_file_of_margins_that_no_run_comes_to_is_refused():
    made = TaughtGenerator(FACTS, 3).state_dict()
    Teacher().require_possible(made.__getitem__, None, FACTS, "a file")
    for margins in ([[1.0, 2.0, 0.0]] * 2, [[float("nan")] * 3] * 2):
        with pytest.raises(InputError, match="a file holds margins of labels that no run comes to"):
            Teacher().require_possible((made | {"margins": torch.tensor(margins)}).__getitem__, None, FACTS, "a file")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"per_class": 0}, "per_class"),
        ({"width": 10**6}, "width"),
        ({"optimizer": None}, "optimizer must be Optimizer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        Teacher(**settings)


def test_a_plan_takes_steps_alone_and_classes_are_needed():
    with pytest.raises(InputError, match=r"privacy.steps = 0 trains no network"):
        Teacher().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=0)
    (steps,) = Teacher().plan(epsilon=3.0, dataset_size=100, delta=1e-13, steps=7).releases
    assert steps.count == 7
    with pytest.raises(InputError, match="the method teacher names the classes of images, and these have no two"):
        Teacher().require_images(ImageFacts((1, 8, 8), ()))
    with pytest.raises(InputError, match="per_class × classes"):
        dataclasses.replace(Teacher(), per_class=10**6).require_images(FACTS)
    facts = {"public": 100, "records": 100}
    assert Teacher().memory(FACTS, **facts) < Teacher(per_class=10**5).memory(FACTS, **facts)
