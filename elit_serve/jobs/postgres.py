"""A database of PostgreSQL as the database of jobs: of the one server that holds a lock in it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

from elit_serve.errors import DatabaseTaken, StoreUnavailable

DRIVER = "postgresql+psycopg"
PATIENCE_S = 2  # with a lock, a connection, a statement; a server that was killed has lost its lock by then
LOCK = int.from_bytes(b"elit")  # the number of an advisory lock; these are counted for each database
DISK_FULL = "53100"
LOCKED = "55P03"
PATIENCE = f"-c statement_timeout={1000 * PATIENCE_S} -c lock_timeout={1000 * PATIENCE_S}"
KEEP_ALIVE = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"  # of a lost machine


class PostgresDatabase:
    """The lock is held by a connection that does nothing else, and goes with it."""

    def __init__(self, url: URL) -> None:
        arguments = {"connect_timeout": PATIENCE_S}
        self.engine = sql.create_engine(
            url, pool_pre_ping=True, pool_timeout=PATIENCE_S, connect_args={**arguments, "options": PATIENCE}
        )
        self._locking = sql.create_engine(
            url,
            poolclass=sql.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={**arguments, "options": f"-c lock_timeout={1000 * PATIENCE_S} {KEEP_ALIVE}"},
        )
        for engine in (self.engine, self._locking):
            sql.event.listen(engine, "do_connect", _connect)
        self._lock: Connection | None = None

    def hold(self) -> None:
        """See `Backend`."""
        if not self._answers():
            self._release()
            self._lock = self._locked()

    def check(self) -> None:
        """See `Backend`."""
        if self._lock is None:
            raise StoreUnavailable("the jobs' database is not known to be this server's at present")

    def is_full(self, cause: object) -> bool:
        """See `Backend`."""
        return getattr(cause, "sqlstate", None) == DISK_FULL

    def close(self) -> None:
        """See `Backend`."""
        self.engine.dispose()
        self._release()

    def _answers(self) -> bool:
        try:
            return self._lock is not None and self._lock.scalar(sql.select(1)) == 1
        except DBAPIError:
            return False

    def _locked(self) -> Connection:
        connection = self._locking.connect()
        try:
            connection.execute(sql.select(sql.func.pg_advisory_lock(LOCK)))
        except DBAPIError as error:
            connection.close()
            if getattr(error.orig, "sqlstate", None) == LOCKED:
                raise DatabaseTaken from error
            raise
        return connection

    def _release(self) -> None:
        connection, self._lock = self._lock, None
        if connection is not None:
            connection.close()


def _connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Not at the top of this file: only some installations have psycopg."""
    impatient = import_module("elit_serve.jobs.impatient_connection")
    return impatient.ImpatientConnection.connect(*arguments, **options)
