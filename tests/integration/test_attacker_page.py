"""The page on what an attacker can achieve: its numbers are those of the package, and it fetches nothing."""

import math
import re
from pathlib import Path

import pytest
from scipy.stats import norm

from dpdm.privacy import gaussian_mu
from dpdm.privacy.accounting import GaussianRelease, epsilon, true_positive_rates

PAGE = Path(__file__).parents[2] / "docs" / "attacker.html"


def number(text):
    return float(text.replace(",", "").split()[0])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("eps", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("runs", [1, 4])
def test_numbers_are_those_of_the_accountant(browser, fetched, eps, runs):
    browser.get(PAGE.as_uri())
    browser.execute_script(
        "for (const [name, value] of Object.entries(arguments[0])) {"
        "const e = document.getElementById(name); e.step = 'any'; e.value = value;"
        "e.dispatchEvent(new Event('input')) }",
        {"epsilon": math.log(eps), "delta": -5, "runs": runs},
    )
    said = {name: browser.find_element("id", name).text for name in ("together", "found-1", "found-01", "guess")}
    mu = gaussian_mu(epsilon=eps, delta=1e-5)
    events = [GaussianRelease(noise_multiplier=1 / mu)] * runs
    together = epsilon(events, delta=1e-5, relation="add_or_remove_one")
    assert together * 0.999 <= number(said["together"]) <= together * 1.02
    expected = true_positive_rates(events, false_positive_rates=[0.01, 0.001], relation="add_or_remove_one")
    for name, rate in zip(("found-1", "found-01"), expected, strict=True):
        found = number(said[name].lstrip("> ")) / 100
        assert found == pytest.approx(rate, rel=0.03, abs=1e-3)
    assert number(said["guess"].lstrip("> ")) / 100 == pytest.approx(norm.cdf(math.sqrt(runs) * mu / 2), abs=2e-3)
    assert fetched(browser) == {PAGE.as_uri()}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_fits_a_phone_and_says_what_moves(browser):
    browser.set_window_size(360, 800)
    browser.get(PAGE.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    before = browser.find_element("id", "curve").get_attribute("d")
    browser.execute_script(
        "const e = document.getElementById('runs'); e.value = 9; e.dispatchEvent(new Event('input'))"
    )
    assert browser.find_element("id", "curve").get_attribute("d") != before
    assert browser.find_element("id", "runs-said").text == "9"


def test_it_names_no_other_place():
    text = PAGE.read_text(encoding="utf-8")
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in text


def test_the_statisticians_table_is_right():
    page = (PAGE.parent / "guide" / "claim-for-a-statistician.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| (\d+) % \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for eps, mu, power, guess in (map(float, row) for row in rows):
        exact = gaussian_mu(epsilon=eps, delta=1e-5)
        assert mu == pytest.approx(exact, rel=0.01)
        assert 0 <= power - 100 * norm.cdf(norm.ppf(0.01) + exact) < (0.1 if power < 10 else 1)  # rounded up
        assert 0 <= guess - 100 * norm.cdf(exact / 2) < 1
