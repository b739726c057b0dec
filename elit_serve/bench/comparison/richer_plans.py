"""What plans beyond the level add: the elastic policy on the same arrivals, with the level alone and with a menu.

A plan fixes steps, guidance and the ceilings of a schedule when a request arrives; its level stays free below those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.table import Table

from elit_serve.bench.comparison.side_by_side import Comparison, over_seeds
from elit_serve.bench.simulate.planning import PlanningScheduler
from elit_serve.bench.simulate.simulation import Fate, simulate
from elit_serve.errors import InvalidInput
from elit_serve.plans.estimate import Estimate
from elit_serve.scheduler import ElasticPolicy, MeasuredPlan, PlanMenu, QualityTable, RequestScheduler

LEVEL_ALONE = "level alone"
PER_REQUEST = "chosen per request"


@dataclass(frozen=True, kw_only=True)
class MenuRow:
    """Figures as in `comparison.Row`. gain: effective quality beyond that of the level alone, on the same arrivals."""

    load: float
    quality_curve: str
    menu: str
    attainment: Estimate
    mean_quality: Estimate
    effective_quality: Estimate
    gain: Estimate

    def as_dict(self) -> dict[str, object]:
        return {name: v.value if isinstance(v, Estimate) else v for name, v in self.__dict__.items()}


def menu_rows(comparison: Comparison) -> Iterator[MenuRow]:
    """At each load: the level alone, each plan for everybody, and a plan for each request."""
    for load in comparison.loads:
        for curve, quality in comparison.curves.items():
            if not quality.plans:
                raise InvalidInput("plans", curve, "a --quality file with plans")
            menus = {LEVEL_ALONE: (), **{plan.name: (plan,) for plan in quality.plans}, PER_REQUEST: quality.plans}
            worth = {name: _worth(comparison, quality, menu, load) for name, menu in menus.items()}
            alone = [fmean(values) for values in worth[LEVEL_ALONE]]
            for name, windows in worth.items():
                effective = [fmean(values) for values in windows]
                on_time = [[value for value in values if value > 0] for values in windows]
                yield MenuRow(
                    load=load,
                    quality_curve=curve,
                    menu=name,
                    attainment=over_seeds([len(done) / comparison.requests for done in on_time]),
                    mean_quality=over_seeds([fmean(done) if done else 0.0 for done in on_time]),
                    effective_quality=over_seeds(effective),
                    gain=over_seeds([ours - theirs for ours, theirs in zip(effective, alone, strict=True)]),
                )


def menu_table(rows: Sequence[MenuRow]) -> Table:
    table = Table(
        title="What richer plans add to the elastic policy",
        caption="quality, effective and gain: 0 to 1; ±: 95 % over seeds",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for column in ("load", "plans"):
        table.add_column(column, no_wrap=True)
    for column in ("on time\n%", "quality", "effective", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        figures = (row.mean_quality, row.effective_quality)
        shares = [f"{figure.value:.3f}" for figure in figures]
        spread = f"±{row.gain.half_width:.3f}" if row.gain.has_interval else ""
        table.add_row(
            f"{row.load:g}", row.menu, f"{100 * row.attainment.value:.1f}", *shares, f"{row.gain.value:+.3f}{spread}"
        )
    return table


def _worth(
    comparison: Comparison, quality: QualityTable, menu: Sequence[MeasuredPlan], load: float
) -> list[list[float]]:
    """What each request of each window came to; 0 for a miss."""
    setting, windows = comparison.setting, []
    menus = {setting.shape: PlanMenu.of(quality, setting.table, setting.shape, menu)} if menu else {}
    for seed in range(comparison.seeds):
        planning = PlanningScheduler(setting.table, ElasticPolicy(quality), menus) if menus else None
        scheduler = planning or RequestScheduler(setting.table, ElasticPolicy(quality))
        device = comparison.device(seed)
        run = simulate(scheduler, comparison.window(load, seed), device)
        plans = planning.plans if planning else {}
        windows.append([_quality(fate, quality, plans.get(fate.demand.request_id)) for fate in run.fates])
    return windows


def _quality(fate: Fate, quality: QualityTable, plan: MeasuredPlan | None) -> float:
    """What a picture is worth: 0 if it is late."""
    if plan is None or not fate.is_on_time:
        return fate.worth(quality)
    return quality.of_plan(plan, fate.levels, fate.strides)
