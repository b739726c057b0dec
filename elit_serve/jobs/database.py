"""The database of jobs: which one, how it is spoken to, and what its errors mean. Knows no HTTP and no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sql
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from elit_serve.errors import (
    DatabaseTaken,
    ElitError,
    InvalidInput,
    MissingPackage,
    StorageFull,
    StoreUnavailable,
    TakenElsewhere,
)
from elit_serve.jobs.postgres import DRIVER as POSTGRES
from elit_serve.jobs.postgres import PostgresDatabase
from elit_serve.jobs.sqlite_file import SqliteFile

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
    sql.Column("webhook_host", sql.Text),
    sql.UniqueConstraint("owner", "idempotency_key"),
    sql.Index("elit_jobs_by_state", "state", "owner", "id"),
    sql.Index("elit_jobs_by_promise", "state", "due_s"),
    sql.Index("elit_jobs_by_owner", "owner", "id"),
    sql.Index("elit_jobs_by_end", "ended_s"),
    sql.Index("elit_jobs_by_webhook", "webhook_due_s"),
)


class Backend(Protocol):
    """A kind of database: how it is reached, and how one server has it to itself."""

    engine: Engine

    def hold(self) -> None:
        """Takes it for this server, unless it has it; used by one thread. Raises `DatabaseTaken` if another server has
        it, `StoreUnavailable`, and SQLAlchemy's errors."""

    def check(self) -> None:
        """Raises `StoreUnavailable` unless it is known to be this server's; by any thread, and without waiting."""

    def is_full(self, cause: object) -> bool:
        """Whether this error of the driver's says that there is no room on disk."""

    def close(self) -> None:
        """Another server may have it."""


BACKENDS: dict[str, Callable[[URL], Backend]] = {"sqlite": SqliteFile, POSTGRES: PostgresDatabase}


class Database:
    """Transactions whose errors are ours: `StorageFull`, and `StoreUnavailable` for everything else that can go wrong
    with a database. Whatever it is, it may be over the next time."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        sql.event.listen(backend.engine, "handle_error", _distrust_connections)

    @classmethod
    def open(cls, url: str | None, folder: Path) -> Database:
        """With its tables. url: None is SQLite in the folder. Raises `InvalidInput` if it cannot be used, or another
        server uses it."""
        parsed = _parsed(url) if url is not None else URL.create("sqlite", database=str(folder / "jobs.sqlite3"))
        try:
            database = cls(BACKENDS[parsed.drivername](parsed))
        except ImportError:
            raise MissingPackage("psycopg", "postgres") from None
        try:
            database.stay_owner()
            with database.transaction() as connection:
                metadata.create_all(connection)
                _add_columns(connection)
        except ElitError as error:
            database.close()
            shown = parsed.render_as_string(hide_password=True)
            if isinstance(error, DatabaseTaken):
                raise TakenElsewhere("database", shown, "a database of its own; another server uses this one") from None
            raise InvalidInput("database", shown, f"a database that can be used ({in_full(error)})") from None
        return database

    def stay_owner(self) -> None:
        """To be called every now and then, by one thread: no transaction begins while the database may be another
        server's, as after its restart. Raises `StoreUnavailable` then."""
        with self._errors_mapped():
            self._backend.hold()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """What was done in it is stored when it has ended without an error."""
        with self._errors_mapped():
            self._backend.check()
            with self._backend.engine.begin() as connection:
                yield connection
            self._backend.check()

    def close(self) -> None:
        self._backend.close()

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            if self._backend.is_full(cause):
                raise StorageFull("the disk of the jobs' database is full") from error
            raise StoreUnavailable(f"the jobs' database cannot be used at present ({type(cause).__name__})") from error


def _distrust_connections(context: ExceptionContext) -> None:
    """After any error all of them are made anew: they keep damaged pages, or that nothing is to be written."""
    context.is_disconnect = True


def in_full(error: ElitError) -> str:
    """With what the database itself said, in one line; it is for the log and not for callers."""
    cause = error.__cause__
    if cause is None:
        return str(error)
    said = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
    return f"{error}: {said}"


def _add_columns(connection: Connection) -> None:
    """Those that a table of an earlier version lacks; they are null in its rows."""
    there = {column["name"] for column in sql.inspect(connection).get_columns(jobs.name)}
    for column in jobs.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.execute(sql.text(f"ALTER TABLE {jobs.name} ADD COLUMN {column.name} {kind}"))


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port of more than 4300 digits
        raise InvalidInput(
            "database", "***", "a URL as postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE"
        ) from None
    if parsed.drivername in ("postgres", "postgresql", POSTGRES):
        return parsed.set(drivername=POSTGRES)
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:") and not parsed.query:
        return parsed
    shown = parsed.render_as_string(hide_password=True)
    raise InvalidInput("database", shown, "postgresql://..., or sqlite:///FILE")
