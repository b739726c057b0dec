"""What OpenAI's presets cost everybody, as exact budgets or as floors: the elastic policy on the same arrivals.

Each request has a preset drawn with the same chance, or none. As `exact` its steps run at the level of the preset's
budget, with what is measured to be the best guidance there; as `budget floor` at that level or above, with the guidance
of the full one; as `quality floor` by any plan that is worth as much as the exact one. Requests without a preset get a
plan of the menu, and their level is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Literal, get_args

from rich import box
from rich.table import Table

from elit_serve.bench.comparison.side_by_side import Comparison, over_seeds
from elit_serve.bench.simulate.planning import by_plan
from elit_serve.bench.simulate.simulation import Fate, SimulatedRun, simulate
from elit_serve.bench.simulate.workload import Setting
from elit_serve.catalogue import ModelQuality
from elit_serve.errors import InvalidInput
from elit_serve.files.config import SamplingConfig
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.levels import level_of_budget
from elit_serve.plans.plan import Plan
from elit_serve.plans.presets import PRESET_BUDGETS, QualityPreset
from elit_serve.scheduler import ElasticPolicy, MeasuredPlan, PlanMenu, RequestScheduler
from elit_serve.scheduler.requests import Demand, Refusal

Meaning = Literal["exact", "budget floor", "quality floor"]

SHARES = (0.3, 1.0)  # of requests with a preset
ROUNDING = 1e-9


class Presets:
    """What presets stand for, by a model's measurements. Raises `InvalidInput` if these lack their plans."""

    def __init__(self, setting: Setting, quality: ModelQuality) -> None:
        self._quality = quality
        default = next(plan for plan in quality.file.plans if plan.name == quality.file.default)
        usual = SamplingConfig(steps=default.steps, guidance=default.guidance, time_shift=default.time_shift)
        self.menu = PlanMenu.of(quality.table, setting.table, setting.shape)
        self.exact: dict[QualityPreset, Plan] = {}
        self.menus: dict[QualityPreset, PlanMenu] = {}
        for preset, budget in PRESET_BUDGETS.items():
            level = level_of_budget(budget, setting.levels, setting.full_level)
            guidance = quality.guidance_at(level, usual)
            plan = Plan(levels=(level,) * usual.steps, guidance=guidance, time_shift=usual.time_shift)
            worth = self.worth(plan, plan.levels)
            menu = None if worth is None else self.menu.at_least(worth)
            if menu is None:
                raise InvalidInput("quality", preset, "measurements of the default steps at the levels of all presets")
            self.exact[preset], self.menus[preset] = plan, menu

    def worth(
        self, plan: Plan | MeasuredPlan, levels: Sequence[int], strides: Sequence[int] | None = None
    ) -> float | None:
        """Of a picture that is made by a plan, its steps at these levels and of these strides."""
        if isinstance(plan, MeasuredPlan):
            return self._quality.table.of_plan(plan, levels, strides)
        return self._quality.of(replace(plan, levels=tuple(levels), strides=tuple(strides or ())))

    def coarsening_of(self, plan: Plan) -> Coarsening | None:
        """How long the steps of a plan may become."""
        return self._quality.coarsening_of(plan)


class PresetScheduler(RequestScheduler):
    """Gives each request what its preset stands for. asked: the preset of each request that has one, by id."""

    def __init__(
        self,
        setting: Setting,
        quality: ModelQuality,
        presets: Presets,
        meaning: Meaning,
        asked: Mapping[int, QualityPreset],
    ) -> None:
        super().__init__(setting.table, ElasticPolicy(quality.table))
        self._presets, self._meaning, self._asked = presets, meaning, asked
        self._full_level = setting.full_level
        self.plans: dict[int, Plan | MeasuredPlan] = {}

    def submit(self, demands: Sequence[Demand], now_s: float, *, is_passed_on: bool = False) -> Refusal | None:
        planned = [self._planned(demand, now_s) for demand in demands]
        return super().submit(planned, now_s, is_passed_on=is_passed_on)

    def _planned(self, demand: Demand, now_s: float) -> Demand:
        preset = self._asked.get(demand.request_id)
        if preset is not None and self._meaning != "quality floor":
            return self._bounded(demand, preset)
        menu = self._presets.menu if preset is None else self._presets.menus[preset]
        target_ms = 1000 * (demand.deadline_s - demand.arrived_s)
        plan = self.choose_plan(menu, latency_ms=target_ms, num_images=1, now_s=now_s).plan
        self.plans[demand.request_id] = plan
        return by_plan(demand, plan)

    def _bounded(self, demand: Demand, preset: QualityPreset) -> Demand:
        exact = self._presets.exact[preset]
        plan = exact if self._meaning == "exact" else self._presets.exact["high"]
        self.plans[demand.request_id] = plan
        caps = plan.weak_caps(self._full_level)
        if self._meaning == "exact":
            return replace(demand, weak_caps=caps, pinned=exact.levels)
        coarsening = self._presets.coarsening_of(plan)
        return replace(demand, weak_caps=caps, min_level=exact.levels[0], coarsening=coarsening)


