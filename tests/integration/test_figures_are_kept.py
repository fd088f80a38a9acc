"""Noise is calibrated once and kept: another processor, or another numpy, comes to other last digits.

So whoever goes on, or is one of several processes, compares what a person asked for.
"""

import json
import tomllib

import pytest
import small_run

import dpdm as package
from dpdm.ledger import Ledger
from dpdm.methods import Prior
from dpdm.privacy import DPSGD, NonPrivate, figures
from dpdm.privacy import plan as plans
from dpdm.privacy.accounting import decode_event
from dpdm.runs import Trainer, tuning
from dpdm.types import InputError

DELTA = 1e-13  # at which ε is RDP's bound, and calibration takes no time
SMALL = (*small_run.SMALL, f"--set=privacy.delta={DELTA}")
FIELDS = {"dataset_size": 100, "expected_batch_size": 10, "steps": 20, "delta": DELTA}
PRIOR = Prior(centres=1)


@pytest.fixture
def another_processor(monkeypatch):
    """From when this is called, calibration comes to another figure, at ever other last digits."""
    calibrate, calls = plans.calibrate, []

    def other_digits(*arguments, **options):
        calls.append(None)
        return calibrate(*arguments, **options) * (1 + 1e-9 * len(calls))

    return lambda: monkeypatch.setattr(plans, "calibrate", other_digits)


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    return Ledger(str(tmp_path / "ledger.sqlite"))


def began(photos, run):
    """Take two steps, and stop; return the plan."""
    config = package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    trainer = Trainer.from_config(config, data, run=run)
    steps = trainer.steps(data)
    next(steps), next(steps)
    steps.close()
    return trainer.plan


def test_a_run_goes_on_on_another_processor_with_the_figure_it_began_with(
    dpdm, photos, book, tmp_path, another_processor
):
    plan = began(photos, tmp_path / "run")
    another_processor()
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err
    privacy = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert [decode_event(event) for event in privacy["events"]] == plan.events(), "the claim is of what was used"
    settings = tomllib.loads((tmp_path / "run" / "release" / "config.toml").read_text())
    assert settings["plan"]["releases"][-1]["noise_multiplier"] == plan.noise_multiplier
    (reservation,) = book.account("photos").reservations.values()
    assert reservation.completed
    assert reservation.events == plan.events()
    assert dpdm("verify", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("other", [{"epsilon": 1.01}, {"epsilon": 1, "delta": 2e-13}, {"epsilon": 1, "steps": 7}])
def test_what_was_asked_for_must_still_be_the_same(dpdm, photos, tmp_path, another_processor, other):
    began(photos, tmp_path / "run")
    another_processor()
    given = [f"--set=privacy.{key}={value}" for key, value in other.items()]
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL, *given)
    assert code == 2
    assert "holds another run" in err


def test_a_search_goes_on_on_another_processor(dpdm, photos, book, tmp_path, monkeypatch, another_processor):
    line = ("tune", photos, "--run=best", "--try=loss.noise_multiplicity=1,2", "--epsilon=2", *SMALL)
    line = (*line, "--score-noise=50")
    monkeypatch.setattr(tuning.Search, "draw_num_runs", lambda self, random_bytes: 1)
    monkeypatch.setattr(tuning.Tuner, "_score", lambda self, *arguments: 1.0)
    with monkeypatch.context() as crash:
        crash.setattr(tuning.Tuner, "_go_on", lambda self, *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dpdm(*line)
    before = json.loads((tmp_path / "best" / "private" / "search.json").read_text())["what"]
    another_processor()
    code, _, err = dpdm(*line)
    assert code == 0, err
    assert json.loads((tmp_path / "best" / "private" / "search.json").read_text())["what"] == before
    assert dpdm("verify", "best")[0] == 0


@pytest.mark.parametrize(
    "plan",
    [
        lambda: DPSGD(**FIELDS).calibrate(epsilon=2.0),
        lambda: DPSGD(**FIELDS, releases=PRIOR.releases(epsilon=2.0, delta=DELTA)).calibrate(epsilon=2.0),
        lambda: DPSGD(**FIELDS | {"steps": 0}, releases=PRIOR.releases(epsilon=2, delta=DELTA)).calibrate(epsilon=2),
    ],
    ids=["steps", "a prior and steps", "a prior alone"],
)
def test_a_journal_keeps_the_figures_of_its_plan(plan, tmp_path, another_processor):
    first = plan()
    first.start(tmp_path / "journal").close()
    another_processor()
    assert plan() != first, "the other processor computes what this one does: the test shows nothing"
    run = plan().start(tmp_path / "journal")
    run.close()
    assert run.plan == first
    with pytest.raises(InputError, match="another plan"):
        plan().calibrate(epsilon=2.1).start(tmp_path / "journal")


def test_a_figure_that_was_given_is_no_other_one_nearby(tmp_path):
    DPSGD(**FIELDS, noise_multiplier=1.0).start(tmp_path / "journal").close()
    with pytest.raises(InputError, match="another plan"):
        DPSGD(**FIELDS, noise_multiplier=1.0001).start(tmp_path / "journal")


def test_figures_that_were_changed_in_a_journal_are_not_taken(tmp_path):
    plan = DPSGD(**FIELDS).calibrate(epsilon=2.0)
    plan.start(tmp_path / "journal").close()
    text = (tmp_path / "journal").read_text()
    changed = text.replace(f"{plan.noise_multiplier}", f"{plan.noise_multiplier / 2}")
    assert changed != text
    (tmp_path / "journal").write_text(changed)
    run = plan.start(tmp_path / "journal")
    assert run.plan == plan, "noise is what the fingerprint says"
    run.close()
    with pytest.raises(InputError, match="another plan"):
        figures.keep(plan, figures.Figures((plan.noise_multiplier * 1.001,), 2.0)).start(tmp_path / "journal")


def test_a_plan_that_claims_nothing_keeps_its_figures_too(tmp_path):
    releases = PRIOR.releases(epsilon=1, delta=1e-5)
    plan = NonPrivate.dp_sgd(dataset_size=100, expected_batch_size=10, steps=2, releases=releases)
    plan.start(tmp_path / "journal").close()
    other = {name: noise * (1 + 1e-12) for name, noise in releases.items()}
    elsewhere = NonPrivate.dp_sgd(dataset_size=100, expected_batch_size=10, steps=2, releases=other)
    assert elsewhere != plan
    run = elsewhere.start(tmp_path / "journal")
    assert run.plan == plan
    run.close()


def test_what_is_changed_in_a_calibrated_plan_is_a_figure_that_was_given():
    plan = DPSGD(**FIELDS).calibrate(epsilon=2.0)
    assert figures.figures_of(plan).asked == 2.0
    assert figures.figures_of(plan.with_steps(5)).asked is None
