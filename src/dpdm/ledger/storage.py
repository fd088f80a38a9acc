"""Where a ledger's entries are kept: an append-only chain of texts in an SQLite file or a PostgreSQL database.

Every change is one transaction that holds the ledger's only lock, reads all entries, checks their chain, decides, and
appends: nobody can decide on what is out of date, and a crash leaves all of a change or nothing.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from dpdm.types import InputError

_TABLES = sql.MetaData()
_ABOUT = sql.Table(
    "dpdm_ledger",
    _TABLES,
    sql.Column("schema", sql.Integer, nullable=False),
    sql.Column("key", sql.String(64), nullable=False),
)
_ENTRIES = sql.Table(
    "dpdm_ledger_entries",
    _TABLES,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("content", sql.Text, nullable=False),
    sql.Column("digest", sql.String(64), nullable=False),
)
_BEGIN = {
    "sqlite": ("BEGIN IMMEDIATE",),
    # A server may be set up to answer before a commit is on its disk: what is reserved must not be lost in a crash.
    "postgresql": (
        "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'",
        "SELECT pg_advisory_xact_lock(7164117)",
    ),
}
_SECONDS_TO_CONNECT = 10
_SECONDS_FOR_LOCK = 300


class Entry(NamedTuple):
    """One text of the chain, decoded, and the digest of it and of all before it."""

    number: int
    content: dict[str, Any]
    digest: str


class Head(NamedTuple):
    """The last entry of a chain: how many there are, and the digest of all."""

    number: int
    digest: str


def _first_tables(connection: sql.Connection) -> None:
    """Make the tables of schema 1, and the key under which records are told apart."""
    _TABLES.create_all(connection)
    connection.execute(
        _ABOUT.insert().values(schema=0, key=secrets.token_hex(32)),
    )


def _without_sums(connection: sql.Connection) -> None:
    """Take bare sums of digests out of the entries, which told of two data sets whether one is a part of the other.

    The chain is made anew. The next run on a data set enters its records again; what was spent stays as it is.
    """
    place = "the ledger"
    before, after = _read(connection, place), list[Entry]()
    for entry in before:
        old = entry.content
        content = {**old, "records": {}} if old["kind"] == "records" else old
        content = {key: value for key, value in content.items() if (old["kind"], key) != ("records", "groups")}
        text = _text(content)
        after.append(Entry(entry.number, content, chained(_key(connection, place), after, text)))
        changed = _ENTRIES.update().where(_ENTRIES.c.number == entry.number)
        connection.execute(changed.values(content=text, digest=after[-1].digest))


_MIGRATIONS: tuple[Callable[[sql.Connection], None], ...] = (_first_tables, _without_sums)
"""Step n leads from schema n to n + 1."""


@dataclass(frozen=True)
class Storage:
    """The chain of entries at `url`, made when it is first used.

    Args:
        url: As SQLAlchemy has them: `sqlite:///path` or `postgresql+psycopg://user@host/database`.

    Guarantees:
        * `append` decides on all entries that there are, and what it appends is durable before it returns.
        * An entry that was damaged, or taken out or put in before the last, is noticed by whoever reads next.
        * A chain that was cut short or made anew, with the key that lies beside it, is noticed by who saw its head
          before (`require_goes_on`), and by nobody else.

    Raises:
        InputError: The URL or the database is no ledger of this version, or it is damaged.
        OSError: The database cannot be reached or written.
    """

    url: str | sql.URL

    @property
    def shown(self) -> str:
        """The place, without a password."""
        place = self._parsed
        return str(place.database) if self._is_file else place.render_as_string(hide_password=True)

    @property
    def exists(self) -> bool:
        """Whether there is a file to read; a server's database always counts as there."""
        return not self._is_file or Path(str(self._parsed.database)).is_file()

    def key(self) -> bytes:
        """Return the secret under which records are told apart; it never leaves the ledger."""
        with self._locked() as connection:
            return bytes.fromhex(_key(connection, self.shown))

    def entries(self) -> list[Entry]:
        """Return all entries, after checking their chain."""
        with self._locked() as connection:
            return _read(connection, self.shown)

    def append(self, decide: Callable[[list[Entry]], Sequence[dict[str, Any]]]) -> list[Entry]:
        """Append what `decide` makes of all entries so far, or nothing if it raises; return all entries then."""
        with self._locked() as connection:
            entries = _read(connection, self.shown)
            for content in decide(entries):
                text = _text(content)
                entry = Entry(len(entries) + 1, content, chained(_key(connection, self.shown), entries, text))
                connection.execute(_ENTRIES.insert().values(number=entry.number, content=text, digest=entry.digest))
                entries.append(entry)
            return entries

    @contextmanager
    def _locked(self) -> Iterator[sql.Connection]:
        """Yield a transaction that holds the ledger's lock, its tables at this version's schema."""
        try:
            with self._engine.begin() as connection:
                self._migrate(connection)
                yield connection
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if "malformed" in reason or "not a database" in reason:
                raise InputError(f"{self.shown} is damaged or no ledger ({reason}): restore it from a backup") from None
            raise OSError(f"the ledger {self.shown} cannot be used ({reason}): nothing was spent without it") from None

    def _migrate(self, connection: sql.Connection) -> None:
        """Bring the tables to this version's schema."""
        tables = sql.inspect(connection).get_table_names()
        there = _ABOUT.name in tables
        if self._is_file and tables and not there:
            raise InputError(f"{self.shown} is another program's database: choose another file for the ledger")
        try:
            schema = int(connection.execute(sql.select(_ABOUT.c.schema)).scalar_one()) if there else 0
        except (sql.exc.NoResultFound, sql.exc.MultipleResultsFound, TypeError, ValueError):
            raise InputError(f"{self.shown} is damaged: it does not say what it is; restore it from a backup") from None
        if schema > len(_MIGRATIONS):
            raise InputError(f"{self.shown} was written by a newer version of dpdm: use that one, or newer")
        for migrate in _MIGRATIONS[schema:]:
            migrate(connection)
        if schema < len(_MIGRATIONS):
            connection.execute(_ABOUT.update().values(schema=len(_MIGRATIONS)))

    @cached_property
    def _parsed(self) -> sql.URL:
        return parsed(self.url)

    @property
    def _is_file(self) -> bool:
        return self._parsed.get_backend_name() == "sqlite"

    @cached_property
    def _engine(self) -> sql.Engine:
        backend = self._parsed.get_backend_name()
        if backend not in _BEGIN:
            raise InputError(f"a ledger is an SQLite file or a PostgreSQL database, not {backend}")
        options: dict[str, Any] = {"connect_args": {"timeout": _SECONDS_FOR_LOCK}}
        if not self._is_file:  # a server's default could be a snapshot that is older than the lock
            options = {"connect_args": {"connect_timeout": _SECONDS_TO_CONNECT}, "isolation_level": "READ COMMITTED"}
        try:
            engine = sql.create_engine(self._parsed, poolclass=sql.NullPool, **options)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise InputError(f"{self.shown}: {error}: pip install 'dpdm[postgresql]'") from None
        if self._is_file and self._parsed.database in (None, "", ":memory:"):
            raise InputError(f"{self.url} forgets everything when the process ends: give the path of a file")
        if self._is_file:
            _make_private(Path(str(self._parsed.database)))
            sql.event.listen(engine, "connect", _leave_transactions_to_us)
        sql.event.listen(engine, "begin", lambda connection: [*map(connection.exec_driver_sql, _BEGIN[backend])])
        return engine


