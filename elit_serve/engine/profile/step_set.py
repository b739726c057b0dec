"""Which steps a server is prepared for: a named set of levels, weak passes and batch sizes, for every shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod

import torch

from elit_serve.catalogue import ModelQuality
from elit_serve.errors import InvalidInput
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
    the first shape's before others. Mixed ones are not for a picture alone.

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
        """All of them at every batch: what a server knows the cost of. It may do without that of mixed ones, and then
        runs none."""
        return [(kind, batch) for kind, batch in product(self.kinds, self.batches) if _is_run(kind, batch)]

    @property
    def captures(self) -> list[tuple[StepKind, int]]:
        """What to capture, the largest first, so that all others fit into its memory."""
        largest_first = product(sorted(self.batches, reverse=True), reversed(self.captured))
        return [(kind, batch) for batch, kind in largest_first if _is_run(kind, batch)]

    def without(self, kinds: Collection[StepKind]) -> StepSet:
        """What is left if these are not prepared."""
        left, captured = ([kind for kind in all_ if kind not in kinds] for all_ in (self.kinds, self.captured))
        return replace(self, kinds=tuple(left), captured=tuple(captured))

    def up_to(self, max_batch: int) -> StepSet:
        """Without what no batch of so many pictures needs: the smallest that holds them is the largest that stays."""
        needed = [batch for below, batch in pairwise((0, *self.batches)) if below < max_batch]
        return replace(self, batches=tuple(needed))

    def only(self, levels: Collection[int], batches: Sequence[int]) -> StepSet:
        """What is left if only these levels and batches are prepared, some of its own each; none is all of them."""
        for field, wanted, known in (
            ("levels", levels, {kind.level for kind in self.kinds}),
            ("batches", batches, self.batches),
        ):
            if unknown := sorted(set(wanted).difference(known)):
                raise InvalidInput(field, unknown[0], f"some of {', '.join(map(str, sorted(known)))}")
        others = {kind for kind in self.kinds if levels and kind.level not in levels}
        return replace(self.without(others), batches=tuple(sorted(set(batches or self.batches))))


def _is_run(kind: StepKind, batch: int) -> bool:
    return batch > 1 or not kind.is_mixed


def step_kinds(
    shapes: Iterable[str],
    levels: Sequence[int],
    weak_caps: Iterable[int | None],
    mixed_caps: Iterable[int | None] = (),
) -> tuple[StepKind, ...]:
    """Distinct ones at these levels, with a weak pass at min(cap, level) or, for None, without: shape by shape, as
    given, and of each the cheapest first. mixed_caps: of mixed ones, which the lowest level has none of."""
    unmixed = product(levels, weak_caps, (False,))
    mixed = product(sorted(levels)[1:], mixed_caps, (True,))
    distinct = {
        (level, None if cap is None else min(cap, level), is_mixed) for level, cap, is_mixed in (*unmixed, *mixed)
    }
    cheapest_first = sorted(distinct, key=lambda each: (each[0], each[1] or 0, each[2]))
    return tuple(
        StepKind(shape, level, weak_level, is_mixed=is_mixed)
        for shape in shapes
        for level, weak_level, is_mixed in cheapest_first
    )


def served_steps(
    config: ModelConfig, shapes: Sequence[str], device: torch.device, quality: ModelQuality | None = None
) -> StepSet:
    """What a server of this model prepares on this kind of device, for its recommended sampling and its best plans.

    Mixed steps are not for a CPU, where a step takes nearly as long as its latents are many: guided steps of garden64
    at levels 16, 8, 4 and 1 took 714 ms in one launch and 579 in four (one thread, 2026-11-30).
    """
    largest = max(config.levels)
    halvings = {max(1, largest >> power) for power in range(HALVINGS)}
    levels = [level for level in config.levels if level in halvings]
    default = config.sampling.guidance.weak_level_at(largest)
    captured = _captured_caps(config.sampling.guidance, default, quality)
    mixed = captured if device.type == "cuda" else []
    small_first = sorted(shapes, key=lambda name: prod(config.shapes[name]))
    keeps = quality is not None and any(plan.skips for plan in quality.served)
    return StepSet(
        kinds=_skipped(shapes, keeps) + step_kinds(shapes, levels, [None, default, largest, *captured], mixed),
        captured=_skipped(small_first, keeps) + step_kinds(small_first, levels, captured, mixed),
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
