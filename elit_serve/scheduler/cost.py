"""What a denoising step costs at every level and batch size, as numbers; knows nothing of how they were measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import ceil


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds of one step of a batch, measured at some (level, weak level, batch), interpolated between them.

    steps_ms: (level, weak level or None for an unguided step, batch) -> milliseconds of the whole batch. Every
        (level, weak level) is measured at the same batches.
    overhead_ms: from the end of an image's last step to its answer: decoding, transfer, encoding, response.
    pads_batches: a batch costs as much as the next measured one (graphs are captured for measured batches only);
        otherwise costs between two measured batches are interpolated.
    """

    steps_ms: Mapping[tuple[int, int | None, int], float]
    overhead_ms: float
    pads_batches: bool = False
    _rows: dict[tuple[int, int | None], tuple[float, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        assert self.steps_ms, "a cost table needs at least one measurement"

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Measured levels, lowest first: the ones a policy picks from."""
        return tuple(sorted({level for level, _, _ in self.steps_ms}))

    @cached_property
    def batches(self) -> tuple[int, ...]:
        """Measured batches, smallest first."""
        return tuple(sorted({batch for _, _, batch in self.steps_ms}))

    @property
    def max_batch(self) -> int:
        return self.batches[-1]

    def step_ms(self, level: int, weak_cap: int | None, batch: int) -> float:
        """One step of `batch` images at `level`, guided by a pass at min(weak_cap, level), or unguided for None."""
        return self.row(level, weak_cap)[batch]

    def row(self, level: int, weak_cap: int | None) -> tuple[float, ...]:
        """`step_ms` for every batch from 0 (which costs nothing) to `max_batch`.

        It never falls with the batch, whatever was measured: a plan is in time with fewer members than it was made for,
        because some have left, only if fewer never cost more. Measurements of small steps do fall here and there.
        """
        key = level, None if weak_cap is None else min(weak_cap, level)
        if key not in self._rows:
            measured = [self._measured_ms(*key, batch) for batch in self.batches]
            by_batch = (self._batch_ms(measured, n) for n in range(1, self.max_batch + 1))
            self._rows[key] = (0.0, *accumulate(by_batch, max))
        return self._rows[key]

    def alone_ms(self, levels: Sequence[int], weak_caps: Sequence[int | None], num_images: int = 1) -> float:
        """From the first step to the answer of so many images, side by side on an idle device, one level and weak cap
        per step."""
        batches, batch = ceil(num_images / self.max_batch), min(num_images, self.max_batch)
        steps_ms = sum(self.step_ms(level, cap, batch) for level, cap in zip(levels, weak_caps, strict=True))
        return batches * steps_ms + self.overhead_ms

    def riding(self, weak_caps: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One entry per step, as in `Demand`, but with unguided steps among guided ones if that is cheaper.

        A guided launch can carry an unguided step, at scale 1. Where a launch of both kinds takes less time than one
        of each, which is so where launches cost more than their members, all steps of such a request are of one kind.
        """
        caps = {cap for cap in weak_caps if cap is not None}
        if None not in weak_caps or len(caps) != 1 or not self._carries(cap := caps.pop()):
            return weak_caps
        return (cap,) * len(weak_caps)

    def _carries(self, weak_cap: int) -> bool:
        """Judged by two halves of the largest batch, at the highest level."""
        level, half = self.levels[-1], max(1, self.max_batch // 2)
        together_ms = self.step_ms(level, weak_cap, min(2 * half, self.max_batch))
        return 2 * half <= self.max_batch and together_ms < (
            self.step_ms(level, weak_cap, half) + self.step_ms(level, None, half)
        )

    def scaled(self, factor: float) -> CostTable:
        """The same table with every step `factor` times as long."""
        steps_ms = {key: factor * cost for key, cost in self.steps_ms.items()}
        return CostTable(steps_ms=steps_ms, overhead_ms=self.overhead_ms, pads_batches=self.pads_batches)

    def _batch_ms(self, measured: Sequence[float], batch: int) -> float:
        low, high, share = _neighbours(self.batches, batch)
        if self.pads_batches:
            return measured[self.batches.index(high)]
        return _mix(measured[self.batches.index(low)], measured[self.batches.index(high)], share)

    def _measured_ms(self, level: int, weak_level: int | None, batch: int) -> float:
        """A step at a measured batch, but any level.

        Outside the measured range the nearest measurement counts. Between two measured levels the weak level keeps
        its relative place between 1 and the level, so that equal levels are interpolated between equal levels.
        """
        measured = _sorted(main for main, weak, _ in self.steps_ms if (weak is None) == (weak_level is None))
        low, high, share = _neighbours(measured, level)
        if weak_level is None:
            return _mix(self.steps_ms[low, None, batch], self.steps_ms[high, None, batch], share)
        place = (weak_level - 1) / (level - 1) if level > 1 else 1.0
        low_ms, high_ms = (self._guided_ms(main, 1 + place * (main - 1), batch) for main in (low, high))
        return _mix(low_ms, high_ms, share)

    def _guided_ms(self, level: int, weak_level: float, batch: int) -> float:
        """A guided step at a measured level; the weak level may lie between two measured ones."""
        measured = _sorted(weak for main, weak, _ in self.steps_ms if main == level and weak is not None)
        low, high, share = _neighbours(measured, weak_level)
        return _mix(self.steps_ms[level, low, batch], self.steps_ms[level, high, batch], share)


def _sorted(values: Iterable[int]) -> list[int]:
    return sorted(set(values))


def _neighbours(measured: Sequence[int], wanted: float) -> tuple[int, int, float]:
    """The measured values around `wanted`, and its place between them in [0, 1]."""
    index = bisect_left(measured, wanted)
    if index == 0:
        return measured[0], measured[0], 0.0
    if index == len(measured):
        return measured[-1], measured[-1], 0.0
    low, high = measured[index - 1], measured[index]
    return low, high, (wanted - low) / (high - low)


def _mix(low: float, high: float, share: float) -> float:
    return low + share * (high - low)
