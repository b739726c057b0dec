"""A comparison for people: a table in the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from elit_serve.bench.bound.programme import package
from elit_serve.bench.simulate.comparison import Row
from elit_serve.errors import InvalidInput
from elit_serve.plans.estimate import Estimate

PICTURES = (".png", ".svg", ".pdf")
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
                f"{row.effective_quality.value:.3f}",
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
    figures = package("matplotlib.figure")
    curves = list(dict.fromkeys(row.quality_curve for row in rows))
    policies = list(dict.fromkeys(row.policy for row in rows))
    figure = figures.Figure(figsize=(5.2 * len(curves) + 1.6, 7.6), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharex=True, sharey="row")
    loads = [row.load for row in rows]
    apart = BESIDE * ((max(loads) - min(loads)) or 1.0)
    for column, curve in enumerate(curves):
        for index, policy in enumerate(policies):
            line = sorted((r for r in rows if (r.quality_curve, r.policy) == (curve, policy)), key=lambda r: r.load)
            beside = apart * (index - (len(policies) - 1) / 2)
            _draw_line(axes[0][column], line, "regret", index, beside)
            _draw_line(axes[1][column], line, "attainment", index, beside)
        axes[0][column].set_title(f"{curve} quality curve")
        axes[1][column].set_xlabel("load, relative to saturated full-budget throughput")
    axes[0][0].set_ylabel("regret against the clairvoyant bound, %")
    axes[1][0].set_ylabel("requests answered in time, %")
    for axis in axes.flat:
        axis.set_ylim(-2, 102)
        axis.set_xticks(sorted(set(loads)))
        axis.grid(alpha=0.3)
    has_bars = any(row.regret.has_interval for row in rows)
    figure.suptitle(f"{title}; bars: 95 % over the windows" if has_bars else title)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=150)


def check_drawable(file: Path) -> None:
    """Before a long run: whether there can be a picture there."""
    package("matplotlib.figure")
    if file.suffix.lower() not in PICTURES or not file.parent.is_dir():
        raise InvalidInput("plot", str(file), f"a file in an existing folder, ending in {', '.join(PICTURES)}")


def _draw_line(axis: Any, rows: Sequence[Row], figure: str, index: int, beside: float) -> None:
    estimates: list[Estimate] = [getattr(row, figure) for row in rows]
    means = [100 * estimate.value for estimate in estimates]
    reaches = [100 * (estimate.half_width if estimate.has_interval else 0.0) for estimate in estimates]
    below = [min(reach, mean) for mean, reach in zip(means, reaches, strict=True)]
    above = [min(reach, 100 - mean) for mean, reach in zip(means, reaches, strict=True)]
    axis.errorbar(
        [row.load + beside for row in rows],
        means,
        yerr=[below, above],
        color=f"C{index}",
        marker="osDv^P*X<>"[index % 10],
        markersize=5,
        linewidth=2.4 if index == 0 else 1.3,
        elinewidth=1,
        capsize=2,
        label=rows[0].policy,
    )


def _percent(estimate: Estimate) -> str:
    spread = f" ±{100 * estimate.half_width:.1f}" if estimate.has_interval else ""
    return f"{100 * estimate.value:.1f}{spread}"


def _latencies(row: Row) -> str:
    if row.p50_latency_ms is None or row.p99_latency_ms is None:
        return "–"
    return f"{row.p50_latency_ms:.0f}/{row.p99_latency_ms:.0f}"
