"""Takes stored jobs to the engine, and writes down what becomes of them.

One thread does all of it. What happens to jobs comes as reports, which are written in the order in which they came. A
report leaves the line when it is written, and not before: whatever is wrong with the database or the disk, it stays
first in line and is tried again. No job that waits goes to the engine meanwhile, so no more than what the engine has is
ever held in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

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
from elit_serve.jobs.database import in_full
from elit_serve.jobs.endings import (
    Cancelled,
    Interrupted,
    JobEnd,
    Report,
    Settled,
    Started,
    ending_of,
    failure,
    surprise,
)
from elit_serve.jobs.events import JobEvents
from elit_serve.jobs.handover import Handover
from elit_serve.jobs.metrics import JobMetrics
from elit_serve.jobs.port import PicturePort
from elit_serve.jobs.results import Results
from elit_serve.jobs.retention import Retention
from elit_serve.jobs.states import JobState, StoredJob
from elit_serve.jobs.store import JobStore

logger = logging.getLogger(__name__)

PAUSE_S = 1.0  # between looks at the database when nothing happens, and after trouble
MAX_ATTEMPTS = 5  # to make a job at which servers ended: at the first in company, then as the only one suspected
CROWD = 2  # batches of the pictures of jobs that waited: one runs, one is ready to follow


class Runner:
    """The thread, from `start` to `stop`. on_end: is called after the end of a job has been stored."""

    def __init__(
        self,
        port: PicturePort,
        store: JobStore,
        results: Results,
        retention: Retention,
        events: JobEvents,
        metrics: JobMetrics,
        *,
        on_end: Callable[[], None],
    ) -> None:
        self._port = port
        self._store = store
        self._results = results
        self._retention = retention
        self._events = events
        self._metrics = metrics
        self._on_end = on_end
        self._room = CROWD * port.max_batch
        self.handover = Handover(port, events, self._report)
        self._reports: deque[Report] = deque()
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

    def give_up(self, job_id: str) -> None:
        """The job has been cancelled; the engine is free of it within a step."""
        self.handover.cancel(job_id)
        self._events.ended(job_id)
        self._wake.set()

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
            self._store.stay_owner()
            self._write_reports()
            self._retention.shrink()
            self._take_waiting()
            self._tidy()
        except (StorageFull, StoreUnavailable) as error:
            self._note(in_full(error))
        except Exception as error:
            self._note(f"{type(error).__name__}, which should not be", error)
        else:
            self._note(None)
        self._metrics.running.set(len(self.handover.ids()))
        self._metrics.unwritten.set(len(self._reports))

    def _write_reports(self) -> None:
        while self._reports:
            report = self._reports[0]
            if isinstance(report, Settled):
                self._reports[0] = report = ending_of(report, self._port)  # once, for it counts what it sees
            self._write(report)
            self._reports.popleft()

    def _write(self, report: Started | Cancelled | Interrupted | JobEnd) -> None:
        if isinstance(report, Started):
            self._write_start(report)
        elif isinstance(report, Cancelled):
            self.handover.forget(report.job_id)
        elif isinstance(report, Interrupted):
            self._write_interruption(report)
        else:
            self._write_end(report)

    def _write_start(self, report: Started) -> None:
        job_id = report.job_id
        if not (self._store.start(job_id) or self._store.is_in(job_id, JobState.RUNNING)):  # if an answer was lost
            self.handover.cancel(job_id)  # it was cancelled on its way here

    def _write_interruption(self, report: Interrupted) -> None:
        if report.attempts is not None:
            self._store.give_back(report.job_id, attempts=report.attempts)
        self.handover.forget(report.job_id)

    def _write_end(self, ending: JobEnd) -> None:
        job_id, state = ending.job_id, ending.state
        num_bytes = self._results.write(job_id, ending.files, ending.suffix) if ending.files else 0
        values = {"result": ending.result, "error": ending.error, "result_bytes": num_bytes}
        has_ended = self._store.end(job_id, state, **values) or self._store.is_in(job_id, state)  # as above
        self.handover.forget(job_id)
        if has_ended:
            self._retention.added(num_bytes)
            self._metrics.ended.labels(state).inc()
            self._events.ended(job_id)
            self._on_end()
        elif ending.files:
            self._results.remove(job_id)

    def _take_waiting(self) -> None:
        passed_over: list[str] = []  # promised by a server before this one, and in the way of other promises now
        while self._port.is_ready and not self._is_stopping:
            load = self.handover.load()
            job = self._store.next_waiting(
                besides=[*self.handover.ids(), *passed_over],
                load=load,
                may_be_suspect=not self.handover.has_suspect(),
            )
            if job is None:
                return
            has_room = not load or load.total() + job.num_images <= self._room
            if (has_room or job.due_s is not None) and self._take(job):
                continue
            if job.due_s is None:
                return
            passed_over.append(job.id)

    def _take(self, job: StoredJob) -> bool:
        """False if it has to wait. What was promised and cannot be kept any more, after a restart, expires."""
        if job.attempts >= MAX_ATTEMPTS:
            error = GenerationFailed(f"the server ended {job.attempts} times while it was made")
            return self._settle(failure(job.id, error))
        if not self._store.begin(job):
            return True  # it was cancelled
        try:
            self.handover.follow(job, self.handover.submit(job))
        except (Overloaded, EngineStopped):
            self._settle(Interrupted(job.id, job.attempts))
            return False
        except Infeasible:
            latency_ms = 1000 * ((job.due_s or job.created_s) - job.created_s)
            self._settle(failure(job.id, DeadlineExceeded(latency_ms)))
        except ElitError as error:
            self._settle(failure(job.id, error))
        except Exception as error:
            self._settle(surprise(job.id, error))
        return True

    def _settle(self, report: Interrupted | JobEnd) -> bool:
        """What becomes of a job that the engine did not take is written down like everything else."""
        self._reports.append(report)
        self._write_reports()
        return True

    def _tidy(self) -> None:
        now_s = time.monotonic()
        if now_s - self._tidied_s >= PAUSE_S:
            self._tidied_s = now_s
            self._retention.tidy()
            self._metrics.waiting.set(self._store.num_waiting())
            self._metrics.stored_bytes.set(self._retention.stored_bytes)

    def _note(self, trouble: str | None, unexpected: Exception | None = None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._metrics.stuck.set(trouble is not None)
            logger.warning("jobs: %s", trouble or "all is well again", exc_info=unexpected)
