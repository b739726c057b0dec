"""What a soak found, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from elit_serve.bench.load.report import shown
from elit_serve.bench.soak.callers import LEFT
from elit_serve.bench.soak.soak import SoakReport
from elit_serve.files.records import RequestEnding


def soak_tables(report: SoakReport) -> Iterator[Table]:
    """What became of the requests of each kind, how many images there were, and whether what must hold does."""
    yield _requests(report)
    yield _phases(report)
    yield _checks(report)


def _requests(report: SoakReport) -> Table:
    mix = report.mix
    reasons = ", ".join(f"{reason} {count}" for reason, count in mix.reasons.most_common())
    table = Table(title="Requests of the mix", caption=f"reasons: {reasons}" if reasons else None)
    table.add_column("kind")
    endings = (*RequestEnding, LEFT)
    for ending in endings:
        table.add_column(ending, justify="right")
    for kind in sorted({kind for kind, _ in mix.endings}):
        table.add_row(kind, *(str(mix.of(ending, kind)) for ending in endings))
    return table


def _phases(report: SoakReport) -> Table:
    table = Table(title="Throughput")
    for column in ("", "two callers", "all callers"):
        table.add_column(column, justify="right")
    mixes = (report.few_mix.images_per_s, report.mix.images_per_s)
    table.add_row("images per second of the mix", *map(shown, mixes))
    table.add_row("steps per second of the same work", shown(report.few_same), shown(report.same))
    return table


def _checks(report: SoakReport) -> Table:
    table = Table(title="What must hold", caption="; ".join(report.discrepancies) or None)
    for column in ("", "is", "must be", ""):
        table.add_column(column)
    for check in report.checks:
        table.add_row(check.name, shown(check.value), check.limit, "holds" if check.holds else "DOES NOT HOLD")
    return table
