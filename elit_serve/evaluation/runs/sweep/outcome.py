"""What a sweep leaves behind: `quality.json`, a picture of the front, and the model's recommended sampling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from elit_serve import charts
from elit_serve.catalogue import alone_ms
from elit_serve.charts import Chart, Point, Series
from elit_serve.engine.checkpoint import write_sampling
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.runs.sweep.search import (
    PlanEvaluator,
    SweepGrid,
    SweptPlan,
    check_budget,
    level_curve,
    pareto_front,
    plan_gflops,
    plan_name,
    recommended,
    record_of,
    run_sweep,
)
from elit_serve.evaluation.runs.throughput import SaturatedEngine
from elit_serve.files.config import SamplingConfig
from elit_serve.files.latency import Latency
from elit_serve.files.quality import OWN_SCALE, QUALITY_SCALE, Quality, write_quality
from elit_serve.files.writing import write_whole
from elit_serve.plans.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What the figures depend on beside the plans; see `files.quality`."""

    metric: str
    features_sha256: str
    reference: str
    num_samples: int
    batch_size: int
    provenance: Mapping[str, str | int | float]
    full_plan: str | None = None
    prompts_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """out: a folder. part: (which, of how many) of the plans, to share the work; such a run only fills the evaluator's
    cache, and a last one without it reads them all. max_measurements, max_repeats, first_repeat: see `run_sweep`.
    latency: also draws the front against measured time, and predicts throughput in place of the model's own file.
    writes_defaults: puts the result into the model directory.
    """

    grid: SweepGrid
    out: Path
    max_measurements: int
    max_repeats: int = 5
    first_repeat: int = 0
    part: tuple[int, int] = (1, 1)
    latency: Latency | None = None
    writes_defaults: bool = False

    @cached_property
    def plans(self) -> Sequence[Plan]:
        """Those of this part: every so-many-th."""
        which, count = self.part
        if not 1 <= which <= count:
            raise InvalidInput("part", f"{which}/{count}", "K/N with 1 <= K <= N, as 1/2")
        return self.grid.plans()[which - 1 :: count]

    def check(self) -> None:
        """Raises what is better known before hours of measuring than after."""
        check_budget(self.max_measurements, self.plans)
        charts.check_package()


def sweep_to_folder(
    pipeline: Pipeline, evaluator: PlanEvaluator, facts: SweepFacts, options: SweepOptions, *, console: Console
) -> Quality | None:
    """Measures the grid and writes `quality.json`, `throughput.json` and `front.png`; a part writes nothing: None."""
    options.check()
    with console.status("measuring") as status:
        points = run_sweep(
            options.plans,
            evaluator,
            pipeline.spec,
            max_repeats=options.max_repeats,
            budget=options.max_measurements,
            first_repeat=options.first_repeat,
            tell=status.update,
        )
    if options.part[1] > 1:
        return None
    usual = pipeline.config.sampling.plan(max(pipeline.config.levels))
    default = recommended(points, plan_gflops(usual, pipeline.spec))
    quality = measured_quality(pipeline, points, default.plan, evaluator, facts)
    options.out.mkdir(parents=True, exist_ok=True)
    write_quality(quality, options.out / "quality.json")
    write_throughput(pipeline, points, facts, options)
    draw_front(points, default.plan, options.out / "front.png", metric=facts.metric, latency=options.latency)
    if options.writes_defaults:
        write_sampling(pipeline.path, _sampling_of(default.plan))
        write_quality(quality, pipeline.path / "quality.json")
    console.print(front_table(quality))
    return quality


def write_throughput(pipeline: Pipeline, points: Sequence[SweptPlan], facts: SweepFacts, options: SweepOptions) -> None:
    """`throughput.json`: how fast each plan's pictures were sampled, against an engine that never waits."""
    engine = SaturatedEngine.of(
        pipeline, num_samples=facts.num_samples, batch_size=facts.batch_size, latency=options.latency
    )
    plans = {plan_name(point.plan): asdict(engine.compared(point.plan, point.images_per_second)) for point in points}
    text = json.dumps({"batch": engine.batch, "provenance": facts.provenance, "plans": plans}, indent=1)
    write_whole(options.out / "throughput.json", text + "\n")


