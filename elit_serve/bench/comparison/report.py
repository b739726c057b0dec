"""A comparison for people: a table in the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.table import Table

from elit_serve import charts
from elit_serve.bench.comparison.side_by_side import Row
from elit_serve.charts import Chart, Point, Series
from elit_serve.plans.estimate import Estimate

BESIDE = 0.012  # of the width, between the lines of two policies


def comparison_table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(
        title=title,
        caption="taken: on time of those not refused; quality: 0 to 1; ±: 95 %; µs: p99",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("policy", no_wrap=True)
    for column in ("on time\n%", "taken\n%", "quality", "effective", "regret\n%", "p50/p99\nms", "decide\nµs"):
        table.add_column(column, justify="right", no_wrap=True)
    for (load, curve), group in groupby(rows, key=lambda row: (row.load, row.quality_curve)):
        table.add_row(f"[bold]load {load:g}, {curve}")
        for row in group:
            table.add_row(
                row.policy,
                f"{100 * row.attainment.value:.1f}",
                f"{100 * row.accepted_attainment.value:.2f}",
                f"{row.mean_quality.value:.3f}",
                _share(row.effective_quality),
                _percent(row.regret),
                _latencies(row),
                f"{row.p99_decision_us:.0f}",
            )
        table.add_section()
    return table


def draw_comparison(rows: Sequence[Row], file: Path, title: str) -> None:
    """Regret and attainment against load, a line per policy and a column per curve.

    Lines lie a little beside each other, so that their error bars do too; a bar ends where a share cannot go.
    """
    curves = list(dict.fromkeys(row.quality_curve for row in rows))
    has_bars = any(row.regret.has_interval for row in rows)
    figures = {"regret": "regret against the clairvoyant bound, %", "attainment": "requests answered in time, %"}
    grid = [[_chart(rows, curve, name, y_label) for curve in curves] for name, y_label in figures.items()]
    charts.save(grid, file, title=f"{title}; bars: 95 % over the windows" if has_bars else title)


def _chart(rows: Sequence[Row], curve: str, figure: str, y_label: str) -> Chart:
    """A share of every policy at every load, in percent."""
    policies = list(dict.fromkeys(row.policy for row in rows))
    loads = sorted({row.load for row in rows})
    apart = BESIDE * ((loads[-1] - loads[0]) or 1.0)

    def points(index: int, policy: str) -> Iterator[Point]:
        beside = apart * (index - (len(policies) - 1) / 2)
        for row in rows:
            if (row.quality_curve, row.policy) == (curve, policy):
                share: Estimate = getattr(row, figure)
                percent = Estimate(value=100 * share.value, half_width=100 * share.half_width)
                yield Point(x=row.load + beside, y=percent, text=f"{policy}, load {row.load:g}: {percent.text()} %")

    return Chart(
        title=f"{y_label}, by load",
        x_label="load, relative to saturated full-budget throughput",
        y_label=y_label,
        heading=(f"{curve} quality curve",),
        series=tuple(
            Series(name=policy, points=tuple(points(index, policy)), joined=True)
            for index, policy in enumerate(policies)
        ),
        x_ticks=tuple(loads),
        y_limits=(0.0, 100.0),
    )


def _share(estimate: Estimate) -> str:
    spread = f" ±{estimate.half_width:.3f}" if estimate.has_interval else ""
    return f"{estimate.value:.3f}{spread}"


def _percent(estimate: Estimate) -> str:
    spread = f" ±{100 * estimate.half_width:.1f}" if estimate.has_interval else ""
    return f"{100 * estimate.value:.1f}{spread}"


def _latencies(row: Row) -> str:
    if row.p50_latency_ms is None or row.p99_latency_ms is None:
        return "–"
    return f"{row.p50_latency_ms:.0f}/{row.p99_latency_ms:.0f}"
