"""What a request gets that leaves steps, guidance and levels open: one of the model's best measured plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from elit_serve.catalogue import ModelQuality
from elit_serve.plans.plan import Plan
from elit_serve.scheduler import CostTable, PlanMenu


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    """Which of a model's open plans a request may get; None is no limit."""

    max_steps: int | None = None
    min_quality: float | None = None


@dataclass(frozen=True, kw_only=True)
class OpenPlans:
    """menu: what the scheduler chooses from. plans: what the names in it stand for, with every step at its ceiling.
    limits: by which these were chosen from all that the model has."""

    menu: PlanMenu
    plans: Mapping[str, Plan]
    limits: PlanLimits = PlanLimits()

    @classmethod
    def of(cls, quality: ModelQuality, cost: CostTable, shape: str) -> OpenPlans:
        """The plans of a model's `quality.json` that servers offer, at what they cost here for pictures of a shape."""
        plans = {measured.name: quality.at_shape(measured.plan, shape) for measured in quality.served}
        return cls(menu=PlanMenu.of(quality.table_of(shape), cost, shape), plans=plans)

    @classmethod
    def by_shape(cls, quality: ModelQuality, cost: CostTable, shapes: Sequence[str]) -> dict[str, OpenPlans]:
        """Of each of these shapes; what a plan is worth is taken from the size that was measured."""
        return {shape: cls.of(quality, cost, shape) for shape in shapes}

    def within(self, max_steps: int) -> OpenPlans | None:
        """Those of at most so many steps; None if there are none."""
        return self._with(self.menu.within(max_steps), replace(self.limits, max_steps=max_steps))

    def at_least(self, quality: float) -> OpenPlans | None:
        """Those whose pictures are worth no less than this; None if there are none."""
        return self._with(self.menu.at_least(quality), replace(self.limits, min_quality=quality))

    def limited(self, limits: PlanLimits) -> OpenPlans | None:
        """Those within all of these limits; None if there are none."""
        found: OpenPlans | None = self
        if limits.max_steps is not None:
            found = found and found.within(limits.max_steps)
        if limits.min_quality is not None:
            found = found and found.at_least(limits.min_quality)
        return found

    @property
    def best_quality(self) -> float:
        return max(option.quality for option in self.menu.options)

    def _with(self, menu: PlanMenu | None, limits: PlanLimits) -> OpenPlans | None:
        return None if menu is None else replace(self, menu=menu, limits=limits)
