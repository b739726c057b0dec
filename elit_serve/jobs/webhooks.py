"""Tells callers of the end of their jobs.

What is still to be told stands in the database, so a restart loses nothing; a receiver may get a message twice, with
the same `webhook-id`. Receivers do not wait for each other: an attempt is bounded in time, and no host has all places.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

import anyio.to_thread
import httpx

from elit_serve.errors import InvalidInput, StorageFull, StoreUnavailable
from elit_serve.jobs.metrics import JobMetrics
from elit_serve.jobs.schemas import JobRequest, job_info, read_back
from elit_serve.jobs.states import StoredJob
from elit_serve.jobs.store import JobStore
from elit_serve.jobs.webhook_policy import WebhookPolicy
from elit_serve.jobs.webhook_post import NoAnswer, post

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES_S = (1, 5, 60, 300, 1800, 7200, 18_000, 36_000)  # before each further attempt
TIMEOUT_S = 10.0  # of an attempt, from looking up the name to the head of the answer
AT_ONCE = 64
PER_HOST = 4
GRACE_S = 2.0  # at the end of the server, for attempts under way; they are made again by the next one
POLL_S = 1.0


class Webhooks:
    """A thread with an event loop of its own, from `start` to `stop`."""

    def __init__(self, store: JobStore, policy: WebhookPolicy, metrics: JobMetrics, *, results_seconds: float) -> None:
        self._store = store
        self._policy = policy
        self._metrics = metrics
        self._results_seconds = results_seconds
        self._under_way: dict[asyncio.Task[None], StoredJob] = {}  # until what came of it is stored
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="elit-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Within seconds, whatever receivers do."""
        self._is_stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """There may be something to tell; from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    # The thread

    async def _run(self) -> None:
        """Attempts that are still under way when this returns are cancelled."""
        self._loop = asyncio.get_running_loop()
        tls = httpx.create_ssl_context(trust_env=False)
        while not self._is_stopping:
            await self._begin_due(tls)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_S)
            self._woken.clear()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=GRACE_S)

    async def _begin_due(self, tls: ssl.SSLContext) -> None:
        """As many as there is room for; hosts that have the fewest under way come first."""
        now_s = time.time()
        try:
            busy = Counter(job.webhook_host for job in self._under_way.values())
            for host in sorted(await self._on_a_thread(lambda: self._store.hosts_to_tell(now_s)), key=busy.__getitem__):
                room = min(PER_HOST - busy[host], AT_ONCE - len(self._under_way))
                for job in await self._due(host, now_s, limit=room) if room > 0 else ():
                    task = asyncio.create_task(self._tell(job, tls))
                    self._under_way[task] = job
                    task.add_done_callback(self._ended)
        except (StoreUnavailable, StorageFull):
            return  # told again later
        except Exception:
            logger.exception("webhooks: something went wrong that should not")

    async def _due(self, host: str | None, now_s: float, *, limit: int) -> list[StoredJob]:
        besides = [job.id for job in self._under_way.values()]
        return await self._on_a_thread(lambda: self._store.due_webhooks(host, now_s, besides=besides, limit=limit))

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._woken.set()

    async def _tell(self, job: StoredJob, tls: ssl.SSLContext) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                is_told = await self._is_taken(job, tls)
        except (NoAnswer, InvalidInput, StoreUnavailable, OSError, ValueError) as error:
            logger.info("no webhook for job %s: %s", job.id, str(error) or type(error).__name__)
            is_told = False
        except Exception:
            logger.exception("the webhook of job %s failed in a way that it should not", job.id)
            is_told = False
        await self._note(job, is_told)

    async def _is_taken(self, job: StoredJob, tls: ssl.SSLContext) -> bool:
        webhook = read_back(JobRequest, job.request).webhook
        assert webhook is not None, job.id
        receiver = self._policy.receiver(webhook.url)  # settings may have changed since
        body = self._body(job)
        status = await post(receiver, webhook.url, self._policy.headers(job.id, body), body, tls)
        return 200 <= status < 300

    async def _note(self, job: StoredJob, is_told: bool) -> None:
        """Tried again until it is stored: while that cannot be, who was told is not to be told once more."""
        is_last = job.webhook_attempts == len(PAUSES_S)
        next_s = None if is_told or is_last else time.time() + PAUSES_S[job.webhook_attempts]
        while True:
            try:
                await self._on_a_thread(
                    lambda: self._store.webhook_tried(job.id, next_s=next_s, attempts=job.webhook_attempts + 1)
                )
                break
            except (StoreUnavailable, StorageFull):
                await asyncio.sleep(POLL_S)
        self._metrics.webhooks.labels("delivered" if is_told else "given_up" if is_last else "failed").inc()
        if is_last and not is_told:
            logger.warning("the webhook of job %s was not taken in %d attempts", job.id, len(PAUSES_S) + 1)

    def _body(self, job: StoredJob) -> bytes:
        info = job_info(job, results_seconds=self._results_seconds)
        message = {
            "type": f"job.{job.state}",
            "timestamp": datetime.fromtimestamp(job.ended_s or job.created_s, UTC).isoformat(),
            "data": info.model_dump(mode="json"),
        }
        return json.dumps(message).encode()

    @staticmethod
    async def _on_a_thread(work: Callable[[], T]) -> T:
        """What waits for the database, so that attempts go on meanwhile."""
        return await anyio.to_thread.run_sync(work)
