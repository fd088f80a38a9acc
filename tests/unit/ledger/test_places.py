"""Which ledger is meant, and whether it is the one, in the state, that a run has seen."""

import json
import os
import shutil
import sqlite3

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records, RunIdentity
from dpdm.ledger.account import read_accounts
from dpdm.ledger.entries import decode_statement
from dpdm.ledger.storage import Head, Storage, chained
from dpdm.privacy import DPSGD, GaussianRelease, gaussian_mu
from dpdm.privacy.accounting import encode_event
from dpdm.types import InputError

SCANS = Records("scans", np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1))
RUN = DPSGD(dataset_size=100, expected_batch_size=10, steps=0, delta=1e-5, releases={"first": 10.0})


@pytest.mark.parametrize(
    "place",
    [
        "team.sqlite",
        "./team.sqlite",
        "../team.sqlite",
        "~/team.sqlite",
        "~root/team.sqlite",
        "",
        " ",
        "None",
        "sqlite:///team.sqlite",
        "sqlite:team.sqlite",
        "file:team.sqlite",
        "file:///team.sqlite?mode=rwc",
        "sqlite:///file:team.sqlite?uri=true",
        "postgresql.sqlite",
        "postgresql+psycopg://",
        "postgresql+psycopg:///dpdm",
        "postgresql+psycopg://server",
    ],
)
def test_a_variable_that_names_another_ledger_in_each_folder_is_refused(place, monkeypatch, tmp_path):
    """The kind: a name whose meaning depends on where, or as who, one stands."""
    monkeypatch.setenv("DPDM_LEDGER", place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        Ledger.default()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_typed_means_the_folder_in_which_it_is_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    books = [Ledger.default("here.sqlite"), Ledger("./here.sqlite"), Ledger("sqlite:///here.sqlite")]
    monkeypatch.chdir(tmp_path / "elsewhere")
    for book in books:
        assert os.path.normpath(book.url) == str(tmp_path / "here.sqlite")
        book.accounts()
    assert not list((tmp_path / "elsewhere").iterdir())
    for nothing in ("", " "):
        with pytest.raises(InputError, match="is empty"):
            Ledger.default(nothing)
    with pytest.raises(InputError, match="home folder"):
        Ledger("~nobody-of-this-name/ledger.sqlite")


@pytest.fixture
def path(tmp_path):
    """The file of a ledger with a total that several runs fit into."""
    book = Ledger(str(tmp_path / "ledger.sqlite"), tell=lambda line: None)
    book.register(SCANS, epsilon=3.0, delta=1e-5, relation="add_or_remove_one")
    return tmp_path / "ledger.sqlite"


def reserve(path, run, **more):
    return Ledger(str(path), tell=lambda line: None).reserve(run, RUN, SCANS, place=f"runs/{run}", **more)


def rewrite(path, change):
    """Change entries and make the whole chain anew, with the key that lies beside it."""
    with sqlite3.connect(path) as connection:
        (key,) = connection.execute("SELECT key FROM dpdm_ledger").fetchone()
        made = []
        for entry in Storage(path).entries():
            text = json.dumps(change(entry.content), ensure_ascii=False, sort_keys=True)
            made.append(entry._replace(digest=chained(key, made, text)))
            connection.execute(
                "UPDATE dpdm_ledger_entries SET content = ?, digest = ? WHERE number = ?",
                (text, made[-1].digest, entry.number),
            )
    connection.close()


def test_a_run_that_goes_on_notices_a_ledger_that_was_rolled_back(path):
    head = reserve(path, "a")
    shutil.copy(path, path.with_name("before.sqlite"))
    later = reserve(path, "a", head=head)
    assert later.number > head.number
    shutil.copy(path.with_name("before.sqlite"), path)
    book = Ledger(str(path))
    with pytest.raises(InputError, match="restored from a backup or rewritten") as caught:
        reserve(path, "a", head=later)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="restored from a backup or rewritten"):
        book.complete("a", RUN.events(), head=later)
    reserve(path, "a", head=head)
    book.complete("a", RUN.events(), head=head)


def test_a_run_that_goes_on_notices_a_chain_that_was_made_anew(path):
    head = reserve(path, "a")
    rewrite(path, lambda content: content | ({"epsilon": 30.0} if content["kind"] == "registered" else {}))
    assert Ledger(str(path)).account("scans").epsilon == 30.0, "the chain is whole, and nobody else can tell"
    with pytest.raises(InputError, match="restored from a backup or rewritten"):
        reserve(path, "a", head=head)


