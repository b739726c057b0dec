"""The one record of a picture that is being made, from its acceptance to its file, and who waits for it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.cost import Cost
from elit_serve.engine.order import Order
from elit_serve.errors import ElitError
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.progress import Progress
from elit_serve.plans.skips import NO_SKIPS, Skips


class Picture:
    """What is being made, how far it is, and where it lies.

    picture_id: unique among those that an executor holds; the scheduler's request id.
    grid: the times at which its steps may start, and 1, where the last one ends.
    progress: the steps that were decided so far, the one on the device included. Whoever decides them adds to it, the
        scheduler or `offline.advance`, and nobody else counts them.
    skips: what its steps use again of earlier ones.
    noise [C, H, W]: where it starts, drawn from its seed by whoever asks.
    caller: who waits for it; None if nobody does. The times and the file are written by the worker.
    cost: of what was done for it so far.
    slot, before: the executor's; see there.
    """

    def __init__(
        self,
        picture_id: int,
        *,
        condition: Condition,
        shape: str,
        seed: int,
        noise: Tensor,
        grid: Sequence[float],
        guidance: Guidance,
        progress: Progress,
        skips: Skips = NO_SKIPS,
        caller: Caller | None = None,
    ) -> None:
        self.picture_id = picture_id
        self.condition = condition
        self.shape = shape
        self.seed = seed
        self.noise = noise
        self.grid = grid
        self.guidance = guidance
        self.skips = skips
        self.progress = progress
        self.slot: int | None = None
        self.before: Tensor | None = None
        self._caller = caller
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.delivered_s: float | None = None
        self.file = b""
        self.last_preview: Future[None] | None = None
        self._costs: list[Cost] = []  # appended to by any thread

    @classmethod
    def of_plan(
        cls, picture_id: int, plan: Plan, *, condition: Condition, shape: str, seed: int, noise: Tensor
    ) -> Picture:
        """One that nobody waits for, and whose steps nobody has decided yet."""
        return cls(
            picture_id,
            condition=condition,
            shape=shape,
            seed=seed,
            noise=noise,
            grid=plan.times,
            guidance=plan.guidance,
            skips=plan.skips,
            progress=Progress(),
        )

    def spend(self, cost: Cost) -> None:
        """Adds to what it has cost."""
        self._costs.append(cost)

    @property
    def cost(self) -> Cost:
        return sum(tuple(self._costs), Cost())

    @property
    def has_caller(self) -> bool:
        return self._caller is not None

    @property
    def caller(self) -> Caller:
        assert self._caller is not None, "nobody waits for this picture"
        return self._caller

    @property
    def levels(self) -> Sequence[int]:
        """Of the steps that were decided."""
        return self.progress.levels

    @property
    def strides(self) -> Sequence[int]:
        """Of the steps that were decided."""
        return self.progress.strides

    @property
    def num_steps(self) -> int:
        """Of its grid."""
        return len(self.grid) - 1

    @property
    def present_step(self) -> int:
        """The number, from 0, of the last step that was decided: the one to launch, or on the device."""
        return len(self.levels) - 1

    @property
    def present_times(self) -> tuple[float, float]:
        """From when to when the present step goes."""
        return self.grid[self.progress.at - self.strides[-1]], self.grid[self.progress.at]

    @property
    def is_complete(self) -> bool:
        """Whether its last step was decided."""
        return self.progress.at == self.num_steps

    @property
    def present_preview(self) -> int | None:
        """Which of its previews is due after the present step; None is none."""
        if self.is_complete:
            return None
        due = self.caller.preview_steps
        index = bisect_right(due, self.progress.at) - 1
        return index if index >= 0 and due[index] > self.progress.at - self.strides[-1] else None

    @property
    def last_step(self) -> StepRun:
        """The present step, as those are told who watch."""
        return StepRun(seed=self.seed, number=self.progress.at, num_steps=self.num_steps, level=self.levels[-1])

    @property
    def state(self) -> Literal["waiting", "running", "finishing"]:
        if not self.levels:
            return "waiting"
        return "finishing" if self.is_complete else "running"

    def made(self) -> MadePicture:
        """As a value, once it is done."""
        assert self.started_s is not None
        assert self.ended_s is not None
        assert self.delivered_s is not None
        return MadePicture(
            seed=self.seed,
            progress=self.progress,
            file=self.file,
            queue_ms=1000 * (self.started_s - self.caller.order.arrived_s),
            compute_ms=1000 * (self.ended_s - self.started_s),
            encode_ms=1000 * (self.delivered_s - self.ended_s),
            cost=self.cost,
        )


class Caller:
    """Who waits for an order that was taken.

    noise [B, C, H, W]: of each seed. on_preview, on_step: see `Worker.submit`. is_hurried: see `Worker.hurry`.
    """

    def __init__(
        self,
        order: Order,
        noise: Tensor,
        on_preview: Callable[[Preview], None] | None = None,
        on_step: Callable[[StepRun], None] | None = None,
    ) -> None:
        self.order = order
        self.noise = noise
        self.future: Future[Outcome] = Future()
        self.on_step = on_step
        self.is_hurried = False
        self.on_preview = on_preview or (lambda _: None)
        self.preview_steps = order.preview_steps if on_preview is not None else ()
        self.pictures: list[Picture] = []

    def add(self, picture_id: int, progress: Progress) -> Picture:
        """The picture of the next seed, which has come as far as `progress` says."""
        order, index = self.order, len(self.pictures)
        picture = Picture(
            picture_id,
            condition=order.condition,
            shape=order.shape,
            seed=order.seeds[index],
            noise=self.noise[index],
            grid=order.times,
            guidance=order.guidance,
            skips=order.skips,
            progress=progress,
            caller=self,
        )
        self.pictures.append(picture)
        return picture

    def tell(self, result: Outcome | ElitError) -> None:
        """Unless he has left."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, Outcome):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)


@dataclass(frozen=True, kw_only=True)
class StepRun:
    """One step of a picture has run. number: how many steps of the plan's grid are done with it, of `num_steps`."""

    seed: int
    number: int
    num_steps: int
    level: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an unfinished picture promises to become: a file as of a finished one.

    index: from 0, of the picture's previews. num_steps: how many steps of its plan's grid are done.
    """

    file: bytes
    seed: int
    index: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class MadePicture:
    """What is left of a picture that is done: a value, which may go to another process.

    progress: its steps. queue_ms: from arrival to the first step. compute_ms: from there to the end of the last step,
    waits between steps included. encode_ms: from there to the file: decoding, transfer, encoding.
    """

    seed: int
    progress: Progress
    file: bytes
    queue_ms: float
    compute_ms: float
    encode_ms: float
    cost: Cost

    @property
    def levels(self) -> Sequence[int]:
        """Of its steps."""
        return self.progress.levels


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished picture for each seed of the order. The three times are those of `MadePicture` for all of them.

    order: as it was run, with the plan that it was given if it had left that open.
    is_hurried: whether its caller has had it end early.
    """

    order: Order
    pictures: tuple[MadePicture, ...]
    is_hurried: bool = False

    @property
    def queue_ms(self) -> float:
        return min(picture.queue_ms for picture in self.pictures)

    @property
    def compute_ms(self) -> float:
        return max(picture.queue_ms + picture.compute_ms for picture in self.pictures) - self.queue_ms

    @property
    def cost(self) -> Cost:
        return sum((picture.cost for picture in self.pictures), Cost())

    @property
    def encode_ms(self) -> float:
        ended_ms = max(picture.queue_ms + picture.compute_ms + picture.encode_ms for picture in self.pictures)
        return ended_ms - self.queue_ms - self.compute_ms
