"""A ledger's chain of entries: durable, checked, and refused if anything about it is wrong."""

import json
import sqlite3
import stat
import sys
from dataclasses import asdict

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records, storage
from dpdm.ledger.entries import OtherReleaseEntered, Registered, decode_statement
from dpdm.ledger.storage import Storage
from dpdm.privacy import DPSGD, accounting
from dpdm.types import InputError

IMAGES = np.zeros((3, 8, 8, 1), np.uint8)
RUN = DPSGD(dataset_size=100, expected_batch_size=10, steps=0, delta=1e-5, releases={"first": 10.0})


@pytest.fixture
def path(tmp_path):
    """The file of a ledger with a run in it."""
    path = tmp_path / "ledger.sqlite"
    Ledger(str(path)).reserve("a", RUN, Records("scans", IMAGES), place="runs/a")
    return path


def change(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_the_file_is_its_owners_alone(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_entries_are_there_for_whoever_opens_it_next(path):
    entries = Ledger(str(path)).storage.entries()
    assert [entry.content["kind"] for entry in entries] == ["registered", "records", "reserved", "taken"]
    assert [entry.number for entry in entries] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dpdm_ledger_entries SET content = replace(content, '10.0', '99.0') WHERE number = 3",
        "UPDATE dpdm_ledger_entries SET digest = '0' WHERE number = 4",
        "DELETE FROM dpdm_ledger_entries WHERE number = 2",
        "UPDATE dpdm_ledger SET key = 'no key'",
        "UPDATE dpdm_ledger SET key = replace(replace(key, '0', 'f'), '1', 'f')",
        "UPDATE dpdm_ledger_entries SET number = 9 WHERE number = 4",
    ],
)
def test_a_changed_entry_is_noticed(path, statement):
    change(path, statement)
    with pytest.raises(InputError, match="damaged"):
        Ledger(str(path)).accounts()


def test_a_newer_schema_is_refused(path):
    change(path, "UPDATE dpdm_ledger SET schema = 9")
    with pytest.raises(InputError, match="newer version"):
        Ledger(str(path)).reserve("b", RUN, Records("scans", IMAGES), place="runs/b")


def test_an_older_schema_is_brought_up_to_date_and_keeps_its_entries(path, monkeypatch):
    before = Ledger(str(path)).storage.entries()

    def add_column(connection):
        connection.execute("ALTER TABLE dpdm_ledger ADD COLUMN note TEXT")

    monkeypatch.setattr(storage, "_MIGRATIONS", (*storage._MIGRATIONS, add_column))
    assert Ledger(str(path)).storage.entries() == before
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT schema, note FROM dpdm_ledger").fetchall() == [
            (len(storage._MIGRATIONS), None)
        ]
    connection.close()


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    def half(connection):
        connection.execute("ALTER TABLE dpdm_ledger ADD COLUMN note TEXT")
        raise RuntimeError("in the middle")

    monkeypatch.setattr(storage, "_MIGRATIONS", (*storage._MIGRATIONS, half))
    with pytest.raises(RuntimeError):
        Ledger(str(path)).accounts()
    monkeypatch.undo()
    assert len(Ledger(str(path)).storage.entries()) == 4


@pytest.mark.parametrize("content", [b"no database at all, but a text of some length" * 50, b"SQLite format 3\0" * 64])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or no ledger"):
        Ledger(str(path)).accounts()
    assert path.read_bytes() == content


def test_a_corrupted_ledger_is_refused(path):
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes(len(content) - 5000))
    with pytest.raises(InputError, match="damaged"):
        Ledger(str(path)).accounts()


def test_an_emptied_ledger_is_no_new_one(path):
    change(path, "DELETE FROM dpdm_ledger")
    with pytest.raises(InputError, match="does not say what it is"):
        Ledger(str(path)).accounts()


def test_a_server_that_cannot_be_reached_is_nobodys_mistake():
    pytest.importorskip("psycopg")
    ledger = Ledger("postgresql+psycopg://team:secret@127.0.0.1:9/dpdm")
    with pytest.raises(OSError, match="cannot be used") as error:
        ledger.reserve("a", RUN, Records("scans", IMAGES), place="runs/a")
    assert "secret" not in str(error.value)
    assert "secret" not in ledger.storage.shown


def test_a_misspelt_folder_is_no_place_for_a_new_ledger(tmp_path):
    with pytest.raises(OSError, match="cannot be used"):
        Ledger(str(tmp_path / "runz" / "ledger.sqlite")).accounts()
    assert not (tmp_path / "runz").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be used"):
        Ledger(str(tmp_path / "file" / "ledger.sqlite")).accounts()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host/x",
        "postgresql+unheard://host/x",
        "postgresql+psycopg://host:port/x",
        "nonsense://",
        "://",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_other_databases_are_refused(url):
    with pytest.raises(InputError):
        Ledger(url).accounts()


def test_any_file_name_is_that_file(tmp_path):
    Ledger(str(tmp_path / "what?x=1#%41.sqlite")).accounts()
    assert (tmp_path / "what?x=1#%41.sqlite").stat().st_size


def test_another_programs_database_is_left_alone(tmp_path):
    change(tmp_path / "theirs.sqlite", "CREATE TABLE theirs (value TEXT)")
    with pytest.raises(InputError, match="another program's"):
        Ledger(str(tmp_path / "theirs.sqlite")).accounts()


def test_nothing_is_appended_if_the_decision_raises(path):
    def decide(entries):
        yield {"kind": "one"}
        raise InputError("no")

    chain = Storage(path)
    with pytest.raises(InputError, match="no"):
        chain.append(decide)
    assert len(chain.entries()) == 4


