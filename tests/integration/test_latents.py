"""A codec from the command line: made, trained in, begun with in its latents, claimed, checked."""

import numpy as np
import pytest

LIKE = ("--set=data.size=16", "--set=data.channels=3", "--set=data.num_classes=3")
TRAINED = ("--epsilon=4", "--run=run", "--set=privacy.delta=1e-3", "--set=data.size=16", "--set=prior.centres=1")
INSIDE = "--set=codec.source=codec"


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr("dpdm.data.public.COUNT", 100)
    monkeypatch.setattr("dpdm.runs.pretraining._BATCH", 16)


@pytest.fixture
def codec(dpdm, photos):
    code, out, err = dpdm(
        "pretrain", "shapes", "--like", photos, "--kind=codec", "--minutes=0.02", "-o", "codec", *LIKE
    )
    assert code == 0, err
    assert "done: codec, made with shapes (codec) (100 images), which no claim protects" in out
    assert f"next: dpdm train {photos} --set codec.source=codec --epsilon" in out


def test_a_codec_is_not_taken_for_a_start(dpdm, photos, codec, tmp_path):
    code, _, err = dpdm("train", photos, "--epsilon=4", "--start=codec", "--run=run", "--set=data.size=16")
    assert code == 2
    said = "is a codec, and no network that draws images: name it by --set codec.source=..."
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_images_are_learnt_in_its_latents(dpdm, photos, codec, tmp_path):
    code, out, err = dpdm("plan", photos, *TRAINED[:1], *TRAINED[2:], "--dataset-size=30", "--method=prior", INSIDE)
    assert code == 0, err
    assert "start       a network of 100 images of shapes (codec), that no ε protects" in out
    code, out, err = dpdm("train", photos, *TRAINED, "--method=prior", INSIDE)
    assert code == 0, err
    assert "it does not protect what was declared public: 'shapes (codec)' (100 images, SHA-256 " in out
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "shapes (codec)", 100 images, SHA-256' in out
    assert dpdm("sample", "run", "-n", 6, "-o", "made.npz")[0] == 0
    with np.load(tmp_path / "made.npz") as made:
        assert made["images"].shape == (6, 16, 16, 3)
    code, _, err = dpdm("train", photos, *TRAINED, "--method=prior", INSIDE)
    assert code == 0, "the same command again, of a run that is done"


def test_a_start_of_its_latents_is_begun_with_and_no_other_codec(dpdm, photos, codec):
    small = ("--set=network.width=16", "--set=prior.centres=1", INSIDE)
    code, out, err = dpdm("pretrain", "shapes", "--like", photos, "--minutes=0.02", "-o", "start", *LIKE, *small)
    assert code == 0, err
    steps = ("--start=start", "--set=privacy.steps=2", "--set=privacy.expected_batch_size=10", "--set=sampler.steps=2")
    code, out, err = dpdm("train", photos, *TRAINED, *steps, *small, "--set=loss.noise_multiplicity=1")
    assert code == 0, err
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "shapes", 100 images' in out
    code, _, err = dpdm("audit", "run", "--minutes", "0.05")
    assert code == 0, err
    code, out, err = dpdm("train", photos, "--epsilon=4", "--run=other", *TRAINED[2:], *steps, "--set=network.width=16")
    assert (code, err.count("\n")) == (2, 1)
    assert "was not made in the latents of this run's codec" in err


def test_images_are_learnt_without_their_pose_and_a_start_too(dpdm, photos, tmp_path):
    grey = ("--set=data.size=16", "--set=data.channels=1", "--set=codec.kind=pose")
    small = ("--set=network.width=16", "--set=prior.centres=1")
    code, _, err = dpdm("train", photos, *TRAINED, "--method=prior", *grey[1:])
    assert code == 0, err
    for line in (("verify", "run"), ("report", "run"), ("sample", "run", "-n", 6, "-o", "made.npz")):
        assert dpdm(*line)[0] == 0
    with np.load(tmp_path / "made.npz") as made:
        assert made["images"].shape == (6, 16, 16, 1)
    like = ("--like", photos, "--minutes=0.02", "--set=data.num_classes=3", *small)
    code, _, err = dpdm("pretrain", "shapes", "-o", "start", *like, *grey)
    assert code == 0, err
    steps = ("--start=start", "--set=privacy.steps=2", "--set=privacy.expected_batch_size=10", "--set=sampler.steps=2")
    begun = ("--epsilon=4", "--set=privacy.delta=1e-3", *steps, *small, "--set=loss.noise_multiplicity=1")
    code, _, err = dpdm("train", photos, "--run=begun", *begun, *grey)
    assert code == 0, err
    assert dpdm("verify", "begun")[0] == 0
    for other in (grey[:2], (*grey, "--set=codec.ground=255")):
        code, _, err = dpdm("train", photos, "--run=other", *begun, *other)
        assert (code, err.count("\n")) == (2, 1)
        assert "was not made in the latents of this run's codec" in err


@pytest.mark.parametrize("verb", ["plan", "train", "pretrain"])
def test_images_in_colour_have_no_pose(dpdm, photos, tmp_path, verb):
    colour = ("--set=data.size=16", "--set=data.channels=3", "--set=data.num_classes=3", "--set=codec.kind=pose")
    private = (verb, photos, "--epsilon=4", "--set=privacy.delta=1e-3")
    line = ("pretrain", "shapes", "--like", photos, "-o", "made") if verb == "pretrain" else private
    code, _, err = dpdm(*line, *colour)
    assert code == 2
    assert err.splitlines()[-1].endswith(
        "codec.kind = pose is for grey images: set data.channels=1, or leave codec out (codec=none)"
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            ("pretrain", "shapes", "--like=digits", "-o=s", "--kind=codec", "--set=network.width=16"),
            "--set network.width=16 changes nothing about a codec: it takes data., machine., seed",
        ),
        (("train", "digits", "--epsilon=4", "--method=prior", "--set=codec.source=nowhere"), "nowhere holds no start"),
        (("train", "digits", "--epsilon=4", "--method=labels", "--set=codec.source=s"), "unknown key codec"),
        (("train", "digits", "--epsilon=4", "--method=prior", '--set=codec.sha256="1"'), "codec.source is missing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(dpdm, line, says):
    code, _, err = dpdm(*line)
    assert (code, err.count("\n")) == (2, 1), err
    assert says in err