def parsed(url: str | sql.URL) -> sql.URL:
    """Return the parts of a URL, or raise InputError."""
    try:
        return sql.make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(
            f"{url!r} is no ledger: give the path of a file, or postgresql+psycopg://user@host/database"
        ) from None


def require_goes_on(entries: Sequence[Entry], head: Head | None, place: str) -> None:
    """Raise InputError unless the entries go on from a head that somebody saw before."""
    if head is not None and (len(entries) < head.number or entries[head.number - 1].digest != head.digest):
        raise InputError(
            f"{place} lacks entry {head.number} as this run saw it: the run began in another ledger, or this one was "
            "restored from a backup or rewritten; name the right one by --ledger, or start a new run and count both"
        )


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True)


def chained(key: str, entries: Sequence[Entry], text: str) -> str:
    """Return the digest of `text` and of all entries before it; the chain begins with the key's, which it protects."""
    before = entries[-1].digest if entries else hashlib.sha256(key.encode()).hexdigest()
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _key(connection: sql.Connection, place: str) -> str:
    key = connection.execute(sql.select(_ABOUT.c.key)).scalar_one()
    if not re.fullmatch("[0-9a-f]{64}", str(key)):
        raise InputError(f"{place} is damaged: its key is not one; restore it from a backup")
    return str(key)


def _read(connection: sql.Connection, place: str) -> list[Entry]:
    entries: list[Entry] = []
    key = _key(connection, place)
    for number, text, digest in connection.execute(sql.select(_ENTRIES).order_by(_ENTRIES.c.number)):
        if number != len(entries) + 1 or digest != chained(key, entries, text):
            raise InputError(f"{place} is damaged: entry {len(entries) + 1} is not what was written; restore a backup")
        entries.append(Entry(number, json.loads(text), digest))
    return entries


def _make_private(path: Path) -> None:
    """Make an empty file that its owner alone may read, unless it is there."""
    try:
        os.close(os.open(path, os.O_CREAT, 0o600))
    except OSError as error:
        raise OSError(f"the ledger {path} cannot be used ({error.strerror}): nothing was spent without it") from None


def _leave_transactions_to_us(connection: Any, record: object) -> None:  # noqa: ANN401 (of the driver)
    """Set SQLite up: begin when told, write ahead, every commit on disk before it returns."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
