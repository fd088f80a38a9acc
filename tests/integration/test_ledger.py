"""The ledger as a person meets it: by training, by `dpdm ledger`, and by `dpdm tune`."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SMALL

import dpdm as package
from dpdm.ledger import Ledger, Records
from dpdm.privacy import DPSGD, InsecureSeededEntropy, NonPrivate
from dpdm.privacy.search import Search
from dpdm.runs import Trainer
from dpdm.types import InputError

PRIOR_ALONE = (
    "--set=data.size=8",
    "--set=privacy.epsilon=10",
    "--method=prior",
    "--set=privacy.delta=1e-3",
    "--set=prior.centres=1",
)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A ledger of this test's own, which the command line takes for the user's."""
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    return Ledger(str(tmp_path / "ledger.sqlite"))


def test_the_first_run_is_the_total_and_the_second_one_is_refused(dpdm, photos, book, tmp_path):
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", "first", *PRIOR_ALONE)
    assert code == 0, err
    assert "ledger: photos is new" in err
    account = book.account("photos")
    assert account.relation == "replace_special"
    assert [r.state for r in account.reservations.values()] == ["completed"]
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", "second", *PRIOR_ALONE)
    assert code == 2
    assert "photos has a total of" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "second").exists(), "nothing is half-written, so that the folder is free"
    assert dpdm("ledger", "total", "photos", "--epsilon", 3)[0] == 0
    code, _, err = dpdm("train", photos, "--epsilon", 0.5, "--run", "second", *PRIOR_ALONE)
    assert code == 0, err
    assert dpdm("train", photos, "--epsilon", 0.5, "--run", "second", *PRIOR_ALONE)[0] == 0, "it is finished, and stays"
    assert len(book.account("photos").reservations) == 2
    assert dpdm("train", photos, "--epsilon", 9, "--run", "third", "--ledger", "none", *PRIOR_ALONE)[0] == 0
    assert len(book.account("photos").reservations) == 2


