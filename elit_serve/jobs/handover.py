"""Jobs on their way into the engine, and those that it has."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from elit_serve.engine.picture import Preview, StepRun
from elit_serve.jobs.endings import Settled, Started
from elit_serve.jobs.events import JobEvents
from elit_serve.jobs.port import PicturePort, PicturesUnderWay
from elit_serve.jobs.schemas import JobRequest, read_back
from elit_serve.jobs.states import StoredJob


@dataclass(frozen=True)
class _UnderWay:
    job: StoredJob
    submitted: PicturesUnderWay


class Handover:
    """Used by any thread. report: is told of what happens, on the engine's threads; it may not wait."""

    def __init__(self, port: PicturePort, events: JobEvents, report: Callable[[Started | Settled], None]) -> None:
        self._port = port
        self._events = events
        self._report = report
        self._under_way: dict[str, _UnderWay] = {}  # until their ends are stored
        self._reserved: set[str] = set()

    @contextmanager
    def reserved(self, job_id: str) -> Iterator[None]:
        """Within it the job is not taken for one that waits."""
        self._reserved.add(job_id)
        try:
            yield
        finally:
            self._reserved.remove(job_id)

    def submit(self, job: StoredJob, *, is_new: bool = False) -> PicturesUnderWay:
        """Has the engine take a job, to be followed. Raises why not; is_new: somebody waits to hear that."""
        body = read_back(JobRequest, job.request).as_asked()
        self._events.began(job.id)
        try:
            return self._port.submit(
                body,
                name=job.id,
                owner=job.owner or None,
                waited_s=0.0 if body.latency_ms is None else max(0.0, time.time() - job.created_s),
                is_awaited=is_new,
                num_previews=body.previews,
                on_step=self._on_step(job.id),
                on_preview=self._on_preview(job.id) if body.previews else None,
            )
        except Exception:
            self._events.withdrew(job.id)
            raise

    def follow(self, job: StoredJob, submitted: PicturesUnderWay) -> None:
        """From now on what becomes of it is written down."""
        self._under_way[job.id] = _UnderWay(job, submitted)
        submitted.future.add_done_callback(lambda _: self._report(Settled(job, submitted)))

    def cancel(self, job_id: str) -> None:
        """The engine is free of it within a step."""
        under_way = self._under_way.get(job_id)
        if under_way is not None:
            under_way.submitted.future.cancel()

    def finish(self, job_id: str) -> bool:
        """The engine ends it early; False if it has not begun it."""
        under_way = self._under_way.get(job_id)
        return under_way is not None and (under_way.submitted.future.done() or under_way.submitted.finish())

    def forget(self, job_id: str) -> None:
        """Its end is stored, or the engine has ended before it."""
        self._under_way.pop(job_id, None)

    def ids(self) -> list[str]:
        """Of the jobs that do not wait, whatever is stored."""
        return [*self._under_way, *self._reserved]

    def load(self) -> Counter[str]:
        """Pictures that the engine has to make, by owner."""
        load: Counter[str] = Counter()
        for under_way in list(self._under_way.values()):
            if not under_way.submitted.future.done():
                load[under_way.job.owner] += under_way.job.num_images
        return load

    def has_suspect(self) -> bool:
        """Whether the engine has a job at which an earlier server ended. With one of these at a time, whatever is
        together with the one to blame when it ends a server is not together with it the next time."""
        return any(each.job.attempts and not each.submitted.future.done() for each in list(self._under_way.values()))

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
