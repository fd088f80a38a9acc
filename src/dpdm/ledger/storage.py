"""Where a ledger's entries are kept: an append-only chain of texts in an SQLite file or a PostgreSQL database.

Every change is one transaction that holds the ledger's only lock, reads all entries, checks their chain, decides, and
appends: nobody can decide on what is out of date, and a crash leaves all of a change or nothing.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dpdm.ledger.entries import Completed
from dpdm.types import InputError

_SECONDS_TO_CONNECT = 10
_SECONDS_FOR_LOCK = 300
_SCHEMES = ("postgresql", "postgresql+psycopg")
_BEGIN = {
    # Write ahead, and every commit on disk before it returns.
    "sqlite3": ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "BEGIN IMMEDIATE"),
    # A server may be set up to answer before a commit is on its disk: what is reserved must not be lost in a crash.
    "psycopg": (
        "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'",
        "SELECT pg_advisory_xact_lock(7164117)",
    ),
}
_TABLES = {
    "sqlite3": "SELECT name FROM sqlite_master WHERE type = 'table'",
    "psycopg": "SELECT tablename FROM pg_tables WHERE schemaname = ANY (current_schemas(false))",
}


class Entry(NamedTuple):
    """One text of the chain, decoded, and the digest of it and of all before it."""

    number: int
    content: dict[str, Any]
    digest: str


class Head(NamedTuple):
    """The last entry of a chain: how many there are, and the digest of all."""

    number: int
    digest: str


@dataclass(frozen=True)
class Transaction:
    """A transaction that holds the ledger's lock: what Python's drivers of databases agree on (PEP 249), and no more.

    Args:
        connection: The driver's.
        driver: sqlite3 or psycopg.
        place: The ledger's, for messages.
    """

    connection: Any
    driver: ModuleType
    place: str

    def execute(self, statement: str, *values: object) -> Any:  # noqa: ANN401 (the driver's cursor)
        """Run one statement, with `?` where values belong, and return the cursor."""
        mark = "?" if self.driver.paramstyle == "qmark" else "%s"
        return self.connection.execute(statement.replace("?", mark), values)

    def commit(self) -> None:
        """Make all of it durable."""
        self.connection.commit()

    def key(self) -> str:
        """Return the key that the chain begins with, in hexadecimal digits."""
        rows = self.execute("SELECT key FROM dpdm_ledger").fetchall()
        if len(rows) != 1 or not re.fullmatch("[0-9a-f]{64}", str(rows[0][0])):
            raise InputError(f"{self.place} is damaged: its key is not one; restore it from a backup")
        return str(rows[0][0])

    def entries(self) -> list[Entry]:
        """Return all entries, after checking their chain."""
        entries, key = list[Entry](), self.key()
        for number, text, digest in self.execute(
            "SELECT number, content, digest FROM dpdm_ledger_entries ORDER BY number"
        ):
            if number != len(entries) + 1 or digest != chained(key, entries, text):
                raise InputError(
                    f"{self.place} is damaged: entry {len(entries) + 1} is not what was written; restore a backup"
                )
            entries.append(Entry(number, json.loads(text), digest))
        return entries

    def append(self, entries: list[Entry], content: dict[str, Any]) -> None:
        """Append one entry to the chain, and to `entries`, which are all before it."""
        text = _text(content)
        entry = Entry(len(entries) + 1, content, chained(self.key(), entries, text))
        inserted = "INSERT INTO dpdm_ledger_entries (number, content, digest) VALUES (?, ?, ?)"
        self.execute(inserted, entry.number, text, entry.digest)
        entries.append(entry)


def _first_tables(transaction: Transaction) -> None:
    """Make the tables of schema 1, and the key under which records are told apart."""
    transaction.execute("CREATE TABLE dpdm_ledger (schema INTEGER NOT NULL, key VARCHAR(64) NOT NULL)")
    transaction.execute(
        "CREATE TABLE dpdm_ledger_entries "
        "(number INTEGER NOT NULL PRIMARY KEY, content TEXT NOT NULL, digest VARCHAR(64) NOT NULL)"
    )
    transaction.execute("INSERT INTO dpdm_ledger (schema, key) VALUES (?, ?)", 0, secrets.token_hex(32))


def _without_sums(transaction: Transaction) -> None:
    """Take bare sums of digests out of the entries, which told of two data sets whether one is a part of the other.

    The chain is made anew. The next run on a data set enters its records again; what was spent stays as it is.
    """
    before, after = transaction.entries(), list[Entry]()
    transaction.execute("DELETE FROM dpdm_ledger_entries")
    for entry in before:
        content = entry.content
        if content["kind"] == "records":
            content = {key: value for key, value in content.items() if key != "groups"} | {"records": {}}
        transaction.append(after, content)


def _with_figures(transaction: Transaction) -> None:
    """Make a place for figures that are shown, each by the entry after which it holds."""
    transaction.execute(
        "CREATE TABLE IF NOT EXISTS dpdm_ledger_figures "
        "(name VARCHAR(200) NOT NULL PRIMARY KEY, value DOUBLE PRECISION NOT NULL)"
    )


def _without_waiting(transaction: Transaction) -> None:
    """Give back reservations that no run has taken: earlier versions made some beforehand, and this one takes none.

    What counts of runs that PLD let in together is all of it, as before.
    """
    entries = transaction.entries()
    said = [entry.content for entry in entries]
    taken = {content["reservation"] for content in said if content["kind"] in ("taken", "completed")}
    for content in said:
        if content["kind"] == "reserved" and content["reservation"] not in taken:
            transaction.append(entries, asdict(Completed(reservation=content["reservation"], events=())))


def _with_facts(transaction: Transaction) -> None:
    """Change nothing: entries may be facts of images now, and an earlier version refuses the ledger by its schema."""


_MIGRATIONS: tuple[Callable[[Transaction], None], ...] = (
    _first_tables,
    _without_sums,
    _with_figures,
    _without_waiting,
    _with_facts,
)
"""Step n leads from schema n to n + 1."""


@dataclass(frozen=True)
class Storage:
    """The chain of entries at `place`, made when it is first used.

    Args:
        place: The path of an SQLite file, or the URL of a PostgreSQL database (`read_place`).

    Guarantees:
        * `append` decides on all entries that there are, and what it appends is durable before it returns.
        * An entry that was damaged, or taken out or put in before the last, is noticed by whoever reads next.
        * A chain that was cut short or made anew, with the key that lies beside it, is noticed by who saw its head
          before (`require_goes_on`). Nobody else notices it.

    Raises:
        InputError: The database is no ledger of this version, or it is damaged.
        OSError: The database cannot be reached or written.
    """

    place: Path | str

    @property
    def shown(self) -> str:
        """The place, without a password."""
        return str(self.place) if isinstance(self.place, Path) else without_password(self.place)

    @property
    def exists(self) -> bool:
        """Whether there is a file to read; a server's database always counts as there."""
        return not isinstance(self.place, Path) or self.place.is_file()

    def key(self) -> bytes:
        """Return the secret under which records are told apart; it never leaves the ledger."""
        with self._locked() as transaction:
            return bytes.fromhex(transaction.key())

    def entries(self) -> list[Entry]:
        """Return all entries, after checking their chain."""
        with self._locked() as transaction:
            return transaction.entries()

    def append(self, decide: Callable[[list[Entry]], Sequence[dict[str, Any]]]) -> list[Entry]:
        """Append what `decide` makes of all entries so far, or nothing if it raises; return all entries then."""
        with self._locked() as transaction:
            entries = transaction.entries()
            for content in decide(entries):
                transaction.append(entries, content)
            return entries

    def figures(self) -> dict[str, float]:
        """Return the figures that were kept; no chain protects these, so that nothing may be decided on them."""
        with self._locked() as transaction:
            return dict(transaction.execute("SELECT name, value FROM dpdm_ledger_figures").fetchall())

    def keep(self, figures: Mapping[str, float]) -> None:
        """Keep figures for whoever asks next, each under a name for good."""
        with self._locked() as transaction:
            for name, value in figures.items():
                transaction.execute("DELETE FROM dpdm_ledger_figures WHERE name = ?", name)
                transaction.execute("INSERT INTO dpdm_ledger_figures (name, value) VALUES (?, ?)", name, value)

    @contextmanager
    def _locked(self) -> Iterator[Transaction]:
        """Yield a transaction that holds the ledger's lock, its tables at this version's schema."""
        driver = _driver(self.place)
        try:
            with closing(_connect(self.place, driver)) as connection:  # which undoes what was not committed
                transaction = Transaction(connection, driver, self.shown)
                for statement in _BEGIN[driver.__name__]:
                    transaction.execute(statement)
                self._migrate(transaction)
                yield transaction
                transaction.commit()
        except driver.Error as error:
            reason = " ".join(str(error).split())
            if "malformed" in reason or "not a database" in reason:
                raise InputError(f"{self.shown} is damaged or no ledger ({reason}): restore it from a backup") from None
            raise OSError(f"the ledger {self.shown} cannot be used ({reason}): nothing was spent without it") from None

    def _migrate(self, transaction: Transaction) -> None:
        """Bring the tables to this version's schema."""
        tables = {name for (name,) in transaction.execute(_TABLES[transaction.driver.__name__])}
        there = "dpdm_ledger" in tables
        if isinstance(self.place, Path) and tables and not there:
            raise InputError(f"{self.shown} is another program's database: choose another file for the ledger")
        try:
            ((schema,),) = transaction.execute("SELECT schema FROM dpdm_ledger").fetchall() if there else [(0,)]
            schema = int(schema)
        except (TypeError, ValueError):
            raise InputError(f"{self.shown} is damaged: it does not say what it is; restore it from a backup") from None
        if schema > len(_MIGRATIONS):
            raise InputError(f"{self.shown} was written by a newer version of dpdm: use that one, or newer")
        for migrate in _MIGRATIONS[schema:]:
            migrate(transaction)
        if schema < len(_MIGRATIONS):
            transaction.execute("UPDATE dpdm_ledger SET schema = ?", len(_MIGRATIONS))


