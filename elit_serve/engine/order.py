"""What was asked of the engine, as a frozen value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from elit_serve.engine.conditions import Condition
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.formats import FILE_QUALITY, AnswerFormat
from elit_serve.plans.grid import Shift, times_of
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.progress import Progress
from elit_serve.plans.skips import NO_SKIPS, Skips
from elit_serve.scheduler import RequestScheduler
from elit_serve.scheduler.requests import Demand, Priority


@dataclass(frozen=True, kw_only=True)
class Order:
    """Pictures of one condition, one for each seed, taken all or none.

    shape: the name of the samples' shape.
    weak_caps: see `Demand`; one entry per step.
    arrived_s: when the caller asked, on the worker's clock.
    latency_ms: when, after that, the answer should be out; `is_hard` says whether it is promised.
    min_level, max_level: what may be picked; without meaning for a `pinned` level per step.
    num_previews: of each picture while it is made, evenly spread over its steps; fewer if it has few steps.
    file_quality: of JPEG and lossy WebP, 0 to 100.
    prepare_ms: what the device has to do before its first step, as to encode a prompt that it does not know.
    extra_ms: how much later its files are there than the costs of the device say, see `engine.file_times`.
    ceilings: one level per step that is not exceeded either, or None.
    skips: what its steps use again of earlier ones; `weak_caps` are without the weak passes that are left out.
    strides: how many steps of a finer time grid each step is, for a picture that is made again; else 1 for all.
    coarsening: how long steps may become in flight; None keeps them as they are.
    owner: for whom; None is nobody in particular.
    expected_quality: at the levels that are expected when the order is made or given its plan; None is not known.
    open_plans: it gets one of these in place of its own steps, guidance and levels when it is taken; None keeps them.
    """

    condition: Condition
    shape: str
    seeds: tuple[int, ...]
    guidance: Guidance
    time_shift: Shift
    weak_caps: tuple[int | None, ...]
    arrived_s: float
    latency_ms: float
    is_hard: bool
    min_level: int
    max_level: int
    pinned: tuple[int, ...] | None
    strides: tuple[int, ...]
    priority: Priority
    output_format: AnswerFormat
    num_previews: int = 0
    file_quality: int = FILE_QUALITY
    extra_ms: float = 0.0
    prepare_ms: float = 0.0
    ceilings: tuple[int, ...] | None = None
    skips: Skips = NO_SKIPS
    coarsening: Coarsening | None = None
    owner: str | None = None
    expected_quality: float | None = None
    open_plans: OpenPlans | None = None

    @property
    def num_steps(self) -> int:
        """That run, if none becomes longer in flight."""
        return len(self.weak_caps)

    @property
    def grid_steps(self) -> int:
        """Of the time grid that strides are told on."""
        return sum(self.strides)

    @property
    def times(self) -> tuple[float, ...]:
        """At which its steps may start, and the end."""
        return times_of(self.strides, self.time_shift)

    @property
    def deadline_s(self) -> float:
        return self.arrived_s + self.latency_ms / 1000

    @property
    def expected_levels(self) -> tuple[int, ...]:
        """Of its steps, if nobody else were there."""
        return self.pinned or self.ceilings or (self.max_level,) * self.num_steps

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The numbers of steps after which there is a preview."""
        parts = self.num_previews + 1
        spread = {round(part * self.num_steps / parts) for part in range(1, parts)}
        return tuple(sorted(spread - {0, self.num_steps}))

    def demands(self, request_ids: Iterable[int]) -> list[Demand]:
        """Its pictures, as the scheduler sees them. What is done before the first step is done once for all."""
        first, *others = map(self._demand, request_ids)
        return [replace(first, prepare_s=self.prepare_ms / 1000), *others] if self.prepare_ms else [first, *others]

    def _demand(self, request_id: int) -> Demand:
        return Demand(
            request_id=request_id,
            shape=self.shape,
            arrived_s=self.arrived_s,
            deadline_s=self.deadline_s,
            weak_caps=self.weak_caps,
            min_level=self.min_level,
            max_level=self.max_level,
            ceilings=self.ceilings,
            pinned=self.pinned,
            skipped=self.skips.core,
            coarsening=self.coarsening,
            is_hard=self.is_hard,
            priority=self.priority,
            extra_s=self.extra_ms / 1000,
        )

    def given(self, scheduler: RequestScheduler, now_s: float) -> Order:
        """With the one of `open_plans` that suits what is left of its target and who is in flight with it, if it leaves
        that open.

        Its steps and guidance are fixed then, its levels are not.
        """
        if self.open_plans is None:
            return self
        left_ms = 1000 * (self.deadline_s - now_s) - self.extra_ms - self.prepare_ms
        option = scheduler.choose_plan(
            self.open_plans.menu, latency_ms=left_ms, num_images=len(self.seeds), now_s=now_s
        )
        plan, measured = self.open_plans.plans[option.plan.name], option.plan
        return replace(
            self,
            guidance=plan.guidance,
            time_shift=plan.time_shift,
            weak_caps=measured.weak_caps,
            strides=plan.strides,
            ceilings=measured.limits,
            min_level=measured.min_level,
            skips=plan.skips,
            coarsening=measured.coarsening,
            expected_quality=option.quality,
            open_plans=None,
        )

    def plan(self, progress: Progress) -> Plan:
        """How a picture is made whose steps are these."""
        ends = accumulate(progress.strides, initial=0)
        strides = tuple(sum(self.strides[start:end]) for start, end in pairwise(ends))
        return self._plan(tuple(progress.levels), strides)

    def plan_at(self, level: int) -> Plan:
        """How a picture is made whose steps all run at this level, none of them longer than planned."""
        return self._plan((level,) * self.num_steps, self.strides)

    def _plan(self, levels: tuple[int, ...], strides: tuple[int, ...]) -> Plan:
        return Plan(
            levels=levels, guidance=self.guidance, time_shift=self.time_shift, strides=strides, skips=self.skips
        )
