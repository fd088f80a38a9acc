"""A classifier of public images is trained, goes on where it was interrupted, and is what statistics are matched in."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.evaluation.layers import residual_layers
from dpdm.methods import Diffusion, ImageFacts, Layers, StatisticMatching
from dpdm.networks import MLP
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.classifying import Classifying
from dpdm.runs.pretraining import Pretraining
from dpdm.runs.start import open_start
from dpdm.types import InputError

FACTS = ImageFacts((1, 8, 8), ("0", "1"))
MACHINE = Machine(device="cpu", precision="float32")


def labelled(count, seed=0, name="shown", public=True):
    """Images of two classes: bright above, and bright below."""
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 120, (count, 8, 8, 1), np.uint8), np.arange(count) % 2
    images[labels == 0, :4] += 100
    images[labels == 1, 4:] += 100
    return ImageDataset(images=images, labels=labels, num_classes=2, name=name, public=public)


def classifying(**changes):
    given = {"public": labelled(80), "facts": FACTS, "minutes": 1e-6, "machine": MACHINE}
    return Classifying(**given | changes)


def trained(folder, **changes):
    for _ in classifying(**changes).steps(folder):
        pass
    return folder


def matched(folder, run=None, **changes):
    layers = Layers(network=str(folder), directions=6, pairs=5, own_pairs=4)
    method = StatisticMatching(layers=layers, population=3, passes=1, candidates=30)
    plan = method.plan(epsilon=3.0, dataset_size=20, delta=1e-5)
    trainer = Trainer(method=method, plan=plan, public=labelled(40, 5, "others"), run=run, ledger=None, machine=MACHINE)
    return dataclasses.replace(trainer, **changes)


def test_it_learns_what_tells_public_classes_apart(tmp_path):
    losses = []
    steps = classifying(minutes=10).steps(tmp_path / "classifier")
    for progress in steps:
        losses.append(progress.loss)
        if progress.updates == 25:
            break
    steps.close()
    assert losses[0] == pytest.approx(np.log(2), rel=1e-3)
    assert losses[-1] < 0.6


def test_interrupted_it_goes_on_and_a_finished_one_is_refused(tmp_path):
    steps = classifying(minutes=10).steps(tmp_path / "classifier")
    assert [next(steps).updates for _ in range(3)] == [1, 2, 3]
    steps.close()
    steps = classifying(minutes=10).steps(tmp_path / "classifier")
    assert next(steps).updates == 4
    steps.close()
    with pytest.raises(InputError, match="another"):
        next(classifying(minutes=10, seed=3).steps(tmp_path / "classifier"))
    with pytest.raises(InputError, match="another run \\(public_images"):  # or the claim would not name the first ones
        next(classifying(minutes=10, public=labelled(80, 3)).steps(tmp_path / "classifier"))
    done = trained(tmp_path / "done")
    with pytest.raises(InputError, match="holds a start already"):
        next(classifying().steps(done))


def test_its_weights_are_kept_without_the_last_layer_and_with_what_they_were_trained_on(tmp_path):
    start = open_start(trained(tmp_path / "classifier"))
    assert start.preconditioning == "classifier"
    assert start.weights.keys() == residual_layers(seed=0).state_dict().keys()
    assert start.part.name == "shown"
    assert start.part.images == 80
    assert not start.part.drawn


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public": ImageDataset(images=labelled(80).images, name="plain", public=True)}, "plain has no labels"),
        ({"public": labelled(10)}, "take at least 64"),
        ({"facts": ImageFacts((3, 8, 8), ("0", "1"))}, "has images of shape"),
        ({"minutes": 0}, "minutes must be"),
        ({"public": dataclasses.replace(labelled(80), drawn=True)}, "come with what it cost"),
    ],
)
def test_what_no_classifier_can_be_trained_on_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        classifying(**changes)


def test_statistics_are_matched_in_its_layers_and_the_claim_names_what_it_was_trained_on(tmp_path):
    folder = trained(tmp_path / "classifier")
    data = labelled(20, 9, "private", public=False)
    made = matched(folder, tmp_path / "run").fit(data)
    assert made.sample(4, seed=0)[0].shape == (4, 8, 8, 1)
    assert verify_release(tmp_path / "run").dataset_size == 20
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert {part["name"] for part in claim["public"]} == {"shown", "others"}
    opened = Release.load(tmp_path / "run")
    assert np.array_equal(opened.sample(4, seed=1)[0], made.sample(4, seed=1)[0])
    said = (tmp_path / "run" / "release" / "config.toml").read_text()
    assert f'sha256 = "{open_start(folder).sha256}"' in said
    assert str(tmp_path) not in said


def test_a_private_image_that_it_was_trained_on_takes_no_part(tmp_path):
    folder = trained(tmp_path / "classifier")
    data = labelled(20, 9, "private", public=False)
    images = data.images.copy()
    images[3] = labelled(80).images[3]
    matched(folder, tmp_path / "run").fit(dataclasses.replace(data, images=images))
    told = json.loads((tmp_path / "run" / "private" / "duplicates.json").read_text())
    assert told["blank_records"] == [3]


def test_a_denoiser_and_a_classifier_for_other_images_are_refused_before_the_first_sum(tmp_path):
    data = labelled(20, 9, "private", public=False)
    method = Diffusion(network=MLP(width=8, blocks=1))
    pretraining = Pretraining(public=labelled(80), facts=FACTS, method=method, minutes=1e-6, machine=MACHINE)
    for _ in pretraining.steps(tmp_path / "denoiser"):
        pass
    with pytest.raises(InputError, match="holds no classifier: make one by dpdm pretrain --kind classifier"):
        matched(tmp_path / "denoiser").fit(data)
    large = dataclasses.replace(labelled(80), images=np.zeros((80, 16, 16, 1), np.uint8))
    other = trained(tmp_path / "large", public=large, facts=ImageFacts((1, 16, 16), ("0", "1")))
    with pytest.raises(InputError, match="is for images of 1 × 16 × 16"):
        matched(other).fit(data)


def test_weights_follow_from_the_seed():
    one, other, third = (residual_layers(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)