def test_a_run_keeps_the_head_in_its_folder(tmp_path, path):
    name = RunIdentity.new().started(tmp_path)
    assert RunIdentity.read(tmp_path) == name
    seen = name.saw(reserve(path, "a"), tmp_path)
    assert RunIdentity.read(tmp_path) == seen
    assert seen.head == (len(Ledger(str(path)).storage.entries()), Ledger(str(path)).storage.entries()[-1].digest)
    assert seen.started(tmp_path).head == seen.head
    for wrong in ({"head": [0, "x"]}, {"head": "x"}, {"tokens": "x"}, {"run": 7}):
        (tmp_path / "ledger.json").write_text(json.dumps(seen._asdict() | wrong))
        with pytest.raises(InputError, match="is damaged"):
            RunIdentity.read(tmp_path)


def test_a_ledger_of_the_schema_before_loses_its_sums_and_nothing_that_was_spent(path):
    """Bare sums of digests told of two data sets whether one is a part of the other."""
    reserve(path, "a")
    Ledger(str(path)).complete("a", RUN.events())
    before = Ledger(str(path)).account("scans")

    def of_before(content):
        old = {"records": "ab" * 32, "groups": "cd" * 32}
        return content | (old if content["kind"] == "records" else {})

    rewrite(path, of_before)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE dpdm_ledger SET schema = 1")
    connection.close()
    book, told = Ledger(str(path)), []
    after = book.account("scans")
    assert after.records == {}
    assert (after.share, after.events, after.epsilon) == (before.share, before.events, before.epsilon)
    assert "abab" not in json.dumps([entry.content for entry in book.storage.entries()])
    Ledger(str(path), tell=told.append).reserve("b", RUN, SCANS, place="runs/b")
    assert not any("other records" in line for line in told)
    with pytest.raises(InputError, match="registered as scans"):
        book.reserve("c", RUN, Records("other", SCANS.images), place="runs/c")


def test_a_damaged_ledger_of_the_schema_before_is_refused(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE dpdm_ledger SET schema = 1")
        connection.execute("UPDATE dpdm_ledger_entries SET content = replace(content, '3.0', '9.0') WHERE number = 1")
    connection.close()
    with pytest.raises(InputError, match="damaged"):
        Ledger(str(path)).accounts()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT schema FROM dpdm_ledger").fetchall() == [(1,)]
    connection.close()


def planned_together(path, noise, times):
    """Bring a ledger to what it was before schema 4: runs reserved together, of which the first has begun."""
    events = [encode_event(GaussianRelease(noise_multiplier=noise))]
    made = [
        {"kind": "reserved", "dataset": "scans", "reservation": name, "planned": "p", "events": events, "at": "2026"}
        for name in map(str, range(times))
    ]
    made[0] |= {"epsilon": 1.0, "delta": 1e-5}  # which the last versions kept
    taken = {"kind": "taken", "reservation": "0", "run": "a", "token": "", "place": "runs/a", "at": "2026"}
    entries = Storage(path).append(lambda entries: [*made, taken])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE dpdm_ledger SET schema = 3")
    connection.close()
    return [decode_statement(entry.content, number=entry.number) for entry in entries]


def test_runs_that_wait_in_an_older_ledger_are_given_back_and_what_was_spent_stays(path):
    reserve(path, "before")
    head = Head(len(Storage(path).entries()), Storage(path).entries()[-1].digest)
    before = read_accounts(planned_together(path, 10.0, 3))["scans"]
    after = Ledger(str(path)).account("scans")
    assert after.share == pytest.approx(before.share / 2), "two of four runs"
    assert after.events == before.events[:2]
    assert [r.state for r in after.reservations.values()] == ["running", "running", "given back", "given back"]
    assert Ledger(str(path)).storage.entries() == Ledger(str(path)).storage.entries(), "they are given back once"
    reserve(path, "before", head=head)


@pytest.mark.parametrize("released", [True, False])
def test_runs_that_pld_let_in_together_count_in_full_as_before(path, released):
    """No filter covered the first of them while the others might still have released all."""
    order, times = Ledger(str(path)).account("scans").filter.order, 2
    noise = 1 / gaussian_mu(epsilon=3.0 / 2**0.5, delta=1e-5)
    before = read_accounts(planned_together(path, noise, times))["scans"]
    assert before.share == 1.0
    after = Ledger(str(path)).account("scans")
    assert (after.order, after.share) == (order, 1.0)
    Ledger(str(path)).complete("a", [GaussianRelease(noise_multiplier=noise)] if released else [])
    assert Ledger(str(path)).account("scans").share == (1.0 if released else 0.0)