@dataclass(frozen=True, kw_only=True)
class PresetRow:
    """attainment and effective_quality: as in `side_by_side.Row`. per_launch: requests that share a launch, on average.
    num_below: pictures of all windows that were on time and are worth less than their preset's exact plan."""

    load: float
    share: float
    meaning: Meaning
    attainment: Estimate
    effective_quality: Estimate
    per_launch: float
    num_below: int

    def as_dict(self) -> dict[str, object]:
        return {name: v.value if isinstance(v, Estimate) else v for name, v in self.__dict__.items()}


def preset_rows(comparison: Comparison, quality: ModelQuality) -> Iterator[PresetRow]:
    """At each load, for each share of requests with a preset: each meaning of presets."""
    presets = Presets(comparison.setting, quality)
    for load in comparison.loads:
        for share in SHARES:
            for meaning in get_args(Meaning):
                yield _row(comparison, quality, presets, load=load, share=share, meaning=meaning)


def preset_table(rows: Sequence[PresetRow]) -> Table:
    table = Table(
        title="Presets of quality as exact budgets and as floors",
        caption="effective: 0 to 1; ±: 95 % over seeds; below: pictures worth less than their preset",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for column in ("load", "with a\npreset %", "as"):
        table.add_column(column, no_wrap=True)
    for column in ("on time\n%", "effective", "in a\nlaunch", "below"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        on_time, effective = row.attainment, row.effective_quality
        spread = (
            [f"±{100 * on_time.half_width:.1f}", f"±{effective.half_width:.3f}"] if effective.has_interval else ["", ""]
        )
        table.add_row(
            f"{row.load:g}",
            f"{100 * row.share:g}",
            row.meaning,
            f"{100 * on_time.value:.1f}{spread[0]}",
            f"{effective.value:.3f}{spread[1]}",
            f"{row.per_launch:.1f}",
            str(row.num_below),
        )
    return table


def _row(
    comparison: Comparison, quality: ModelQuality, presets: Presets, *, load: float, share: float, meaning: Meaning
) -> PresetRow:
    setting = comparison.setting
    on_time, effective, per_launch, num_below = [], [], [], 0
    for seed in range(comparison.seeds):
        window = comparison.window(load, seed)
        asked = _drawn(window, share, seed)
        scheduler = PresetScheduler(setting, quality, presets, meaning, asked)
        device = comparison.device(seed)
        run = simulate(scheduler, window, device)
        worth = {fate.demand.request_id: _worth(fate, scheduler, presets) for fate in run.fates}
        on_time.append(fmean(fate.is_on_time for fate in run.fates))
        effective.append(fmean(worth.values()))
        per_launch.append(_per_launch(run))
        num_below += sum(_is_below(worth[request_id], preset, presets) for request_id, preset in asked.items())
    return PresetRow(
        load=load,
        share=share,
        meaning=meaning,
        attainment=over_seeds(on_time),
        effective_quality=over_seeds(effective),
        per_launch=fmean(per_launch),
        num_below=num_below,
    )


def _drawn(window: Sequence[Demand], share: float, seed: int) -> dict[int, QualityPreset]:
    """The presets of those requests that have one."""
    rng = Random(f"presets {seed}")
    drawn = [(rng.random(), rng.choice(list(PRESET_BUDGETS))) for _ in window]
    return {demand.request_id: preset for demand, (place, preset) in zip(window, drawn, strict=True) if place < share}


def _worth(fate: Fate, scheduler: PresetScheduler, presets: Presets) -> float:
    """What a picture is worth: 0 if it is late, or its request was refused."""
    plan = scheduler.plans[fate.demand.request_id]
    return (presets.worth(plan, fate.levels, fate.strides) or 0.0) if fate.is_on_time else 0.0


def _is_below(worth: float, preset: QualityPreset, presets: Presets) -> bool:
    exact = presets.exact[preset]
    floor = presets.worth(exact, exact.levels) or 0.0
    return 0 < worth < floor - ROUNDING


def _per_launch(run: SimulatedRun) -> float:
    return fmean(len(launched.launch.request_ids) for launched in run.launches)
