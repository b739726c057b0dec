"""The database of jobs: which one, how it is spoken to, and what its errors mean. Knows no HTTP and no engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from elit_serve.errors import ElitError, InvalidInput, MissingPackage, StorageFull, StoreUnavailable
from elit_serve.server.jobs.claim import Claim, is_taken

PATIENCE_S = 2  # with a lock, a connection, a statement
POSTGRES = "postgresql+psycopg"
POSTGRES_DISK_FULL = "53100"

metadata = sql.MetaData()
jobs = sql.Table(
    "elit_jobs",
    metadata,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("owner", sql.String(255), nullable=False),
    sql.Column("idempotency_key", sql.String(255)),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("request", sql.Text, nullable=False),
    sql.Column("num_images", sql.Integer, nullable=False),
    sql.Column("created_s", sql.Double, nullable=False),
    sql.Column("due_s", sql.Double),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("started_s", sql.Double),
    sql.Column("ended_s", sql.Double),
    sql.Column("result", sql.Text),
    sql.Column("error", sql.Text),
    sql.Column("result_bytes", sql.BigInteger, nullable=False),
    sql.Column("webhook_due_s", sql.Double),
    sql.Column("webhook_attempts", sql.Integer, nullable=False),
    sql.UniqueConstraint("owner", "idempotency_key"),
    sql.Index("elit_jobs_by_state", "state", "owner", "id"),
    sql.Index("elit_jobs_by_promise", "state", "due_s"),
    sql.Index("elit_jobs_by_owner", "owner", "id"),
    sql.Index("elit_jobs_by_end", "ended_s"),
    sql.Index("elit_jobs_by_webhook", "webhook_due_s"),
)


class Database:
    """Transactions whose errors are ours: `StorageFull` and `StoreUnavailable`. claim: None if it needs none."""

    def __init__(self, engine: Engine, claim: Claim | None) -> None:
        self._engine = engine
        self._claim = claim

    @classmethod
    def open(cls, url: str | None, folder: Path) -> Database:
        """With its tables. url: None is SQLite in the folder. Raises `InvalidInput` if it cannot be used, or another
        server uses it."""
        parsed = _parsed(url) if url is not None else URL.create("sqlite", database=str(folder / "jobs.sqlite3"))
        try:
            database = cls(_engine(parsed), Claim(parsed) if parsed.drivername == POSTGRES else None)
            with ExitStack() as opened:
                opened.callback(database.close)
                database._prepare()
                opened.pop_all()
        except ImportError:
            raise MissingPackage("psycopg", "postgres") from None
        except SQLAlchemyError as error:
            why = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            needed = "of its own; another server uses this one" if is_taken(error) else f"that can be used ({why})"
            shown = parsed.render_as_string(hide_password=True)
            raise InvalidInput("database", shown, f"a database {needed}") from None
        return database

    def _prepare(self) -> None:
        if self._claim is not None:
            self._claim.hold()
        metadata.create_all(self._engine)

    def stay_owner(self) -> None:
        """To be called every now and then, by one thread: no transaction begins while the database may be another
        server's, as after its restart. Raises `StoreUnavailable` then."""
        try:
            if self._claim is not None:
                self._claim.hold()
        except (OperationalError, InterfaceError) as error:
            if is_taken(error):
                raise StoreUnavailable("the jobs' database belongs to another server now") from error
            raise _trouble(error) from error

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        if self._claim is not None and not self._claim.is_held:
            raise StoreUnavailable("the jobs' database is not known to be this server's at present")
        try:
            with self._engine.begin() as connection:
                yield connection
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise _trouble(error) from error

    def close(self) -> None:
        self._engine.dispose()
        if self._claim is not None:
            self._claim.close()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInput(
            "database", "***", "a URL as postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE"
        ) from None
    if parsed.drivername in ("postgres", "postgresql", POSTGRES):
        return parsed.set(drivername=POSTGRES)
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    shown = parsed.render_as_string(hide_password=True)
    raise InvalidInput("database", shown, "postgresql://..., or sqlite:///FILE")


def _engine(url: URL) -> Engine:
    if url.drivername == POSTGRES:
        options = f"-c statement_timeout={1000 * PATIENCE_S} -c lock_timeout={1000 * PATIENCE_S}"
        arguments = {"connect_timeout": PATIENCE_S, "options": options}
        return sql.create_engine(url, pool_pre_ping=True, pool_timeout=PATIENCE_S, connect_args=arguments)
    engine = sql.create_engine(url, pool_timeout=PATIENCE_S, connect_args={"timeout": PATIENCE_S})
    sql.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    """Readers and the writer do not wait for each other, and a commit is on disk when it returns."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _trouble(error: OperationalError | InterfaceError | PoolTimeout) -> ElitError:
    cause: Any = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", 0) or 0
    is_full = code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE
    if is_full or getattr(cause, "sqlstate", None) == POSTGRES_DISK_FULL:
        return StorageFull("the disk of the jobs' database is full")
    return StoreUnavailable(f"the jobs' database does not answer ({type(cause or error).__name__})")
