"""What is asked of the scheduler, and what it answers, as values. Times are seconds of one clock that only rises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.step_kind import StepKind

SKIPPED_BOUNDS = (1, 1)  # one for all, so that their kinds are the same


class Priority(StrEnum):
    """Who goes first where not everybody can: `batch` work yields to `interactive`, but ages."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One image: when it must be there, and what may be done to it.

    request_id: unique for the life of the scheduler.
    shape: the name of its sample's shape, see `plans.shape`.
    deadline_s: when its answer should be out, decoding, encoding and response included.
    is_hard: a hard deadline is promised at admission or refused, and ends the request when it passes; a soft one
        (no target, or best effort) orders the work and is delivered late.
    weak_caps: one entry per step: the guided pass runs at level min(cap, level), None is an unguided step. CFG, whose
        weak pass runs at the main level, has a cap of at least the largest level.
    min_level, max_level: what the scheduler may pick, both ends included.
    ceilings: one level per step that is not exceeded either, as in a low-early/high-late schedule, or None.
    pinned: one level per step that must be run exactly, or None; excludes the bounds.
    skipped: the steps, from 0, that skip their cores (`plans.skips`). They run at any level: all of them can share
        launches, and count as of the level of the step before.
    coarsening: how long its steps may become, so that they are fewer; None keeps them as they are.
    extra_s: how much later than the table says its answer comes after its last step.
    prepare_s: how long the device works for it right before its first step, as on the encoding of a prompt.
    """

    request_id: int
    shape: str
    arrived_s: float
    deadline_s: float
    weak_caps: tuple[int | None, ...]
    min_level: int
    max_level: int
    ceilings: tuple[int, ...] | None = None
    pinned: tuple[int, ...] | None = None
    skipped: tuple[int, ...] = ()
    coarsening: Coarsening | None = None
    is_hard: bool = True
    priority: Priority = Priority.INTERACTIVE
    extra_s: float = 0.0
    prepare_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.weak_caps, "a request has at least one step"
        assert 1 <= self.min_level <= self.max_level, (self.min_level, self.max_level)
        assert self.ceilings is None or len(self.ceilings) == len(self.weak_caps)
        assert self.ceilings is None or min(self.ceilings) >= self.min_level, (self.ceilings, self.min_level)
        assert self.pinned is None or len(self.pinned) == len(self.weak_caps)
        assert not self.skipped or 0 < self.skipped[0] <= self.skipped[-1] < len(self.weak_caps), self.skipped
        assert self.coarsening is None or (self.pinned is None and not self.skipped), "these steps stay as they are"
        assert self.coarsening is None or len(self.coarsening.weights) == len(self.weak_caps)

    @cached_property
    def num_steps(self) -> int:
        """Of its time grid."""
        return len(self.weak_caps)

    @property
    def max_stride(self) -> int:
        """How many steps of its grid one step may be at most."""
        return 1 if self.coarsening is None else self.coarsening.max_stride

    @cached_property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """The levels that each step may run at: from, to."""
        if self.pinned is not None:
            bounds = [(level, level) for level in self.pinned]
        else:
            ceilings = self.ceilings or (self.max_level,) * self.num_steps
            bounds = [(self.min_level, min(self.max_level, ceiling)) for ceiling in ceilings]
        for step in self.skipped:
            bounds[step] = SKIPPED_BOUNDS
        return tuple(bounds)

    @cached_property
    def are_skipped(self) -> tuple[bool, ...]:
        """Whether each step skips its cores."""
        skipped = set(self.skipped)
        return tuple(step in skipped for step in range(self.num_steps))


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request was not taken. When it would be, `forecast.retry_after_s` finds out.

    min_latency_ms: the smallest target that would do on an idle device; set when the target is impossible even alone.
    pace: how many times as long as measured steps take at present, on which that rests.
    """

    reason: str  # "infeasible", "overloaded" or "queue_full"
    min_latency_ms: float | None = None
    pace: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One denoising step of a cohort: the executor runs the next step of each of these requests.

    kind: of the step, the same for all members; but unguided steps may ride in a guided launch, at scale 1.
    levels, strides: of the step of each member, in the same order; all levels are that of the kind unless it is mixed.
    predicted_ms: what the corrected cost table says, to be compared with what is observed.
    decode_ms, answer_ms: of those whose last step it is, as predicted: how long the device decodes them before it runs
        anything else, and when all their files are there, both from the end of the step.
    prepare_ms: of those whose first step it is: how long the device works for them before the step.
    """

    launch_id: int
    request_ids: tuple[int, ...]
    kind: StepKind
    predicted_ms: float
    levels: tuple[int, ...]
    strides: tuple[int, ...]
    decode_ms: float = 0.0
    answer_ms: float = 0.0
    prepare_ms: float = 0.0

    @property
    def device_ms(self) -> float:
        """How long the device is not free for anything else."""
        return self.prepare_ms + self.predicted_ms + self.decode_ms
