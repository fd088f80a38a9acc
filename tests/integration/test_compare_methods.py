"""`dpdm compare --methods`: a table of methods on a benchmark, in one command that goes on where it stopped.

All methods together take minutes: that test is `slow`, and runs with `make test-all`.
"""

import dataclasses
import json

import numpy as np
import pytest
from hostile_releases import digested

from dpdm.cli import comparing
from dpdm.evaluation import PROTOCOLS, QUICK, scorecard
from dpdm.ledger import Ledger
from dpdm.runs import verify_release
from dpdm.types import InputError

LINE = ("compare", "--dataset", "digits", "--epsilon", 1, "-n", 60, "--quick", "--features", "pixels", "--run", "c")


@pytest.fixture(autouse=True)
def few_updates(monkeypatch):
    monkeypatch.setattr(scorecard, "PROTOCOLS", PROTOCOLS | {"quick": dataclasses.replace(QUICK, min_updates=5)})


@pytest.fixture
def book(tmp_path):
    return ("--ledger", tmp_path / "ledger.sqlite")


def test_a_benchmark_is_made_of_digits_and_goes_on(dpdm, tmp_path, book, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparing, "judged", stopped)
        assert dpdm(*LINE, "--methods", "prior", *book)[0] == 130
    kept = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert kept["rows"]["prior"]["seconds"] > 0

    code, out, err = dpdm(*LINE, "--methods", "prior,evolution", "--markdown", *book)
    assert code == 0, err
    assert "| evolution |" in out
    assert "needs public images" in out
    assert "BENCHMARK: 1 run" in verify_release(tmp_path / "c" / "prior").statement

    code, out, err = dpdm(*LINE, "--methods", "prior", "--json", *book, "--seed", 1)
    assert code == 2
    assert "holds another comparison (seed: 0)" in err

    account = Ledger(str(book[1])).account("digits")
    assert account.benchmark
    assert len(account.reservations) == 1, "what was trained before is not trained again"
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert "BENCHMARK: 1 run" in page
    assert "needs public images" in page


def test_each_release_is_stamped_with_the_sum_of_all(dpdm, tmp_path, book):
    code, out, err = dpdm(*LINE, "--methods", "prior", "--json", *book)
    assert code == 0, err
    code, out, err = dpdm("train", "digits", "--method", "prior", "--epsilon", 2, "--run", "alone", *book)
    assert code == 0, err
    alone = verify_release(tmp_path / "alone").statement
    assert alone.startswith("BENCHMARK: 2 runs on these images, ε ≤ ")
    code, out, err = dpdm(*LINE, "--methods", "prior", "--json", *book)
    assert code == 0, err
    facts = json.loads(out)
    (row,) = facts["rows"]
    assert row["claim"].partition(";")[0] == alone.partition(";")[0], "brought up to now"
    assert facts["benchmark"]["runs"] == 2
    assert facts["benchmark"]["epsilon"] > 2
    assert row["epsilon"] <= 1
    assert row["public"] == []
    assert 0 < row["scores"]["cnn"]["accuracy"] <= 1
    assert row["scores"]["fidelity"]["frechet"]["value"] > 0

    (tmp_path / "c" / "prior" / "release" / "privacy.json").unlink()  # a crash while it was stamped again
    assert dpdm(*LINE, "--methods", "prior", *book)[0] == 0
    code, out, _ = dpdm("verify", "c/prior")
    assert code == 0
    assert "BENCHMARK: 2 runs" in out
    assert "a benchmark for good" in dpdm("ledger", "show", "digits", *book)[1]


def test_a_stamp_is_of_the_ledger_that_counts_the_run(dpdm, tmp_path, book, monkeypatch):
    assert dpdm(*LINE, "--methods", "prior", *book)[0] == 0
    other = tmp_path / "other.sqlite"
    code, _, err = dpdm(*LINE, "--methods", "prior,evolution", "--ledger", other)
    assert code == 2
    assert "has no reservation of this run" in err
    assert not other.exists() or not Ledger(str(other)).accounts(), "and no benchmark begins there"

    line = ("train", "digits", "--method", "prior", "--epsilon", 1, "--run", "alone")
    assert dpdm(*line, *book)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(comparing, "_enter_row", lambda rows, name, *rest: rows.put(name, refused="not now"))
        assert dpdm(*LINE, "--methods", "sliced", *book)[0] == 2
    assert "BENCHMARK: 2 runs" in verify_release(tmp_path / "c" / "prior").statement, "of an earlier choice of methods"
    for path in (tmp_path / "alone" / "release").iterdir():
        path.unlink()
    code, _, err = dpdm(*line, "--ledger", "none")
    assert code == 2
    assert "began in a ledger" in err
    assert dpdm(*line, *book)[0] == 0
    assert "BENCHMARK: 2 runs" in verify_release(tmp_path / "alone").statement


