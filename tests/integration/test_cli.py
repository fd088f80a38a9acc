import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SMALL

from dpdm.config import Data, load_config
from dpdm.data import open_dataset, read_claim, save_npz
from dpdm.evaluation import UtilityScore, confusion_of, scorecard
from dpdm.ledger import Ledger, Records
from dpdm.privacy import DPSGD
from dpdm.runs import Release
from dpdm.runs.folder import PrivateFolder


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.exists() else None


def test_a_plan_of_shards_says_that_shards_enter(dpdm):
    code, out, _ = dpdm("plan", "digits", "--method", "sanitized-gan", "--set", "privacy.steps=4")
    assert code == 0
    assert "50 shards a step on average; a shard enters with probability 0.1" in out


@pytest.mark.proof
def test_plan_reads_no_data_and_prints_the_stable_keys(dpdm, monkeypatch):
    monkeypatch.setattr(Data, "open", lambda self: pytest.fail("the data must not be opened"))
    code, out, _ = dpdm("plan", "digits", "--epsilon", 1, "--json", "--set", "privacy.steps=40")
    report = json.loads(out)
    assert code == 0
    assert report["steps"] == 40
    assert report["delta"] == 1e-4
    assert report["sample_rate"] == pytest.approx(256 / 1438)
    assert 0.99 < report["epsilon"] <= 1
    assert report["epsilon"] <= report["epsilon_rdp"] <= 1.25 * report["epsilon"]
    curve = list(report["epsilon_at"].values())
    assert curve == sorted(curve)
    assert report["noise_multiplier"] > 0
    code, out, _ = dpdm("plan", "digits", "--set", "privacy.steps=40")
    assert code == 0
    assert "add or remove one image" in out


