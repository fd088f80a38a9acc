"""Private labels for public images from the command line: claimed, checked, drawn, and begun with."""

import json

import numpy as np
import pytest
from PIL import Image

from dpdm.runs import Release
from dpdm.runs.drawn import open_drawn

SMALL = ("--set=data.size=16", "--set=privacy.delta=1e-3", "--set=per_class=9", "--set=prior.centres=1")
NO_STEPS = ("--set=privacy.steps=0", "--set=prior.centres=1", "--set=network.width=16")
LABELLED = ("--method=labels", "--epsilon=4", *SMALL, "--set=embedding.size=32", "--set=choice=0.1")
LIKE = ("--like", "photos", "--set=data.size=16", "--set=data.channels=3", "--set=data.num_classes=3", *NO_STEPS[1:])


@pytest.fixture
def shown(tmp_path):
    """A folder of 40 small colour pictures without classes."""
    (tmp_path / "shown").mkdir()
    rng = np.random.default_rng(1)
    for number in range(40):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "shown" / f"{number}.png")
    return tmp_path / "shown"


@pytest.fixture
def labelled(dpdm, photos, shown, tmp_path):
    code, out, err = dpdm("train", photos, *LABELLED, "--public", shown, "--run", "run")
    assert code == 0, err
    assert "'shown' (40 images, SHA-256" in out
    assert "'efficientnet-lite0' (SHA-256" in out
    return tmp_path / "run"


def test_a_run_names_the_public_network_of_its_features(dpdm, labelled):
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "efficientnet-lite0", SHA-256' in out
    claim = json.loads((labelled / "release" / "privacy.json").read_text())
    assert [part["name"] for part in claim["public"]] == ["shown", "efficientnet-lite0"]
    assert [release["name"] for release in claim["releases"]][-2:] == ["prototypes", "prior or public images"]
    settings = (labelled / "release" / "config.toml").read_text()
    (labelled / "release" / "config.toml").write_text(settings.replace('"efficientnet-lite0"', '"random-convnet"', 1))
    code, _, err = dpdm("verify", "run")
    assert (code, err.count("\n")) == (2, 1)


def test_it_draws_goes_on_and_begins_another_run_whose_claim_counts_it(
    dpdm, labelled, photos, shown, tmp_path, monkeypatch
):
    code, _, err = dpdm("sample", "run", "-n", 30, "-o", "made.npz")
    assert code == 0, err
    assert np.load(tmp_path / "made.npz")["images"].shape == (30, 16, 16, 3)
    assert (labelled / "private" / "kept" / "features" / "rows").stat().st_size == 4 * 1280 * 30
    code, out, err = dpdm("train", photos, *LABELLED, "--public", shown, "--run", "run")
    assert code == 0, err
    assert "nothing was left to do" in out
    monkeypatch.setattr("dpdm.runs.pretraining._BATCH", 16)
    monkeypatch.setattr("dpdm.runs.drawn.COUNT", 20)
    generator = Release.load(labelled).generator
    wanted = generator.draws_of_all
    for most in (10, 25, 50_000):
        monkeypatch.setattr("dpdm.runs.drawn.MOST", most)
        assert len(open_drawn("run").images) == max(20, min(most, wanted))
    monkeypatch.setattr("dpdm.runs.drawn.COUNT", 90)
    code, _, err = dpdm("pretrain", "run", "--minutes", "0.02", "-o", "again", *LIKE)
    assert code == 0, err
    more = ("--ledger=none", "--set=data.size=16", "--set=privacy.delta=1e-3", *NO_STEPS)
    code, out, err = dpdm("train", photos, "--epsilon=6", "--start=again", "--run=second", *more)
    assert code == 0, err
    assert "images drawn from a release, which it counts" in out
    first, second = (json.loads((tmp_path / run / "release" / "privacy.json").read_text()) for run in ("run", "second"))
    noise = [event["noise_multiplier"] for event in first["events"]]
    assert [event["noise_multiplier"] for event in second["events"]][: len(noise)] == noise
    assert dpdm("verify", "second")[0] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "the method labels starts from public images: name some, by --public PATH"),
        (("--public", "shown", "--set=embedding.features=nowhere.pt"), "nowhere.pt cannot be read as a TorchScript"),
        (("--public", "shown", "--minutes=3"), "takes no steps that could be timed"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_spent(dpdm, photos, shown, tmp_path, more, says):
    code, _, err = dpdm("train", photos, "--method=labels", "--epsilon=4", *SMALL, "--run", "run", *more)
    assert (code, err.splitlines()[-1].count(says)) == (2, 1), err
    assert not (tmp_path / "run" / "private" / "journal.jsonl").exists()


def test_a_plan_says_what_it_releases_and_needs(dpdm, photos):
    code, out, err = dpdm("plan", photos, *LABELLED)
    assert code == 0, err
    assert "sums        6; noise" in out
    assert "memory" in out
