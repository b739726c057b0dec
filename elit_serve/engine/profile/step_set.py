"""Which steps a server is prepared for: a named set of levels, weak passes and batch sizes, for every shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch

from elit_serve.catalogue import ModelQuality
from elit_serve.files.config import ModelConfig
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.step_kind import StepKind

GPU_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # in simulation powers of two alone cost 4 points of quality, these 1
CPU_BATCHES = (1, 4)  # images gain little from sharing a step there, and wait for each other
HALVINGS = 5  # levels J, J/2, ... J/16
MAX_CAPTURED = 4  # weak passes at most, none being one: a graph for each at every level, shape and batch


@dataclass(frozen=True, kw_only=True)
class StepSet:
    """kinds: all that are prepared: those that skip their cores, then the others, the cheapest of each shape first and
    the first shape's before others.

    captured: those of them that are unguided, or that the model's recommended sampling and its served plans use; the
        others run, but slower.
    keeps: whether there are plans among the served ones whose steps use again what earlier ones computed.
    """

    kinds: tuple[StepKind, ...]
    captured: tuple[StepKind, ...]
    batches: tuple[int, ...]
    keeps: bool = False

    @property
    def costs(self) -> list[tuple[StepKind, int]]:
        """All of them at every batch: what a server must know the cost of."""
        return list(product(self.kinds, self.batches))

    @property
    def captures(self) -> list[tuple[StepKind, int]]:
        """What to capture, the largest first, so that all others fit into its memory."""
        return [(kind, batch) for batch in sorted(self.batches, reverse=True) for kind in reversed(self.captured)]


def step_kinds(shapes: Iterable[str], levels: Iterable[int], weak_caps: Iterable[int | None]) -> tuple[StepKind, ...]:
    """Distinct ones at these levels, with a weak pass at min(cap, level) or, for None, without: shape by shape, as
    given, and of each the cheapest first."""
    pairs = {(level, None if cap is None else min(cap, level)) for level, cap in product(levels, weak_caps)}
    cheapest_first = sorted(pairs, key=lambda pair: (pair[0], pair[1] or 0))
    return tuple(StepKind(shape, level, weak_level) for shape in shapes for level, weak_level in cheapest_first)


def served_steps(
    config: ModelConfig, shapes: Sequence[str], device: torch.device, quality: ModelQuality | None = None
) -> StepSet:
    """What a server of this model prepares on this kind of device, for its recommended sampling and its best plans."""
    largest = max(config.levels)
    halvings = {max(1, largest >> power) for power in range(HALVINGS)}
    levels = [level for level in config.levels if level in halvings]
    default = config.sampling.guidance.weak_level_at(largest)
    captured = _captured_caps(config.sampling.guidance, default, quality)
    small_first = sorted(shapes, key=lambda name: prod(config.shapes[name]))
    keeps = quality is not None and any(plan.skips for plan in quality.served)
    return StepSet(
        kinds=_skipped(shapes, keeps) + step_kinds(shapes, levels, [None, default, largest, *captured]),
        captured=_skipped(small_first, keeps) + step_kinds(small_first, levels, captured),
        batches=GPU_BATCHES if device.type == "cuda" else CPU_BATCHES,
        keeps=keeps,
    )


def _skipped(shapes: Sequence[str], keeps: bool) -> tuple[StepKind, ...]:
    """The two steps of each shape that skip their cores, with and without a weak pass, if any can: at every level they
    are alike."""
    return tuple(StepKind(shape, 1, weak, is_skipped=True) for shape in shapes for weak in (None, 1) if keeps)


def _captured_caps(recommended: Guidance, default: int, quality: ModelQuality | None) -> list[int | None]:
    """The weak passes to capture: none, because any request may ask for an interval of guidance; the recommended one;
    and those in most plans of the menu, as long as these are `MAX_CAPTURED` in all."""
    always = [None] if recommended.method == "none" else [None, default]
    plans = quality.table.plans if quality else ()
    used = Counter(cap for plan in plans for cap in set(plan.weak_caps))
    return list(dict.fromkeys([*always, *(cap for cap, _ in used.most_common())]))[:MAX_CAPTURED]
