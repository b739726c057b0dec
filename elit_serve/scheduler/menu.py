"""Which plan a request gets that leaves steps, guidance and levels open: chosen once, at admission.

Its steps and guidance then stay; its levels remain free, below the ceilings of a schedule, and are chosen anew at
every step like anybody's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, repeat, takewhile
from math import ceil, inf, sqrt

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import DEVIATION, CostTable
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable

MARGIN = 3.0  # of `ElasticSettings`: what fits only without it is refused
HEADROOM = 3.0  # times as many as have lately arrived should be possible, for bursts; models/recipes/scheduling.md
ROUNDING = 1e-9  # of qualities that are computed in two ways


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long pictures of one kind take, by the table.

    crowded_ms: what all steps of one take on the device with 1, 2, ... of them in flight, up to the largest batch.
    margin_ms: what a promise must have to spare, times the deviation of launches. after_ms: from the last step of one
        alone to its answer.
    """

    crowded_ms: tuple[float, ...]
    margin_ms: float
    after_ms: float

    @classmethod
    def of(
        cls,
        shape: str,
        levels: Sequence[int],
        weak_caps: Sequence[int | None],
        table: CostTable,
        skipped: Collection[int] = (),
    ) -> Duration:
        """Of pictures of a shape whose steps run at these levels, with these weak caps, and skip these cores (as in
        `Demand`)."""
        caps = table.riding(shape, tuple(weak_caps))
        full = [StepKind.capped(shape, table.levels[-1], cap) for cap in set(caps)]
        are_skipped = [step in skipped for step in range(len(levels))]
        levels = [
            1 if skips else level for skips, level in zip(are_skipped, levels, strict=True)
        ]  # they share launches
        return cls(
            crowded_ms=_crowded_ms(Counter(map(StepKind.capped, repeat(shape), levels, caps, are_skipped)), table),
            margin_ms=MARGIN * sqrt(len(levels)) * max(table.step_ms(kind, 1) for kind in full),
            after_ms=table.after_ms(shape),
        )

    def steps_ms(self, crowd: Crowd) -> float:
        """Of all steps in this crowd; beyond the largest batch pictures take turns."""
        largest = min(crowd.max_batch, len(self.crowded_ms))
        return self.crowded_ms[min(crowd.in_flight, largest) - 1] * ceil(crowd.in_flight / largest)

    def latency_ms(self, crowd: Crowd) -> float:
        """When such pictures would be there in this crowd."""
        return self.after_ms + crowd.correction * self.steps_ms(crowd)

    def needed_ms(self, crowd: Crowd) -> float:
        """How many milliseconds of the table a promise in this crowd needs for its steps."""
        return self.steps_ms(crowd) + crowd.deviation * self.margin_ms

    def min_latency_ms(self, crowd: Crowd) -> float:
        """The smallest target for which a promise can be given in this crowd: `latency_ms` and what it has to spare."""
        return self.after_ms + crowd.correction * self.needed_ms(crowd)

    def fits(self, within_ms: float, crowd: Crowd) -> bool:
        """Whether a promise for so many milliseconds of the table from now can be given in this crowd."""
        return self.needed_ms(crowd) <= within_ms

    def images_per_s(self, within_ms: float, crowd: Crowd) -> float:
        """Most such pictures that can be made, each within so many milliseconds of the table."""
        largest = min(crowd.max_batch, len(self.crowded_ms))
        together = bisect_right(self.crowded_ms, within_ms - crowd.deviation * self.margin_ms, 0, largest)
        return 1000 * together / self.crowded_ms[together - 1] / crowd.correction if together else 0.0


