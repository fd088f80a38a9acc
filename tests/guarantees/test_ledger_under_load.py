"""A ledger under many processes at once, and under ones that are killed, on SQLite and on PostgreSQL."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from many_at_once import PROCESSES, RUN, SCANS

from dpdm.ledger import Ledger
from dpdm.privacy.accounting import epsilon

pytestmark = pytest.mark.proof

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def postgresql():
    """The URL of a server of its own on loopback, with an empty database."""
    pytest.importorskip("psycopg", reason="needs pip install 'dpdm[postgresql]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("needs Debian's package postgresql")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # which the server refuses to run as
    if as_user and shutil.which("runuser") is None:
        pytest.skip("needs runuser, since PostgreSQL refuses to run as root")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    shutil.chown(folder, "postgres") if as_user else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=80"

    def call(*command):
        subprocess.run([*as_user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    call(programs[-1] / "initdb", "-D", folder / "data", "-U", "dpdm", "--auth=trust", "--no-sync")
    call(programs[-1] / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
    yield f"postgresql+psycopg://dpdm@127.0.0.1:{port}/postgres"
    call(programs[-1] / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A new, empty ledger."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    server = request.getfixturevalue("postgresql")
    return with_database(server)


def with_database(server, *settings):
    """Return the URL of a new database on the server, of these default settings."""
    import psycopg

    name = f"ledger_{os.urandom(4).hex()}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        for setting in settings:
            connection.execute(f"ALTER DATABASE {name} SET {setting}")
    return server.removesuffix("/postgres") + f"/{name}"


def output_of(script, *arguments):
    done = subprocess.run(
        [sys.executable, HERE / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_however_many_reserve_at_once_the_total_is_not_passed_and_none_is_lost(url):
    ledger = Ledger(url)
    ledger.register(SCANS, epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    room = ledger.account("scans").more_runs(epsilon=RUN.epsilon())
    assert 5 < room < PROCESSES
    let_in = json.loads(output_of("many_at_once.py", url))
    assert len(let_in) == PROCESSES
    assert set(let_in) == {"0", "1"}, let_in
    assert let_in.count("1") == room, let_in
    account = ledger.account("scans")
    runs = {f"run {number}" for number, answer in enumerate(let_in) if answer == "1"}
    assert {reservation.run for reservation in account.reservations.values()} == runs
    assert all(reservation.completed for reservation in account.reservations.values())
    assert epsilon(account.events, delta=1e-5, relation="add_or_remove_one") <= 2.0


def test_however_many_register_at_once_it_is_there_once(url):
    """The first of them gives the total, which is its own claim, so that no other fits."""
    let_in = json.loads(output_of("many_at_once.py", url))
    assert set(let_in) == {"0", "1"}, let_in
    assert let_in.count("1") == 1, let_in
    kinds = [entry.content["kind"] for entry in Ledger(url).storage.entries()]
    assert sorted(kinds) == ["completed", "records", "registered", "reserved", "taken"]


@pytest.mark.parametrize("level", ["read uncommitted", "read committed", "repeatable read", "serializable"])
def test_a_servers_default_isolation_changes_nothing(postgresql, level):
    """The kind: settings of a server that change what a transaction means."""
    url = with_database(postgresql, f"default_transaction_isolation = '{level}'")
    ledger = Ledger(url)
    ledger.register(SCANS, epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    room = ledger.account("scans").more_runs(epsilon=RUN.epsilon())
    let_in = json.loads(output_of("many_at_once.py", url))
    assert len(let_in) == PROCESSES
    assert set(let_in) == {"0", "1"}, let_in
    assert let_in.count("1") == room, let_in


def test_a_server_that_answers_before_it_has_written_is_told_to_write_first(postgresql):
    """`append` returns when what it appends is on disk: a crash of the server must not give a reservation back."""
    url = with_database(postgresql, "synchronous_commit = off", "default_transaction_deferrable = on")
    ledger = Ledger(url)
    with ledger.storage._locked() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_has_reserved_what_it_made(url, tmp_path):
    rows = [json.loads(line) for line in output_of("killed_ledger.py", url, tmp_path / "runs").splitlines()]
    planned = 6
    assert rows[-1]["finished"]
    assert rows[-1]["after"] == rows[-1]["made"] == planned
    assert not any(row["finished"] for row in rows[:-1])
    assert len(rows) > 30
    assert {row["made"] for row in rows} == set(range(planned + 1))
    assert {row["before"] for row in rows} == {0, planned}
    for row in rows:
        assert row["made"] <= row["after"] <= row["before"], row
        assert not row["made"] or row["before"] == planned, row
        assert not row["settled"] or not row["before"] or row["after"] == planned, row
        assert not row["released"] or row["after"] == planned, "what is released is counted first"
    half_way = [row for row in rows if 0 < row["made"] < planned and row["after"] < planned]
    assert half_way, "settling gives back what was not made"
    Ledger(url).storage.entries()  # checks the chain
