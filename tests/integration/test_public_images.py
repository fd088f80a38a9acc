"""Public images from the command line: named, opened, claimed, checked, audited."""

import json

import numpy as np
import pytest
from PIL import Image

from dpdm.data import read_claim
from dpdm.ledger import Ledger

EVOLVED = ("--method=evolution", "--epsilon=4", "--set=data.size=8", "--set=privacy.delta=1e-3", "--set=population=5")


@pytest.fixture
def shown(tmp_path):
    """A folder of 60 small colour pictures without classes."""
    (tmp_path / "shown").mkdir()
    rng = np.random.default_rng(1)
    for number in range(60):
        picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture.save(tmp_path / "shown" / f"{number}.png")
    return tmp_path / "shown"


@pytest.fixture
def evolved(dpdm, photos, shown, tmp_path):
    code, out, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert code == 0, err
    assert "it does not protect what was declared public: 'shown' (60 images, SHA-256" in out
    return tmp_path / "run"


def test_a_run_names_its_public_images_wherever_it_states_its_claim(dpdm, evolved, tmp_path):
    claim = json.loads((evolved / "release" / "privacy.json").read_text())
    (part,) = claim["public"]
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert (
        f'public   "shown", 60 images, SHA-256 {part["sha256"]}: declared so, and the claim does not protect it' in out
    )
    assert json.loads(dpdm("verify", "run", "--json")[1])["public"] == [["shown", part["sha256"], 60]]
    code, out, err = dpdm("sample", "run", "-n", 12, "-o", "made.npz")
    assert code == 0, err
    with np.load(tmp_path / "made.npz") as made:
        assert json.loads(str(made["claim"]))["public"] == [part]
    assert "does not protect what was declared public: 'shown'" in read_claim(tmp_path / "made.npz")
    assert "does not protect what was declared public: 'shown'" in out
    code, _, err = dpdm("report", "run")
    assert code == 0, err
    assert part["sha256"] in (evolved / "report.html").read_text()


def test_every_image_that_it_draws_is_a_public_one(dpdm, evolved, shown, tmp_path):
    from dpdm.data import open_dataset

    assert dpdm("sample", "run", "-n", 30, "-o", "made.npz")[0] == 0
    public = {image.tobytes() for image in open_dataset(shown, size=8).images}
    assert {image.tobytes() for image in np.load(tmp_path / "made.npz")["images"]} <= public


def test_the_same_command_goes_on_and_another_does_not(dpdm, evolved, photos, shown):
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert code == 0, err
    Image.new("RGB", (9, 9)).save(shown / "more.png")
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "run holds another run" in err
    assert "facts.public" in err


def test_a_plan_of_it_needs_no_public_images(dpdm, photos):
    code, out, err = dpdm("plan", photos, *EVOLVED)
    assert code == 0, err
    assert "sums        4; noise" in out
    assert "time        seconds to minutes: no network is trained" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (EVOLVED, "the method evolution starts from public images: name some, by --public PATH"),
        (("--method=prior", "--epsilon=4", "--public", "shown"), "the method prior starts from no public images"),
        ((*EVOLVED, "--public", "nowhere"), "nowhere"),
        ((*EVOLVED, "--public", "2024"), "2024 is neither a path that exists"),
        ((*EVOLVED, "--public", "shown/0.png"), "shown/0.png"),
        ((*EVOLVED, "--public", "shown", "--set=public.name="), "public.name"),
        ((*EVOLVED, "--public", "shown", "--minutes=1"), "takes no steps that could be timed: leave out --minutes"),
    ],
)
def test_what_is_wrong_with_public_images_is_one_line_before_anything_is_spent(
    dpdm, photos, shown, tmp_path, line, says
):
    code, out, err = dpdm("train", photos, *line, "--run", "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "run").exists()


def test_images_with_a_total_are_no_public_images(dpdm, photos, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    assert dpdm("ledger", "register", shown, "--epsilon", 5)[0] == 0
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--set=public.name=others", "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the images of others are registered as shown, which has a total: they are private" in err
    assert not (tmp_path / "run").exists()
    assert Ledger(str(tmp_path / "ledger.sqlite")).account("shown").untouched


def test_images_that_are_to_be_protected_are_not_declared_public_where_they_lie(dpdm, photos, tmp_path):
    for public in (photos, f"{photos}+shapes"):
        code, out, err = dpdm("train", photos, *EVOLVED, "--public", public, "--run", "run")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "photos names the images that are to be protected" in err
        assert not (tmp_path / "run").exists()


def test_a_mixture_does_not_hide_images_with_a_total(dpdm, photos, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    assert dpdm("ledger", "register", shown, "--epsilon", 5)[0] == 0
    monkeypatch.setattr("dpdm.data.public.COUNT", 20)
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", f"{shown}+shapes", "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the images of shown are registered as shown, which has a total" in err


@pytest.mark.parametrize("made", ["made.npz", "made", "ready"])
def test_what_was_drawn_from_a_release_is_refused_as_public(dpdm, evolved, photos, tmp_path, made):
    """Whatever carries the claim: one file, PNG files, and what was prepared from either."""
    assert dpdm("sample", "run", "-n", 6, "-o", "made" if made == "ready" else made)[0] == 0
    if made == "ready":
        assert dpdm("prepare", "made", "-o", "ready")[0] == 0
    for line in (
        ("train", photos, *EVOLVED, "--public", made, "--run", "other"),
        ("train", photos, *EVOLVED, "--public", f"shapes+{made}", "--run", "other"),
        ("tune", photos, *EVOLVED, "--public", "shapes", "--try=seed=1,2", "--run", "best", "--reference", made),
    ):
        code, out, err = dpdm(*line)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "was drawn from a private release ((4" in err or "was drawn from a private release ((3.99" in err
        assert "its images are not public data" in err


@pytest.mark.proof
def test_a_run_that_started_from_public_images_is_audited(dpdm, evolved, shown):
    code, out, err = dpdm("audit", "run")
    assert code == 0, err
    assert "all 4 sums: all that the run claims" in out
    assert "No attack exceeded what the run claims." in out
    (shown / "0.png").unlink()
    code, _, err = dpdm("audit", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "shown is not shown, which run started from: its digest is another" in err


@pytest.mark.proof
def test_a_search_starts_from_public_images_too(dpdm, photos, shown, tmp_path):
    line = ("tune", photos, *EVOLVED, "--try=seed=1,2", "--runs=1.5", "--score-noise=20", "--run", "best")
    code, _, err = dpdm(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "starts from public images" in err
    code, out, err = dpdm(*line, "--public", shown)
    assert code == 0, err
    assert "it does not protect what was declared public: 'shown' (" in out
    assert dpdm("verify", "best")[0] == 0
