"""Takes stored jobs to the engine, and writes down what becomes of them.

One thread does all of it. What the engine tells comes as reports, which are written in the order in which they came. A
report that cannot be written, because the database is gone or the disk full, stays first in line and is tried again;
no job that waits goes to the engine meanwhile, so no more than what the engine has is ever held in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from elit_serve.engine.jobs import Preview, StepRun
from elit_serve.errors import (
    DeadlineExceeded,
    ElitError,
    EngineStopped,
    GenerationFailed,
    Infeasible,
    Overloaded,
    StorageFull,
    StoreUnavailable,
)
from elit_serve.server.generation import form_of, job_of
from elit_serve.server.jobs.endings import Ending, Settled, Started, ending_of, failure
from elit_serve.server.jobs.events import JobEvents
from elit_serve.server.jobs.metrics import JobMetrics
from elit_serve.server.jobs.results import Results
from elit_serve.server.jobs.retention import Retention
from elit_serve.server.jobs.schemas import JobRequest
from elit_serve.server.jobs.states import JobState, StoredJob
from elit_serve.server.jobs.store import JobStore
from elit_serve.server.service import Service, Taken, admit, hand_over

logger = logging.getLogger(__name__)

PAUSE_S = 1.0  # between looks at the database when nothing happens, and after trouble
CROWD = 2  # batches of the pictures of jobs that waited: one runs, one is ready to follow


Report = TypeVar("Report", Started, Ending)


class Runner:
    """The thread, from `start` to `stop`. on_end: is called after the end of a job has been stored."""

    def __init__(
        self,
        service: Service,
        store: JobStore,
        results: Results,
        retention: Retention,
        events: JobEvents,
        metrics: JobMetrics,
        *,
        on_end: Callable[[], None],
    ) -> None:
        self._service = service
        self._store = store
        self._results = results
        self._retention = retention
        self._events = events
        self._metrics = metrics
        self._on_end = on_end
        self._room = CROWD * min(service.settings.max_batch or service.cost.max_batch, service.cost.max_batch)
        self._in_engine: dict[str, Taken] = {}  # until the end is stored
        self._reserved: set[str] = set()
        self._reports: deque[Started | Settled | Ending] = deque()
        self._wake = threading.Event()
        self._is_stopping = False
        self._trouble: str | None = None
        self._tidied_s = 0.0
        self._thread = threading.Thread(target=self._run, name="elit-jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Writes down what has ended; what has not is made by the next server."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    # Any thread

    @contextmanager
    def reserved(self, job_id: str) -> Iterator[None]:
        """Within it the job is not taken for one that waits."""
        self._reserved.add(job_id)
        try:
            yield
        finally:
            self._reserved.remove(job_id)

    def hand_over(self, job: StoredJob, *, is_new: bool = False) -> Taken:
        """Has the engine take a job, to be followed. Raises why not; is_new: somebody waits to hear that."""
        body = JobRequest.model_validate_json(job.request).as_asked()
        service = self._service
        form = form_of(None, body, service.pipeline)
        waited_s = 0.0 if body.latency_ms is None else max(0.0, time.time() - job.created_s)
        arrived_s = service.clock.now() - waited_s
        made = job_of(body, form, service.pipeline, service.cost, service.settings, arrived_s=arrived_s)
        self._events.began(job.id)
        try:
            return (admit if is_new else hand_over)(
                service,
                body,
                form,
                replace(made, owner=job.owner or None, num_previews=body.previews),
                on_preview=self._on_preview(job.id) if body.previews else None,
                on_step=self._on_step(job.id),
            )
        except Exception:
            self._events.withdrew(job.id)
            raise

    def follow(self, job: StoredJob, taken: Taken) -> None:
        """From now on what becomes of it is written down."""
        self._in_engine[job.id] = taken
        taken.future.add_done_callback(lambda _: self._report(Settled(job.id, taken)))

    def give_up(self, job_id: str) -> None:
        """The job has been cancelled; the engine is free of it within a step."""
        taken = self._in_engine.get(job_id)
        if taken is not None:
            taken.future.cancel()
        self._events.ended(job_id)
        self._wake.set()

    def _on_step(self, job_id: str) -> Callable[[StepRun], None]:
        has_started = False

        def tell(step: StepRun) -> None:
            nonlocal has_started
            if not has_started:
                has_started = True
                self._report(Started(job_id))
                self._events.happened(job_id, None)
            self._events.happened(job_id, step)

        return tell

    def _on_preview(self, job_id: str) -> Callable[[Preview], None]:
        return lambda preview: self._events.happened(job_id, preview)

    def _report(self, report: Started | Settled) -> None:
        self._reports.append(report)
        self._wake.set()

    # The runner's thread

    def _run(self) -> None:
        while not self._is_stopping:
            self._turn()
            self._wake.wait(PAUSE_S)
            if self._trouble is not None and not self._is_stopping:
                time.sleep(PAUSE_S)  # whatever wakes it would find the same
            self._wake.clear()
        self._turn()

    def _turn(self) -> None:
        try:
            self._write_reports()
            self._retention.shrink()
            self._take_waiting()
            self._tidy()
        except (StorageFull, StoreUnavailable) as error:
            self._note(str(error))
        except Exception:
            logger.exception("jobs: something went wrong that should not")
        else:
            self._note(None)
        self._metrics.running.set(len(self._in_engine))

    def _write_reports(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            if isinstance(report, Started):
                self._write(report, self._write_start)
            else:
                ending = ending_of(report, self._service) if isinstance(report, Settled) else report
                if ending is None:
                    self._in_engine.pop(report.job_id, None)
                else:
                    self._write(ending, self._write_end)

    def _write(self, report: Report, how: Callable[[Report], None]) -> None:
        try:
            how(report)
        except (StorageFull, StoreUnavailable):
            self._reports.appendleft(report)
            raise

    def _write_start(self, report: Started) -> None:
        job_id = report.job_id
        if self._store.start(job_id) or self._store.is_in(job_id, JobState.RUNNING):  # it is, if an answer was lost
            return
        taken = self._in_engine.get(job_id)
        if taken is not None:
            taken.future.cancel()  # the job was cancelled on its way here, or has ended

    def _write_end(self, ending: Ending) -> None:
        job_id, state = ending.job_id, ending.state
        num_bytes = self._results.write(job_id, ending.files, ending.suffix) if ending.files else 0
        values = {"result": ending.result, "error": ending.error, "result_bytes": num_bytes}
        has_ended = self._store.end(job_id, state, **values) or self._store.is_in(job_id, state)  # as above
        self._in_engine.pop(job_id, None)
        if has_ended:
            self._retention.added(num_bytes)
            self._metrics.ended.labels(state).inc()
            self._events.ended(job_id)
            self._on_end()
        elif ending.files:
            self._results.remove(job_id)

    def _take_waiting(self) -> None:
        while self._service.worker.is_ready and not self._is_stopping:
            job = self._store.next_waiting(besides=[*self._in_engine, *self._reserved])
            if job is None or not (job.due_s is not None or self._has_room_for(job)) or not self._take(job):
                return

    def _has_room_for(self, job: StoredJob) -> bool:
        under_way = [taken for taken in list(self._in_engine.values()) if not taken.future.done()]
        num_pictures = sum(taken.body.n for taken in under_way)
        return num_pictures == 0 or num_pictures + job.num_images <= self._room

    def _take(self, job: StoredJob) -> bool:
        """False if it has to wait. What was promised and cannot be kept any more, after a restart, expires."""
        try:
            taken = self.hand_over(job)
        except (Overloaded, EngineStopped):
            return False
        except Infeasible as error:
            self._write_end(failure(job.id, DeadlineExceeded(float(str(error.value)))))
        except ElitError as error:
            self._write_end(failure(job.id, error))
        except Exception as error:
            logger.exception("a job could not be handed to the engine")
            self._write_end(failure(job.id, GenerationFailed(f"the server failed with {type(error).__name__}")))
        else:
            self.follow(job, taken)
        return True

    def _tidy(self) -> None:
        now_s = time.monotonic()
        if now_s - self._tidied_s >= PAUSE_S:
            self._tidied_s = now_s
            self._retention.tidy()
            self._metrics.waiting.set(self._store.num_waiting())
            self._metrics.stored_bytes.set(self._retention.stored_bytes)

    def _note(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._metrics.stuck.set(trouble is not None)
            logger.warning("jobs: %s", trouble or "all is well again")
