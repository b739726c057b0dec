"""Which plan a request gets that leaves steps, guidance and levels open: chosen once, at admission.

Its steps and guidance then stay; its levels remain free below the ceilings of the plan, and are chosen anew at every
step like anybody's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from elit_serve.scheduler.cost import CostTable
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable

CUSHION_STEPS = 2.0  # of `ElasticSettings`: what fits only without them is refused


@dataclass(frozen=True, kw_only=True)
class Option:
    """A plan whose steps run at `level`, or at its ceilings where these are lower.

    steps_ms: of all steps, alone on the device. quality: read off at the mean level.
    """

    plan: MeasuredPlan
    level: int
    steps_ms: float
    quality: float


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """How busy the device is.

    in_flight: accepted images with steps to run, the newcomers included.
    max_batch: images in a step at most.
    correction: observed over measured step times.
    """

    in_flight: int
    max_batch: int
    correction: float = 1.0

    def stretch(self, table: CostTable, weak_cap: int | None) -> float:
        """How many times as long as alone a picture takes.

        While all in flight share their steps, it takes as many times longer as a step does; beyond the largest batch
        they take turns.
        """
        level = table.levels[-1]
        shared_ms = table.step_ms(level, weak_cap, min(self.in_flight, self.max_batch))
        return shared_ms / table.step_ms(level, weak_cap, 1) * ceil(self.in_flight / self.max_batch)

    def latency_ms(self, table: CostTable, weak_cap: int | None, steps_ms: float) -> float:
        """When pictures are there whose steps take so long alone, by the table; all in flight are taken to have as
        much to run as these."""
        return table.overhead_ms + self.correction * self.stretch(table, weak_cap) * steps_ms

    def room_ms(self, table: CostTable, weak_cap: int | None, latency_ms: float) -> float:
        """How long steps may take alone, by the table, to be in time with the cushion that promises need."""
        cushion_ms = CUSHION_STEPS * table.step_ms(table.levels[-1], weak_cap, 1)
        left_ms = (latency_ms - table.overhead_ms) / self.correction - cushion_ms
        return left_ms / self.stretch(table, weak_cap)


class PlanMenu:
    """Plans at every level that a device serves, to choose from."""

    def __init__(self, table: CostTable, options: Sequence[Option]) -> None:
        assert options, "a menu needs a plan"
        self._table = table
        self._options = options
        self.front = pareto_front(options)
        self.weak_cap = first_cap(self.front[-1].plan.weak_caps)  # of the steps by which a crowd is judged
        self._front_ms = [option.steps_ms for option in self.front]

    @classmethod
    def of(cls, quality: QualityTable, table: CostTable, plans: Sequence[MeasuredPlan] | None = None) -> PlanMenu:
        """The menu of these plans; None are all of the quality table's."""
        offered = quality.plans if plans is None else plans
        return cls(table, [option for plan in offered for option in _options(plan, quality, table)])

    def within(self, max_steps: int) -> PlanMenu | None:
        """The same menu without the plans of more steps; None if there are no others."""
        kept = [option for option in self._options if option.plan.num_steps <= max_steps]
        return PlanMenu(self._table, kept) if kept else None

    def choose(self, *, latency_ms: float, crowd: Crowd) -> Option:
        """The best option that fits into the target as crowded as it is, or else the fastest."""
        room_ms = crowd.room_ms(self._table, self.weak_cap, latency_ms)
        return self.front[max(0, bisect_right(self._front_ms, room_ms) - 1)]


def first_cap(weak_caps: Sequence[int | None]) -> int | None:
    """The weak pass of the guided steps; None if there are none."""
    return next((cap for cap in weak_caps if cap is not None), None)


def pareto_front(options: Sequence[Option]) -> list[Option]:
    """Those that no other one beats in both time and quality, fastest first."""
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (option.steps_ms, -option.quality)):
        if not front or option.quality > front[-1].quality:
            front.append(option)
    return front


def _options(plan: MeasuredPlan, quality: QualityTable, table: CostTable) -> list[Option]:
    """The plan at its ceilings, and held below them at each level of the table."""
    highest = max(plan.ceilings)
    levels = [level for level in table.levels if plan.min_level <= level < highest]
    options = []
    for level in [*levels, highest]:
        held = [min(level, ceiling) for ceiling in plan.ceilings]
        steps_ms = sum(table.step_ms(at, cap, 1) for at, cap in zip(held, plan.weak_caps, strict=True))
        options.append(Option(plan=plan, level=level, steps_ms=steps_ms, quality=quality.of_plan(plan, fmean(held))))
    return options
