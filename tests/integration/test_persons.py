"""Images of several persons, several of each, from the folder to a claim about persons."""

import dataclasses
import json
import tomllib

import numpy as np
import pytest
from PIL import Image
from small_run import SMALL

from dpdm import Synthesizer
from dpdm.audit import audit_run, parametric, report
from dpdm.audit.canaries import train_with_canaries
from dpdm.config import Config, Data
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM
from dpdm.methods import Diffusion, diffusion
from dpdm.networks import MLP
from dpdm.privacy import DPSGD
from dpdm.runs.private_classifier import train_private_classifier
from dpdm.types import InputError


@pytest.fixture
def persons(tmp_path):
    """Two class folders, in each some images of some of 20 persons: 70 images in all."""
    rng = np.random.default_rng(0)
    for number in range(70):
        person = number % 20 if number < 40 else number % 3
        folder = tmp_path / "persons" / ("day", "night")[number % 7 > 3] / f"p{person:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "persons"


@pytest.mark.proof
def test_the_claim_is_about_persons_from_plan_to_report(dpdm, persons, tmp_path):
    settings = [*SMALL, "--set=data.group=folder"]
    code, out, err = dpdm("plan", persons, *settings)
    assert code == 0, err
    assert "blank out one group of images" in out
    assert "8 groups a step on average" in out
    assert "a group enters with probability 0.4" in out  # 8 of 20 persons, not of 70 images
    assert "times what one group can change" in out
    code, out, err = dpdm("train", persons, "--run", "run", *settings)
    assert code == 0, err
    assert "blank out one group of images" in out
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert (claim["unit"], claim["dataset_size"]) == ("one group of images", 20)
    written = tomllib.loads((tmp_path / "run" / "release" / "config.toml").read_text())
    assert written["plan"]["unit"] == "group"
    assert "70" not in json.dumps({key: claim[key] for key in claim if key != "sha256"})
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    said = " ".join(out.split())  # in lines of their own
    assert "one group of images with their labels, such as all images of one person." in said
    assert "The exact number, 20 groups, is public" in said
    assert "knows every other group of training images" in said
    code, _, err = dpdm("report", "run", "-o", "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert "one group of images" in page
    assert "one image" not in page


@pytest.mark.proof
def test_add_or_remove_is_said_of_a_group_too(dpdm, persons):
    declared = (*SMALL, "--set=data.group=folder", "--dataset-size", 30)
    assert dpdm("train", persons, "--run", "run", *declared)[0] == 0
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert "add or remove one group of images" in out
    assert "ε limits how surely anyone can tell whether the images were used at all" in " ".join(out.split())


@pytest.mark.proof
def test_a_prepared_folder_trains_the_same_persons_and_a_run_goes_on(dpdm, persons):
    facts = ("--set=data.size=8", "--set=data.channels=3", "--set=data.group=folder")
    code, out, err = dpdm("prepare", persons, "-o", "ready", *facts)
    assert code == 0, err
    assert "dpdm train ready --set data.group=groups" in out
    code, _, err = dpdm("train", "ready", "--run", "run", *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "data.group=groups" in err
    for _ in range(2):
        code, out, err = dpdm("train", "ready", "--run", "run", *SMALL, "--set=data.group=groups")
        assert code == 0, err
        assert "one group of images" in out


@pytest.mark.proof
def test_scores_are_computed_from_images_whatever_their_groups(dpdm, persons):
    rng = np.random.default_rng(1)
    np.savez("made.npz", images=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), labels=np.arange(40) % 2,
             num_classes=np.array(2))  # fmt: skip
    code, _, err = dpdm("evaluate", "made.npz", "--reference", persons, "--quick")
    assert (code, "data.group=folder" in err) == (2, True)
    code, _, err = dpdm("evaluate", "made.npz", "--reference", persons, "--quick", "--group", "folder")
    assert code == 0, err
    beside = ("--baseline", persons, "--group", "folder", "--dp-sgd", 1)
    code, _, err = dpdm("evaluate", "made.npz", "--reference", persons, "--quick", *beside)
    assert (code, "--dp-sgd makes a claim about single images" in err) == (2, True)
    data = made_up(np.arange(40) // 2)
    with pytest.raises(InputError, match="groups of images"):
        train_private_classifier(data, epsilon=1.0)


def made_up(groups):
    rng = np.random.default_rng(0)
    number = len(groups)
    pixels = rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)
    return ImageDataset(images=pixels, labels=np.arange(number) % 2, num_classes=2, groups=groups, name="made up")


@pytest.mark.proof
def test_arrays_with_groups_in_three_lines():
    data = made_up(np.arange(160) // 4)
    whose = [f"person {group}" for group in data.groups]
    synthesizer = Synthesizer(
        epsilon=5.0, num_classes=2, delta=1e-3, steps=2, noise_multiplicity=2, network=MLP(width=8, blocks=1)
    )
    release = synthesizer.fit(data.images, data.labels, groups=whose)
    assert "blank out one group of images" in release.statement
    assert release.claim["dataset_size"] == 40
    assert "blank out one image" in synthesizer.fit(data.images, data.labels).statement


@pytest.fixture
def small_audit(monkeypatch):
    whole = report.check_mechanism
    monkeypatch.setattr(report, "check_mechanism", lambda plan: whole(plan, draws=400_000))
    monkeypatch.setattr(parametric, "_SELECTIONS", 400)


@pytest.mark.proof
def test_an_audit_plants_and_accuses_whole_persons(dpdm, persons, tmp_path, small_audit):
    code, _, err = dpdm("train", persons, "--run", "run", *SMALL, "--set=data.group=folder")
    assert code == 0, err
    code, out, err = dpdm("audit", "run")
    assert code == 0, err
    assert "5 members" in out  # a quarter of 20 persons
    again = made_up(np.arange(60) // 3)
    with pytest.raises(InputError, match="the plan's unit is one group"):
        audit_run(tmp_path / "run", data=ImageDataset(images=again.images, name="no groups"))


def test_a_person_whose_coin_says_no_is_not_there_with_any_image(monkeypatch):
    seen, loader = [], diffusion.Loader

    def spy(data, *others):
        seen.append(data)
        return loader(data, *others)

    monkeypatch.setattr(diffusion, "Loader", spy)
    data = made_up(np.arange(90) % 30)
    plan = DPSGD(dataset_size=30, expected_batch_size=10, steps=3, noise_multiplier=0.05, delta=1e-3, unit="group")
    method = Diffusion(network=MLP(width=8, blocks=1), preconditioning=EDM())
    config = Config(data=Data(source="made up"), method=method)
    *_, audited = train_with_canaries(config, plan, data, canaries=30, members=12, coins=np.random.default_rng(0))
    there = {image.tobytes() for image in seen[0].images}
    for person, was_in in zip(audited.members, audited.were_in, strict=True):
        assert {image.tobytes() in there for image in data.images[data.groups == person]} == {was_in}
    assert seen[0].num_units == 30 - (~audited.were_in).sum()
    assert not ((audited.scores > 0) & ~audited.took_part).any()
    of_images = dataclasses.replace(plan, unit="image")
    with pytest.raises(InputError, match="unit is one image"):
        next(train_with_canaries(config, of_images, data, canaries=5, members=4, coins=np.random.default_rng(0)))
