"""What longer steps make of quality: pictures on changed time grids against the same seeds on the whole grid.

The rule is that of `plans.coarsening`. Here its one number is fitted at each level, and its error is told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.metrics import NORMAL_95, from_halves, quality_ratios
from elit_serve.evaluation.runs.comparable import open_on_scale, quality_compared_with
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.opening import ReferenceOptions
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.evaluation.runs.sweep.search import plan_name
from elit_serve.files.quality import GridQuality, GridsQuality, Quality, write_quality
from elit_serve.files.writing import check_folder
from elit_serve.plans.coarsening import Coarsening, losses_between
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.grid import Shift, time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import check_level
from elit_serve.plans.plan import Plan, runs_of

CHANGED_GRID = re.compile(r"(?P<stride>[1-9][0-9]{0,2})(?:@(?P<start>[0-9.]+)-(?P<end>[0-9.]+))?")
CHANGED_GRID_SPELLING = "STRIDE, or STRIDE@START-END for steps that start between these times, as 2@0.5-1"
LASTS = tuple(index / 20 for index in range(21))  # shares of the loss at the last step that are tried


Rules = dict[tuple[int, int, Guidance], Coarsening]  # by level, steps of the grid and guidance


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """out: the folder for the result and the features. levels, steps: of the whole grids, at one level throughout.

    changes: as `changed_grid` reads them. repeats: sets of pictures of each grid. writes: into the model as well.
    """

    against: ReferenceOptions
    out: Path
    levels: Sequence[int]
    steps: Sequence[int]
    guidances: Sequence[Guidance]
    changes: Sequence[ChangedGrid]
    repeats: int = 5
    writes: bool = False


@dataclass(frozen=True, kw_only=True)
class ChangedGrid:
    """Steps of a stride that start at times from `start`, before `end`; stride 1 elsewhere."""

    stride: int
    start: float = 0.0
    end: float = 1.0

    def strides(self, num_steps: int, time_shift: Shift) -> tuple[int, ...]:
        """On a grid of so many steps."""
        times, at, strides = time_grid(num_steps, time_shift), 0, []
        while at < num_steps:
            is_within = self.start <= times[at] < self.end
            strides.append(min(self.stride, num_steps - at) if is_within else 1)
            at += strides[-1]
        return tuple(strides)


@dataclass(frozen=True, kw_only=True)
class MeasuredGrid:
    """ratio: of the quality of pictures by `plan`, over that by `whole`, the same on the whole grid."""

    plan: Plan
    whole: Plan
    repeats: int
    ratio: Estimate

    @property
    def is_even(self) -> bool:
        """Of one stride throughout, but for a shorter last step where it does not divide the grid."""
        return len(set(self.plan.strides[:-1])) <= 1 and self.plan.strides[-1] <= self.plan.strides[0]

    @property
    def level(self) -> int:
        return self.plan.levels[0]

    @property
    def setting(self) -> tuple[int, int, Guidance]:
        return self.level, self.plan.grid_steps, self.plan.guidance

    def record(self, rule: Coarsening | None) -> GridQuality:
        """As `quality.json` has it."""
        return GridQuality(
            level=self.level,
            steps=self.plan.grid_steps,
            guidance=self.plan.guidance,
            time_shift=self.plan.time_shift,
            strides=runs_of(self.plan.strides),
            repeats=self.repeats,
            ratio=self.ratio,
            expected=self.ratio.value if rule is None else self.expected(rule),
        )

    def expected(self, rule: Coarsening) -> float:
        return 1 - rule.lost(self.plan.levels, self.plan.strides)


def changed_grid(word: str) -> ChangedGrid:
    """As the command line spells it.

    >>> changed_grid("2@0.5-1").strides(6, 1.0)
    (1, 1, 1, 2, 1)
    """
    found = CHANGED_GRID.fullmatch(word)
    if found is None:
        raise InvalidInput("grids", word, CHANGED_GRID_SPELLING)
    try:
        start, end = float(found["start"] or 0), float(found["end"] or 1)
    except ValueError:
        raise InvalidInput("grids", word, CHANGED_GRID_SPELLING) from None
    stride = int(found["stride"])
    if stride < 2 or not 0 <= start < end <= 1:
        raise InvalidInput("grids", word, "a stride of at least 2, and two times with 0 <= START < END <= 1")
    return ChangedGrid(stride=stride, start=start, end=end)


def run_grids_command(
    pipeline: Pipeline, extractor: FeatureExtractor, options: GridOptions, console: Console
) -> Quality:
    """Measures, and leaves the model's `quality.json` with what was found in `out` and, if that is asked, the model."""
    pairs = pairs_of(pipeline, options)
    check_folder(options.out)
    evaluator = open_on_scale(pipeline, extractor, options.against, options.out)
    quality = quality_compared_with(pipeline, evaluator)
    with console.status("measuring"):
        measured = measure(evaluator, pairs, options.repeats)
    grids = judged(measured, provenance(pipeline, evaluator.batch_size))
    changed = quality.model_copy(update={"grids": grids})
    write_quality(changed, options.out / "quality.json")
    if options.writes:
        write_quality(changed, pipeline.path / "quality.json")
    console.print(grids_table(changed, grids, measured))
    return changed