def test_a_rehearsal_chooses_learning_rate_and_clipping_norm_once(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("dpdm.runs.learning._IMAGES", 60)
    line = ["train", photos, "--epsilon", 1, "--run", "short", *SMALL, "--rehearse"]
    code, _, err = dpdm(*line)
    assert code == 0, err
    (said,) = [text for text in err.splitlines() if "rehearsed: learning rate" in text]
    settings = tomllib.loads((tmp_path / "short" / "release" / "config.toml").read_text())
    (steps,) = [release for release in settings["plan"]["releases"] if release["kind"] == "poisson"]
    assert f"learning rate {settings['optimizer']['learning_rate']:g} (" in said
    assert f"clipping norm {steps['max_norm']:g}" in said
    assert steps["max_norm"] != 1.0
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert "rehearsed" not in err
    assert tomllib.loads((tmp_path / "short" / "release" / "config.toml").read_text()) == settings


@pytest.mark.parametrize(
    "settings",
    [["--set=privacy.kind=non-private"], ["--method=prior", "--epsilon=1"], ["--epsilon=1", "--set=privacy.steps=0"]],
)
def test_what_has_no_noisy_steps_is_not_rehearsed(dpdm, photos, tmp_path, settings):
    code, _, err = dpdm("train", photos, "--run", "short", "--rehearse", *settings)
    assert (code, err.count("\n")) == (2, 1)
    assert "leave out --rehearse" in err
    assert not (tmp_path / "short").exists()


@pytest.mark.proof
def test_minutes_choose_the_settings_once(dpdm, photos, tmp_path):
    small = [setting for setting in SMALL if "noise_multiplicity" not in setting]
    line = ["train", photos, "--epsilon", 1, "--run", "short", *small, "--minutes"]
    code, _, err = dpdm("plan", photos, *SMALL, "--minutes", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "leave out one of the two" in err
    code, out, _ = dpdm("plan", *line[1:4], *small, "--minutes", 0.02, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["minutes"] < 0.2
    assert {"steps", "expected_batch_size", "noise_multiplicity", "physical_batch_size"} <= report.keys()
    code, _, err = dpdm(*line, 0.02)
    assert code == 0, err
    assert "for 0.02 minutes here: " in err
    settings = tomllib.loads((tmp_path / "short" / "private" / "config.toml").read_text())
    code, _, err = dpdm(*line, 5)
    assert code == 0, err
    assert f"begun with: {settings['plan']['releases'][-1]['count']:,} steps" in err
    assert dpdm(*line, -1)[0] == 2


def test_steps_that_cannot_pay_are_told_once_as_a_run_begins(dpdm, photos):
    line = ("train", photos, "--epsilon", 1, "--run", "run", *SMALL)
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert "this network will not pay: z√P/E = " in err
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert "will not pay" not in err


def test_from_a_folder_of_images_to_publishable_ones(dpdm, trained, photos, tmp_path):
    assert files(trained / "release") == ["config.toml", "model.safetensors", "privacy.json"]
    privacy = json.loads((trained / "release" / "privacy.json").read_text())
    assert privacy["private"] is True
    assert privacy["epsilon"] <= 1
    assert privacy["relation"] == "replace_special"
    assert privacy["dataset_size"] == 30
    assert privacy["events"][-1].keys() == {"type", "noise_multiplier", "sample_rate", "steps"}
    Image.open(trained / "watch" / "step-6.png").verify()  # of the release itself

    code, _, err = dpdm("sample", trained, "-n", 12, "-o", "out.npz", "--seed", 1)
    assert code == 0, err
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert archive["images"].shape == (12, 8, 8, 3)
        assert np.bincount(archive["labels"]).tolist() == [4, 4, 4]
        assert archive["class_names"].tolist() == ["ant", "bee", "cat"]
        assert json.loads(str(archive["claim"]))["statement"] == privacy["statement"]
    assert read_claim(tmp_path / "out.npz") == privacy["statement"]
    assert open_dataset(tmp_path / "out.npz").class_names == ("ant", "bee", "cat")
    code, out, err = dpdm("sample", trained, "-n", 8, "-o", "two.npz", "--classes", "cat, ant", "--json")
    assert (code, json.loads(out)["counts"]) == (0, [4, 0, 4]), err
    code, out, err = dpdm("sample", trained, "-n", 8, "-o", "more_cats.npz", "--frequencies", "1,0,3", "--json")
    assert (code, json.loads(out)["counts"]) == (0, [2, 0, 6]), err
    code, out, err = dpdm("sample", trained, "-n", 8, "-o", "as_released.npz", "--frequencies", "released", "--json")
    assert (code, sum(json.loads(out)["counts"])) == (0, 8), err
    code, _, err = dpdm("sample", trained, "-n", 8, "-o", "wrong.npz", "--frequencies", "often")
    assert (code, err) == (2, "dpdm: --frequencies is equal, released, or numbers with commas between, not 'often'\n")
    code, _, err = dpdm("sample", trained, "-n", 3, "-o", "out.npz")
    assert (code, err) == (2, "dpdm: out.npz exists: choose another name, or remove it\n")
    code, _, err = dpdm("sample", trained, "-n", 12, "-o", "folder")
    assert code == 0, err
    assert len(files(tmp_path / "folder")) == 12

    code, out, err = dpdm("sample", trained, "-n", 60, "-o", "more.npz", "--json", "--set", "sampler.steps=2")
    assert code == 0, err
    assert json.loads(out)["count"] == 60


def test_evaluate_prints_the_stable_keys(dpdm, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), labels=np.arange(60) % 10)
    with np.load(tmp_path / "s.npz") as archive:
        np.savez(tmp_path / "s.npz", **archive, num_classes=10)
    code, out, err = dpdm("evaluate", "s.npz", "--reference", "digits:test", "--quick", "--json")
    assert code == 0, err
    report = json.loads(out)
    for key in ("logreg", "mlp", "cnn"):
        assert report[key]["low"] <= report[key]["accuracy"] <= report[key]["high"]
        assert len(report[key]["recalls"]) == 10
        assert report[key]["balanced_accuracy"] == pytest.approx(sum(report[key]["recalls"]) / 10)
        assert 0.1 <= report[key]["largest_class"] < 0.15  # the first 288 digits are none too even
    assert report["covered_by_epsilon"] is False
    assert report["claim"] is None


@pytest.fixture
def quick_scores(monkeypatch):
    """Classifiers that answer class 0, at once."""

    def answers_zero(images, labels, test_images, test_labels, *, num_classes, classifiers, **named):
        confusion = confusion_of(test_labels, np.zeros_like(test_labels), num_classes)
        right = float(np.mean(test_labels == 0))
        scores[:] = [np.bincount(labels, minlength=num_classes).tolist()]
        return {name: UtilityScore(right, 0.0, 1.0, len(test_labels), 1, 1, 0.5, confusion) for name in classifiers}

    scores = []
    monkeypatch.setattr(scorecard, "evaluate_utility", answers_zero)
    return scores


def test_evaluate_matches_classes_by_name_and_shows_a_files_own_claim(dpdm, tmp_path, quick_scores):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    claim = {"statement": "(1.0, 1e-05)-DP \x1b[2J of its own"}
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    save_npz(tmp_path / "real.npz", images // 2, labels, num_classes=3, class_names=("ant", "bee", "cat"))
    save_npz(tmp_path / "m.npz", images, labels, num_classes=3, class_names=("cat", "ant", "bee"), claim=claim)
    code, out, err = dpdm("evaluate", "m.npz", "--reference", "real.npz", "--quick")
    assert code == 0, err
    assert "m.npz and real.npz list their classes in another order: matched by name" in err
    assert quick_scores == [[20, 10, 30]]
    assert "m.npz says of itself, which nothing here has verified: (1.0, 1e-05)-DP ?[2J of its own" in out
    assert "logreg  50.0 % [0.0, 100.0], balanced 33.3 %" in out
    assert "always answering the largest class of real.npz would be right for 50.0 %" in out
    assert [row.split() for row in out.splitlines() if row.startswith(("ant", "cat"))] == [
        ["ant", *["100.0"] * 3],
        ["cat", *["0.0"] * 3],
    ]
    code, out, err = dpdm("compare", "m.npz", "--reference", "real.npz", "--quick")
    assert code == 0, err
    assert "unverified: (1.0, 1e-05)-DP" in out
    assert quick_scores == [[20, 10, 30]]


def test_images_in_colour_have_one_more_row_and_stand_beside_grey_ones(dpdm, tmp_path, quick_scores):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    save_npz(tmp_path / "colour.npz", images, np.arange(60) % 3, num_classes=3)
    save_npz(tmp_path / "grey.npz", images[..., :1], np.arange(60) % 3, num_classes=3)
    real = tmp_path / "real"  # opened in colour or grey, as the others are
    for number, image in enumerate(images // 2):
        place = real / "abc"[number % 3] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    code, out, err = dpdm("evaluate", "colour.npz", "--reference", real, "--quick")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["logreg", "mlp", "cnn", "resnet"]
    code, out, err = dpdm("evaluate", "grey.npz", "--reference", real, "--quick", "--json")
    assert code == 0, err
    assert "resnet" not in json.loads(out)
    code, out, err = dpdm("compare", "grey.npz", "colour.npz", "--reference", real, "--quick")
    assert code == 0, err
    heading, grey, colour, *_ = (line.split() for line in out.splitlines())
    assert heading == ["LogReg", "MLP", "CNN", "ResNet", "images", "claim"]
    assert grey == ["grey.npz", *["33.3"] * 3, "60", "none", "stated"]
    assert colour == ["colour.npz", *["33.3"] * 4, "60", "none", "stated"]


def test_images_are_judged_by_the_protocol_of_dpimagebench(dpdm, tmp_path, quick_scores, monkeypatch):
    from dpdm.runs import hardware

    monkeypatch.setattr(hardware, "choose_device", lambda _: torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    save_npz(tmp_path / "made.npz", images, np.arange(60) % 3, num_classes=3)
    save_npz(tmp_path / "real.npz", images // 2, np.arange(60) % 3, num_classes=3)
    line = ("evaluate", "made.npz", "--reference", "real.npz")
    code, out, err = dpdm(*line, "--protocol=dpimagebench", "--json")
    assert code == 0, err
    assert "DPImageBench's protocol is for 60,000 images, and these are 60: not comparable" in err
    assert "a small residual network stands in for WRN-40-4" in err
    found = json.loads(out)
    assert (found["protocol"], found["quick"]) == ("dpimagebench", False)
    assert "resnet" in found
    assert found.keys().isdisjoint({"logreg", "mlp", "cnn"})
    code, out, err = dpdm(*line, "--protocol=quick", "--quick", "--json")
    assert code == 0, err
    assert (json.loads(out)["protocol"], json.loads(out)["quick"]) == ("quick", True)
    for wrong, said in (
        (("--protocol=mine",), "--protocol is one of paper, quick, dpimagebench, not 'mine'"),
        (("--protocol=paper", "--quick"), "--quick is a protocol of its own"),
    ):
        code, _, err = dpdm(*line, *wrong)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err


def test_other_names_of_classes_are_refused_before_the_work(dpdm, trained, tmp_path, no_work):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    save_npz(tmp_path / "dogs.npz", images, np.arange(60) % 3, num_classes=3, class_names=("ant", "bee", "dog"))
    save_npz(tmp_path / "four.npz", images, np.arange(60) % 4, num_classes=4)
    save_npz(tmp_path / "bare.npz", images)
    for line, said in (
        (("evaluate", "dogs.npz", "--reference", "four.npz"), "the classes differ"),
        (("compare", trained, "--reference", "dogs.npz"), "has cat, which dogs.npz lacks"),
        (("compare", "dogs.npz", trained, "--reference", "bare.npz"), "has no labels"),
        (("compare", "four.npz", trained, "--reference", "four.npz"), "the same images are on both sides"),
    ):
        code, _, err = dpdm(*line, "--quick")
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err


def test_a_second_file_that_is_not_there_is_told_before_the_first_is_opened(dpdm, tmp_path, monkeypatch):
    np.savez(tmp_path / "made.npz", images=np.zeros((20, 8, 8), np.uint8))
    monkeypatch.setattr(np, "load", lambda *arguments, **named: pytest.fail("it was opened"))
    for verb in ("evaluate", "compare"):
        code, _, err = dpdm(verb, "made.npz", "--reference", "nowhere.npz")
        assert (code, err.count("\n")) == (2, 1), err
        assert "nowhere.npz is neither a path" in err


def test_nothing_is_made_among_the_images(dpdm, photos, monkeypatch):
    monkeypatch.chdir(photos)
    before = sorted(photos.rglob("*"))
    for line in (("train", ".", "--epsilon", 1, *SMALL), ("prepare", ".", "-o", "ready", "--set=data.size=8")):
        code, _, err = dpdm(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert f"lies in {photos.resolve()}, the folder of images: choose a place outside of it" in err
    assert sorted(photos.rglob("*")) == before


def test_the_same_line_again_finds_the_run_finished(dpdm, trained, photos):
    before = (trained / "release" / "model.safetensors").read_bytes()
    code, out, _ = dpdm("train", photos, "--epsilon", 1, "--run", trained, *SMALL)
    assert code == 0
    assert "done" in out
    assert (trained / "release" / "model.safetensors").read_bytes() == before


def test_another_configuration_is_refused_and_performance_settings_are_not(dpdm, trained, photos):
    before = {name: (trained / name).read_bytes() for name in files(trained)}
    code, _, err = dpdm("train", photos, "--epsilon", 2, "--run", trained, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another run (of another epsilon)" in err
    assert before == {name: (trained / name).read_bytes() for name in files(trained)}
    code, _, err = dpdm(
        "train", photos, "--epsilon", 1, "--run", trained, *SMALL, "--set=machine.physical_batch_size=3"
    )
    assert code == 0, err


@pytest.mark.proof
def test_a_release_holds_the_declared_size_and_nothing_of_the_real_one(dpdm, photos, tmp_path):
    code, _, err = dpdm("train", photos, "--dataset-size", 41, "--run", "r", *SMALL)
    assert code == 0, err
    release = tmp_path / "r" / "release"
    privacy = json.loads((release / "privacy.json").read_text())
    assert privacy["relation"] == "add_or_remove_one"
    assert privacy["events"][-1]["sample_rate"] == 8 / 41

    def numbers(value):
        if isinstance(value, dict | list):
            for entry in value.values() if isinstance(value, dict) else value:
                yield from numbers(entry)
        elif isinstance(value, int | float):
            yield value

    everything = [*numbers(privacy), *numbers(tomllib.loads((release / "config.toml").read_text()))]
    assert 41 in everything
    assert 30 not in everything
    text = (release / "config.toml").read_text() + json.dumps(privacy)
    assert "loss =" not in text
    assert str(photos.parent) not in text


def test_what_training_prints_holds_no_loss_and_no_batch_size(dpdm, photos):
    _, out, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert "loss" not in (out + err).lower()
    assert "norm" not in (out + err).lower()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.proof
def test_a_signal_saves_and_the_same_line_goes_on(photos, tmp_path, number):
    line = [sys.executable, "-m", "dpdm", "train", str(photos), "--run", "r", *SMALL, "--set=privacy.steps=300"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "r" / "private" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 100):
        pass
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "the same command goes on" in err
    taken = len(metrics.read_text().splitlines())
    assert 0 < taken < 300
    journal = [json.loads(line) for line in (tmp_path / "r" / "private" / "journal.jsonl").read_text().splitlines()]
    assert journal[-1]["spent"] == taken + 7  # the prior's releases came first
    again = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert again.returncode == 0, again.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 301))
    assert Release.load(tmp_path / "r").claim["steps"] == 300


def test_a_full_disk_says_how_to_go_on_and_leaves_the_checkpoint_whole(dpdm, photos, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PrivateFolder, "save", full)
        code, _, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert code == 1
    assert "No space left on device" in err
    assert "the same command goes on" in err
    assert files(tmp_path / "r" / "release") is None
    code, _, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert code == 0, err


def test_another_folder_of_the_same_name_is_another_run(dpdm, trained, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    code, _, err = dpdm("train", tmp_path / "elsewhere" / "photos", "--epsilon", 1, "--run", trained, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another run (opened is" in err
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", trained, *SMALL, "--set=data.fit=pad")
    assert code == 2
    assert "holds another run (opened is" in err
    assert str(photos) not in (trained / "release" / "config.toml").read_text()


def test_steps_that_a_kill_lost_are_told_on_resuming(dpdm, photos, tmp_path):
    line = ("train", photos, "--run", "r", *SMALL)
    assert dpdm(*line)[0] == 0
    journal = tmp_path / "r" / "private" / "journal.jsonl"
    header, *_ = journal.read_text().splitlines()
    # what a kill leaves behind that struck after the prior and step 4, whose checkpoint was the one before step 1
    journal.write_text(f'{header}\n{{"spent": 11}}\n')
    for checkpoint in (tmp_path / "r" / "private").glob("checkpoint*"):
        checkpoint.unlink()
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert "4 steps were lost when an earlier process was killed" in err


def test_a_plan_that_must_open_the_data_says_so(dpdm, photos):
    code, out, err = dpdm("plan", photos, *SMALL)
    assert code == 0, err
    assert err.startswith(f"opening {photos} for what is not declared: ")
    assert "opening" not in out


def test_a_release_whose_private_folder_is_gone_is_not_overwritten(dpdm, trained, photos):
    shutil.rmtree(trained / "private")
    before = (trained / "release" / "privacy.json").read_bytes()
    code, _, err = dpdm("train", photos, "--epsilon", 2, "--run", trained, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "is not empty and holds no run that can go on" in err
    assert (trained / "release" / "privacy.json").read_bytes() == before
    code, _, err = dpdm("train", photos, "--run", photos, *SMALL)
    assert code == 2
    assert files(photos / "private") is None


@pytest.mark.proof
def test_a_disk_that_is_really_full_leaves_the_checkpoint_whole(trained, photos, tmp_path):
    """A limit on the size of files, under which the same line can write its small ones and not the checkpoint."""
    checkpoint = trained / "private" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    line = [sys.executable, "-m", "dpdm", "train", str(photos), "--run", str(trained), "--epsilon", "1", *SMALL]
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *line],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "the last checkpoint is whole; mend this, and the same command goes on" in result.stderr
    assert "Traceback" not in result.stderr
    assert checkpoint.read_bytes() == before


def test_the_private_folder_is_the_owners_alone_and_the_release_is_for_all(trained):
    assert stat.S_IMODE((trained / "private").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (trained / "release").iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.proof
def test_guidance_and_named_samplers_from_the_command_line(dpdm, photos, tmp_path):
    (tmp_path / "c.toml").write_text(
        f'[data]\nsource = "{photos}"\n[samplers.strong]\nkind = "ddim"\nsteps = 3\nguidance = 2.0\n'
    )
    code, _, err = dpdm("train", "c.toml", "--run", "r", *SMALL)
    assert code == 0, err
    images = {}
    for name, extra in {"plain": (), "strong": ("--sampler", "strong"), "set": ("--set", "sampler.guidance=2")}.items():
        code, _, err = dpdm("sample", "r", "-n", 6, "-o", f"{name}.npz", "--seed", 0, *extra)
        assert code == 0, err
        with np.load(tmp_path / f"{name}.npz") as archive:
            images[name] = archive["images"]
    assert (images["strong"] == images["set"]).all()
    assert (images["strong"] != images["plain"]).any()
    code, _, err = dpdm("sample", "r/release", "-n", 3, "-o", "from_release.npz")
    assert code == 0, err


@pytest.mark.proof
def test_one_line_evaluates_images_of_a_folder_of_another_size(dpdm, trained, photos):
    assert dpdm("sample", trained, "-n", 30, "-o", "s.npz")[0] == 0
    code, out, err = dpdm("evaluate", "s.npz", "--reference", photos, "--quick")
    assert code == 0, err
    assert "ε does not cover them" in out


def test_a_lost_journal_is_refused_and_never_counted_from_zero(dpdm, trained, photos):
    (trained / "private" / "journal.jsonl").unlink()
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", trained, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "the checkpoint has seen 6 steps and the journal counts 0" in err


def test_a_plan_that_crashes_spent_is_no_release(dpdm, trained, photos):
    for checkpoint in (trained / "private").glob("checkpoint*"):
        checkpoint.unlink()
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", trained, *SMALL)
    assert code == 2
    assert "crashes spent the whole plan" in err


WRONG = {
    "missing path": (["train", "nowhere/"], "nowhere/"),
    "empty folder": (["train", "empty", "--epsilon", "1"], "empty"),
    "no image": (["train", "junk", "--set=data.size=8", "--epsilon", "1"], "a.txt"),
    "epsilon zero": (["train", "digits", "--epsilon", "0"], "epsilon must be"),
    "epsilon negative": (["train", "digits", "--epsilon", "-1"], "epsilon must be"),
    "epsilon unreachable": (
        ["train", "digits", "--epsilon", "1e-6", "--set", "privacy.delta=1e-15"],
        "cannot be reached",
    ),
    "delta too large": (["train", "digits", "--set", "privacy.delta=0.01"], "delta = 0.01 is not below"),
    "q above one": (["train", "digits", "--set", "privacy.expected_batch_size=5000"], "expected_batch_size = 5000"),
    "unknown key": (["plan", "digits", "--set", "privacy.epsilonn=1"], "did you mean epsilon?"),
    "unknown preset": (["plan", "digitz"], "did you mean digits?"),
    "steps negative": (["train", "digits", "--set", "privacy.steps=-1"], "steps must be"),
    "nothing to train": (
        ["train", "digits", "--set", "privacy.steps=0"],
        "privacy.steps = 0 trains no network: take the method prior (--method prior)",
    ),
    "steps of a method without": (
        ["train", "digits", "--method", "prior", "--set", "privacy.steps=5"],
        "the method prior takes no steps: leave out privacy.steps",
    ),
    "a sampler of a method without": (
        ["train", "digits", "--method", "prior", "--set", "sampler.steps=5"],
        "unknown key sampler (method = prior)",
    ),
    "a network of a method without": (
        ["train", "digits", "--method", "prior", "--set", "network.width=5"],
        "unknown key network (method = prior)",
    ),
    "a sampler that is gone": (["train", "digits", "--set", "sampler.kind=prior"], "sampler.kind must be one of"),
    "a network that is gone": (["train", "digits", "--set", "network.kind=zero"], "network.kind must be one of"),
    "no such method": (["train", "digits", "--method", "piror"], "did you mean prior?"),
    "guidance without dropout": (
        ["train", "digits", "--set", "sampler.guidance=1"],
        "sampler.guidance = 1 needs images without label in training: set loss.label_dropout",
    ),
    "sampler beyond training": (["plan", "digits", "--set", "preconditioning.kind=ve"], "--set sampler.sigma_min=0.02"),
    "a kind that is no name": (["plan", "digits", "--set", "privacy.kind=[1]"], "privacy.kind must be one of"),
    "a text for a number": (["plan", "digits", "--set", 'privacy.steps="20"'], "privacy.steps = '20'"),
    "a seed too large": (["train", "digits", "--set", "seed=99999999999999999999"], "seed must be"),
    "fit without size": (["plan", "labelled.npz", "--set", "data.fit=pad"], "set data.size too"),
    "size zero": (["plan", "digits", "--dataset-size", "0"], "dataset_size must be"),
    "no run": (["sample", "nowhere", "-n", "4", "-o", "x.npz"], "nowhere holds no run: name a folder that"),
    "no labels declared": (["train", "labelled.npz", "--epsilon", "1"], "num_classes"),
    "labels outside": (
        ["train", "labelled.npz", "--epsilon", "1", "--set", "data.num_classes=2"],
        "label 2 occurs",
    ),
    "no epsilon": (["train", "labelled.npz"], "such as --epsilon 1"),
    "no epsilon in a file": (["plan", "c.toml"], "only a preset has a default"),
    "a preset's epsilon for a folder": (["train", "digits", "--set", "data.source=labelled.npz"], "epsilon is missing"),
    "a preset's epsilon in a plan": (["plan", "digits", "--set", "data.source=empty"], "epsilon is missing"),
    "a preset's epsilon in a search": (
        ["tune", "digits", "--run=r", "--try=seed=1,2", "--score-noise=50", "--set=data.source=empty"],
        "epsilon is missing",
    ),
    "no reference": (["evaluate", "labelled.npz", "--num-classes", "4", "--reference", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_plain_line_exit_code_2_and_nothing_written(dpdm, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.txt").write_text("no image")
    images = np.zeros((20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(20) % 4)
    (tmp_path / "c.toml").write_text('data.source = "digits"')
    before = files(tmp_path)
    arguments, says = WRONG[case]
    code, out, err = dpdm(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert says in err
    assert "Traceback" not in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("count", [0, -5])
def test_a_count_that_is_not_positive_is_refused(dpdm, trained, tmp_path, count):
    code, _, err = dpdm("sample", trained, "-n", count, "-o", "x.npz")
    assert (code, "count must be" in err, (tmp_path / "x.npz").exists()) == (2, True, False)


@pytest.mark.parametrize("damage", ["privacy.json", "config.toml", "model.safetensors"])
def test_a_damaged_release_is_refused_in_one_line(dpdm, trained, damage):
    path = trained / "release" / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, _, err = dpdm("sample", trained, "-n", 3, "-o", "x.npz")
    assert (code, err.count("\n")) == (2, 1), err


LIGHT = """
import sys
from dpdm import cli
codes = {}
for line in %r:
    sys.argv = ["dpdm", *line]
    try:
        cli.main()
    except SystemExit as end:
        codes[" ".join(line)] = end.code or 0
    heavy = {"torch", "numpy", "PIL", "scipy", "dp_accounting", "sklearn", "jaxtyping"} & sys.modules.keys()
    assert not heavy, (line, heavy)
assert codes == %r, codes
"""


def test_what_computes_nothing_imports_nothing_heavy(tmp_path):
    """Bare dpdm, versions, help of each verb, misspelt paths, and a ledger whose figures were computed before."""
    book, none = str(tmp_path / "book.sqlite"), str(tmp_path / "none.sqlite")
    ledger, photos = Ledger(book, tell=lambda line: None), Records("photos", np.zeros((4, 8, 8, 1), np.uint8))
    Ledger(book).register(
        Records("scans", np.ones((4, 8, 8, 1), np.uint8)), epsilon=3.0, delta=1e-5, relation="add_or_remove_one"
    )
    plan = DPSGD(dataset_size=100, expected_batch_size=10, steps=3, noise_multiplier=9.0)
    ledger.reserve("a", plan, photos, place="runs/a")
    ledger.complete("a", plan.events())
    ledger.shown()
    verbs = [
        "check",
        "plan",
        "prepare",
        "train",
        "tune",
        "sample",
        "export",
        "evaluate",
        "compare",
        "verify",
        "audit",
        "report",
    ]
    right = [[], ["--version"], ["ledger", "--ledger", none], ["ledger", "--ledger", book]]
    right += [["ledger", "show", name, "--ledger", book] for name in ("photos", "scans")]
    right += [["ledger", verb, "--ledger", book] for verb in ("export", "verify")]
    right += [[*verb, "--help"] for verb in [*([verb] for verb in verbs), ["ledger"], ["ledger", "show"]]]
    wrong = [
        *([verb, "nowhere", "--epsilon", "1"] for verb in ("plan", "train")),
        ["prepare", "nowhere", "-o", "out"],
        ["tune", "nowhere", "--run", "r", "--try", "seed=1,2", "--score-noise", "50"],
        ["sample", "nowhere", "-n", "3", "-o", "x.npz"],
        ["export", "nowhere", "-o", "out"],
        ["evaluate", "nowhere", "--reference", "digits:test"],
        ["evaluate", "digits", "--reference", "nowhere"],
        ["compare", "digits", "nowhere", "--reference", "digits:test"],
        *([verb, "nowhere"] for verb in ("check", "verify", "audit", "report")),
        ["ledger", "show", "photo", "--ledger", book],
        ["ledger", "show", "photos", "--ledger", none],
        ["ledger", "settle", "nowhere", "--ledger", book],
        ["ledger", "register", "nowhere", "--epsilon", "1", "--ledger", book],
    ]
    codes = {" ".join(line): 0 for line in right} | {" ".join(line): 2 for line in wrong}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT % ([*right, *wrong], codes)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout.split("dpdm 0.")[0]


def test_a_non_private_run_says_so_everywhere(dpdm, photos, tmp_path):
    settings = [setting for setting in SMALL if "epsilon" not in setting and "delta" not in setting]
    code, out, err = dpdm("train", photos, "--run", "r", *settings, "--set=privacy.kind=non-private")
    assert code == 0, err
    assert "NOT PRIVATE" in out
    assert "NOT PRIVATE" in err
    privacy = json.loads((tmp_path / "r" / "release" / "privacy.json").read_text())
    assert privacy["private"] is False
    assert privacy["epsilon"] is None


@pytest.mark.parametrize(
    ("left", "goes_on"), [((), True), ((".config.toml.partial",), True), (("journal.jsonl",), False)]
)
def test_a_run_that_was_killed_before_its_settings_were_there_goes_on(dpdm, photos, tmp_path, left, goes_on):
    """Nothing is spent then. Where there is more than the beginnings of settings, it may be."""
    (tmp_path / "alone" / "private").mkdir(parents=True)
    for name in left:
        (tmp_path / "alone" / "private" / name).write_text("half")
    alone = ("--set=data.size=8", "--method=prior", "--set=privacy.delta=1e-3", "--epsilon", 2, "--run", "alone")
    code, _, err = dpdm("train", photos, *alone)
    assert (code == 0) == goes_on, err
    assert goes_on or "holds no run that can go on" in err.splitlines()[-1]
    assert (tmp_path / "alone" / "release").exists() == goes_on


def test_a_prior_alone_from_plan_to_images(dpdm, photos, tmp_path):
    alone = ("--set=data.size=8", "--method=prior", "--set=privacy.delta=1e-3", "--epsilon", 2)
    code, out, _ = dpdm("plan", photos, *alone)
    assert code == 0
    assert "sums        7; noise" in out
    assert "no network is trained" in out
    code, out, err = dpdm("train", photos, *alone, "--run", "alone")
    assert code == 0, err
    assert "7 Gaussian releases, PLD" in out
    written = tomllib.loads((tmp_path / "alone" / "release" / "config.toml").read_text())
    assert (written["method"], {*written}) == ("prior", {"method", "seed", "facts", "plan", "prior"})
    claim = json.loads((tmp_path / "alone" / "release" / "privacy.json").read_text())
    assert [event["type"] for event in claim["events"]] == 7 * ["GaussianRelease"]
    assert 1.9 < claim["epsilon"] <= 2
    before = files(tmp_path / "alone")
    assert dpdm("train", photos, *alone, "--run", "alone")[0] == 0
    assert files(tmp_path / "alone") == before
    assert dpdm("sample", tmp_path / "alone", "-n", 20, "-o", "alone.npz")[0] == 0
    with np.load(tmp_path / "alone.npz") as made:
        assert made["images"].shape == (20, 8, 8, 3)
    code, _, err = dpdm("train", photos, *alone, "--run", "timed", "--minutes", 1)
    assert code == 2
    assert "leave out --minutes" in err


@pytest.mark.proof
def test_minutes_choose_steps_and_batch_of_a_method_without_noisy_copies(dpdm, photos, tmp_path):
    quick = ("--set=data.size=8", "--set=privacy.delta=1e-13", "--epsilon", 2, "--set=machine.precision=float32")
    line = (photos, "--method=flow", *quick, "--set=width=16", "--set=encoder_width=4")
    code, out, err = dpdm("plan", *line, "--minutes=0.1")
    assert code == 0, err
    (time,) = [said for said in out.splitlines() if said.startswith("time")]
    assert time.endswith("here, measured on random images")
    assert "noise_multiplicity" not in out
    assert "noisy cop" not in out
    code, _, err = dpdm("train", *line, "--run", "timed", "--minutes=0.1")
    assert code == 0, err
    (begun,) = [said for said in err.splitlines() if "minutes here:" in said]
    assert re.search(r"0\.1 minutes here: [\d,]+ steps? of [\d,]+ images?s?$", begun)
    code, _, err = dpdm("train", *line, "--run", "timed", "--minutes=3")
    assert code == 0, err
    assert f"begun with: {begun.split(': ', 1)[1].removeprefix('for 0.1 minutes here: ')}" in err


def test_a_runs_own_file_can_be_trained_again(dpdm, photos, tmp_path):
    alone = ("--set=data.size=8", "--method=prior", "--set=privacy.delta=1e-13", "--epsilon", 2)
    code, out, err = dpdm("train", photos, *alone, "--run", "first", "--set=seed=7")
    assert code == 0, err
    written = tmp_path / "first" / "private" / "config.toml"
    assert load_config(str(written)) == load_config(str(photos), method="prior", overrides=[
        "data.size=8", "privacy.delta=1e-13", "privacy.epsilon=2", "seed=7",
    ])  # fmt: skip
    code, again, err = dpdm("train", written, "--run", "second")
    assert code == 0, err
    assert again.splitlines()[0] == out.splitlines()[0]
    first, second = (tmp_path / run / "release" / "config.toml" for run in ("first", "second"))
    assert first.read_text() == second.read_text()
    code, _, err = dpdm("train", written, "--run", "first")  # the folder has the same run, which is finished
    assert code == 0, err


@pytest.mark.proof
def test_another_preconditioning_leaves_the_prior_out(dpdm, photos, tmp_path):
    code, out, err = dpdm("train", photos, *SMALL, "--run", "v", "--set=preconditioning.kind=v")
    assert code == 0, err
    assert "Gaussian releases" not in out
    code, _, err = dpdm("plan", photos, *SMALL, "--set=preconditioning.kind=v", "--set=prior.centres=3")
    assert code == 2
    assert "prior is for moment-matched preconditioning" in err


@pytest.mark.proof
def test_evaluate_gives_a_frechet_distance_on_as_many_images_of_each(dpdm, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("made.npz", 120), ("real.npz", 90)):
        images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        save_npz(tmp_path / name, images, np.arange(count) % 2, num_classes=2)
    line = ("evaluate", tmp_path / "made.npz", "--reference", tmp_path / "real.npz", "--quick")
    code, out, err = dpdm(*line, "--features", "efficientnet-lite0", "--json")
    assert code == 0, err
    found = json.loads(out)["fidelity"]
    assert found["num_images"] == 90
    assert found["frechet"]["value"] > 0
    assert {"kernel", "precision", "recall", "density", "coverage", "digest"} <= found.keys()
    code, _, err = dpdm(*line, "--features", "classifier")
    assert (code, err.count("\n")) == (2, 1)
    assert "--baseline" in err
    images = rng.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    save_npz(tmp_path / "beside.npz", images, np.arange(100) % 2, num_classes=2)
    code, out, err = dpdm(*line, "--features", "classifier", "--baseline", tmp_path / "beside.npz", "--json")
    assert code == 0, err
    report = json.loads(out)
    for found in (report["fidelity"], report["baseline"]["fidelity"]):
        assert found["num_images"] == 90
        assert 1 <= found["inception"]["value"] <= 2


class Inception(torch.nn.Module):
    """In the form of the file of published scores: it resizes to 299 pixels itself, and has features on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 9, stride=29)

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.nn.functional.interpolate(images.float(), size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layer((x - 128) / 128).relu().mean((2, 3))
        return features if return_features else features.softmax(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.proof
def test_the_features_of_a_torchscript_file_reach_the_report_with_its_digest(dpdm, trained, tmp_path):
    torch.jit.script(Inception()).save(tmp_path / "inception.pt")
    facts = Release.load(trained).facts
    images = np.random.default_rng(0).integers(0, 256, (80, *facts.shape[1:], facts.shape[0]), dtype=np.uint8)
    save_npz(tmp_path / "real.npz", images, np.arange(80) % facts.num_classes, num_classes=facts.num_classes)
    assert dpdm("sample", trained, "-n", 60, "-o", "made.npz")[0] == 0
    line = ("evaluate", "made.npz", "--reference", "real.npz", "--quick", "--features", "inception.pt")
    code, out, err = dpdm(*line, "--json")
    assert code == 0, err
    found = json.loads(out)["fidelity"]
    digest = hashlib.sha256((tmp_path / "inception.pt").read_bytes()).hexdigest()
    assert found["features"] == "inception.pt"
    assert found["digest"] == f"file sha256:{digest}, colour"
    assert found["frechet"]["value"] > 0
    (tmp_path / "scores.json").write_text(out)
    assert dpdm("report", trained, "--scores", "scores.json", "-o", "page.html")[0] == 0
    assert digest in (tmp_path / "page.html").read_text()


@pytest.fixture
def no_work(trained, monkeypatch):
    """From now on, fail if a classifier is trained or an image is drawn."""

    def never(*arguments, **named):
        raise AssertionError("work was begun that would be lost")

    monkeypatch.setattr(scorecard, "evaluate_utility", never)
    monkeypatch.setattr(Release, "sample_in_parts", never)


@pytest.mark.usefixtures("no_work")
def test_what_would_stop_an_evaluation_late_stops_it_before_the_work(dpdm, trained, tmp_path, monkeypatch):
    facts = Release.load(trained).facts
    images = np.random.default_rng(0).integers(0, 256, (90, *facts.shape[1:], facts.shape[0]), dtype=np.uint8)
    for name, first, count in (("few", 0, 20), ("real", 20, 60)):
        labels = np.arange(count) % facts.num_classes
        save_npz(tmp_path / f"{name}.npz", images[first : first + count], labels, num_classes=facts.num_classes)
    save_npz(tmp_path / "one.npz", images[80:], np.zeros(10, np.int64), num_classes=facts.num_classes)

    def refused(*line):
        code, _, err = dpdm(*line, "--reference", "real.npz", "--quick")
        assert (code, err.count("\n")) == (2, 1), err
        return err

    few = "at least 50 images of each side, not 20 synthetic and 60 reference"
    assert few in refused("evaluate", "few.npz", "--features", "pixels")
    assert few in refused("compare", trained, "few.npz", "--features", "pixels")
    assert "not 30 synthetic" in refused("compare", trained, "-n", 30, "--features", "pixels")
    assert "absent.pt cannot be read" in refused("compare", trained, "--features", "absent.pt")
    assert "all synthetic images are of class 0" in refused("evaluate", "few.npz", "--baseline", "one.npz")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    assert "pip install 'dpdm[fidelity]'" in refused("compare", trained, "--features", "pixels")


@pytest.mark.proof
def test_a_frechet_distance_does_not_depend_on_the_order_of_a_sorted_folder(dpdm, tmp_path):
    rng = np.random.default_rng(0)
    shades = np.repeat([40, 200], 100)  # class by class, as folders come
    images = (shades[:, None, None, None] + rng.integers(-30, 30, (200, 8, 8, 1))).astype(np.uint8)
    save_npz(tmp_path / "real.npz", images, np.repeat([0, 1], 100), num_classes=2)
    few = np.r_[0:50, 100:150]
    save_npz(tmp_path / "made.npz", images[few] + 1, np.repeat([0, 1], 50), num_classes=2)
    line = ("evaluate", tmp_path / "made.npz", "--reference", tmp_path / "real.npz", "--quick", "--json")
    mixed = json.loads(dpdm(*line, "--features", "efficientnet-lite0")[1])["fidelity"]["frechet"]["value"]
    save_npz(tmp_path / "dark.npz", images[:100], np.arange(100) % 2, num_classes=2)
    line = ("evaluate", tmp_path / "made.npz", "--reference", tmp_path / "dark.npz", "--quick", "--json")
    dark = json.loads(dpdm(*line, "--features", "efficientnet-lite0")[1])["fidelity"]["frechet"]["value"]
    assert mixed < dark / 2


def test_a_run_is_no_image(dpdm, trained):
    code, _, err = dpdm("evaluate", trained, "--reference", "digits:test", "--quick")
    assert (code, err.count("\n")) == (2, 1)
    assert "make images first, dpdm sample" in err
    assert repr(Release.load(trained)).startswith("Release('(")


def test_the_same_images_on_both_sides_are_refused(dpdm, trained, tmp_path):
    rng = np.random.default_rng(0)
    save_npz(tmp_path / "a.npz", rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), np.arange(60) % 3, num_classes=3)
    code, _, err = dpdm("evaluate", "a.npz", "--reference", "a.npz", "--quick")
    assert (code, err.count("\n")) == (2, 1)
    assert "the same images are on both sides" in err
    code, _, err = dpdm("compare", trained, "a.npz", "--reference", "a.npz", "--quick", "-n", "60")
    assert code == 2
    assert "the same images are on both sides" in err


@pytest.mark.proof
def test_runs_and_anyones_images_are_judged_side_by_side(dpdm, trained, photos, tmp_path):
    facts = Release.load(trained).facts
    names = list(facts.class_names)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 8, 8, facts.shape[0]), dtype=np.uint8)
    save_npz(tmp_path / "rival.npz", images, np.arange(90) % len(names), num_classes=len(names))
    save_npz(tmp_path / "real.npz", images[::-1] // 2, np.arange(90) % len(names), num_classes=len(names))
    line = ("compare", trained, "rival.npz", "--reference", "real.npz", "--quick", "-n", "60", "--features", "pixels")
    code, out, err = dpdm(*line, "--json")
    assert code == 0, err
    report = json.loads(out)
    ours, rival = report["rows"]
    assert ours["claim"] == Release.load(trained).statement
    assert rival["claim"] is None
    assert ours["fidelity"]["num_images"] == rival["fidelity"]["num_images"] == 60
    assert report["covered_by_epsilon"] is False
    code, out, err = dpdm(*line)
    assert code == 0, err
    heading, first, second, *_ = out.splitlines()
    assert heading.split()[:5] == ["LogReg", "MLP", "CNN", "ResNet", "frechet"]
    assert first.startswith(str(trained))
    assert "none stated" in second


@pytest.mark.slow
def test_dp_sgd_on_the_real_images_stands_beside(dpdm, tmp_path, monkeypatch):
    from dpdm.methods import Embedding
    from dpdm.runs import classifier_starts, private_classifier

    defaults = private_classifier.train_private_classifier.__kwdefaults__
    monkeypatch.setitem(defaults, "steps", 100)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    save_npz(tmp_path / "s.npz", images, np.arange(60) % 10, num_classes=10)
    line = ("evaluate", "s.npz", "--reference", "digits:test", "--quick", "--json", "--dp-sgd", "20")
    code, _, err = dpdm(*line)
    assert code == 2
    assert "--baseline" in err
    code, out, err = dpdm(*line, "--baseline", "digits")
    assert code == 0, err
    found = json.loads(out)["dp_sgd"]
    assert found["accuracy"] > 0.7  # guessing has 0.1
    assert (found["epsilon"], found["start"]) == (20, "none")
    code, _, err = dpdm(*line[:-1], "-1", "--baseline", "digits")
    assert (code, err.count("\n")) == (2, 1)
    monkeypatch.setattr(classifier_starts, "_SHAPES", 60)
    monkeypatch.setattr(classifier_starts, "_FEATURES", Embedding(features="random-convnet", size=8))
    text = [part for part in line if part != "--json"]
    code, out, err = dpdm(*text, "--baseline", "digits", "--dp-sgd-start", "features")
    assert code == 0, err
    assert "balanced" in out
    assert ": a linear classifier of public features on digits itself, (" in out
    assert "it does not protect what was declared public: 'shapes' (60 images" in out
    for wrong, says in (("fonts", "must be one of none, procedural, features"), (None, "give both")):
        start = ["--dp-sgd-start", wrong or "none"]
        code, _, err = dpdm(*(text if wrong else text[:-2]), "--baseline", "digits", *start)
        assert (code, err.count("\n"), says in err) == (2, 1, True)


def test_a_disk_that_is_full_after_a_noisy_sum_says_that_it_is_lost(dpdm, photos, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PrivateFolder, "keep_sum", full)
        code, _, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert code == 1
    assert "'mean of all': this sum was released and could not be saved; mend this, and start a new run" in err
    code, _, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert code == 2
    assert "a crash spent 'mean of all' before it was saved" in err


@pytest.mark.proof
def test_prepared_images_train_as_their_source_does(dpdm, photos, tmp_path):
    framed = ["--set", "data.size=8", "--set", "data.channels=1"]
    code, out, err = dpdm("prepare", photos, *framed, "-o", "ready")
    assert code == 0, err
    assert "30 images in ready" in out
    code, out, err = dpdm("train", "ready", *SMALL, "--epsilon", 1, "--dataset-size", 30, "--run", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["epsilon"] <= 1
    code, _, err = dpdm("prepare", photos, *framed, "-o", "ready")
    assert (code, err.count("\n")) == (2, 1)
    assert "prepared already" in err
    code, _, err = dpdm("prepare", photos, "--set", "privacy.epsilon=1", "-o", "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "prepare takes data.… only" in err
    next(iter(sorted(photos.rglob("*.png")))).write_bytes(b"no image")
    code, _, err = dpdm("prepare", photos, *framed, "-o", "other")
    assert code == 2
    assert "1 of the records cannot be used" in err.splitlines()[-1]
    code, out, err = dpdm("prepare", photos, *framed, "-o", "other", "--leave-out", "--json")
    assert code == 0, err
    assert json.loads(out)["num_images"] == 29


@pytest.mark.proof
def test_equal_records_are_told_to_the_owner_alone(dpdm, photos, tmp_path):
    first, second = sorted(photos.rglob("*.png"))[:2]
    shutil.copy(first, second)
    code, out, err = dpdm("train", photos, *SMALL, "--epsilon", 1, "--dataset-size", 40, "--run", "run")
    assert code == 0, err
    told = json.loads((tmp_path / "run" / "private" / "duplicates.json").read_text())
    assert told == {"equal_records": [[0, 1]], "blank_records": []}
    assert "equal" not in out + err
    assert not list((tmp_path / "run" / "release").rglob("duplicates*"))


def test_a_plan_says_where_a_method_needs_more_memory_than_there_is(dpdm, monkeypatch):
    line = ("plan", "mnist-cpu", "--method", "mean-embedding", "--epsilon", 1)
    assert "train refuses it on this machine" not in dpdm(*line)[1]
    monkeypatch.setattr("dpdm.runs.memory.memory_there", lambda device: 2**28)
    code, out, err = dpdm(*line)
    assert code == 0, err
    assert "more than the 0.2 GiB here: train refuses it on this machine" in out
