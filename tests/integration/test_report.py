"""The page that people decide by: what it says, what it must not say, and that it works in a browser by itself."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from small_run import SMALL

from dpdm.evaluation import UtilityScore
from dpdm.methods.prior import PRIOR_SUMS
from dpdm.runs import Release


@pytest.fixture
def run(dpdm, photos, tmp_path):
    code, _, err = dpdm("train", photos, *SMALL, "--dataset-size", 30, "--run", "run")
    assert code == 0, err
    return tmp_path / "run"


def test_a_public_page_says_the_claim_and_nothing_secret(dpdm, run, tmp_path):
    (run / "private" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.123456789, "median_grad_norm": 9.87654321}\n')
    code, out, err = dpdm("report", run)
    assert code == 0, err
    assert "may be published" in out
    page, twin = (run / "report.html").read_text(), (run / "report.json").read_text()
    assert len(page) < 5_000_000
    claim = Release.load(run).statement
    assert claim in page
    for text in (page, twin):
        assert "0.123456789" not in text
        assert "9.87654321" not in text
        assert str(tmp_path) not in text
    facts = json.loads(twin)
    assert facts["claim"]["statement"] == claim
    assert facts["audience"] == "anyone"
    spent = [row["epsilon"] for row in facts["spent"]]
    assert spent == sorted(spent)
    assert spent[-1] <= facts["claim"]["epsilon"]
    rounds = [f"centres, round {number}" for number in (1, 2, 3)]
    assert [row["part"] for row in facts["budget"]] == [*PRIOR_SUMS, *rounds, "6 steps"]
    assert all(0 < row["epsilon_alone"] < facts["claim"]["epsilon"] for row in facts["budget"])


def test_a_private_page_has_losses_norms_and_the_audit(dpdm, run):
    code, out, err = dpdm("report", run, "--private")
    assert code == 0, err
    assert "PRIVATE" in out
    page = (run / "private" / "report.html").read_text()
    assert "PRIVATE: for the data owner alone" in page
    assert "mean loss against steps" in page
    assert "Not audited" in page
    shutil.move(run / "private", run / "elsewhere")
    code, _, err = dpdm("report", run, "--private")
    assert (code, err.count("\n")) == (2, 1)
    assert "no private/ folder" in err


def test_scores_are_shown_and_what_they_cost_is_said(dpdm, run, tmp_path):
    classes = len(Release.load(run).facts.class_names)
    score = UtilityScore(0.8125, 0.8, 0.825, 27, 2, 1, 0.9, ((3,) * classes,) * classes)
    score = json.loads(json.dumps(asdict(score))) | {"recalls": "loss 0.123456789"}
    report = {"reference": "<b>photos</b>:test", "quick": True, "covered_by_epsilon": False}
    report |= {key: score for key in ("logreg", "mlp", "cnn")}
    (tmp_path / "scores.json").write_text(json.dumps(report))
    code, out, err = dpdm("report", run, "--scores", "scores.json", "-o", "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert "81.2 [80.0, 82.5]" in page
    assert "&lt;b&gt;photos&lt;/b&gt;:test" in page
    assert "<b>photos" not in page
    assert "ε does not cover them" in page
    assert "unless the scores of scores.json come of private images" in out
    report |= {"note": "loss 0.123456789", "dp_sgd": {"epsilon": 1.0, "accuracy": 0.5, "note": "loss 0.123456789"}}
    report["baseline"] = {"source": "photos", **{key: score | {"accuracy": 0.9} for key in ("logreg", "mlp", "cnn")}}
    (tmp_path / "scores.json").write_text(json.dumps(report))
    assert dpdm("report", run, "--scores", "scores.json", "-o", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "real, a CNN by DP-SGD at ε = 1</td><td></td><td></td><td>50.0<" in page
    assert page.count('class="limit"') == 1 + 3  # ε over the steps, and what real images reach
    assert "0.123456789" not in (tmp_path / "page.html").read_text() + (tmp_path / "page.json").read_text()
    (tmp_path / "scores.json").write_text(json.dumps(report | {"resnet": score | {"accuracy": 0.3125}}))
    code, _, err = dpdm("report", run, "--scores", "scores.json", "-o", "page.html")
    assert (code, err.count("\n")) == (2, 1)  # the baseline has no such classifier
    in_colour = report | {"resnet": score, "baseline": report["baseline"] | {"resnet": score | {"accuracy": 0.3125}}}
    (tmp_path / "scores.json").write_text(json.dumps(in_colour))
    code, _, err = dpdm("report", run, "--scores", "scores.json", "-o", "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert 'CNN</th><th scope="col">residual network</th>' in page
    assert "31.2 [80.0, 82.5]" in page
    assert "at ε = 1</td><td></td><td></td><td>50.0</td><td></td></tr>" in page
    (tmp_path / "scores.json").write_text(json.dumps(report))
    code, _, err = dpdm("report", run, "--scores", "scores.json", "-o", "scores.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no report's" in err
    assert json.loads((tmp_path / "scores.json").read_text()) == report
    damages = ({}, report | {"cnn": {}}, report | {"cnn": score | {"confusion": [[1, 2]]}}, {"rows": []})
    for damage in (*damages, report | {"cnn": score | {"low": float("nan")}}):
        (tmp_path / "scores.json").write_text(json.dumps(damage))
        code, _, err = dpdm("report", run, "--scores", "scores.json", "-o", "page.html")
        assert (code, err.count("\n")) == (2, 1)
        assert "dpdm evaluate --json" in err


def test_a_report_never_lies_in_the_release(dpdm, run):
    code, _, err = dpdm("report", run / "release", "-o", run / "release" / "page.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "nothing but its own files" in err
    assert dpdm("report", run / "release")[0] == 0
    assert (run / "report.html").is_file()
    assert dpdm("verify", run)[0] == 0


def test_metrics_that_a_crash_cut_short_are_shown_as_far_as_they_go(dpdm, run):
    with (run / "private" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": NaN, "median_grad_norm": 1.0}\n{"step": 8, "lo')
    code, _, err = dpdm("report", run, "--private")
    assert code == 0, err


def test_a_release_that_does_not_verify_gets_no_page(dpdm, run):
    (run / "release" / "more.txt").write_text("something")
    code, _, err = dpdm("report", run)
    assert code == 2
    assert "does not belong to a release" in err
    assert not (run / "report.html").exists()


def test_names_of_classes_cannot_inject_anything(dpdm, photos, tmp_path):
    first = min(path for path in photos.iterdir() if path.is_dir())
    first.rename(photos / "a<script>alert(1)<")
    code, _, err = dpdm("train", photos, *SMALL, "--dataset-size", 30, "--run", "run")
    assert code == 0, err
    assert dpdm("report", "run")[0] == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "a&lt;script&gt;alert(1)&lt;" in page


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_in_a_browser_it_needs_no_network_filters_classes_and_fits_a_phone(dpdm, run, browser, fetched):
    assert dpdm("report", run, "--private")[0] == 0
    address = (run / "private" / "report.html").as_uri()
    browser.get(address)
    assert fetched(browser) == {address}

    def shown():
        return browser.execute_script("return [...document.querySelectorAll('.class')].filter(e => !e.hidden).length")

    everything = shown()
    buttons = browser.find_elements("css selector", ".filter button")
    buttons[1].click()
    assert shown() == 1
    assert buttons[1].get_attribute("aria-pressed") == "true"
    buttons[0].click()
    assert shown() == everything
    point = browser.find_element("css selector", "circle.point")
    browser.execute_script("arguments[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))", point)
    assert "ε" in browser.find_element("css selector", ".chart output").text
    image = browser.find_element("css selector", ".class img")
    browser.execute_script("arguments[0].click()", image)
    assert "near" in image.get_attribute("class")
    unnamed = "return [...document.querySelectorAll('img, svg, button')].filter("
    unnamed += "e => !(e.alt || e.getAttribute('aria-label') || e.textContent.trim())).length"
    assert browser.execute_script(unnamed) == 0
    for width in (1200, 380):
        browser.set_window_size(width, 900)
        wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wider) <= 0
        texts = "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect())"
        sizes = f"return Math.min(...{texts}.map(r => Math.max(r.width, r.height)))"  # one letter may be turned
        assert browser.execute_script(sizes) > 10  # pixels: what can still be read
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_page_refers_to_nothing_outside(dpdm, run):
    assert dpdm("report", run)[0] == 0
    page = (run / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert Path(run / "report.html").read_bytes().isascii() is False  # ε is written as itself
