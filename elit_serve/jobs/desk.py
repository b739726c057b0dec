"""Where jobs are accepted, asked for and cancelled. Its methods wait for the database, so none belongs on the loop."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from prometheus_client import CollectorRegistry

from elit_serve.errors import (
    ElitError,
    EngineStopped,
    JobEnded,
    JobNotDone,
    NotBegun,
    Overloaded,
    PictureNotFound,
    ResultsGone,
)
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.schemas import RANDOM_SEEDS
from elit_serve.jobs.database import Database
from elit_serve.jobs.events import JobEvents
from elit_serve.jobs.idempotency import OutstandingKeys, fingerprint_of, same_request
from elit_serve.jobs.metrics import JobMetrics
from elit_serve.jobs.port import JobSettings, PicturePort
from elit_serve.jobs.results import Results
from elit_serve.jobs.retention import Retention
from elit_serve.jobs.runner import Runner
from elit_serve.jobs.schemas import JobInfo, JobList, JobRequest, JobResult, job_info, read_back
from elit_serve.jobs.states import ENDED, JobState, StoredJob, new_id
from elit_serve.jobs.store import JobStore
from elit_serve.jobs.webhook_policy import WebhookPolicy
from elit_serve.jobs.webhooks import Webhooks
from elit_serve.plans.formats import AnswerFormat

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAITING_CALLS = 8  # threads of their own: a database that does not answer must not take those of others


class JobDesk:
    """Opens what jobs need, for one app. Raises `InvalidInput` for settings that cannot be used.

    port: to who makes their pictures. registry: gets their metrics. events: for those who follow a job.
    """

    def __init__(self, port: PicturePort, settings: JobSettings, registry: CollectorRegistry) -> None:
        self._port = port
        self._settings = settings
        self._policy = WebhookPolicy(settings.webhook_host, settings.webhook_secret_file)
        self._limiter = anyio.CapacityLimiter(MAX_WAITING_CALLS)
        self._outstanding = OutstandingKeys()
        self.events = JobEvents()
        with ExitStack() as opened:
            folder = settings.results or opened.enter_context(TemporaryDirectory(prefix="elit-serve-jobs-"))
            self._results = opened.enter_context(closing(Results(Path(folder))))
            self._store = JobStore(opened.enter_context(closing(Database.open(settings.database, Path(folder)))))
            retention = Retention(
                self._store, self._results, max_bytes=settings.results_bytes, seconds=settings.results_seconds
            )
            self._store.put_back()
            retention.recover()
            self._closing = opened.pop_all()
        self._metrics = JobMetrics(registry)
        self._webhooks = Webhooks(self._store, self._policy, self._metrics, results_seconds=settings.results_seconds)
        self._runner = Runner(
            port, self._store, self._results, retention, self.events, self._metrics, on_end=self._webhooks.wake
        )

    def start(self) -> None:
        self._runner.start()
        self._webhooks.start()

    def stop(self) -> None:
        """After the engine: what it has ended is written down. Jobs can still be asked for."""
        self._runner.stop()
        self._webhooks.stop()
        self.events.close()

    def close(self) -> None:
        self._closing.close()

    async def run(self, method: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """One of the methods below, on a thread."""
        return await anyio.to_thread.run_sync(partial(method, *arguments, **options), limiter=self._limiter)

    def accept(self, body: JobRequest, owner: str, idempotency_key: str | None) -> JobInfo:
        """The job, which is stored when this returns, or the earlier one of the same key. Raises why not."""
        fingerprint = fingerprint_of(body)
        with self._outstanding.held(owner, idempotency_key):
            if idempotency_key is not None:
                earlier = self._store.of_key(owner, idempotency_key)
                if earlier is not None:
                    return self._info(same_request(earlier, fingerprint))
            webhook_host = None if body.webhook is None else self._policy.receiver(body.webhook.url).name
            self._check(body)
            job = _new_job(body, owner, idempotency_key, fingerprint, webhook_host)
            self._store_waiting(job, body) if body.latency_ms is None else self._store_promised(job)
        self._metrics.accepted.inc()
        return self._info(job)

    def get(self, job_id: str, owner: str) -> JobInfo:
        return self._info(self._store.get(job_id, owner))

    def page(self, owner: str, state: JobState | None, cursor: str | None, limit: int) -> JobList:
        found = self._store.page(owner, state=state, before=cursor, limit=limit + 1)
        data = [self._info(job) for job in found[:limit]]
        return JobList(data=data, next_cursor=data[-1].id if len(found) > limit else None)

    def cancel(self, job_id: str, owner: str) -> JobInfo:
        """Ends it, if it has not ended."""
        if self._store.end(self._store.get(job_id, owner).id, JobState.CANCELLED):
            self._metrics.ended.labels(JobState.CANCELLED).inc()
            self._webhooks.wake()
        job = self._store.get(job_id, owner)
        if job.state is JobState.CANCELLED:  # also by an earlier call, whose answer was lost
            self._runner.give_up(job.id)
        return self._info(job)

    def finish(self, job_id: str, owner: str) -> JobInfo:
        """Has it end with the fewest steps that its pictures allow.

        Raises `JobEnded`, or `NotBegun` where nothing is there to keep.
        """
        job = self._store.get(job_id, owner)
        if job.state not in ENDED and not self._runner.handover.finish(job.id):
            job = self._store.get(job_id, owner)  # it may just have ended
            if job.state not in ENDED:
                raise NotBegun
        if job.state in ENDED:
            raise JobEnded(job.state)
        return self._info(job)

    def preview_format(self, job: JobInfo) -> AnswerFormat:
        """Of the files that followers of this job get."""
        return self._port.output_format(JobRequest.model_validate(job.request))

    def picture(self, job_id: str, owner: str, index: int) -> tuple[bytes, str]:
        """(File, media type)."""
        job = self._store.get(job_id, owner)
        if index >= job.num_images:
            raise PictureNotFound(index, job.num_images)
        if job.state is not JobState.DONE or job.result is None:
            raise JobNotDone(job.state)
        if not job.result_bytes:
            raise ResultsGone
        output_format = read_back(JobResult, job.result).output_format
        return self._results.read(job.id, index, output_format), media_type_of(output_format)

    def _check(self, body: JobRequest) -> None:
        """Whether such a job can be made at all, and kept."""
        if not self._port.is_open:
            raise EngineStopped("the engine takes no more work")
        self._results.check_room()
        self._port.check(body)

    def _store_waiting(self, job: StoredJob, body: JobRequest) -> None:
        if self._store.num_waiting() >= self._settings.max_jobs:
            error = Overloaded("queue_full", self._port.picture_s(body))
            self._port.refused(body, error)
            raise error
        self._store.add(job)
        self._runner.wake()

    def _store_promised(self, job: StoredJob) -> None:
        """Stored first, so that a promise is never given that nobody knows of after a crash."""
        handover = self._runner.handover
        with handover.reserved(job.id):
            self._store.add(replace(job, attempts=1))
            try:
                submitted = handover.submit(job, is_new=True)
            except ElitError:
                self._store.remove(job.id)
                raise
            handover.follow(job, submitted)

    def _info(self, job: StoredJob) -> JobInfo:
        return job_info(job, results_seconds=self._settings.results_seconds)


def _new_job(
    body: JobRequest, owner: str, idempotency_key: str | None, fingerprint: str, webhook_host: str | None
) -> StoredJob:
    """With a seed, so that the pictures are the same however often they are begun."""
    now_s = time.time()
    if body.seed is None:
        body = body.model_copy(update={"seed": secrets.randbelow(RANDOM_SEEDS)})
    is_promised = body.latency_ms is not None and not body.best_effort
    return StoredJob(
        id=new_id(now_s),
        owner=owner,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        state=JobState.QUEUED,
        request=body.model_dump_json(exclude_unset=True),
        num_images=body.n,
        created_s=now_s,
        due_s=now_s + (body.latency_ms or 0) / 1000 if is_promised else None,
        webhook_due_s=None if body.webhook is None else now_s,
        webhook_host=webhook_host,
    )