def measured_quality(
    pipeline: Pipeline, points: Sequence[SweptPlan], default: Plan, evaluator: PlanEvaluator, facts: SweepFacts
) -> Quality:
    """The measurements as a model directory holds them."""
    front = {point.plan for point in pareto_front(points)}
    ordered = sorted(points, key=lambda point: point.gflops)
    return Quality(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        metric=facts.metric,
        features_sha256=facts.features_sha256,
        reference=facts.reference,
        num_samples=facts.num_samples,
        size=pipeline.sizes.names[0],
        full_plan=facts.full_plan,
        prompts_sha256=facts.prompts_sha256,
        floor=evaluator.floor,
        scale=QUALITY_SCALE if facts.full_plan is None else OWN_SCALE,
        levels=level_curve(points, default),
        default=plan_name(default),
        plans=tuple(record_of(point, on_front=point.plan in front) for point in ordered),
        provenance=dict(facts.provenance),
    )


def front_table(quality: Quality) -> Table:
    """The front, cheapest first."""
    title = f"{quality.model}: the front of {len(quality.plans)} plans; recommended: {quality.default}"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("plan", no_wrap=True)
    for column in ("GFLOP", quality.metric, "quality", "repeats"):
        table.add_column(column, justify="right")
    for plan in quality.front:
        figures = plan.distance.text(1), plan.quality.text(3)
        table.add_row(plan.name, f"{plan.gflops:.0f}", *figures, str(plan.repeats))
    return table


def draw_front(points: Sequence[SweptPlan], default: Plan, file: Path, *, metric: str, latency: Latency | None) -> None:
    """Quality against FLOPs and, with a latency file, against the time of a picture alone on that device."""
    front = pareto_front(points)
    y_label = f"quality: floor / {metric}"
    gflops = {point.plan: point.gflops for point in points}
    drawn = [_front_chart(points, front, default, gflops, ("GFLOP of a picture, both passes", y_label))]
    drawn[0] = replace(drawn[0], heading=tuple(f"{i}  {plan_name(point.plan)}" for i, point in enumerate(front, 1)))
    if latency is not None:
        times_ms = {point.plan: alone_ms(latency, point.plan) for point in points}
        x_label = f"milliseconds of a picture alone, {latency.device}"
        drawn.append(_front_chart(points, front, default, times_ms, (x_label, y_label)))
    charts.save([drawn], file)


def _front_chart(
    points: Sequence[SweptPlan],
    front: Sequence[SweptPlan],
    default: Plan,
    costs: Mapping[Plan, float],
    labels: tuple[str, str],
) -> Chart:
    """All plans by their cost; those of the front are numbered, and the default stands out."""
    numbers = {point.plan: str(number) for number, point in enumerate(front, 1)}

    def series(name: str, chosen: Iterable[SweptPlan], *, is_muted: bool = False) -> Series:
        marks = (Point(x=costs[point.plan], y=point.quality, tag=numbers.get(point.plan, "")) for point in chosen)
        return Series(name=name, points=tuple(marks), is_muted=is_muted)

    return Chart(
        title="Quality against cost",
        x_label=labels[0],
        y_label=labels[1],
        series=(
            series("front", (point for point in front if point.plan != default)),
            series("default", (point for point in points if point.plan == default)),
            series("measured", (point for point in points if point.plan not in numbers), is_muted=True),
        ),
        log_x=True,
    )


def _sampling_of(plan: Plan) -> SamplingConfig:
    return SamplingConfig(steps=plan.num_steps, time_shift=plan.time_shift, guidance=plan.guidance)
