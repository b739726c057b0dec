"""`elit-serve simulate`: from the words of the command line to a comparison, to JSON, a table and a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from elit_serve.bench.comparison.day import day_table, draw_day, run_day
from elit_serve.bench.comparison.decisions import decision_table, time_decisions
from elit_serve.bench.comparison.fleets import ALL_ROUTERS, FleetComparison, check_router, fleet_table
from elit_serve.bench.comparison.looseness import looseness_table, measure_looseness
from elit_serve.bench.comparison.policies import CONTENDERS, contender
from elit_serve.bench.comparison.presets import preset_rows, preset_table
from elit_serve.bench.comparison.report import comparison_table, draw_comparison
from elit_serve.bench.comparison.richer_plans import menu_rows, menu_table
from elit_serve.bench.comparison.side_by_side import Comparison
from elit_serve.bench.simulate.arrivals import open_arrivals
from elit_serve.bench.simulate.device import AS_SERVED, NOTHING
from elit_serve.bench.simulate.quality_file import read_measurements, read_quality, stated_curve
from elit_serve.bench.simulate.workload import PLAIN, Mix, Setting
from elit_serve.catalogue import cost_table
from elit_serve.charts import check_file
from elit_serve.errors import InvalidInput
from elit_serve.files.latency import read_latency
from elit_serve.plans.coarsening import Coarsening, losses_between
from elit_serve.plans.grid import time_grid
from elit_serve.scheduler import CostTable, QualityTable
from elit_serve.scheduler.routing.scaling import Scaling

Report = dict[str, object]
STRIDE = re.compile(r"(?P<stride>[0-9]{1,4}):(?P<kept>[01](?:\.[0-9]{1,6})?)")


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """As on the command line."""

    trace: str
    cost: Path
    loads: tuple[float, ...]
    policies: tuple[str, ...]
    slo_scales: tuple[float, ...]
    quality: Path | None
    curves: tuple[str, ...]
    seeds: int
    requests: int
    num_steps: int
    weak_level: int | None
    noise: float
    bias: float
    plot: Path | None
    decisions: int = 0
    recorded_targets: bool = False
    strides: str = ""
    as_served: bool = False
    mix: Mix = PLAIN
    replicas: tuple[int, int] = (1, 1)
    routers: tuple[str, ...] = ALL_ROUTERS
    digest_ms: float = 250.0
    ingresses: int = 1
    load_s: float = 60.0

    @property
    def conditions(self) -> Report:
        """For JSON: all that the figures depend on."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def run_comparison(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    comparison = _comparison(options)
    with console.status("simulating") as status:
        rows = list(comparison.rows(status.update))
    trace = Path(options.trace).name
    title = f"{trace}: {options.seeds} × {options.requests} requests, noise {options.noise:g}, bias {options.bias:g}"
    if options.plot is not None:
        draw_comparison(rows, options.plot, title)
    return {"rows": [row.as_dict() for row in rows], "conditions": options.conditions}, comparison_table(title, rows)


