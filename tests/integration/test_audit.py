"""`dpdm audit` attacks a run, writes into its private/ folder only, and says so when a claim is contradicted."""

import json
import shutil

import pytest
from small_run import SMALL

from dpdm.audit import STAMP, audit_run, parametric, report
from dpdm.privacy import Plan
from dpdm.privacy.accounting import round_up

pytestmark = pytest.mark.proof


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Less of everything; the sizes are tested elsewhere."""
    whole = report.check_mechanism
    monkeypatch.setattr(report, "check_mechanism", lambda plan: whole(plan, draws=400_000))
    monkeypatch.setattr(parametric, "_SELECTIONS", 400)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sound_run_is_attacked_and_not_contradicted(dpdm, trained, photos):
    before = contents(trained)
    code, out, err = dpdm("audit", trained, "--held-out", photos)
    assert code == 0, err
    for said in ("standard deviation ÷ accounted", "white box    1,000 canaries", "SecMI", "PIA", "loss threshold"):
        assert said in out
    assert "nearer to training than to held-out" in out
    assert STAMP in out
    assert "audited      the sums before and all 6 steps: all that the run claims (1.0, 0.001) for" in out
    claim = json.loads((trained / "release" / "privacy.json").read_text())["statement"]
    assert out.splitlines()[-1] == f"Nothing that was found contradicts the run's claim: {claim}"
    assert "(too few images to tell) at 1 %" in out
    assert "properties   a statistic of all images, which no ε hides: shares as an attacker estimates them, by" in out
    assert "training with canaries: 6 of 6" in err
    after = contents(trained)
    added = {f"private/audit/{name}" for name in ("audit.json", "nearest.png", "roc.svg")}
    assert after.keys() - before.keys() == added
    assert {name: after[name] for name in before} == before
    assert not any(name.endswith("safetensors") for name in added)
    found = json.loads(after["private/audit/audit.json"])
    assert found["stamp"] == STAMP
    assert found["findings"] == []
    assert found["audited"]["steps"] == found["audited"]["of_steps"] == 6
    assert found["audited"]["whole"]
    assert found["conclusion"].endswith(found["claim"])
    assert found["audited"]["epsilon"] <= 1
    assert all(check["passed"] for check in found["parametric"])
    bounds = ("one_run", "one_run_gaussian", "clopper_pearson", "gaussian")
    assert all(found["white_box"][key] <= 1 for key in bounds)
    for attack in found["black_box"].values():
        assert 0 <= attack["auc"] <= 1
        assert [rate["false_positive_rate"] for rate in attack["rates"]] == [0.01, 0.001]
    assert all(point["true_positive_rate"] <= 1 for point in found["ceiling"])
    assert sum(found["properties"]["estimated"]) == pytest.approx(1)
    assert found["properties"]["error"] <= 1
    code, _, err = dpdm("verify", trained)
    assert code == 0, err


@pytest.fixture
def slow(monkeypatch):
    """A machine that takes half a minute for a step without canaries."""
    cost = report.measure_step
    monkeypatch.setattr(report, "measure_step", lambda *parts: cost(*parts)._replace(seconds_per_step=30.0))


def test_too_little_time_audits_fewer_steps_against_what_they_claim(trained, slow):
    found = audit_run(trained, minutes=2.7, canaries=50)
    assert found.plan.steps == 2
    assert found.audited_epsilon < found.epsilon <= 1


def test_a_part_of_the_steps_is_called_a_part_and_the_last_word_is_the_runs_claim(dpdm, trained, slow):
    """A sub-run's ε is nowhere printed as if it were the run's: on the terminal, as JSON, and on the private page."""
    claim = json.loads((trained / "release" / "privacy.json").read_text())["statement"]
    code, out, err = dpdm("audit", trained, "--minutes", 40)
    assert code == 0, err
    found = json.loads((trained / "private" / "audit" / "audit.json").read_text())
    audited, of_run = found["audited"], found["claimed"]
    assert (audited["steps"], audited["of_steps"], audited["whole"], of_run["steps"]) == (2, 6, False, 6)
    assert audited["epsilon"] < of_run["epsilon"] <= 1
    by_itself = round_up(audited["epsilon"])
    scope = f"the sums before and 2 of 6 steps, which by themselves cost ε ≤ {by_itself} at the same δ"
    scope += "; the run claims (1.0, 0.001)"
    assert audited["scope"] == scope
    assert f"audited      {scope}\n" in out
    assert out.count(str(by_itself)) == 1
    conclusion = [
        "No attack exceeded what the sums before and 2 of 6 steps allow; the other 4 steps were not attacked.",
        f"Nothing that was found contradicts the run's claim: {claim}",
    ]
    assert out.splitlines()[-2:] == conclusion
    assert found["conclusion"] == " ".join(conclusion)
    assert dpdm("report", trained, "--private")[0] == 0
    page = (trained / "private" / "report.html").read_text()
    assert scope in page
    assert "cost of what was audited by itself, the sums before and 2 of 6 steps" in page
    assert "Shares, a statistic of all images, which no ε hides" in page


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_test_part_is_held_out_unless_another_is_given_and_framed_alike(fit, dpdm, photos, tmp_path):
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")
    shutil.copytree(tmp_path / "both" / "train", tmp_path / "both" / "test")
    alone = ("--set=data.size=8", f"--set=data.fit={fit}", "--method=prior", "--set=privacy.delta=1e-3", "--epsilon", 2)
    assert dpdm("train", tmp_path / "both", *alone, "--run", "both_run")[0] == 0
    for held_out in (None, str(tmp_path / "both" / "test")):
        found = audit_run(tmp_path / "both_run", held_out=held_out)
        assert len(found.nearness.of_held_out) == 30
        assert found.nearness.of_held_out.max() < 1e-6  # here they are the same images


def test_a_prior_alone_is_audited(dpdm, photos, tmp_path):
    alone = ("--set=data.size=8", "--method=prior", "--set=privacy.delta=1e-3", "--epsilon", 2)
    assert dpdm("train", photos, *alone, "--run", "alone")[0] == 0
    found = audit_run(tmp_path / "alone")
    assert found.findings == []
    assert found.scope.startswith("all 7 sums: all that the run claims (2.0, 0.001) for")
    assert found.conclusion[-1] == f"Nothing that was found contradicts the run's claim: {found.claim}"
    assert {"prior: pairs of equal sizes of draws"} <= {check.name for check in found.checks}
    assert 0 < found.white_box.one_run_gaussian < 2  # mostly from 0.5 to 0.9


def test_a_method_whose_batches_are_pairs_is_audited(dpdm, photos):
    """Private and generated images of a discriminator: no noise levels, and no denoiser to attack."""
    settings = ("--set=data.size=8", "--method=gan", "--set=privacy.steps=3", "--set=privacy.delta=1e-3")
    assert dpdm("train", photos, *settings, "--epsilon", 2, "--run", "pairs")[0] == 0
    code, out, err = dpdm("audit", "pairs")
    assert code == 0, err
    assert "white box    1,000 canaries" in out
    assert out.splitlines()[-1].startswith("Nothing that was found contradicts the run's claim")


def test_half_of_the_noise_is_found_and_has_an_exit_code_of_its_own(dpdm, trained, monkeypatch):
    sound = Plan.noise_std
    monkeypatch.setattr(Plan, "noise_std", lambda self, number, sensitivity: sound(self, number, sensitivity) / 2)
    code, out, err = dpdm("audit", trained)
    assert code == 3, "1 is an audit that could not end"
    assert "FAILED" in out
    assert "CONTRADICTED: noise: standard deviation ÷ accounted is 0.5" in err
    claim = json.loads((trained / "release" / "privacy.json").read_text())["statement"]
    assert out.splitlines()[-1] == f"What was found CONTRADICTS the run's claim: {claim}"


def test_a_claim_that_does_not_verify_is_not_audited(dpdm, trained):
    path = trained / "release" / "privacy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epsilon": 0.01}))
    code, out, err = dpdm("audit", trained)
    assert (code, out) == (2, "")
    assert "its events cost" in err


def test_what_cannot_be_audited_is_refused(dpdm, trained, photos, tmp_path):
    code, _, err = dpdm("audit", trained / "release")
    assert (code, err.count("\n")) == (2, 1)
    assert "no private/ folder" in err
    settings = [setting for setting in SMALL if "epsilon" not in setting and "delta" not in setting]
    assert dpdm("train", photos, "--run", "open", *settings, "--set=privacy.kind=non-private")[0] == 0
    code, _, err = dpdm("audit", "open")
    assert (code, "NOT PRIVATE" in err) == (2, True)
    assert dpdm("audit", trained, "--minutes", 0)[0] == 2
    photos.rename(tmp_path / "moved")
    code, _, err = dpdm("audit", trained)
    assert (code, err.count("\n")) == (2, 1)
    assert not (trained / "private" / "audit").exists()
