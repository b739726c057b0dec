"""A scheduler that plans as a server does: requests that leave their plan open get one as they arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.menu import PlanMenu
from elit_serve.scheduler.policy.view import Policy
from elit_serve.scheduler.quality import MeasuredPlan
from elit_serve.scheduler.requests import Demand, Refusal


class PlanningScheduler(RequestScheduler):
    """Gives each request a plan of its shape's menu as it arrives, by its target and by how crowded the device is.

    plans: what each request was given, by its id.
    """

    def __init__(self, table: CostTable, policy: Policy, menus: Mapping[str, PlanMenu]) -> None:
        super().__init__(table, policy)
        self._menus = menus
        self.plans: dict[int, MeasuredPlan] = {}

    def submit(self, demands: Sequence[Demand], now_s: float, *, is_passed_on: bool = False) -> Refusal | None:
        planned = [self._planned(demand, now_s) for demand in demands]
        return super().submit(planned, now_s, is_passed_on=is_passed_on)

    def _planned(self, demand: Demand, now_s: float) -> Demand:
        target_ms = 1000 * (demand.deadline_s - demand.arrived_s)
        menu = self._menus[demand.shape]
        plan = self.choose_plan(menu, latency_ms=target_ms, num_images=1, now_s=now_s).plan
        self.plans[demand.request_id] = plan
        return by_plan(demand, plan)


def by_plan(demand: Demand, plan: MeasuredPlan) -> Demand:
    """The same picture made by a plan of a menu, in all of its steps or in longer ones."""
    return replace(
        demand,
        weak_caps=plan.weak_caps,
        skipped=plan.skipped,
        ceilings=plan.limits,
        min_level=max(demand.min_level, plan.min_level),
        coarsening=plan.coarsening,
    )