def read_place(url: str) -> Path | str:
    """Return where a ledger is: a file's absolute path, or the URL of a database on a named server.

    Raises:
        InputError: It is neither, or it is left to the environment which server or database is meant.
    """
    if url.startswith("sqlite:///"):
        url = url.removeprefix("sqlite:///")
        if not url or "?" in url or url == ":memory:":
            raise InputError(f"sqlite:///{url} is no file that stays: give the path of one, without sqlite:///")
    if "://" not in url:
        try:
            return Path(url).expanduser().absolute()
        except RuntimeError:
            raise InputError(f"there is no home folder for the ledger {url}: give a path that begins with /") from None
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises ValueError if it is no number
        if parts.scheme not in _SCHEMES:
            raise ValueError
    except ValueError:
        raise InputError(
            f"{without_password(url)!r} is no ledger: give the path of a file, or "
            "postgresql+psycopg://user@host/database"
        ) from None
    if not parts.path.strip("/") or not (parts.hostname or re.search("(^|&)host(addr)?=.", parts.query)):
        raise InputError(
            f"{without_password(url)} names no host or no database: give postgresql+psycopg://user@host/database"
        )
    return url


def without_password(url: str) -> str:
    """Return a URL that may be shown."""
    place, question, query = url.partition("?")
    place = re.sub("^([^/]*//[^/:@]*):.*@", r"\1:***@", place)
    return place + question + re.sub("(password=)[^&]*", r"\1***", query)


