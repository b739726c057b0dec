"""Jobs in their database. Every transition is one UPDATE that names the states that it may start from, so of two that
compete exactly one happens. Knows nothing of HTTP or the engine."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import RowMapping

from elit_serve.errors import JobNotFound, StoreUnavailable
from elit_serve.jobs.database import Database, jobs
from elit_serve.jobs.states import ENDED, UNFINISHED, JobState, StoredJob, is_id


class JobStore:
    """All methods may wait for the database, and raise `StoreUnavailable` or `StorageFull`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stay_owner(self) -> None:
        """See `Database`."""
        self._database.stay_owner()

    # What callers ask for

    def add(self, job: StoredJob) -> None:
        self._execute(sql.insert(jobs).values(asdict(job)))

    def of_key(self, owner: str, idempotency_key: str | None) -> StoredJob | None:
        found = self._select(sql.and_(jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key), limit=1)
        return found[0] if found else None

    def get(self, job_id: str, owner: str) -> StoredJob:
        """Raises `JobNotFound`."""
        found = self._select(sql.and_(jobs.c.id == job_id, jobs.c.owner == owner), limit=1) if is_id(job_id) else []
        if not found:
            raise JobNotFound
        return found[0]

    def page(self, owner: str, *, state: JobState | None, before: str | None, limit: int) -> list[StoredJob]:
        """The newest first. before: the id of the last one that has been seen."""
        where = jobs.c.owner == owner
        if state is not None:
            where = sql.and_(where, jobs.c.state == state)
        if before is not None:
            where = sql.and_(where, jobs.c.id < before)
        return self._select(where, limit=limit, order=(jobs.c.id.desc(),))

    def remove(self, job_id: str) -> None:
        """A job that was not accepted after all."""
        self._execute(sql.delete(jobs).where(jobs.c.id == job_id))

    # Transitions

    def begin(self, job: StoredJob) -> bool:
        """The engine is about to get it, which is counted even if that is the end of the server. False if it does not
        wait any more."""
        return self._change(job.id, (JobState.QUEUED,), attempts=job.attempts + 1)

    def give_back(self, job_id: str, *, attempts: int) -> None:
        """The engine did not make it, through no fault of the job's. attempts: as they were before."""
        self._change(job_id, UNFINISHED, state=JobState.QUEUED, started_s=None, attempts=attempts)

    def start(self, job_id: str) -> bool:
        """Its first step has run. False if it is not queued any more."""
        return self._change(job_id, (JobState.QUEUED,), state=JobState.RUNNING, started_s=time.time())

    def end(self, job_id: str, state: JobState, **values: object) -> bool:
        """To one of the ends; False if it had ended. Whoever wanted to be told of the end is to be told now."""
        assert state in ENDED, state
        now_s = time.time()
        due_s = sql.case((jobs.c.webhook_due_s.is_not(None), now_s))
        return self._change(job_id, UNFINISHED, state=state, ended_s=now_s, webhook_due_s=due_s, **values)

    def is_in(self, job_id: str, state: JobState) -> bool:
        found = self._select(jobs.c.id == job_id, limit=1)
        return bool(found) and found[0].state is state

    def put_back(self) -> None:
        """What an earlier server had begun is to be made from the start."""
        begun = sql.update(jobs).where(jobs.c.state == JobState.RUNNING)
        self._execute(begun.values(state=JobState.QUEUED, started_s=None))

    # What waits

    def num_waiting(self) -> int:
        query = sql.select(sql.func.count()).where(jobs.c.state == JobState.QUEUED)
        with self._database.transaction() as connection:
            return connection.execute(query).scalar_one()

    def next_waiting(
        self, *, besides: Collection[str], load: Mapping[str, int], may_be_suspect: bool = True
    ) -> StoredJob | None:
        """What is to be made next: what was promised, then what earlier servers ended at, then the oldest of whom has
        the least.

        besides: ids of those under way. load: pictures under way by owner. may_be_suspect: whether earlier servers may
        have ended at it. Where the fewest did comes first: who was only near the one to blame is not near it for long.
        """
        waits = sql.and_(jobs.c.state == JobState.QUEUED, jobs.c.id.not_in(besides))
        if not may_be_suspect:
            waits = sql.and_(waits, jobs.c.attempts == 0)
        is_first = sql.and_(waits, sql.or_(jobs.c.due_s.is_not(None), jobs.c.attempts > 0))
        order = (jobs.c.due_s.is_(None), jobs.c.attempts, jobs.c.due_s, jobs.c.id)
        found = self._select(is_first, limit=1, order=order)
        return found[0] if found else self._oldest(waits, load)

    def _oldest(self, waits: sql.ColumnElement[bool], load: Mapping[str, int]) -> StoredJob | None:
        oldest = sql.select(sql.func.min(jobs.c.id), jobs.c.owner).where(waits).group_by(jobs.c.owner)
        with self._database.transaction() as connection:
            heads = [(load.get(owner, 0), job_id) for job_id, owner in connection.execute(oldest)]
        found = self._select(jobs.c.id == min(heads)[1], limit=1) if heads else []
        return found[0] if found else None

    # Pictures on disk

    def kept_results(self, *, ended_before_s: float | None = None, limit: int | None = None) -> dict[str, int]:
        """Bytes of the pictures of each job that has any, those that ended first before the others."""
        where = jobs.c.result_bytes > 0
        if ended_before_s is not None:
            where = sql.and_(where, jobs.c.ended_s < ended_before_s)
        query = sql.select(jobs.c.id, jobs.c.result_bytes).where(where).order_by(jobs.c.ended_s).limit(limit)
        with self._database.transaction() as connection:
            return {row.id: row.result_bytes for row in connection.execute(query)}

    def forget_results(self, job_id: str) -> None:
        self._execute(sql.update(jobs).where(jobs.c.id == job_id).values(result_bytes=0))

    def delete_ended(self, before_s: float) -> None:
        """Those that ended before this time and whose pictures are gone."""
        self._execute(sql.delete(jobs).where(jobs.c.ended_s < before_s, jobs.c.result_bytes == 0))

    # Webhooks

    def hosts_to_tell(self, now_s: float) -> list[str | None]:
        """Those of whose webhooks one is due."""
        due = sql.select(jobs.c.webhook_host).where(_is_due(now_s)).distinct()
        with self._database.transaction() as connection:
            return list(connection.scalars(due))

    def due_webhooks(self, host: str | None, now_s: float, *, besides: Collection[str], limit: int) -> list[StoredJob]:
        """Of this host. besides: ids of those under way."""
        where = sql.and_(_is_due(now_s), jobs.c.webhook_host == host, jobs.c.id.not_in(besides))
        return self._select(where, limit=limit, order=(jobs.c.webhook_due_s,))

    def webhook_tried(self, job_id: str, *, next_s: float | None, attempts: int) -> None:
        """next_s: when to try again; None is never. attempts: so far."""
        tried = {"webhook_due_s": next_s, "webhook_attempts": attempts}
        self._execute(sql.update(jobs).where(jobs.c.id == job_id).values(tried))

    def _change(self, job_id: str, states: Sequence[JobState], **values: object) -> bool:
        change = sql.update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(states)).values(values)
        return self._execute(change) == 1

    def _select(self, where: sql.ColumnElement[bool], *, limit: int, order: Sequence[Any] = ()) -> list[StoredJob]:
        query = sql.select(jobs).where(where).order_by(*order).limit(limit)
        with self._database.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [_job_of(row) for row in rows]

    def _execute(self, statement: sql.Insert | sql.Update | sql.Delete) -> int:
        """The number of rows that it changed."""
        with self._database.transaction() as connection:
            return connection.execute(statement).rowcount


def _is_due(now_s: float) -> sql.ColumnElement[bool]:
    return sql.and_(jobs.c.state.in_(ENDED), jobs.c.webhook_due_s <= now_s)


def _job_of(row: RowMapping) -> StoredJob:
    try:
        return StoredJob(**{**row, "state": JobState(row["state"])})
    except ValueError as error:
        raise StoreUnavailable("what is stored of the job is damaged") from error
