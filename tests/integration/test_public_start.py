"""A public start from the command line: made, trained with, claimed, checked, audited."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
import tomli_w
from safetensors import safe_open
from safetensors.torch import save_file
from test_processes import TORCHRUN

from dpdm.data import open_dataset

LIKE = ("--set=data.size=8", "--set=data.channels=3", "--set=data.num_classes=3", "--set=prior.centres=1")
TOY = ("--set=network.width=16", "--set=machine.precision=float32")
MADE = ("--minutes", "0.02", "-o", "start", *LIKE, *TOY)
TRAINED = ("--epsilon=4", "--start=start", "--run=run", "--set=privacy.delta=1e-3", "--set=data.size=8", *TOY)
NO_STEPS = ("--set=privacy.steps=0", "--set=prior.centres=1", "--set=sampler.steps=2")


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr("dpdm.data.public.COUNT", 100)
    monkeypatch.setattr("dpdm.runs.pretraining._BATCH", 16)


@pytest.fixture
def started(dpdm, photos):
    code, out, err = dpdm("pretrain", "shapes", "--like", photos, *MADE)
    assert code == 0, err
    assert "done: start, made with shapes (100 images), which no claim protects" in out
    assert f"next: dpdm train {photos} --start start --epsilon ... --set data.size=8 --set data.channels=3" in out
    assert "before: dpdm plan, with the same options, says whether private steps pay" in out
    return out, err


@pytest.fixture
def run(dpdm, photos, started):
    code, out, err = dpdm("train", photos, *TRAINED, *NO_STEPS)
    assert code == 0, err
    return out


def test_a_start_is_made_trained_with_and_named_wherever_the_claim_is(dpdm, run, tmp_path):
    said = "it does not protect what was declared public: 'shapes' (100 images, SHA-256 "
    assert said in run
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "shapes", 100 images, SHA-256' in out
    assert dpdm("sample", "run", "-n", 6, "-o", "made.npz")[0] == 0
    with np.load(tmp_path / "made.npz") as made:
        assert said in str(made["claim"])
    code, out, err = dpdm("pretrain", "made.npz", "--like", "digits", "-o", "another")
    assert (code, err.count("\n")) == (2, 1), "images of a release would launder its claim"
    assert "drawn from a private release" in err


def test_a_report_says_the_method_what_was_public_and_how_far_it_was_followed(dpdm, run, tmp_path):
    code, _, err = dpdm("report", "run")
    assert code == 0, err
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert facts["method"] == "diffusion"
    (part,) = facts["public"]
    assert (part["name"], part["images"]) == ("shapes", 100)
    gains = facts["learnt"]["gains"]
    assert [each["sigma"] for each in gains][::11] == [0.03, 12.0]
    assert all(0 <= each["gain"] <= 1 for each in gains)
    page = (tmp_path / "run" / "report.html").read_text()
    assert part["sha256"][:16] in page
    assert "How far the public network is followed" in page


def test_a_claim_names_each_source_of_a_start(dpdm, photos, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "shown.npz", images=rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8))
    assert dpdm("pretrain", "shapes+shown.npz", "--like", photos, *MADE)[0] == 0
    assert dpdm("train", photos, *TRAINED, *NO_STEPS)[0] == 0
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert 'public   "shapes+shown.npz", 170 images, SHA-256' in out
    (part,) = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())["public"]
    for name, number, source in zip(("shapes", "shown.npz"), (100, 70), part["sources"], strict=True):
        assert f'made of "{name}", {number} images, SHA-256 {source["sha256"]}' in out
    assert dpdm("report", "run")[0] == 0
    assert part["sources"][1]["sha256"][:16] in (tmp_path / "run" / "report.html").read_text()


def test_minutes_take_no_step_that_cannot_pay_after_a_start(dpdm, photos, started, tmp_path):
    timed = (*TRAINED[:2], *TRAINED[3:], "--set=prior.centres=1", "--set=sampler.steps=2", "--minutes=0.2")
    code, out, err = dpdm("plan", photos, *timed)
    assert code == 0, err
    assert re.search(r"steps       [\d,]+ steps? would not pay: z√P/E = \S+ is above 0.5", out)
    assert "exactly this: --set privacy.steps=0 (train" in out
    for said in ("for 0.2 minutes here: no private steps", "begun with: no private steps"):
        code, _, err = dpdm("train", photos, *timed, "--run=run")
        assert code == 0, err
        assert said in err
    settings = tomllib.loads((tmp_path / "run" / "private" / "config.toml").read_text())
    assert all(release["kind"] == "full" for release in settings["plan"]["releases"])
    code, _, err = dpdm("train", photos, *timed, "--run=run", "--set=privacy.steps=0", "--rehearse")
    assert code == 2, "nobody asks for steps"
    code, _, err = dpdm("train", photos, *timed, "--run=rehearsed", "--rehearse")
    assert code == 0, err
    assert "no steps, so there is nothing to rehearse" in err


def test_minutes_go_on_with_no_run_of_another_method(dpdm, photos):
    alone = ("--epsilon=4", "--run=run", "--set=privacy.delta=1e-3", "--set=data.size=8", "--set=prior.centres=1")
    assert dpdm("train", photos, *alone, "--method=prior")[0] == 0
    code, _, err = dpdm("train", photos, *alone, "--minutes=0.2")
    assert code == 2
    assert "trains no network" in err.splitlines()[-1]


def test_a_start_that_names_other_sources_than_it_knows_is_damaged(dpdm, photos, tmp_path):
    np.savez(tmp_path / "shown.npz", images=np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8))
    assert dpdm("pretrain", "shapes+shown.npz", "--like", photos, *MADE)[0] == 0
    file = tmp_path / "start" / "start.toml"
    whole = tomllib.loads(file.read_text())
    (part,) = whole["public"]
    one, two = part["sources"]
    for sources in ([], [one], [two, one], [one | {"images": 99}, two]):
        file.write_bytes(tomli_w.dumps(whole | {"public": [part | {"sources": sources}]}).encode())
        code, _, err = dpdm("train", photos, *TRAINED, *NO_STEPS)
        assert (code, err.count("\n")) == (2, 1), err
        assert "start.toml" in err


def test_the_same_command_goes_on_and_another_start_does_not(dpdm, photos, run):
    code, _, err = dpdm("train", photos, *TRAINED, *NO_STEPS)
    assert code == 0, err
    code, _, err = dpdm("pretrain", "shapes", "--like", photos, *MADE[:2], "-o", "other", *MADE[4:], "--set=seed=1")
    assert code == 0, err
    code, _, err = dpdm("train", photos, *TRAINED, *NO_STEPS, "--start=other")
    assert (code, err.count("\n")) == (2, 1)
    assert "run holds another run" in err


SEARCHED = ("--run=best", "--try=optimizer.learning_rate=1e-3,3e-3", "--epsilon=4", "--score-noise=20", "--start=start")
STEPS = ("--set=privacy.steps=2", "--set=privacy.delta=1e-3", "--set=prior.centres=1", "--set=sampler.steps=2", *TOY)


def test_a_search_begins_with_a_start_and_lists_what_it_blanks(dpdm, photos, started, tmp_path, monkeypatch):
    monkeypatch.setattr("dpdm.runs.tuning.NUM_IMAGES", 60)
    monkeypatch.setattr("dpdm.privacy.search.Search.draw_num_runs", lambda self, source: 1)
    code, out, err = dpdm("tune", photos, *SEARCHED, *STEPS, "--set=data.size=8")
    assert code == 0, err
    assert "it does not protect what was declared public: 'shapes' (100 images" in out
    assert json.loads((tmp_path / "best" / "private" / "blanked.json").read_text()) == {"records": []}
    assert dpdm("verify", "best")[0] == 0


def test_a_search_with_a_start_for_another_network_is_refused_before_its_price(dpdm, photos, started, tmp_path):
    before = dpdm("ledger", "--json")[1]
    code, _, err = dpdm("tune", photos, *SEARCHED, *STEPS, "--set=data.size=8", "--set=network.width=32")
    assert code == 2
    assert "is for another network or other images" in err.splitlines()[-1]
    assert not (tmp_path / "best" / "private").exists()
    assert dpdm("ledger", "--json")[1] == before


def test_no_ledger_is_made_for_a_start(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "none.sqlite"))
    code, _, err = dpdm("pretrain", "shapes", "--like", photos, *MADE)
    assert code == 0, err
    assert not (tmp_path / "none.sqlite").exists()


def test_like_opens_no_private_image(dpdm, photos, monkeypatch):
    """Damaged, added or unreadable images change nothing."""
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        path.write_bytes(b"no image") if number % 2 else path.unlink()
    code, out, err = dpdm("pretrain", "shapes", "--like", photos, *MADE)
    assert code == 0, err
    assert str(photos) in out


def test_what_is_not_declared_is_asked_for_in_one_line(dpdm, photos, tmp_path):
    code, _, err = dpdm("pretrain", "shapes", "--like", photos, "--set=data.size=8", "-o", "start")
    assert (code, err.count("\n")) == (2, 1)
    assert "declare data.channels, data.num_classes, such as --set data.channels=3 --set data.num_classes=10" in err
    assert "`dpdm check" in err
    assert not (tmp_path / "start").exists()


def test_facts_that_were_registered_need_not_be_declared_again(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    code, _, err = dpdm("ledger", "register", photos, "--epsilon=1", "--delta=1e-3", "--set=data.size=8")
    assert code == 0, err
    code, out, err = dpdm("ledger", "show", "photos")
    assert code == 0, err
    assert "images of 8 × 8 pixels and 3 channels; classes: " in out
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    code, _, err = dpdm("pretrain", "shapes", "--like", photos, *MADE[:4], *TOY, "--set=prior.centres=1")
    assert code == 0, err
    table = tomllib.loads((tmp_path / "start" / "start.toml").read_text())
    assert table["facts"]["shape"] == [3, 8, 8]
    assert len(table["facts"]["class_names"]) == 3
    assert dpdm("ledger", "verify")[0] == 0


def test_a_plan_says_what_it_starts_with(dpdm, photos, started):
    code, out, err = dpdm("plan", photos, *[option for option in TRAINED if "run" not in option], *NO_STEPS)
    assert code == 0, err
    assert "start       a network of 100 images of shapes, that no ε protects" in out


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--set=network.width=32",), "is for another network or other images"),
        (("--set=data.channels=1",), "is for images of 3 × 8 × 8"),
    ],
)
def test_a_plan_refuses_a_start_that_training_would_refuse(dpdm, photos, started, settings, says):
    options = [option for option in TRAINED if "run" not in option]
    code, _, err = dpdm("plan", photos, *options, *NO_STEPS, *settings)
    assert code == 2, "a plan that train refuses"
    assert says in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "--like", "digits", "-o", "start"), "nowhere is neither a path"),
        (("shapes", "--like", "nothing", "-o", "start"), "'nothing' is no preset"),
        (("shapes", "--like", "digits", "--set=method=prior", "-o", "start"), "prior"),
        (("shapes", "--like", "digits", "--minutes", "0", "-o", "start"), "minutes must be"),
        (("shapes", "--like", "photos", *LIKE, "-o", "photos/start"), "lies in"),
    ],
)
def test_what_no_start_can_be_made_of_is_one_line(dpdm, photos, tmp_path, arguments, says):
    code, _, err = dpdm("pretrain", *arguments)
    assert code == 2
    assert says in err.splitlines()[-1]
    assert not (tmp_path / "start").exists()
    assert not (photos / "start").exists()


def test_images_with_a_total_make_no_start_and_begin_no_run(dpdm, photos, tmp_path, monkeypatch):
    drawn = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "shapes.npz", images=drawn, labels=np.arange(40) % 3)
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    code, _, err = dpdm("ledger", "register", photos, "--epsilon=1", "--delta=1e-3", "--set=data.size=8")
    assert code == 0, err
    monkeypatch.setattr("dpdm.runs.public_training._FEWEST", 1)
    code, _, err = dpdm("pretrain", photos, "--like", photos, *MADE)
    assert code == 2
    assert "names the images that are to be protected" in err.splitlines()[-1]
    (tmp_path / "own.toml").write_text('[data]\nsource = "elsewhere"\n')
    made = ("pretrain", photos, "--like", "own.toml", "--minutes=0.02", *LIKE, *TOY)
    code, _, err = dpdm(*made, "-o", "second")
    assert code == 2
    assert "which has a total: they are private" in err.splitlines()[-1]
    assert not (tmp_path / "second").exists()
    code, _, err = dpdm(*made, "-o", "start", "--ledger=none")
    assert code == 0, "without a ledger nobody knows"
    code, _, err = dpdm("train", "shapes.npz", *TRAINED, *NO_STEPS, "--set=data.num_classes=3")
    assert code == 2
    assert "registered as photos, which has a total: they are private" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_none_leaves_a_start_out_and_one_that_is_not_there_is_refused(dpdm, photos, started, tmp_path):
    (tmp_path / "own.toml").write_text(f'[data]\nsource = "{photos}"\nsize = 8\n[start]\nsources = ["gone"]\n')
    few = ("--epsilon=4", "--run=run", "--set=privacy.delta=1e-3", *TOY, *NO_STEPS)
    code, _, err = dpdm("train", "own.toml", *few)
    assert (code, err.splitlines()[-1].startswith("dpdm: gone holds no start")) == (2, True)
    code, _, err = dpdm("train", "own.toml", *few, "--start=none")
    assert code == 2
    assert "privacy.steps = 0 trains no network" in err


def test_a_run_that_began_with_a_start_is_audited(dpdm, run, tmp_path):
    code, _, err = dpdm("audit", "run", "--minutes", 1)
    assert code == 0, err
    (tmp_path / "start").rename(tmp_path / "moved")
    code, _, err = dpdm("audit", "run", "--minutes", 1)
    assert code == 2
    assert "holds no start" in err


@pytest.mark.proof
def test_killed_anywhere_a_start_goes_on(photos, tmp_path):
    command = [sys.executable, "-m", "dpdm", "pretrain", "shapes", "--like", str(photos), *MADE]
    command[command.index("0.02")] = "0.2"
    folder = tmp_path / "start"
    for seconds in (0.0, 3.0):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "making").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "start.toml").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["start.toml", "weights.safetensors"]
    assert tomllib.loads((folder / "start.toml").read_text())["updates"] > 0


@pytest.mark.proof
def test_two_processes_make_one_start_by_the_verb(photos, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "dpdm", "pretrain", "shapes", "--like", str(photos), *MADE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: start, made with shapes") == 1
    assert tomllib.loads((tmp_path / "start" / "start.toml").read_text())["updates"] > 0


@pytest.mark.proof
def test_a_signal_saves_a_start_in_the_making_which_goes_on_when_it_is_killed_too(photos, tmp_path):
    command = [sys.executable, "-m", "dpdm", "pretrain", "shapes", "--like", str(photos), *MADE]
    command[command.index("0.02")] = "0.2"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "start" / "making" / "config.toml").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert re.search(r"stopped at update \d+; the same command goes on from here", err)
    checkpoint = tmp_path / "start" / "making" / "checkpoint.safetensors"
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    save_file(tensors, checkpoint, {"updates": "10000"})  # so many that none but a run that goes on has them
    killed = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2.0)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "start" / "start.toml").read_text())["updates"] > 10_000


def test_json_says_what_was_made(dpdm, photos):
    code, out, err = dpdm("pretrain", "shapes", "--like", photos, *MADE, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["output"] == "start"
    assert said["public"]["images"] == 100
    assert said["classes"] == []


def test_public_images_are_framed_as_private_ones(dpdm, photos, tmp_path):
    """Larger, grey images in a folder, for small ones in colour."""
    np.savez(tmp_path / "grey.npz", images=np.random.default_rng(0).integers(0, 256, (80, 20, 24), np.uint8))
    code, _, err = dpdm("pretrain", "grey.npz", "--like", photos, *MADE)
    assert code == 0, err
    assert open_dataset(tmp_path / "grey.npz").shape == (1, 20, 24)


DRAWN = ("pretrain", "run", "--like", "photos", *MADE[:2], "-o", "again", *LIKE, *TOY)
SECOND = ("--start=again", "--run=second", "--set=privacy.delta=1e-3", "--set=data.size=8", *TOY, *NO_STEPS)


@pytest.fixture
def drawn_from_a_run(dpdm, photos, run, monkeypatch):
    monkeypatch.setattr("dpdm.runs.drawn.COUNT", 90)
    code, out, err = dpdm(*DRAWN)
    assert code == 0, err
    assert "done: again, made with drawn from photos (90 images), whose release every claim counts again" in out


def claim_of(run):
    return json.loads((run / "release" / "privacy.json").read_text())


def test_a_run_that_begins_with_images_of_a_release_counts_it_again(dpdm, photos, drawn_from_a_run, tmp_path):
    code, out, err = dpdm("train", photos, "--epsilon=6", "--ledger=none", *SECOND)
    assert code == 0, err
    first, second = claim_of(tmp_path / "run"), claim_of(tmp_path / "second")
    noise = [event["noise_multiplier"] for event in first["events"]]
    assert [event["noise_multiplier"] for event in second["events"][: len(noise)]] == noise
    assert len(second["events"]) > len(noise)
    assert 5.9 < second["epsilon"] <= 6.0, "all of it, and no more"
    assert f"earlier releases of 'photos' (noisy sums: {len(noise)})" in second["statement"]
    assert "a release, which it counts: 'drawn from photos' (90 images, SHA-256 " in out
    assert "declared public" not in second["statement"], "nobody declared these images public"
    code, out, err = dpdm("verify", "second")
    assert code == 0, err
    assert 'drawn    "drawn from photos", 90 images, SHA-256' in out


def test_a_budget_that_the_earlier_release_has_used_up_is_refused(dpdm, photos, drawn_from_a_run, tmp_path):
    code, _, err = dpdm("train", photos, "--epsilon=3", "--ledger=none", *SECOND)
    assert code == 2
    assert "cannot be reached by any amount of noise" in err.splitlines()[-1]
    assert not (tmp_path / "second").exists()


def test_what_was_drawn_from_a_release_is_counted_through_any_number_of_runs(dpdm, photos, drawn_from_a_run, tmp_path):
    assert dpdm("train", photos, "--epsilon=6", "--ledger=none", *SECOND)[0] == 0
    code, _, err = dpdm("pretrain", "second", *DRAWN[2:6], "-o", "third", *LIKE, *TOY)
    assert code == 0, err
    table = tomllib.loads((tmp_path / "third" / "start.toml").read_text())
    assert len(table["earlier"]) == len(claim_of(tmp_path / "second")["events"])
    (part,), (shapes,) = table["public"], claim_of(tmp_path / "run")["public"]
    assert [(each["name"], each["sha256"]) for each in part["sources"]] == [(shapes["name"], shapes["sha256"])]


def test_a_claim_names_what_the_releases_before_it_do_not_protect(dpdm, photos, drawn_from_a_run, tmp_path):
    assert dpdm("train", photos, "--epsilon=6", "--ledger=none", *SECOND)[0] == 0
    (drawn,), (shapes,) = claim_of(tmp_path / "second")["public"], claim_of(tmp_path / "run")["public"]
    assert drawn["sources"] == [shapes]
    said = f"which does not protect 'shapes' (100 images, SHA-256 {shapes['sha256'][:16]}…)"
    assert said in claim_of(tmp_path / "second")["statement"]
    assert f'not protected: "shapes", 100 images, SHA-256 {shapes["sha256"]}' in dpdm("verify", "second")[1]
    assert dpdm("report", "second")[0] == 0
    assert "that release’s own: shapes" in (tmp_path / "second" / "report.html").read_text(encoding="utf-8")
    path = tmp_path / "second" / "release" / "config.toml"
    path.write_text(path.read_text().replace(shapes["sha256"], 64 * "0"))
    assert dpdm("verify", "second")[0] == 2


@pytest.mark.parametrize("edited", ["earlier", "public", "sets"])
def test_a_start_that_was_edited_is_refused(dpdm, photos, drawn_from_a_run, tmp_path, edited):
    path = tmp_path / "again" / "start.toml"
    table = tomllib.loads(path.read_text())
    table[edited] = table[edited][:0] if edited == "sets" else table[edited][:1]
    if edited == "public":
        table["public"][0] |= {"name": "mine", "drawn": False}
        del table["earlier"]
    path.write_text(tomli_w.dumps(table))
    code, _, err = dpdm("train", photos, "--epsilon=6", "--ledger=none", *SECOND)
    assert (code, err.splitlines()[-1].count("was edited")) == (2, 1)
    assert not (tmp_path / "second").exists()


def test_a_release_without_a_sound_claim_draws_nothing(dpdm, photos, run, tmp_path):
    (tmp_path / "run" / "release" / "model.safetensors").write_bytes(b"12")
    code, _, err = dpdm(*DRAWN)
    assert (code, err.splitlines()[-1].count("model.safetensors")) == (2, 1)
    assert not (tmp_path / "again").exists()


def test_images_of_a_release_are_no_public_ones_of_a_claim_that_counts_nothing(dpdm, drawn_from_a_run, tmp_path):
    from dpdm.config import earlier_of
    from dpdm.data import open_dataset
    from dpdm.methods import Diffusion, Prior, Start
    from dpdm.networks import CompactUNet
    from dpdm.runs import Trainer
    from dpdm.types import InputError

    data = open_dataset(tmp_path / "photos", size=8)
    method = Diffusion(network=CompactUNet(width=16), prior=Prior(centres=1), start=Start(sources=("again",)))
    asked = {"epsilon": 6.0, "dataset_size": 30, "delta": 1e-3, "steps": 0, "relation": "replace_special"}
    with pytest.raises(InputError, match="counts other noisy sums than those of that release"):
        Trainer(method=method, plan=method.plan(**asked), ledger=None).rehearse(data)
    plan = method.plan(**asked, earlier=earlier_of(["again"]))
    Trainer(method=method, plan=plan, ledger=None).rehearse(data)


def test_images_of_a_release_are_not_declared_public(dpdm, run, tmp_path):
    """Neither in Python nor by a folder of a run that no file of claims lies in."""
    from dpdm.data.public import open_public
    from dpdm.methods import Diffusion, Evolution, ImageFacts
    from dpdm.runs import Trainer
    from dpdm.runs.drawn import open_drawn
    from dpdm.runs.pretraining import Pretraining
    from dpdm.types import InputError

    drawn = open_drawn("run", count=90)
    facts = ImageFacts(drawn.images.shape, drawn.images.class_names)
    with pytest.raises(InputError, match="come with what it cost"):
        Pretraining(public=drawn.images, facts=facts, method=Diffusion())
    method = Evolution(rounds=1, population=4)
    plan = method.plan(epsilon=1.0, dataset_size=30, delta=1e-3)
    with pytest.raises(InputError, match="was drawn from a release: its images are not public data"):
        Trainer(method=method, plan=plan, public=drawn.images, ledger=None)
    for place in ("run/watch", "run"):
        with pytest.raises(InputError, match="belongs to a private run"):
            open_public(place, shape=drawn.images.shape)
    (picture, *_) = sorted((tmp_path / "run" / "watch").glob("*.png"))
    (tmp_path / "elsewhere").mkdir()
    picture.rename(tmp_path / "elsewhere" / "picture.png")
    with pytest.raises(InputError, match="was drawn from a private release"):
        open_public("elsewhere", shape=drawn.images.shape)


def test_a_run_that_counts_an_earlier_release_is_audited_by_itself(dpdm, photos, drawn_from_a_run, tmp_path):
    assert dpdm("train", photos, "--epsilon=6", "--ledger=none", *SECOND)[0] == 0
    code, _, err = dpdm("audit", "second", "--minutes", "1")
    assert code == 0, err
    found = json.loads((tmp_path / "second" / "private" / "audit" / "audit.json").read_text())
    assert found["audited"]["epsilon"] < found["claimed"]["epsilon"] - 1, "its own sums, not those of the earlier run"