def test_an_interrupted_run_keeps_its_reservation_and_a_settled_one_is_over(dpdm, photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    (reservation,) = book.account("photos").reservations.values()
    assert (reservation.state, reservation.place) == ("running", str(tmp_path / "run"))
    share = book.account("photos").share
    code, out, err = dpdm("ledger", "settle", tmp_path / "run")
    assert code == 0, err
    assert "counts 8 of 13 noisy sums as released" in out
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.events[-1].steps == 1
    assert book.account("photos").share <= share
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert code == 2
    assert "cannot go on" in err


def test_a_run_goes_on_under_its_reservation(dpdm, photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", "--ledger", tmp_path / "other.sqlite", *SMALL)
    assert code == 2
    assert "began in another ledger" in err
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.state == "completed"
    assert reservation.events == reservation.allowed


def test_a_ledger_that_cannot_be_used_stops_a_run_before_it_spends(dpdm, photos, tmp_path):
    (tmp_path / "broken.sqlite").write_bytes(b"this is no database" * 100)
    code, _, err = dpdm("train", photos, "--run", "run", "--ledger", tmp_path / "broken.sqlite", *PRIOR_ALONE)
    assert code == 2
    assert "damaged or no ledger" in err
    assert not (tmp_path / "run" / "release").exists()
    pytest.importorskip("psycopg")
    unreachable = "postgresql+psycopg://team:secret@127.0.0.1:9/dpdm"
    code, _, err = dpdm("train", photos, "--run", "other", "--ledger", unreachable, *PRIOR_ALONE)
    assert code == 1
    assert "cannot be used" in err
    assert "secret" not in err
    journal = tmp_path / "other" / "private" / "journal.jsonl"
    assert not journal.exists() or '"spent"' not in journal.read_text()


def test_a_run_in_memory_is_counted_as_far_as_it_went(photos, book):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data).steps(data)
    next(steps)
    next(steps)
    steps.close()
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.completed
    assert reservation.events[-1].steps == 2


def test_what_claims_nothing_is_not_counted(photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    seeded = Trainer.from_config(config, data)
    next(Trainer(**{**vars(seeded), "entropy": InsecureSeededEntropy(b"known")}).steps(data))
    plan = seeded.plan
    open_plan = NonPrivate(dataset_size=30, releases=plan.releases)
    next(Trainer(**{**vars(seeded), "plan": open_plan}).steps(data))
    assert book.accounts() == {}


def test_the_book_can_be_read(dpdm, photos, book, tmp_path):
    code, out, _ = dpdm("ledger")
    assert code == 0
    assert "nothing is registered yet" in out
    assert not (tmp_path / "ledger.sqlite").exists(), "reading makes nothing"
    dpdm("train", photos, "--epsilon", 1, "--run", "run", *PRIOR_ALONE)
    dpdm("ledger", "total", "photos", "--epsilon", 4)
    code, out, err = dpdm("ledger", "enter", "photos", "--what", "a table", "--epsilon", 0.25)
    assert code == 0, err
    code, out, _ = dpdm("ledger", "show", "photos")
    assert code == 0
    assert "a total of (4, 0.001)" in out
    assert "a table" in out
    assert "█" in out
    assert str(tmp_path / "run") in out
    shown = json.loads(dpdm("ledger", "show", "photos", "--json")[1])
    assert [row["what"] for row in shown["history"]][-2:] == ["total of ε = 4", "a table"]
    assert shown["epsilon_if_planned"] == pytest.approx(1.25, abs=0.01)
    listed = json.loads(dpdm("ledger", "--json")[1])
    assert [row["dataset"] for row in listed["datasets"]] == ["photos"]
    code, out, _ = dpdm("ledger", "plan", "photos", "--epsilon", 0.5)
    assert code == 0
    assert "more, each chosen after" in out
    code, _, err = dpdm("ledger", "show", "photos", "--ledger", tmp_path / "misspelt.sqlite")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no ledger" in err
    assert not (tmp_path / "misspelt.sqlite").exists(), "reading makes nothing"
    code, _, err = dpdm("ledger", "show", "fotos")
    assert code == 2
    assert "it has photos" in err


def test_an_export_is_a_beginning_of_what_comes_later(dpdm, photos, book, tmp_path):
    dpdm("train", photos, "--epsilon", 1, "--run", "run", *PRIOR_ALONE)
    assert dpdm("ledger", "export", "-o", "before.jsonl")[0] == 0
    dpdm("ledger", "total", "photos", "--epsilon", 4)
    code, out, err = dpdm("ledger", "verify", "before.jsonl")
    assert code == 0, err
    assert "6 entries" in out
    dpdm("ledger", "export", "-o", "after.jsonl")
    os.rename(tmp_path / "ledger.sqlite", tmp_path / "lost.sqlite")
    dpdm("train", photos, "--epsilon", 1, "--run", "another", *PRIOR_ALONE)
    code, _, err = dpdm("ledger", "verify", "after.jsonl")
    assert code == 2
    assert "does not go on from" in err
    (tmp_path / "other.jsonl").write_text("no export\n")
    assert dpdm("ledger", "verify", "other.jsonl")[0] == 2


TUNE = ("--run=best", "--try=optimizer.learning_rate=1e-3,3e-3", "--try=loss.noise_multiplicity=1,2", "--epsilon=2")


@pytest.fixture
def public(photos, tmp_path):
    """Images of the same kind that anybody has."""
    folder = tmp_path / "public"
    for file in sorted(photos.rglob("*.png")):
        target = folder / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(target)
    return folder


@pytest.fixture
def quick_scores(monkeypatch):
    """Scores that take no time: the first run's the best."""
    from dpdm.runs import tuning

    shares = iter(np.linspace(0.9, 0.1, 100))
    monkeypatch.setattr(tuning, "train_classifier", lambda images, labels, num_classes: None)
    monkeypatch.setattr(tuning, "_right_answers", lambda _, data: np.arange(len(data)) < next(shares) * len(data))
    monkeypatch.setattr(tuning, "NUM_IMAGES", 20)


def runs_of(monkeypatch, number):
    monkeypatch.setattr(Search, "draw_num_runs", lambda self, random_bytes: number)


@pytest.mark.proof
def test_the_best_of_several_runs_is_released_with_the_price_of_all(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    runs_of(monkeypatch, 3)
    line = ("tune", photos, *TUNE, "--runs", 4, "--reference", public, *SMALL)
    code, out, err = dpdm(*line)
    assert code == 0, err
    assert "run 3 of 3" in err
    assert "the best of 4 runs on average" in out
    best = tmp_path / "best"
    assert len(list((best / "private" / "runs").iterdir())) == 3
    assert not list((best / "private" / "runs").glob("*/release")), "the claim is that of the best run alone"
    assert dpdm("verify", "best")[0] == 0
    privacy = json.loads((best / "release" / "privacy.json").read_text())
    assert [event["type"] for event in privacy["events"]] == ["RepeatedSelection"]
    assert 1.98 < privacy["epsilon"] <= 2
    assert not {"scores", "choices", "runs"} & privacy.keys(), "how many runs there were is told to nobody"
    (reference,) = privacy["public"]
    assert f"does not protect what was declared public: {reference['name']!r} (" in privacy["statement"]
    assert (
        f"public   {json.dumps(reference['name'])}, {reference['images']} images, SHA-256 {reference['sha256']}"
        in dpdm("verify", "best")[1]
    )
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.completed
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert "run 1 of" not in err, "a finished search stays as it is"
    code, _, err = dpdm(*line, "--set=optimizer.ema_decay=0.5")
    assert code == 2
    assert "another search" in err


@pytest.mark.proof
def test_a_search_goes_on_without_a_run_that_a_crash_took(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    """The first run was killed between its prior and the file that keeps it."""
    from dpdm.runs.folder import PrivateFolder

    runs_of(monkeypatch, 2)
    line = ("tune", photos, *TUNE, "--reference", public, *SMALL)

    def killed(self, name, noisy):
        raise KeyboardInterrupt

    with monkeypatch.context() as crash:
        crash.setattr(PrivateFolder, "keep_sum", killed)
        assert dpdm(*line)[0] != 0
    assert not (tmp_path / "best" / "release").exists()
    code, _, err = dpdm(*line)
    assert code == 0, err
    state = json.loads((tmp_path / "best" / "private" / "search.json").read_text())
    assert [score is None for score in state["scores"]] == [True, False]
    assert dpdm("verify", "best")[0] == 0
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.completed
    code, _, err = dpdm("ledger", "settle", "best")
    assert code == 2
    assert "is a search" in err


def test_a_search_of_which_crashes_took_every_run_says_so(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    from dpdm.runs import RunLost, Trainer

    def lost(self, data):
        raise RunLost("lost")
        yield

    runs_of(monkeypatch, 2)
    monkeypatch.setattr(Trainer, "steps", lost)
    code, _, err = dpdm("tune", photos, *TUNE, "--reference", public, *SMALL)
    assert code == 2
    assert "crashes took every run" in err
    assert not (tmp_path / "best" / "release").exists()
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.completed
    assert reservation.events == reservation.allowed, "all of it is spent"


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, all candidates can be trained")
def test_a_search_with_a_candidate_that_cannot_be_trained_spends_nothing(dpdm, photos, public, book, tmp_path):
    line = ("tune", photos, "--run=best", "--try=loss.label_dropout=0.1,0.2", "--epsilon=2", "--reference", public)
    code, _, err = dpdm(*line, *SMALL, "--set=machine.device=cuda")
    assert code == 2
    assert "GPU" in err or "cuda" in err
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "ledger.sqlite").exists() or book.accounts() == {}


def nothing_known(photos, public):
    return 0


def one_known(photos, public):
    shutil.copy(photos / "ant" / "3.png", public / "ant" / "3.png")
    return 1


def one_known_twice(photos, public):
    for name in ("3.png", "4.png"):
        shutil.copy(photos / "ant" / "3.png", public / "ant" / name)
    return 1


def all_but_one_known(photos, public):
    shutil.copytree(photos, public, dirs_exist_ok=True)
    Image.new("RGB", (10, 12), "red").save(public / "cat" / "9.png")
    return 29


def all_known(photos, public):
    shutil.copytree(photos, public, dirs_exist_ok=True)
    return 30


@pytest.mark.proof
def test_nothing_shows_of_a_search_whether_images_of_its_reference_are_private(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    """The kind: equality where disjointness is meant, and a refusal that would tell who is in the data."""
    runs_of(monkeypatch, 2)
    seen = []
    for number, prepare in enumerate((nothing_known, one_known, one_known_twice, all_but_one_known, all_known)):
        shutil.rmtree(tmp_path / "best", ignore_errors=True)
        known = prepare(photos, public)
        monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / f"ledger-{number}.sqlite"))
        code, out, err = dpdm("tune", photos, *TUNE, "--reference", public, *SMALL)
        said = re.sub(r"ledger-\d|SHA-256 \w+|\d+:\d+|\d+(\.\d+)? ?(s|min)\b|[█▏▎▍▌▋▊▉ ]+", "", out + err)
        public_files = sorted(str(f.relative_to(tmp_path)) for f in (tmp_path / "best" / "release").iterdir())
        released = (tmp_path / "best" / "release" / "privacy.json").read_text()
        claim = {key: value for key, value in json.loads(released).items() if key != "sha256"}
        (reference,) = claim["public"]
        known_by = f"{reference.pop('images')} images, SHA-256 {reference.pop('sha256')[:16]}…"  # others each time
        assert claim.pop("statement").endswith(f"{reference['name']!r} ({known_by})")
        seen.append((code, said, public_files, claim))
        listed = json.loads((tmp_path / "best" / "private" / "blanked.json").read_text())["records"]
        assert len(listed) == known
        assert "take no part, if there are any: best/private/blanked.json lists them" in err
        assert dpdm("verify", "best")[0] == 0
    assert seen[0][0] == 0
    assert all(one == seen[0] for one in seen)


def test_a_search_does_not_go_on_with_another_reference(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    runs_of(monkeypatch, 1)
    line = ("tune", photos, *TUNE, "--reference", public, *SMALL)
    assert dpdm(*line)[0] == 0
    one_known(photos, public)
    code, _, err = dpdm(*line)
    assert code == 2
    assert "another search" in err


def test_images_with_a_total_cannot_be_the_reference_of_a_search(dpdm, photos, public, book, tmp_path):
    code, _, err = dpdm("ledger", "register", public, "--epsilon", 5)
    assert code == 0, err
    code, _, err = dpdm("tune", photos, *TUNE, "--reference", public, *SMALL)
    assert code == 2
    assert "which has a total: they are private" in err
    assert not (tmp_path / "best").exists()


def test_a_copy_of_a_search_cannot_spend_its_reservation_once_more(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    from dpdm.runs import tuning

    runs_of(monkeypatch, 1)
    line = ("tune", photos, *TUNE, "--reference", public, *SMALL)
    with monkeypatch.context() as crash:
        crash.setattr(tuning.Tuner, "_score", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert dpdm(*line)[0] != 0
    code, _, err = dpdm(*line, "--ledger", "none")
    assert code == 2
    assert "began in a ledger" in err
    shutil.copytree(tmp_path / "best", tmp_path / "elsewhere" / "best")
    assert dpdm(*line)[0] == 0
    shutil.rmtree(tmp_path / "best")
    (tmp_path / "elsewhere" / "best").rename(tmp_path / "best")
    code, _, err = dpdm(*line)
    assert code == 2
    assert "completed or settled" in err
    assert not (tmp_path / "best" / "release").exists()


def test_a_run_is_not_settled_in_a_ledger_that_does_not_know_it(dpdm, photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    Ledger(str(tmp_path / "other.sqlite")).accounts()
    code, _, err = dpdm("ledger", "settle", tmp_path / "run", "--ledger", tmp_path / "other.sqlite")
    assert code == 2
    assert "no reservation of this run" in err
    code, out, err = dpdm("ledger", "settle", tmp_path / "run")
    assert code == 0, err
    assert "counts 8 of 13" in out, "the wrong ledger has cost nothing"


def test_a_moved_run_is_settled_only_by_who_knows_that_it_is_no_backup(dpdm, photos, book, tmp_path):
    """The kind: a copy that lags behind is believed. Of the same start, it has the same token as the run itself."""
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    shutil.copytree(tmp_path / "run", tmp_path / "backup")
    next(steps)
    next(steps)
    steps.close()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    code, _, err = dpdm("ledger", "settle", "backup")
    assert (code, "is a copy of" in err) == (2, True)
    (tmp_path / "run").rename(tmp_path / "lost")
    code, _, err = dpdm("ledger", "settle", "backup")
    assert (code, err.count("\n")) == (2, 1)
    assert "add --i-have-the-only-copy" in err
    assert [r.state for r in book.account("photos").reservations.values()] == ["running"]
    (tmp_path / "lost").rename(tmp_path / "run")
    shutil.rmtree(tmp_path / "backup")
    code, out, err = dpdm("ledger", "settle", "link")
    assert code == 0, err
    assert "counts 10 of 13" in out


def test_a_run_that_was_moved_is_settled_if_its_owner_says_so(dpdm, photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert dpdm("ledger", "settle", "moved")[0] == 2
    code, out, err = dpdm("ledger", "settle", "moved", "--i-have-the-only-copy")
    assert code == 0, err
    assert "counts 8 of 13" in out


def test_a_run_does_not_go_on_in_a_ledger_that_was_rolled_back(dpdm, photos, book, tmp_path):
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    book.register(Records.of(data), epsilon=9.0, delta=1e-3, relation="replace_special")
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "before.sqlite")
    trainer = Trainer.from_config(config, data, run=tmp_path / "run")
    for _ in range(2):
        steps = trainer.steps(data)
        next(steps)
        steps.close()
    assert json.loads((tmp_path / "run" / "private" / "ledger.json").read_text())["head"][0] == 5
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "now.sqlite")
    shutil.copy(tmp_path / "before.sqlite", tmp_path / "ledger.sqlite")
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert (code, sum("dpdm:" in line for line in err.splitlines())) == (2, 1)
    assert "restored from a backup or rewritten" in err
    shutil.copy(tmp_path / "now.sqlite", tmp_path / "ledger.sqlite")
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err


def test_a_ledger_in_each_folder_is_refused_before_anything_is_opened(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", "team.sqlite")
    for line in (("train", photos, "--run=run", *PRIOR_ALONE), ("ledger",), ("ledger", "show", "photos")):
        code, _, err = dpdm(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert "DPDM_LEDGER says 'team.sqlite', which is another ledger in each folder" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "team.sqlite").exists()


def test_an_export_that_was_edited_is_no_earlier_state(dpdm, photos, book, tmp_path):
    dpdm("train", photos, "--epsilon", 1, "--run", "run", *PRIOR_ALONE)
    dpdm("ledger", "export", "-o", "before.jsonl")
    text = (tmp_path / "before.jsonl").read_text()
    (tmp_path / "before.jsonl").write_text(text.replace('"delta": 0.001', '"delta": 0.002'))
    assert dpdm("ledger", "verify", "before.jsonl")[0] == 2
    (tmp_path / "before.jsonl").write_text("")
    assert dpdm("ledger", "verify", "before.jsonl")[0] == 2


@pytest.mark.proof
def test_a_score_that_a_crash_lost_is_not_made_again(dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores):
    """Noise may hide a count of right answers once: a second one of the same run would not have been paid for."""
    from dpdm.runs import tuning

    runs_of(monkeypatch, 2)
    line = ("tune", photos, *TUNE, "--score-noise", 20, *SMALL)
    write, written = tuning.write_json, []

    def crash_after_a_score(path, content):
        written.append(content["scores"])
        if content["scores"]:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as crash:
        crash.setattr(tuning, "write_json", crash_after_a_score)
        assert dpdm(*line)[0] != 0
    code, _, err = dpdm(*line)
    assert code == 0, err
    scores = json.loads((tmp_path / "best" / "private" / "search.json").read_text())["scores"]
    assert [score is None for score in scores] == [True, False]
    assert dpdm("verify", "best")[0] == 0


def test_a_private_score_is_noisy_and_part_of_the_price(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    runs_of(monkeypatch, 2)
    code, _, err = dpdm("tune", photos, *TUNE, "--score-noise", 20, *SMALL)
    assert code == 0, err
    state = json.loads((tmp_path / "best" / "private" / "search.json").read_text())
    assert len(state["scores"]) == 2
    assert all(score != round(score) for score in state["scores"])
    release = tmp_path / "best" / "release"
    privacy = json.loads((release / "privacy.json").read_text())
    assert {"type": "GaussianRelease", "noise_multiplier": 20.0} in privacy["events"][0]["events"]
    times = {path.stat().st_mtime for path in (release, *release.iterdir())}
    assert times == {state["at"]}, "when the best run ended tells how many there were before it"


def test_a_search_with_a_private_score_ends_alike_however_few_images_there_are(dpdm, book, tmp_path, monkeypatch):
    """Their number may be a secret: no message, no exit code and no missing release may tell it."""
    from dpdm.runs import tuning

    runs_of(monkeypatch, 2)
    monkeypatch.setattr(tuning, "NUM_IMAGES", 20)
    line = ("--method=prior", "--epsilon=3", "--dataset-size=100", "--set=privacy.delta=1e-3", "--set=prior.centres=1")
    ends = []
    for number in (1, 9, 10):
        images = np.random.default_rng(0).integers(0, 256, (number, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "few.npz", images=images, labels=np.arange(number) % 3, num_classes=3)
        code, out, err = dpdm(
            "tune", "few.npz", *line, "--try=seed=1,2", "--score-noise=20", "--run=best", "--ledger=none"
        )
        told = [re.sub(r"about .* left", "", text) for text in err.splitlines() if "in percent" not in text]
        ends.append((code, out, told, sorted(path.name for path in (tmp_path / "best" / "release").iterdir())))
        shutil.rmtree(tmp_path / "best")
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--try=privacy.steps=6,7", "--reference=public"), "differ in [privacy]"),
        (("--try=prior.centres=1,2", "--reference=public"), "differ in [privacy]"),
        (("--try=data.fit=crop,pad", "--reference=public"), "[data], [public], start.sources or what"),
        (("--try=optimizer.learning_rate", "--reference=public"), "--try takes"),
        (("--try=optimizer.learning_rate=1e-3,", "--reference=public"), "--try takes"),
        (("--try=optimizer.learning_rate=1e-3",), "--reference with public images"),
        (("--try=optimizer.learning_rate=1e-3", "--reference=public", "--score-noise=9"), "--reference with public"),
        (("--try=optimizer.learning_rate=1e-3", "--reference=public", "--runs=1"), "above 1"),
    ],
)
def test_a_search_without_a_price_is_refused(dpdm, photos, public, book, tmp_path, line, message):
    code, _, err = dpdm("tune", photos, "--run=best", *line, *SMALL)
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "best").exists()


def test_a_search_that_does_not_fit_leaves_its_folder_free(
    dpdm, photos, public, book, tmp_path, monkeypatch, quick_scores
):
    dpdm("train", photos, "--epsilon", 1, "--run", "first", *PRIOR_ALONE)
    code, _, err = dpdm("tune", photos, *TUNE, "--reference", public, *SMALL)
    assert code == 2
    assert "photos has a total" in err
    assert not (tmp_path / "best").exists()


def test_the_number_of_runs_has_the_distribution_that_is_accounted():
    for shape in (0.0, 0.5, 1.0, 3.0):
        probabilities = list(Search(mean=5, shape=shape).probabilities())
        assert math.fsum(probabilities) == pytest.approx(1)
        assert math.fsum(k * p for k, p in enumerate(probabilities, start=1)) == pytest.approx(5)
    geometric = list(Search(mean=4, shape=1.0).probabilities())
    np.testing.assert_allclose(geometric[:50], [0.25 * 0.75**k for k in range(50)])
    drawn = [Search(mean=4).draw_num_runs(os.urandom) for _ in range(4000)]
    assert min(drawn) == 1
    assert abs(np.mean(drawn) - 4) < 5 * math.sqrt(12 / 4000)


def test_a_run_of_a_search_costs_less_than_the_whole():
    search = Search(mean=5)
    of_one = search.epsilon_of_one(epsilon=2.0, delta=1e-5)
    assert 0.5 < of_one < 2
    plan = DPSGD(dataset_size=1000, expected_batch_size=50, steps=10, search=search).calibrate(epsilon=2.0)
    assert 1.99 < plan.epsilon() <= 2
    assert plan.events(made=0) == []
    assert plan.events(made=3) == plan.events(), "a search that has begun costs all of it"
    with pytest.raises(InputError, match="above 1"):
        Search(mean=1.0)


@pytest.fixture
def visits(tmp_path):
    """Forty images of ten persons in an .npz file, and the settings that name them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "visits.npz", images=images, labels=np.arange(40) % 2, groups=np.arange(40) // 4)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    np.savez(tmp_path / "public.npz", images=255 - images, labels=np.arange(40) % 2)
    return tmp_path / "visits.npz", "--set=data.group=groups", "--set=data.num_classes=2", "--set=data.name=visits"


@pytest.mark.proof
def test_runs_about_persons_are_counted_in_persons_and_apart_from_runs_about_images(dpdm, visits, book, tmp_path):
    code, _, err = dpdm("ledger", "register", *visits, "--epsilon", 4, "--delta", 1e-3)
    assert code == 0, err
    code, _, err = dpdm("train", *visits, "--run", "run", *SMALL)
    assert code == 0, err
    shown = dpdm("ledger", "show", "visits")[1]
    assert "one unit of protection is one group of images; claims are about blanking out one" in shown
    written = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert written["dataset_size"] == 10
    about_images = ("--set=data.num_classes=2", "--set=data.name=visits", *SMALL)
    code, _, err = dpdm("train", "images.npz", "--run", "another", *about_images)
    assert code == 2, err
    assert "registered for claims about blanking out one group of images" in err
    assert "about blanking out one image: claims of two kinds do not add up; give data.group as before" in err
    assert sum("dpdm:" in row for row in err.splitlines()) == 1
    assert not (tmp_path / "another").exists()
    assert len(book.account("visits").reservations) == 1


def test_an_interrupted_run_about_persons_is_settled(dpdm, visits, book, tmp_path):
    overrides = [text.removeprefix("--set=") for text in (*visits[1:], *SMALL)]
    config = package.load_config(str(visits[0]), overrides=overrides)
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    code, out, err = dpdm("ledger", "settle", tmp_path / "run")
    assert code == 0, err
    assert "counts 8 of 13 noisy sums as released" in out
    (reservation,) = book.account("visits").reservations.values()
    assert (reservation.state, book.account("visits").unit) == ("completed", "one group of images")


@pytest.mark.proof
def test_a_search_is_about_persons_where_images_are_in_groups(dpdm, visits, book, monkeypatch, quick_scores):
    runs_of(monkeypatch, 2)
    line = ("tune", *visits, *TUNE, *SMALL)
    code, _, err = dpdm(*line, "--score-noise", 20)
    assert (code, err.count("\n")) == (2, 1)
    assert "visits has groups of images" in err
    assert "give --reference" in err
    assert book.accounts() == {}
    assert not os.path.exists("best")
    code, out, err = dpdm(*line, "--reference", "public.npz")
    assert code == 0, err
    assert "blank out one group of images, the best of 5 runs on average, each of" in out
    said = " ".join(dpdm("verify", "best")[1].split())
    assert "The exact number, 10 groups, is public" in said
    assert book.account("visits").unit == "one group of images"
