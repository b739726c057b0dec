"""What a worker has taken and not ended, as it keeps book of it: requests, their images, and the steps that run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from elit_serve.engine.executor.slots import RunningStep, Transfer
from elit_serve.engine.in_flight import PictureInFlight
from elit_serve.engine.order import ImageOutcome, Job, Outcome, Preview, StepRun
from elit_serve.errors import ElitError
from elit_serve.scheduler.requests import Launch


class AcceptedRequest:
    """A job in flight. on_preview, on_step: see `Worker.submit`."""

    def __init__(
        self,
        job: Job,
        future: Future[Outcome],
        on_preview: Callable[[Preview], None] | None,
        on_step: Callable[[StepRun], None] | None,
    ) -> None:
        self.job = job
        self.future = future
        self.on_step = on_step
        self.on_preview = on_preview or (lambda _: None)
        self.preview_steps = frozenset(job.preview_steps) if on_preview is not None else frozenset()
        self.images: list[AcceptedImage] = []


class AcceptedImage:
    """An image in flight. Levels and times are written by the worker's thread, before the encoders read them."""

    def __init__(self, request: AcceptedRequest, index: int, request_id: int) -> None:
        self.request = request
        self.request_id = request_id
        self.seed = request.job.seeds[index]
        self.task = request.job.task(request_id, index)
        self.levels: list[int] = []
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.outcome: ImageOutcome | None = None
        self.shown: Future[None] | None = None  # the last preview

    @property
    def is_previewed_next(self) -> bool:
        return len(self.levels) + 1 in self.request.preview_steps

    @property
    def last_step(self) -> StepRun:
        return StepRun(seed=self.seed, number=len(self.levels), num_steps=self.task.num_steps, level=self.levels[-1])

    @property
    def is_complete(self) -> bool:
        return len(self.levels) == self.task.num_steps

    def seen(self) -> PictureInFlight:
        """As of now, from any thread: levels are only ever appended."""
        job = self.request.job
        return PictureInFlight(
            request_id=self.request_id,
            class_id=job.class_id,
            levels=tuple(self.levels),
            num_steps=job.num_steps,
            arrived_s=job.arrived_s,
            deadline_s=job.arrived_s + job.latency_ms / 1000,
            is_promised=job.is_hard,
        )

    def outcome_of(self, file: bytes, delivered_s: float) -> ImageOutcome:
        assert self.started_s is not None
        assert self.ended_s is not None
        return ImageOutcome(
            file=file,
            seed=self.seed,
            levels=tuple(self.levels),
            queue_ms=1000 * (self.started_s - self.request.job.arrived_s),
            compute_ms=1000 * (self.ended_s - self.started_s),
            encode_ms=1000 * (delivered_s - self.ended_s),
        )


@dataclass(frozen=True)
class LaunchedPart:
    """Members of a launch that run together: all of them, but where memory did not suffice.

    watched: what to tell those who watch, once it has run.
    last: those whose last step it is; their samples are in `transfer`, in the same order.
    """

    request_ids: tuple[int, ...]
    running: RunningStep
    watched: tuple[tuple[Callable[[StepRun], None], StepRun], ...]
    last: tuple[AcceptedImage, ...]
    transfer: Transfer | None


@dataclass(frozen=True)
class LaunchedStep:
    launch: Launch
    parts: tuple[LaunchedPart, ...]

    def is_done(self) -> bool:
        return all(part.running.is_done() for part in self.parts)


def resolve(future: Future[Outcome], result: Outcome | ElitError) -> None:
    """Tells a caller, unless he has left."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Outcome):
        future.set_result(result)
    else:
        future.set_exception(result)
