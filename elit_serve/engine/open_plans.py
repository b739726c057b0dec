"""What a request gets that leaves steps, guidance and levels open: one of the model's best measured plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.order import Job
from elit_serve.plans.plan import Plan
from elit_serve.scheduler import CostTable, PlanMenu, RequestScheduler


@dataclass(frozen=True, kw_only=True)
class OpenPlans:
    """menu: what the scheduler chooses from. plans: what the names in it stand for, with every step at its ceiling."""

    menu: PlanMenu
    plans: Mapping[str, Plan]

    @classmethod
    def of(cls, quality: ModelQuality, cost: CostTable, shape: str) -> OpenPlans:
        """The plans of a model's `quality.json` that servers offer, at what they cost here for pictures of a shape."""
        plans = {
            plan.name: Plan(
                levels=plan.step_levels,
                guidance=plan.guidance,
                time_shift=plan.time_shift,
            )
            for plan in quality.file.served
        }
        return cls(menu=PlanMenu.of(quality.table, cost, shape), plans=plans)

    def within(self, max_steps: int) -> OpenPlans | None:
        """Those of at most so many steps; None if there are none."""
        menu = self.menu.within(max_steps)
        return None if menu is None else replace(self, menu=menu)

    def give(self, job: Job, scheduler: RequestScheduler) -> Job:
        """The job with the plan that suits its target and who is in flight.

        Its steps and guidance are fixed from now on, its levels are not.
        """
        option = scheduler.choose_plan(
            self.menu, latency_ms=job.latency_ms, num_images=len(job.seeds), now_s=job.arrived_s
        )
        plan, measured = self.plans[option.plan.name], option.plan
        return replace(
            job,
            guidance=plan.guidance,
            time_shift=plan.time_shift,
            weak_caps=measured.weak_caps,
            ceilings=measured.limits,
            min_level=measured.min_level,
            expected_quality=option.quality,
        )
