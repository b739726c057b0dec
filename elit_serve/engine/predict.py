"""What a plan will take on this device: the engine's plans against the scheduler's cost table."""

from __future__ import annotations

from dataclasses import dataclass

from elit_serve.sampling import Plan, time_grid
from elit_serve.scheduler import CostTable


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicted milliseconds of a plan, with room for noise.

    headroom: share added to every prediction, so that a target that just fits is usually met.
    """

    cost: CostTable
    headroom: float = 0.0

    def plan_ms(self, plan: Plan, num_images: int = 1) -> float:
        """Milliseconds from start to encoded pictures for a batch of `num_images`.

        The table is measured with one image, and a batch takes at most as long as its images one after another.
        """
        grid = time_grid(plan.num_steps, plan.time_shift)
        guidance = plan.guidance
        weak_level_of = {level: guidance.weak_branch(level).level for level in set(plan.levels)}
        weak_levels = [
            weak_level_of[level] if guidance.applies_at(t) else None
            for level, t in zip(plan.levels, grid[:-1], strict=True)
        ]
        return num_images * self.cost.predict_ms(plan.levels, weak_levels) * (1 + self.headroom)
