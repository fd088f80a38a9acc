import json
import shutil
import sys

import pytest
from small_photos import save
from small_run import SMALL

from dpdm import cli


@pytest.fixture
def photos(tmp_path):
    """A folder of 30 small colour pictures in three class folders."""
    return save(tmp_path / "photos")


@pytest.fixture
def dpdm(monkeypatch, capsys, tmp_path):
    """Run one command line in this process: returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dpdm", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def trained(dpdm, photos, tmp_path):
    """A finished small run on the photos."""
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err
    return tmp_path / "run"


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that logs what it fetches."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'chromium'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def fetched():
    """Return the addresses that a browser's pages have asked for, but for those of the browser itself."""

    def of(browser):
        entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"}
        return {url for url in asked if not url.startswith(("chrome", "data:"))}

    return of
