"""A file of SQLite as the database of jobs: one server's, and there for as long as that server runs."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, Engine

from elit_serve.errors import DatabaseTaken, StoreUnavailable

PATIENCE_S = 2  # with a lock of SQLite's, and with a connection
COMPANIONS = ("", "-wal", "-shm", ".lock")  # the file itself, two that SQLite puts beside it, and our lock


class SqliteFile:
    """A lock beside the file keeps other servers out. It lies where the file lies, whatever name leads there.

    SQLite goes on without a word in files that have been removed, and all of that is gone with the process. Therefore
    the files are compared with those that were opened, and a connection that does nothing stays open for as long as
    the server runs: when the last one closes, SQLite removes one of the files itself.
    """

    def __init__(self, url: URL) -> None:
        assert url.database is not None
        self._file = Path(url.database).resolve()
        self.engine = _engine(url.set(database=str(self._file)))
        self._lock = FileLock(f"{self._file}.lock", timeout=0, thread_local=False)
        self._keeper: Connection | None = None
        self._opened: list[tuple[int, int] | None] = []

    def hold(self) -> None:
        """See `Backend`."""
        if self._keeper is None:
            self._take_lock()
            self._keeper = self.engine.connect()
            self._keeper.detach()  # it is none of those that are used
            self._keeper.execute(sql.text("SELECT count(*) FROM sqlite_master"))  # from now on all files are there
            self._keeper.rollback()
            self._opened = self._there()
        self.check()

    def check(self) -> None:
        """See `Backend`."""
        if self._there() != self._opened:
            raise StoreUnavailable(
                "files of the jobs' database were removed or replaced; put them back, or start the server again"
            )

    def is_full(self, cause: object) -> bool:
        """See `Backend`."""
        code = getattr(cause, "sqlite_errorcode", 0) or 0
        return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE

    def close(self) -> None:
        """See `Backend`."""
        self.engine.dispose()
        if self._keeper is not None:
            self._keeper.close()
        self._lock.release()

    def _take_lock(self) -> None:
        if not self._file.parent.is_dir():
            raise StoreUnavailable(f"there is no folder {self._file.parent}")
        try:
            self._lock.acquire()
        except Timeout:
            raise DatabaseTaken from None
        except OSError as error:
            raise StoreUnavailable(f"no file can be written beside {self._file} ({error.strerror})") from error

    def _there(self) -> list[tuple[int, int] | None]:
        """Device and inode of each of the files; None of one that is not there."""
        found: list[tuple[int, int] | None] = [None] * len(COMPANIONS)
        for place, suffix in enumerate(COMPANIONS):
            with suppress(OSError):
                status = Path(f"{self._file}{suffix}").stat()
                found[place] = (status.st_dev, status.st_ino)
        return found


def _engine(url: URL) -> Engine:
    engine = sql.create_engine(url, pool_timeout=PATIENCE_S, connect_args={"timeout": PATIENCE_S})
    sql.event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    """Readers and the writer do not wait for each other, and a commit is on disk when it returns."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
