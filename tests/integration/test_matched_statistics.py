"""Statistic matching from the command line: in a given time, in a classifier's layers, with its progress, and again."""

import tomllib

import numpy as np
import pytest

MATCHED = ("--method=statistics", "--epsilon=4", "--set=privacy.delta=1e-3", "--public=shown.npz", "--run=run")
SMALL = (
    "--set=data.size=8",
    "--set=layers.directions=6",
    "--set=layers.pairs=5",
    "--set=layers.own_pairs=4",
    "--set=candidates=40",
)
CONVNET = ("--set=layers.network=random-convnet", "--set=layers.size=8")
FEW = ("--set=population=3", "--set=passes=2")


@pytest.fixture(autouse=True)
def shown(dpdm, tmp_path):
    """Labelled images that are declared public."""
    images = np.random.default_rng(5).integers(0, 256, (90, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "shown.npz", images=images, labels=np.arange(90) % 3, class_names=["x", "y", "z"])


def test_time_chooses_how_many_images_and_a_resumed_run_keeps_it(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("dpdm.methods.statistics.pace_of", lambda *arguments: (1e-6, 1e-3))
    line = ("train", photos, *MATCHED, *SMALL, *CONVNET, "--minutes=0.05")
    code, out, err = dpdm(*line)
    assert code == 0, err
    assert "for 0.05 minutes here: population = " in err
    assert "matching images: " in err
    settings = tomllib.loads((tmp_path / "run" / "release" / "config.toml").read_text())
    monkeypatch.setattr("dpdm.methods.statistics.pace_of", lambda *arguments: pytest.fail("measured again"))
    code, out, err = dpdm(*line)
    assert code == 0, err
    assert f"begun with: population = {settings['population']}, passes = {settings['passes']}" in err
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "shown.npz", 90 images, SHA-256' in out


def test_a_plan_says_what_time_it_takes_and_what_a_time_chooses(dpdm, photos, monkeypatch):
    monkeypatch.setattr("dpdm.methods.statistics.pace_of", lambda *arguments: (1e-3, 1e-2))
    code, out, err = dpdm("plan", photos, *MATCHED[:-1], *SMALL, *CONVNET)
    assert code == 0, err
    assert "time        about" in out
    assert "measured on made-up images" in out
    code, out, err = dpdm("plan", photos, *MATCHED[:-1], *SMALL, *CONVNET, "--minutes=10")
    assert code == 0, err
    assert "to train    exactly this: --set population=" in out
    assert " --set passes=100" in out


def test_a_prior_takes_the_place_of_public_images(dpdm, photos):
    code, _, err = dpdm("train", photos, *MATCHED[:3], "--run=run", *SMALL, *CONVNET, *FEW, "--set=prior.centres=1")
    assert code == 0, err
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert "public   " not in out


def test_a_classifier_is_pretrained_and_matched_in(dpdm, photos, monkeypatch):
    monkeypatch.setattr("dpdm.runs.classifying._BATCH", 8)
    made = ("--kind=classifier", "--minutes=0.01", "--set=data.size=8", "--set=data.channels=3", "-o", "start")
    code, out, err = dpdm("pretrain", "shown.npz", "--like", photos, *made, "--set=data.num_classes=3")
    assert code == 0, err
    assert f"next: dpdm train {photos} --method statistics --start start --public shown.npz --epsilon" in out
    np.savez("others.npz", images=np.random.default_rng(6).integers(0, 256, (50, 8, 8, 3), np.uint8))
    line = (*MATCHED[:3], "--public=others.npz", "--run=run", *SMALL, *FEW, "--start=start")
    code, out, err = dpdm("train", photos, *line)
    assert code == 0, err
    assert "'shown.npz' (90 images, SHA-256" in out
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert "start" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("pretrain", "shown.npz", "--like=digits", "-o=s", "--kind=judge"), "--kind judge is none of denoiser, class"),
        (
            ("pretrain", "shown.npz", "--like=digits", "-o=s", "--kind=classifier", "--set=network.width=8"),
            "--set network.width=8 changes nothing about a classifier",
        ),
        (("pretrain", "shapes", "--like=digits", "-o=s", "--kind=classifier"), "shapes has no labels"),
        (("train", "digits", "--epsilon=4", "--method=evolution", "--start=s"), "--start is for the methods diffusion"),
        (("train", "digits", *MATCHED, "--start=nowhere"), "nowhere"),
        (("train", "digits", *MATCHED, *CONVNET, "--set=passes=0"), "passes must be"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(dpdm, line, says, monkeypatch):
    monkeypatch.setattr("dpdm.data.public.COUNT", 100)
    code, _, err = dpdm(*line)
    assert (code, err.count("\n")) == (2, 1), err
    assert says in err