VALID = asdict(OtherReleaseEntered(dataset="scans", what="a table", epsilon=0.5, delta=0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "unheard of"},
        {"epsilon": -1.0},
        {"epsilon": 0.0},
        {"epsilon": "1"},
        {"epsilon": None},
        {"delta": 1.0},
        {"more": 1},
    ],
)
def test_an_entry_that_nobody_can_account_for_stops_everything(path, wrong):
    chain = Storage(path)
    chain.append(lambda entries: [VALID])
    assert Ledger(str(path)).account("scans").entered
    chain.append(lambda entries: [VALID | wrong])
    with pytest.raises(InputError, match="nothing that this version can account for"):
        Ledger(str(path)).reserve("b", RUN, Records("scans", IMAGES), place="runs/b")


GAUSSIAN = {"type": "GaussianRelease", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    "event",
    [
        {"type": "LaplaceRelease", "scale": 1.0},
        {"noise_multiplier": 1.0},
        GAUSSIAN | {"noise_multiplier": 0.0},
        GAUSSIAN | {"noise_multiplier": -2.0},
        GAUSSIAN | {"noise_multiplier": float("nan")},
        GAUSSIAN | {"more": 1},
        {"type": "PoissonGaussianSteps", "noise_multiplier": 1.0, "sample_rate": 1.5, "steps": 3},
        {"type": "PoissonGaussianSteps", "noise_multiplier": 1.0, "sample_rate": 0.5, "steps": -3},
        {"type": "RepeatedSelection", "events": [GAUSSIAN | {"type": "Laplace"}], "mean": 3.0, "shape": 1.0},
        {"type": "RepeatedSelection", "events": [GAUSSIAN], "mean": 1.0, "shape": 1.0},
    ],
)
def test_an_event_that_nobody_can_account_for_is_refused(event):
    reserved = {"kind": "reserved", "dataset": "scans", "reservation": "r", "planned": "p", "at": "now"}
    assert decode_statement(reserved | {"events": [GAUSSIAN]}, number=1)
    with pytest.raises(InputError, match="entry 7 of the ledger"):
        decode_statement(reserved | {"events": [event]}, number=7)


def test_half_a_total_is_refused():
    whole = asdict(Registered.total("scans", 1.0, 1e-5, "add_or_remove_one", "one image"))
    assert decode_statement(whole, number=1)
    for wrong in ({"epsilon": None}, {"order": None}, {"order": 0.5}, {"relation": "neighbours"}):
        with pytest.raises(InputError, match="entry 1"):
            decode_statement(whole | wrong, number=1)


def test_an_export_holds_no_key(path):
    with sqlite3.connect(path) as connection:
        (key,) = connection.execute("SELECT key FROM dpdm_ledger").fetchone()
    connection.close()
    assert len(bytes.fromhex(key)) == 32
    assert key not in json.dumps([entry._asdict() for entry in Ledger(str(path)).storage.entries()])


def test_figures_that_are_shown_are_computed_once_and_decide_nothing(path, monkeypatch):
    """A ledger is looked at again without dp-accounting; what is kept beside the chain lets no run in."""
    ledger = Ledger(str(path))
    ledger.complete("a", RUN.events())
    before = ledger.shown()["scans"]
    assert [spent.what for spent in before.history] == ["reserved", "completed runs/a"]
    account = ledger.account("scans")
    assert (before.share, before.epsilon_if_planned) == (account.share, account.epsilon_if_planned)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    accounting._renyi_divergence.cache_clear()
    accounting._epsilon.cache_clear()
    assert Ledger(str(path)).shown()["scans"] == before
    monkeypatch.undo()
    change(path, "UPDATE dpdm_ledger_figures SET value = 0.0")
    assert Ledger(str(path)).shown()["scans"].share == 0.0
    assert Ledger(str(path)).account("scans").share == account.share
    with pytest.raises(InputError, match="does not fit"):
        Ledger(str(path)).reserve("b", RUN, Records("scans", IMAGES), place="runs/b")


def test_figures_follow_the_entries_after_which_they_hold(path):
    ledger = Ledger(str(path))
    first = ledger.shown("scans")["scans"]
    ledger.change_total("scans", epsilon=9.0)
    ledger.reserve("b", RUN, Records("scans", IMAGES), place="runs/b")
    second = ledger.shown()["scans"]
    assert second.history[:1] == first.history
    assert second.share == ledger.account("scans").share != first.share
    assert second.epsilon_if_planned == ledger.account("scans").epsilon_if_planned > first.epsilon_if_planned
    with pytest.raises(InputError, match="no data set 'photos'"):
        ledger.shown("photos")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://team:se:cr@et@server:5432/dpdm", "postgresql+psycopg://team:***@server:5432/dpdm"),
        ("postgresql://team@server/dpdm?password=secret&sslmode=require", "***&sslmode=require"),
        ("postgresql://server/dpdm", "postgresql://server/dpdm"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    said = Ledger(url).storage.shown
    assert shown in said
    assert "se:cr" not in said
    assert "secret" not in said


def test_a_url_that_the_server_cannot_read_is_refused_without_its_password():
    pytest.importorskip("psycopg")
    ledger = Ledger("postgresql+psycopg://team:secret@server/dpdm?no_such_option=1")
    with pytest.raises(InputError, match="is not written as PostgreSQL has it") as error:
        ledger.accounts()
    assert "secret" not in str(error.value)
