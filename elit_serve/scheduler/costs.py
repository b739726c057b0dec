"""What a denoising step costs, as numbers: as it was measured, and as the device has lately shown it to be.

Knows nothing of how anything is measured, and reads no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, product, repeat
from math import ceil, exp, sqrt
from typing import NamedTuple

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.mixing import Answering, Mixing, Rung

SMOOTHING_S = 1.5  # of device time: a lasting change is followed within a few times this, noise of single launches not
DEVIATION = 0.1  # of launches from what is predicted, until the device has shown its own
NOTICEABLE = 0.003  # the correction moves when the estimate has left it by more than this share
OUTLIER = 1.5  # one launch counts for at most this factor off the present estimate: a stall is no slower device
GAP_SMOOTHING_S = 0.2  # the host's part changes with the number of callers, and with that sooner than the device
GAP_NOTICEABLE = 0.2  # plans are made anew when the gap has left what they count by more than this share
LEAST_GAP_MS = 0.05  # and by more than this
REST_S = 20.0  # of idle time, after which what was observed counts 1/e: three times too slow is forgotten in a minute


class AnswerCost(NamedTuple):
    """What follows the last step of images that end in one launch.

    decode_ms: of the device, before it can run anything else. encode_ms: from then until all their files are there.
    """

    decode_ms: float
    encode_ms: float


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds of one step of a batch, measured for some kinds of steps and batches, interpolated between them.

    steps_ms: (kind of step, batch) -> milliseconds of the whole batch. Every kind is measured at the same batches, and
        every shape at the same levels; steps that skip their cores at those that make a difference. Where none of
        these are measured they cost as much as others. Mixed steps need no batch of one; see `mixed_levels`.
    overhead_ms: from the end of an image's last step to its answer, without what `answers_ms` tells: the response, and
        where nothing is told decoding and encoding too.
    answers_ms: (shape, how many end together) -> what follows their last step; nothing where it was not measured.
    pads_batches: a batch costs as much as the next measured one (graphs are captured for measured batches only);
        otherwise costs between two measured batches are interpolated.
    text_ms: to encode a prompt that is not known, before the first step of its image.
    """

    steps_ms: Mapping[tuple[StepKind, int], float]
    overhead_ms: float
    answers_ms: Mapping[tuple[str, int], AnswerCost] = field(default_factory=dict)
    pads_batches: bool = False
    text_ms: float = 0.0
    _rows: dict[StepKind, tuple[float, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _answer_rows: dict[tuple[str, bool], tuple[float, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        assert self.steps_ms, "a cost table needs at least one measurement"

    @cached_property
    def shapes(self) -> tuple[str, ...]:
        """The names of the measured shapes, in order of measurement."""
        return tuple(dict.fromkeys(kind.shape for kind, _ in self.steps_ms))

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Measured levels, lowest first: the ones a policy picks from."""
        return tuple(sorted({kind.level for kind, _ in self.steps_ms if not kind.is_skipped}))

    @cached_property
    def batches(self) -> tuple[int, ...]:
        """Measured batches, smallest first."""
        return tuple(sorted({batch for _, batch in self.steps_ms}))

    @property
    def max_batch(self) -> int:
        return self.batches[-1]

    def step_ms(self, kind: StepKind, batch: int) -> float:
        """One step of this kind for `batch` images."""
        return self.row(kind)[batch]

    def row(self, kind: StepKind) -> tuple[float, ...]:
        """`step_ms` for every batch from 0 (which costs nothing) to `max_batch`.

        It never falls with the batch, whatever was measured: a plan is in time with fewer members than it was made for,
        because some have left, only if fewer never cost more. Measurements of small steps do fall here and there. For
        the same reason a mixed step never costs less than another of its level.
        """
        if kind not in self._rows:
            assert kind.shape in self.shapes, f"nothing is known of shape {kind.shape}, only of {self.shapes}"
            measured = [self._measured_ms(kind, batch) for batch in self.batches]
            by_batch = (self._batch_ms(measured, n) for n in range(1, self.max_batch + 1))
            row = (0.0, *accumulate(by_batch, max))
            self._rows[kind] = tuple(map(max, row, self.row(kind.unmixed))) if kind.is_mixed else row
        return self._rows[kind]

    def alone_ms(
        self,
        shape: str,
        levels: Sequence[int],
        weak_caps: Sequence[int | None],
        num_images: int = 1,
        *,
        skipped: Collection[int] = (),
    ) -> float:
        """From the first step to the answer of so many images, side by side on an idle device, one level and weak cap
        (as in `Demand`) per step. skipped: the steps that skip their cores."""
        batches, batch = ceil(num_images / self.max_batch), min(num_images, self.max_batch)
        are_skipped = (step in skipped for step in range(len(levels)))
        kinds = map(StepKind.capped, repeat(shape), levels, weak_caps, are_skipped)
        return batches * sum(self.step_ms(kind, batch) for kind in kinds) + self.after_ms(shape, batch)

    def knows_skips(self, shape: str) -> bool:
        """Whether steps that skip their cores are measured."""
        return any(kind.is_skipped for kind in self._kinds_of(shape))

    def mixed_levels(self, shape: str, weak_cap: int | None) -> tuple[int, ...]:
        """Those whose steps with this weak pass may share launches: all that are measured, if for every level above the
        lowest a mixed step is, else none."""
        measured = {kind for kind, _ in self.steps_ms if kind.is_mixed and kind.shape == shape}
        above = (StepKind.capped(shape, level, weak_cap, is_mixed=True) for level in self.levels[1:])
        return self.levels if measured and all(kind in measured for kind in above) else ()

    def after_ms(self, shape: str, num_images: int = 1) -> float:
        """From the last step of so many images that end together to their answers."""
        return self.overhead_ms + self.answer_row(shape)[min(num_images, self.max_batch)]

    def decode_row(self, shape: str) -> tuple[float, ...]:
        """Milliseconds that the device decodes 0, 1, ... images that end together."""
        return self._answer_row(shape, is_decoded=True)

    def answer_row(self, shape: str) -> tuple[float, ...]:
        """Milliseconds from the last step of 0, 1, ... images that end together to the last of their files."""
        return self._answer_row(shape, is_decoded=False)

    def riding(self, shape: str, weak_caps: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One entry per step, as in `Demand`, but with unguided steps among guided ones if that is cheaper.

        A guided launch can carry an unguided step, at scale 1. Where a launch of both kinds takes less time than one
        of each, which is so where launches cost more than their members, all steps of such a request are of one kind.
        """
        caps = {cap for cap in weak_caps if cap is not None}
        if None not in weak_caps or len(caps) != 1 or not self._carries(shape, cap := caps.pop()):
            return weak_caps
        return (cap,) * len(weak_caps)

    def _carries(self, shape: str, weak_cap: int) -> bool:
        """Judged by two halves of the largest batch, at the highest level."""
        half = max(1, self.max_batch // 2)
        guided, unguided = (StepKind.capped(shape, self.levels[-1], cap) for cap in (weak_cap, None))
        together_ms = self.step_ms(guided, min(2 * half, self.max_batch))
        apart_ms = self.step_ms(guided, half) + self.step_ms(unguided, half)
        return 2 * half <= self.max_batch and together_ms < apart_ms

    def scaled(self, factor: float) -> CostTable:
        """The same table with every step `factor` times as long."""
        return replace(self, steps_ms={key: factor * cost for key, cost in self.steps_ms.items()})

    def of_shapes(self, shapes: Collection[str]) -> CostTable:
        """The same of these alone."""
        steps_ms = {key: cost for key, cost in self.steps_ms.items() if key[0].shape in shapes}
        answers_ms = {key: cost for key, cost in self.answers_ms.items() if key[0] in shapes}
        return replace(self, steps_ms=steps_ms, answers_ms=answers_ms)

    def least_of(self, shapes: Sequence[str], weak_caps: Sequence[int | None]) -> CostTable:
        """Of the first of these shapes and unguided, but each step takes what the fastest of these shapes and weak caps
        takes at its level and batch, and an answer what follows soonest: nothing made of them takes less."""
        steps_ms = {
            (StepKind(shapes[0], level), batch): min(
                self._measured_ms(StepKind.capped(shape, level, weak_cap), batch)
                for shape, weak_cap in product(shapes, weak_caps)
            )
            for level, batch in product(self.levels, self.batches)
        }
        return replace(self, steps_ms=steps_ms, overhead_ms=min(map(self.after_ms, shapes)), answers_ms={})

    def with_answers_alone(self) -> CostTable:
        """The same for whoever knows no answers in batches: each takes what it takes alone, and no device time."""
        answer_ms = max(self.answer_row(shape)[1] for shape in self.shapes)
        return replace(self, overhead_ms=self.overhead_ms + answer_ms, answers_ms={})

    def _answer_row(self, shape: str, *, is_decoded: bool) -> tuple[float, ...]:
        """Until they are decoded, or else encoded too. Never falls with their number, as `row`."""
        if (shape, is_decoded) not in self._answer_rows:
            row = [0.0]
            for number in range(1, self.max_batch + 1):
                decode_ms, encode_ms = self._answer_ms(shape, number)
                row.append(max(row[-1], decode_ms if is_decoded else decode_ms + encode_ms))
            self._answer_rows[shape, is_decoded] = tuple(row)
        return self._answer_rows[shape, is_decoded]

    def _answer_ms(self, shape: str, number: int) -> AnswerCost:
        measured = sorted(known for of, known in self.answers_ms if of == shape)
        if not measured:
            return AnswerCost(0.0, 0.0)
        low, high, share = _neighbours(measured, number)
        less, more = self.answers_ms[shape, low], self.answers_ms[shape, high]
        return more if self.pads_batches else AnswerCost(*(_mix(a, b, share) for a, b in zip(less, more, strict=True)))

    def _batch_ms(self, measured: Sequence[float], batch: int) -> float:
        low, high, share = _neighbours(self.batches, batch)
        if self.pads_batches:
            return measured[self.batches.index(high)]
        return _mix(measured[self.batches.index(low)], measured[self.batches.index(high)], share)

    def _measured_ms(self, kind: StepKind, batch: int) -> float:
        """A step at a measured batch, but any level.

        Outside the measured range the nearest measurement counts. Between two measured levels the weak level keeps
        its relative place between 1 and the level, so that equal levels are interpolated between equal levels.
        """
        shape, level, weak_level, is_skipped, is_mixed = kind
        is_skipped = is_skipped and self.knows_skips(shape)
        known = self._kinds_of(shape, batch) if is_mixed else self._kinds_of(shape)
        alike = [other for other in known if other.is_skipped == is_skipped and other.is_mixed == is_mixed]
        alike = [other for other in alike if (other.weak_level is None) == (weak_level is None)]
        if is_mixed and not alike:
            return self._measured_ms(kind.unmixed, batch)
        low, high, share = _neighbours(_sorted(other.level for other in alike), level)
        if weak_level is None:
            mains = (StepKind(shape, main, None, is_skipped, is_mixed) for main in (low, high))
            low_ms, high_ms = (self.steps_ms[main, batch] for main in mains)
        else:
            place = (weak_level - 1) / (level - 1) if level > 1 else 1.0
            low_ms, high_ms = (self._guided_ms(alike, main, 1 + place * (main - 1), batch) for main in (low, high))
        return _mix(low_ms, high_ms, share)

    def _guided_ms(self, alike: Sequence[StepKind], level: int, weak_level: float, batch: int) -> float:
        """A guided step at the level of some of these; the weak level may lie between two of theirs."""
        by_weak = {kind.weak_level: kind for kind in alike if kind.level == level and kind.weak_level is not None}
        low, high, share = _neighbours(sorted(by_weak), weak_level)
        low_ms, high_ms = (self.steps_ms[by_weak[weak], batch] for weak in (low, high))
        return _mix(low_ms, high_ms, share)

    def _kinds_of(self, shape: str, at_batch: int | None = None) -> list[StepKind]:
        """What was measured of a shape, at the smallest batch by default."""
        at_batch = at_batch or self.batches[0]
        return [kind for kind, batch in self.steps_ms if kind.shape == shape and batch == at_batch]


class CorrectedCosts:
    """Steps of a `CostTable` in seconds of the table, and the `correction` that turns those into the device's.

    Plans are made in seconds of the table, so that they outlive a correction. A shallow copy goes its own way: what is
    remembered of the table is true of both.

    deviation: by how much a launch differs from what is predicted, as a standard deviation and a share of that. It is
        observed as the correction is, and promises have some of it to spare.
    gap_ms: what a launch takes of the time beside its step: the device waits for the host. Plans count it with each
        step, so they do not outlive another gap.
    """

    def __init__(self, table: CostTable, gap_ms: float = 0.0) -> None:
        self.table = table
        self.gap_ms = gap_ms
        self.correction = 1.0
        self.deviation = DEVIATION
        self._estimate = 1.0
        self._gap_estimate_ms = gap_ms
        self._rows_s: dict[StepKind, tuple[float, ...]] = {}
        self._nearest: dict[tuple[int, int, int], int] = {}
        self._levels_within: dict[tuple[int, int], tuple[int, ...]] = {}
        self._answering: dict[str, Answering] = {}
        self._rungs: dict[StepKind | tuple[StepKind, int | None], Rung] = {}
        self._mixings: dict[tuple[str, int | None], Mixing | None] = {}

    @property
    def levels(self) -> tuple[int, ...]:
        return self.table.levels

    def after_s(self, shape: str) -> float:
        """From the last step of an image that ends alone to its answer, as measured."""
        return self.table.after_ms(shape) / 1000

    def answering(self, shape: str) -> Answering | None:
        """What decoding together costs; None where nothing is known of it."""
        if not self.table.answers_ms:
            return None
        if shape not in self._answering:
            answered = self.table.answer_row(shape)
            self._answering[shape] = Answering(
                tuple(decode_ms / 1000 for decode_ms in self.table.decode_row(shape)),
                tuple(max(0.0, answer_ms - answered[1]) / 1000 for answer_ms in answered),
            )
        return self._answering[shape]

    def row_s(self, kind: StepKind) -> tuple[float, ...]:
        """Seconds of one step by the table, uncorrected, at every batch from 0 to the table's largest, and the gap."""
        row = self._rows_s.get(kind)
        if row is None:
            nothing, *some = self.table.row(kind)
            row = self._rows_s[kind] = (nothing / 1000, *((step_ms + self.gap_ms) / 1000 for step_ms in some))
        return row

    def rung(self, kind: StepKind, weak_cap: int | None) -> Rung:
        """One for all steps of this kind; where they may share launches with others, for those of one weak cap."""
        mixing = None if kind.is_skipped else self._mixing(kind.shape, weak_cap)
        if mixing is not None and kind.level not in mixing.levels:
            mixing = None
        key = kind if mixing is None else (kind, weak_cap)
        rung = self._rungs.get(key)
        if rung is None:
            rung = self._rungs[key] = Rung(kind, self.row_s(kind), mixing, self.answering(kind.shape))
        return rung

    def _mixing(self, shape: str, weak_cap: int | None) -> Mixing | None:
        if (shape, weak_cap) not in self._mixings:
            levels = self.table.mixed_levels(shape, weak_cap)
            rows_s = [
                [self.row_s(StepKind.capped(shape, level, weak_cap, is_mixed=is_mixed)) for level in levels]
                for is_mixed in (False, True)
            ]
            self._mixings[shape, weak_cap] = Mixing(levels, *rows_s) if len(levels) > 1 else None
        return self._mixings[shape, weak_cap]

    def observe(self, table_ms: float, observed_ms: float) -> None:
        """A launch took `observed_ms` where the uncorrected table says `table_ms`."""
        ratio = observed_ms / table_ms
        ratio = min(max(ratio, self._estimate / OUTLIER), self._estimate * OUTLIER)
        weight = 1 - exp(-table_ms / 1000 / SMOOTHING_S)
        variance = (1 - weight) * self.deviation**2 + weight * (ratio / self._estimate - 1) ** 2
        self.deviation = sqrt(variance)
        self._estimate += weight * (ratio - self._estimate)
        if abs(self._estimate / self.correction - 1) > NOTICEABLE:
            self.correction = self._estimate

    def observe_gap(self, gap_ms: float, table_ms: float) -> bool:
        """Between the launch before and this one, which takes `table_ms` by the table, the device had nothing to run
        for `gap_ms`, though there was work. Returns whether the estimate has left what plans count."""
        gap_ms = min(gap_ms, self._gap_estimate_ms + table_ms)
        weight = 1 - exp(-(table_ms + max(gap_ms, 0.0)) / 1000 / GAP_SMOOTHING_S)
        self._gap_estimate_ms += weight * (gap_ms - self._gap_estimate_ms)
        return abs(self._gap_estimate_ms - self.gap_ms) > max(GAP_NOTICEABLE * self.gap_ms, LEAST_GAP_MS)

    def with_gap(self) -> CorrectedCosts:
        """As observed."""
        costs = CorrectedCosts(self.table, max(self._gap_estimate_ms, 0.0))
        costs.correction, costs.deviation, costs._estimate = self.correction, self.deviation, self._estimate
        return costs

    def rest(self, idle_s: float) -> None:
        """Nothing ran for so long. What slowed the device down may have gone meanwhile, and nobody would ever find out
        if too high a correction had every request refused: the table is trusted again, little by little."""
        kept = exp(-idle_s / REST_S)
        self._estimate = self.correction = 1 + kept * (self._estimate - 1)
        self.deviation = DEVIATION + kept * (self.deviation - DEVIATION)
        self._gap_estimate_ms *= kept

    def nearest_level(self, wished: int, low: int, high: int) -> int:
        """The table's level within these bounds that is next to the wished one, from below if there is one."""
        key = wished, low, high
        level = self._nearest.get(key)
        if level is None:
            levels = self.levels_within(low, high)
            level = self._nearest[key] = max([other for other in levels if other <= wished], default=levels[0])
        return level

    def levels_within(self, low: int, high: int) -> tuple[int, ...]:
        """The table's levels within these bounds; `low` itself if there are none."""
        levels = self._levels_within.get((low, high))
        if levels is None:
            levels = tuple(level for level in self.levels if low <= level <= high) or (low,)
            self._levels_within[low, high] = levels
        return levels


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