def test_a_private_reference_is_refused(dpdm, tmp_path, photos, book):
    names = [folder.name for folder in photos.iterdir() if folder.is_dir()]
    register = ("ledger", "register", photos, "--set=data.size=8", "--set=data.channels=1", "--epsilon", 1)
    assert dpdm(*register, "--dataset-size", 120, "--delta", 1e-3, *book)[0] == 0, names
    shown = dpdm(*LINE, "--methods", "prior", "--reference", photos, *book)
    assert shown[0] == 2, shown
    assert "they are private" in shown[2], shown


def test_a_stamp_that_no_run_writes_is_refused(dpdm, tmp_path, book):
    assert dpdm(*LINE, "--methods", "prior", *book)[0] == 0
    release = tmp_path / "c" / "prior" / "release"
    settings = (release / "config.toml").read_text()
    start = settings.index("[facts.benchmark]")
    forged = [("runs = 1", "runs = 0"), ("runs = 1", 'runs = "two"'), ("runs = 1", "runs = 1000001")]
    forged += [
        ("epsilon = 0.", "epsilon = 0.0"),
        ("epsilon = 0.", "epsilon = 9.123456789"),
        ("delta = 0.", "delta = 0.1"),
    ]
    for old, new in [*forged, ("epsilon = ", "epsilon = 9"), ("delta = 0.", "delta = 0.1")]:
        (release / "config.toml").write_text(settings[:start] + settings[start:].replace(old, new, 1))
        assert (release / "config.toml").read_text() != settings
        digested(release)
        with pytest.raises(InputError, match=r"facts.benchmark|privacy.json states statement"):
            verify_release(tmp_path / "c" / "prior")


def test_private_images_are_not_compared_and_the_price_is_said(dpdm, tmp_path, photos, book):
    line = ("compare", "--methods", "prior,diffusion,evolution", "--dataset", photos, "--epsilon", 1)
    code, out, err = dpdm(*line, "--reference", "digits:test", "--set=data.size=8", *book)
    assert (code, out) == (2, "")
    assert "photos is private" in err
    assert "dpdm tune" in err
    assert len(err.splitlines()) == 1
    assert not book[1].exists()


def test_images_with_other_entries_are_refused(dpdm, tmp_path, book):
    assert dpdm("train", "digits", "--method", "prior", "--epsilon", 1, "--run", "r", *book)[0] == 0
    code, _, err = dpdm(*LINE, "--methods", "prior", *book)
    assert code == 2
    assert "only its first entry can make it one" in err
    assert "name a ledger for benchmarks by --ledger" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--methods", "prior,nothing"), "none of"),
        (("--methods", "prior", "--ledger", "none"), "a property of images in a ledger"),
        (("--methods", "prior", "--set=network.width=8"), "is not a setting of all methods"),
        (("--methods", "prior", "--public", "nowhere"), "nowhere"),
        (("--methods", "evolution"), "evolution needs public images: --public"),
        (("--methods", "prior", "--reference", "nowhere"), "nowhere"),
        (("digits", "--methods", "prior"), "leave out runs"),
        ((), "go with --methods"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(dpdm, book, given, said):
    code, _, err = dpdm(*LINE, *book, *given)
    assert code == 2
    assert said in err.splitlines()[-1]


@pytest.mark.slow
def test_all_methods_on_digits(dpdm, tmp_path, book):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "public.npz", images=rng.integers(0, 256, (4000, 8, 8, 1), dtype=np.uint8))
    code, out, err = dpdm(*LINE, "--methods", "all", "--minutes", 0.1, "--public", "public.npz", "--json", *book)
    assert code == 0, err
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == set(comparing._named("all"))
    refused = {name: row["refused"] for name, row in rows.items() if "scores" not in row}
    assert set(refused) <= {"statistics"}, refused  # which has seconds here, and says that it needs more