def run_fleet_comparison(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """Routers in front of several replicas, all of them with the elastic policy."""
    for name in options.routers:
        check_router(name)
    fleets = FleetComparison(
        alone=_comparison(replace(options, policies=("elastic",))),
        replicas=options.replicas[0],
        routers=options.routers,
        ingresses=options.ingresses,
        digest_s=options.digest_ms / 1000,
    )
    with console.status("simulating") as status:
        rows = list(fleets.rows(status.update))
    title = (
        f"{Path(options.trace).name}: {options.replicas[0]} devices, {options.seeds} × {options.requests} requests each"
    )
    return {"rows": [row.as_dict() for row in rows], "conditions": options.conditions}, fleet_table(title, rows)


def run_scaled_fleet(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """A fleet that grows and shrinks with its load, with the first curve, at the first load."""
    comparison = _comparison(replace(options, policies=("elastic",)))
    scaling = Scaling(min_replicas=options.replicas[0], max_replicas=options.replicas[1], load_s=options.load_s)
    with console.status("simulating"):
        day = run_day(comparison, scaling, digest_s=options.digest_ms / 1000)
    fewest, most = options.replicas
    title = f"{Path(options.trace).name}: {fewest} to {most} devices, of which one loads {scaling.load_s:g} s"
    if options.plot is not None:
        draw_day(day, options.plot, Path(options.trace).name)
    return {**day.as_dict(), "conditions": options.conditions}, day_table(title, day)


def looseness_by_window(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """On windows of few requests, one for each load, curve and seed."""
    comparison = _of_one_kind(options)
    with console.status("searching"):
        found = list(measure_looseness(comparison))
    return {"rows": [entry.as_dict() for entry in found], "conditions": options.conditions}, looseness_table(found)


def plan_table(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """What richer plans add."""
    with console.status("simulating"):
        rows = list(menu_rows(_of_one_kind(options)))
    return {"rows": [row.as_dict() for row in rows], "conditions": options.conditions}, menu_table(rows)


def presets_as_floors(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """What presets of quality cost everybody."""
    if options.quality is None:
        raise InvalidInput("presets", True, "--quality beside it, by which presets mean something")
    comparison, measured = _of_one_kind(options), read_measurements(options.quality)
    with console.status("simulating"):
        rows = list(preset_rows(comparison, measured))
    return {"rows": [row.as_dict() for row in rows], "conditions": options.conditions}, preset_table(rows)


def decision_times(options: SimulateOptions, console: Console) -> tuple[Report, Table]:
    """Of the elastic policy with the first curve, in a run for each seed; arrivals are not those of the trace."""
    comparison = _of_one_kind(options)
    with console.status("deciding"):
        runs = list(time_decisions(comparison, options.decisions))
    title = f"elastic, {options.seeds} × {options.decisions} decisions, noise {options.noise:g}"
    return {"rows": [asdict(run) for run in runs], "conditions": options.conditions}, decision_table(title, runs)


def _comparison(options: SimulateOptions) -> Comparison:
    """Everything is read and checked before anything is computed."""
    table = cost_table(read_latency(options.cost))
    if not options.as_served:
        table = table.with_answers_alone()  # as rivals know it
    coarsening = coarsening_of(options.strides, options.num_steps, table.levels[-1]) if options.strides else None
    names = options.policies
    if names == ("all",):
        names = tuple(name for name, made in CONTENDERS.items() if coarsening or not made.takes_strides)
    for name in names:
        if contender(name).takes_strides and coarsening is None:
            raise InvalidInput("policy", name, "--strides beside it, which says what longer steps keep of quality")
    if coarsening is not None and not any(contender(name).takes_strides for name in names):
        raise InvalidInput(
            "strides", options.strides, "--policy elastic-strides beside them, which alone takes longer steps"
        )
    if options.mix != PLAIN and (rivals := [name for name in names if not contender(name).serves_all]):
        raise InvalidInput("policy", ", ".join(rivals), "elastic or fixed: others know one kind of request")
    if options.mix.other_sizes and len(table.shapes) == 1:
        raise InvalidInput("other-sizes", options.mix.other_sizes, "a --cost that has steps of more than one shape")
    for load in options.loads:
        if not (math.isfinite(load) and load > 0):
            raise InvalidInput("load", load, "above 0; 1 is the saturated full-budget throughput")
    for scale in options.slo_scales:
        if not (math.isfinite(scale) and scale > 0):
            raise InvalidInput("slo-scale", scale, "multiples of the solo latency, above 0")
    if options.plot is not None:
        check_file(options.plot, field="plot")
    return Comparison(
        setting=Setting(table=table, num_steps=options.num_steps, weak_cap=_weak_cap(table, options.weak_level)),
        source=open_arrivals(options.trace),
        curves=_curves(options, table.levels),
        loads=options.loads,
        policies=names,
        slo_scales=options.slo_scales,
        requests=options.requests,
        seeds=options.seeds,
        noise=options.noise,
        bias=options.bias,
        charges=AS_SERVED if options.as_served else NOTHING,
        recorded_targets=options.recorded_targets,
        coarsening=coarsening,
        mix=options.mix,
    )


def _of_one_kind(options: SimulateOptions) -> Comparison:
    """For all that draws requests of its own, or whose requests are alike."""
    if options.mix != PLAIN:
        name, value = next(iter(options.mix.differences.items()))
        raise InvalidInput(name, value, "policies side by side alone; all else knows one kind of request")
    return _comparison(options)


def coarsening_of(words: str, num_steps: int, level: int) -> Coarsening:
    """From what even grids of fewer steps keep of quality, as 2:0.99,4:0.95 for half and a quarter of the steps, at any
    level; nothing is lost at the last step in particular.

    >>> coarsening_of("2:0.99", 40, 64).losses[64]
    (0.0, 0.0, 0.01)
    """
    known: dict[float, float] = {}
    for word in words.split(","):
        found = STRIDE.fullmatch(word)
        stride, kept = (int(found["stride"]), float(found["kept"])) if found else (0, 0.0)
        if not (2 <= stride <= num_steps and 0 < kept <= 1):
            raise InvalidInput("strides", word, f"STRIDE:KEPT with a stride of 2 to {num_steps}, as 2:0.99")
        known[stride] = round(1 - kept, 9)
    return Coarsening.of(time_grid(num_steps), {level: losses_between(known, int(max(known)))})


def _weak_cap(table: CostTable, wanted: int | None) -> int:
    return wanted or min(kind.weak_level for kind, _ in table.steps_ms if kind.weak_level is not None)


def _curves(options: SimulateOptions, levels: Sequence[int]) -> Mapping[str, QualityTable]:
    if options.quality is not None:
        return {options.quality.stem: read_quality(options.quality)}
    return {name: stated_curve(name, levels) for name in options.curves}
