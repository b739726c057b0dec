"""Which steps a server is prepared for: a named set of levels, weak passes and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from elit_serve.catalogue import ModelQuality
from elit_serve.files.config import ModelConfig

GPU_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # in simulation powers of two alone cost 4 points of quality, these 1
CPU_BATCHES = (1, 4)  # images gain little from sharing a step there, and wait for each other
HALVINGS = 5  # levels J, J/2, ... J/16


@dataclass(frozen=True, kw_only=True)
class StepSet:
    """levels: what a policy may pick. weak_caps: the kinds of steps (see `scheduler.Demand`), None being unguided.

    captured_caps: those of `weak_caps` that the model's recommended sampling and its served plans use; the others run,
        but slower.
    """

    levels: tuple[int, ...]
    weak_caps: tuple[int | None, ...]
    captured_caps: tuple[int | None, ...]
    batches: tuple[int, ...]

    def points(self, weak_caps: tuple[int | None, ...] | None = None) -> list[tuple[int, int | None]]:
        """Distinct (level, weak level), lowest first."""
        caps = self.weak_caps if weak_caps is None else weak_caps
        pairs = {(level, None if cap is None else min(cap, level)) for level, cap in product(self.levels, caps)}
        return sorted(pairs, key=lambda pair: (pair[0], pair[1] or 0))

    def captured_keys(self) -> list[tuple[int, int | None, int]]:
        """(level, weak level, batch) to capture, the largest first, so that all others fit into its memory."""
        return [(*point, batch) for batch in sorted(self.batches, reverse=True)
                for point in reversed(self.points(self.captured_caps))]  # fmt: skip


def served_steps(config: ModelConfig, device: torch.device, quality: ModelQuality | None = None) -> StepSet:
    """What a server of this model prepares on this kind of device, for its recommended sampling and its best plans."""
    largest = max(config.levels)
    halvings = {max(1, largest >> power) for power in range(HALVINGS)}
    guidance = config.sampling.guidance
    default = guidance.weak_level_at(largest)
    captured: list[int | None] = [] if guidance.method == "none" else [default]
    if guidance.method == "none" or guidance.interval != (0.0, 1.0):
        captured.append(None)
    for plan in quality.table.plans if quality else ():
        captured += sorted({cap for cap in plan.weak_caps if cap is not None})
        captured += [None] if None in plan.weak_caps else []
    return StepSet(
        levels=tuple(sorted(level for level in config.levels if level in halvings)),
        weak_caps=tuple(dict.fromkeys([None, default, largest, *captured])),
        captured_caps=tuple(dict.fromkeys(captured)),
        batches=GPU_BATCHES if device.type == "cuda" else CPU_BATCHES,
    )
