"""A PostgreSQL database of jobs belongs to one server at a time: to the one that holds a lock in it. SQLite's lies in a
folder, which has a lock of its own."""

from __future__ import annotations

import sqlalchemy as sql
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

LOCK = int.from_bytes(b"elit")  # the number of an advisory lock; these are counted for each database
LOCKED = "55P03"
PATIENCE_S = 2  # with a connection, and with a server that was killed and whose lock is about to go
KEEP_ALIVE = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"  # of a lost machine


class Claim:
    """The lock, on a connection that does nothing else. Its methods raise SQLAlchemy's errors; see `is_taken`."""

    def __init__(self, url: URL) -> None:
        options = f"-c lock_timeout={1000 * PATIENCE_S} {KEEP_ALIVE}"
        self._engine = sql.create_engine(
            url,
            poolclass=sql.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": PATIENCE_S, "options": options},
        )
        self._connection: Connection | None = None

    @property
    def is_held(self) -> bool:
        """As far as is known."""
        return self._connection is not None

    def hold(self) -> None:
        """Takes the lock unless it is held. Used by one thread."""
        if not self._answers():
            self.close()
            self._connection = self._locked()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _answers(self) -> bool:
        try:
            return self._connection is not None and self._connection.scalar(sql.select(1)) == 1
        except DBAPIError:
            return False

    def _locked(self) -> Connection:
        connection = self._engine.connect()
        try:
            connection.execute(sql.select(sql.func.pg_advisory_lock(LOCK)))
        except DBAPIError:
            connection.close()
            raise
        return connection


def is_taken(error: BaseException) -> bool:
    """Whether another server holds the lock."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == LOCKED