def require_goes_on(entries: Sequence[Entry], head: Head | None, place: str) -> None:
    """Raise InputError unless the entries go on from a head that somebody saw before."""
    if head is not None and (len(entries) < head.number or entries[head.number - 1].digest != head.digest):
        raise InputError(
            f"{place} lacks entry {head.number} as this run saw it: the run began in another ledger, or this one was "
            "restored from a backup or rewritten: name the right one by --ledger, or start a new run and count both"
        )


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True)


def chained(key: str, entries: Sequence[Entry], text: str) -> str:
    """Return the digest of `text` and of all entries before it; the chain begins with the key's, which it protects."""
    before = entries[-1].digest if entries else hashlib.sha256(key.encode()).hexdigest()
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _driver(place: Path | str) -> ModuleType:
    """Return the driver of a place's database."""
    if isinstance(place, Path):
        import sqlite3

        return sqlite3
    try:
        import psycopg
    except ImportError as error:
        raise InputError(f"{without_password(place)}: {error}: pip install 'dpdm[postgresql]'") from None
    return psycopg


def _connect(place: Path | str, driver: Any) -> Any:  # noqa: ANN401 (of the driver)
    """Return a connection that begins no transaction by itself (SQLite), or one that sees the newest (PostgreSQL)."""
    if isinstance(place, Path):
        _make_private(place)
        return driver.connect(place, timeout=_SECONDS_FOR_LOCK, isolation_level=None)
    try:
        connection = driver.connect(place.replace("+psycopg", "", 1), connect_timeout=_SECONDS_TO_CONNECT)
    except driver.ProgrammingError:  # whose message may quote a password
        raise InputError(
            f"{without_password(place)} is not written as PostgreSQL has it: give "
            "postgresql+psycopg://user@host/database"
        ) from None
    connection.isolation_level = driver.IsolationLevel.READ_COMMITTED  # a snapshot could be older than the lock
    return connection


def _make_private(path: Path) -> None:
    """Make an empty file that its owner alone may read, unless it is there."""
    try:
        os.close(os.open(path, os.O_CREAT, 0o600))
    except OSError as error:
        raise OSError(f"the ledger {path} cannot be used ({error.strerror}): nothing was spent without it") from None