def pairs_of(pipeline: Pipeline, options: GridOptions) -> list[tuple[Plan, Plan]]:
    """(on the whole grid, on a changed one), each once."""
    for level in options.levels:
        check_level(level, pipeline.config.levels)
    time_shift = pipeline.config.sampling.time_shift
    pairs = []
    for steps, guidance, level in product(options.steps, options.guidances, options.levels):
        whole = pipeline.plan(levels=[level] * steps, guidance=guidance)
        for change in options.changes:
            strides = change.strides(steps, time_shift)
            plan = Plan(levels=(level,) * len(strides), guidance=guidance, time_shift=time_shift, strides=strides)
            if plan != whole:
                pairs.append((whole, plan))
    if not pairs:
        raise InvalidInput("grids", options.changes, "at least one that changes the grid")
    return list(dict.fromkeys(pairs))


def measure(evaluator: Evaluator, pairs: Sequence[tuple[Plan, Plan]], repeats: int) -> list[MeasuredGrid]:
    """Every plan once for each repeat, and the ratios of the pairs."""
    plans = list(dict.fromkeys(plan for pair in pairs for plan in pair))
    found = evaluator.distances((plan, repeat) for plan in plans for repeat in range(repeats))
    sets = {plan: [next(found) for _ in range(repeats)] for plan in plans}
    return [
        MeasuredGrid(
            plan=plan, whole=whole, repeats=repeats, ratio=from_halves(quality_ratios(sets[plan], sets[whole]))
        )
        for whole, plan in pairs
    ]


def judged(measured: Sequence[MeasuredGrid], provenance: dict[str, str | int | float]) -> GridsQuality:
    """The rule that fits best, and how far it is off."""
    uneven = [each for each in measured if not each.is_even]
    if not uneven:
        raise InvalidInput("grids", f"{len(measured)} even grids", "at least one whose strides change")
    last = {level: _fitted(measured, level) for level in sorted({each.level for each in measured})}
    rules = rules_of(measured, last)
    return GridsQuality(
        last=last,
        error=_error(uneven, rules),
        noise=sqrt(fmean((each.ratio.half_width / NORMAL_95) ** 2 for each in uneven)),
        measured=tuple(each.record(None if each.is_even else rules[each.setting]) for each in measured),
        provenance=provenance,
    )


def _fitted(measured: Sequence[MeasuredGrid], level: int) -> float:
    """The share of the loss at the last step that fits best at a level; none where no strides change there."""
    own = [each for each in measured if each.level == level]
    uneven = [each for each in own if not each.is_even]
    return min(LASTS, key=lambda share: _error(uneven, rules_of(own, {level: share})) if uneven else share)


def rules_of(measured: Sequence[MeasuredGrid], last: Mapping[int, float]) -> Rules:
    """Of each level, number of steps and guidance, by its own even grids."""
    rules: Rules = {}
    for setting in dict.fromkeys(each.setting for each in measured):
        own = [each for each in measured if each.setting == setting]
        known = {float(each.plan.strides[0]): 1 - each.ratio.value for each in own if each.is_even}
        longest = max(max(each.plan.strides) for each in own)
        if longest > max(known, default=1):
            allowed = f"also {longest}, one as long throughout, beside those that change it"
            raise InvalidInput("grids", f"a stride of {longest} for a part of the way", allowed)
        losses = losses_between(known, int(max(known)))
        rules[setting] = Coarsening.of(own[0].whole.times, {own[0].level: losses}, last)
    return rules


def _error(uneven: Sequence[MeasuredGrid], rules: Rules) -> float:
    """Root mean square of what the rules say less what was measured."""
    return sqrt(fmean((each.expected(rules[each.setting]) - each.ratio.value) ** 2 for each in uneven))


def grids_table(quality: Quality, grids: GridsQuality, measured: Sequence[MeasuredGrid]) -> Table:
    """Grid by grid; the rule in the title."""
    shares = ", ".join(f"{share:.0%} at level {level}" for level, share in grids.last.items())
    rule = f"at the last step {shares}; the rule is off by {grids.error:.4f} where noise is {grids.noise:.4f}"
    table = Table(
        title=f"{quality.model}: quality on changed grids over that on the whole; {rule}", box=box.SIMPLE_HEAD
    )
    table.add_column("plan", no_wrap=True)
    for column in ("runs", "strides", "quality ratio", "by the rule"):
        table.add_column(column, justify="right", no_wrap=True)
    for each, record in zip(measured, grids.measured, strict=True):
        strides = ", ".join(f"{count} of {stride}" for stride, count in record.strides)
        figures = each.ratio.text(3), "" if each.is_even else f"{record.expected:.3f}"
        table.add_row(plan_name(each.whole), str(each.plan.num_steps), strides, *figures)
    return table