@dataclass(frozen=True, kw_only=True)
class Option:
    """A plan whose steps run at `level`, or at its ceilings where these are lower.

    quality: of a picture with its steps at these levels.
    longer: the same in longer steps throughout, one for each stride that the plan allows.
    """

    plan: MeasuredPlan
    level: int
    duration: Duration
    quality: float
    longer: tuple[Option, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """How busy the device is.

    in_flight: accepted images with steps to run, the newcomers included. newcomers: the images of one request, which
        are never without each other.
    max_batch: images in a step at most.
    correction: observed over measured step times. deviation: as in `CorrectedCosts`.
    images_per_s: that have lately arrived, refused ones too; target_ms: their mean target.
    """

    in_flight: int
    max_batch: int
    newcomers: int = 1
    correction: float = 1.0
    deviation: float = DEVIATION
    images_per_s: float = 0.0
    target_ms: float = inf


class PlanMenu:
    """Plans for pictures of one shape at every level that a device serves, to choose from."""

    def __init__(self, options: Sequence[Option]) -> None:
        assert options, "a menu needs a plan"
        self.options = options

    @property
    def front(self) -> list[Option]:
        """Those that no other one beats in both time alone and quality, fastest first."""
        return _front(self.options, lambda option: option.duration.crowded_ms[0])

    @classmethod
    def of(
        cls, quality: QualityTable, table: CostTable, shape: str, plans: Sequence[MeasuredPlan] | None = None
    ) -> PlanMenu:
        """The menu of these plans for pictures of a shape; None are all of the quality table's."""
        offered = quality.plans if plans is None else plans
        return cls([option for plan in offered for option in _options(plan, quality, table, shape)])

    def within(self, max_steps: int) -> PlanMenu | None:
        """The same menu without the plans of more steps; None if there are no others."""
        kept = [option for option in self.options if option.plan.num_steps <= max_steps]
        return PlanMenu(kept) if kept else None

    def at_least(self, quality: float) -> PlanMenu | None:
        """The same menu for pictures that are worth no less than this, whatever becomes of their levels; None if it has
        none."""
        kept: list[Option] = []
        for _, of_plan in groupby(self.options, key=lambda option: option.plan.name):
            kept.extend(_worth_at_least(quality, list(of_plan)))
        return PlanMenu(kept) if kept else None

    def choose(self, *, latency_ms: float, crowd: Crowd) -> Option:
        """What the pictures of a request get that have so much time in this crowd.

        A plan whose steps may become longer gives back in flight what others need, steps and levels. So it is the best
        of these with which the request could be in time alone, in some form: several of them at once would run at
        different levels, and share fewer launches. What is told of it is its best form that fits in this crowd. Where
        there is none, it is of the options on the front that fit into the target the one that is worth most, or else
        the fastest.

        What an option is worth: its quality, times the share of what arrives that could be made in time if all had it.
        This depends on the crowd and not on the target, so with more time the choice only moves up the front: who
        waits longer never gets less.
        """
        within_ms = self._table_ms(latency_ms, crowd)
        alone = replace(crowd, in_flight=crowd.newcomers)
        for option in sorted(self.options, key=lambda option: option.quality, reverse=True):
            if option.longer:
                forms = [form for other in self.options if other.plan is option.plan for form in (other, *other.longer)]
                possible = [form for form in forms if form.duration.fits(within_ms, alone)]
                if possible:
                    fitting = [form for form in possible if form.duration.fits(within_ms, crowd)]
                    fastest = min(possible, key=lambda form: form.duration.needed_ms(crowd))
                    return max(fitting, key=lambda form: form.quality, default=fastest)
        coming = HEADROOM * crowd.images_per_s
        usual_ms = self._table_ms(crowd.target_ms, crowd)

        def worth(option: Option) -> float:
            made = option.duration.images_per_s(usual_ms, crowd)
            return option.quality * (min(1.0, made / coming) if coming > 0 else 1.0)

        front = _front(self.options, lambda option: option.duration.needed_ms(crowd))
        fitting = [option for option in front if option.duration.fits(within_ms, crowd)]
        return max(fitting or front[:1], key=lambda option: (worth(option), option.quality))

    def _table_ms(self, latency_ms: float, crowd: Crowd) -> float:
        """What a target leaves for steps, in milliseconds of the table."""
        return (latency_ms - self.options[0].duration.after_ms) / crowd.correction


def _front(options: Sequence[Option], time_ms: Callable[[Option], float]) -> list[Option]:
    """Those that no other one beats in both time and quality, fastest first."""
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (time_ms(option), -option.quality)):
        if not front or option.quality > front[-1].quality:
            front.append(option)
    return front


def _worth_at_least(quality: float, options: Sequence[Option]) -> list[Option]:
    """Those of one plan from which on, with the level, nothing is worth less; the plan then runs at no lower level, and
    with no longer steps than leave it so much there."""
    good = list(takewhile(lambda option: option.quality >= quality - ROUNDING, reversed(options)))[::-1]
    if not good or good[0].level > min(good[0].plan.ceilings):  # of a schedule, which begins at a low level
        return []
    plan = good[0].plan
    coarsening = plan.coarsening and plan.coarsening.up_to(1 - quality / good[0].quality)
    plan = replace(plan, min_level=good[0].level, coarsening=coarsening)
    longest = 1 if coarsening is None else coarsening.max_stride
    return [
        replace(option, plan=plan, longer=tuple(replace(each, plan=plan) for each in option.longer[: longest - 1]))
        for option in good
    ]


def _options(plan: MeasuredPlan, quality: QualityTable, table: CostTable, shape: str) -> list[Option]:
    """The plan at its ceilings, and held below them at each level of the table."""
    highest = max(plan.ceilings)
    options = []
    for level in [*(level for level in table.levels if plan.min_level <= level < highest), highest]:
        held = [min(level, ceiling) for ceiling in plan.ceilings]
        duration = Duration.of(shape, held, plan.weak_caps, table, plan.skipped)
        options.append(
            Option(
                plan=plan,
                level=level,
                duration=duration,
                quality=quality.of_plan(plan, held),
                longer=tuple(_longer(plan, level, stride, quality, table, shape) for stride in plan.longer_strides),
            )
        )
    return options


def _longer(plan: MeasuredPlan, level: int, stride: int, quality: QualityTable, table: CostTable, shape: str) -> Option:
    """The plan at this level, or its ceilings where these are lower, in steps of this stride throughout."""
    starts = range(0, plan.num_steps, stride)
    held = [min(level, plan.ceilings[start]) for start in starts]
    strides = [min(stride, plan.num_steps - start) for start in starts]
    duration = Duration.of(shape, held, [plan.weak_caps[start] for start in starts], table)
    return Option(plan=plan, level=level, duration=duration, quality=quality.of_plan(plan, held, strides))


def _crowded_ms(steps: Counter[StepKind], table: CostTable) -> tuple[float, ...]:
    """All steps of a picture with 1, 2, ... alike in flight, each at a place of its own in its plan.

    steps: how many there are of each kind. Different ones cannot share a launch, so every step of a
    picture waits for a launch of each kind in which others are: guided and unguided steps crowd each other.
    """
    total = steps.total()

    def round_ms(in_flight: int) -> float:
        """A launch of every kind, with as many members as there are on average."""
        members = {kind: in_flight * count / total for kind, count in steps.items()}
        return sum(min(1.0, n) * table.step_ms(kind, max(1, ceil(n))) for kind, n in members.items())

    return tuple(accumulate((total * round_ms(n) for n in range(1, table.max_batch + 1)), max))
