"""What a tournament comes to: each cell with its best rival, and over all cells the worst one and the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table

from elit_serve.bench.comparison.side_by_side import over_seeds
from elit_serve.bench.comparison.tournament import Cell, Result, Results, is_rival
from elit_serve.plans.estimate import Estimate

WITHIN = 0.005  # of effective quality: below a rival by no more is as good


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One policy in one cell. difference: to the best rival there, from seed to seed on the same arrivals."""

    cell: Cell
    effective_quality: Estimate
    attainment: Estimate
    best_rival: str
    rival_quality: Estimate
    difference: Estimate

    def as_dict(self) -> dict[str, object]:
        """For JSON: NAME is the mean over seeds, NAME_ci half the width of its interval, null for one seed."""
        named: dict[str, object] = {**self.cell._asdict(), "best_rival": self.best_rival}
        for name in ("effective_quality", "attainment", "rival_quality", "difference"):
            value: Estimate = getattr(self, name)
            named[name], named[f"{name}_ci"] = value.value, value.half_width if value.has_interval else None
        return named


@dataclass(frozen=True, kw_only=True)
class Standings:
    """Of one policy over all cells.

    rival, rival_mean: the best mean of any rival over the cells, each having the same weight, and whose it is.
    num_late: promises that were broken, of `num_accepted`.
    """

    policy: str
    cells: Sequence[Standing]
    mean: float
    rival: str
    rival_mean: float
    num_accepted: int
    num_late: int

    @classmethod
    def of(cls, policy: str, results: Results) -> Standings:
        rivals = [name for name in next(iter(results.values())) if is_rival(name)]
        means = {name: fmean(_mean(found[name]) for found in results.values()) for name in rivals}
        best = max(means, key=means.__getitem__)
        own = [result for found in results.values() for result in found[policy]]
        return cls(
            policy=policy,
            cells=[_standing(cell, policy, rivals, found) for cell, found in results.items()],
            mean=fmean(_mean(found[policy]) for found in results.values()),
            rival=best,
            rival_mean=means[best],
            num_accepted=sum(result.num_accepted for result in own),
            num_late=sum(result.num_late for result in own),
        )

    @property
    def worst(self) -> Standing:
        return min(self.cells, key=lambda standing: standing.difference.value)

    @property
    def behind(self) -> list[Standing]:
        """Cells in which a rival is better by more than `WITHIN`."""
        return [standing for standing in self.cells if standing.difference.value < -WITHIN]

    @property
    def summary(self) -> str:
        """In one line."""
        worst = self.worst
        return (
            f"{self.policy}: {self.mean:.4f} on average, best rival's average {self.rival_mean:.4f} ({self.rival}); "
            f"worst cell {100 * worst.difference.value:+.1f} points ({_named(worst.cell)}, {worst.best_rival}); "
            f"behind by more than {100 * WITHIN:g} in {len(self.behind)} of {len(self.cells)} cells; "
            f"{self.num_late} of {self.num_accepted} promises broken"
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        overall = {name: value for name, value in self.__dict__.items() if name != "cells"}
        return {**overall, "num_behind": len(self.behind), "cells": [cell.as_dict() for cell in self.cells]}


def standings_table(standings: Standings) -> Table:
    table = Table(
        title=standings.summary,
        caption="effective quality of all that were offered, a miss counting 0; apart in points; ±: 95 % over seeds",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("targets", no_wrap=True)
    for column in ("load", "elastic", "best rival", "", "apart by"):
        table.add_column(column, justify="right", no_wrap=True)
    for (curve, trace), group in groupby(standings.cells, key=lambda standing: standing.cell[:2]):
        table.add_row(f"[bold]{curve}, {Path(trace).name}")
        for standing in group:
            apart = standing.difference
            points = Estimate(value=100 * apart.value, half_width=100 * apart.half_width)
            table.add_row(
                standing.cell.targets,
                f"{standing.cell.load:g}",
                f"{standing.effective_quality.value:.3f}",
                f"{standing.rival_quality.value:.3f}",
                standing.best_rival,
                points.text(),
                style="bold" if standing in standings.behind else "",
            )
        table.add_section()
    return table


def _standing(cell: Cell, policy: str, rivals: Sequence[str], found: Mapping[str, Sequence[Result]]) -> Standing:
    best = max(rivals, key=lambda name: _mean(found[name]))
    own, theirs = found[policy], found[best]
    return Standing(
        cell=cell,
        effective_quality=over_seeds([result.effective_quality for result in own]),
        attainment=over_seeds([result.attainment for result in own]),
        best_rival=best,
        rival_quality=over_seeds([result.effective_quality for result in theirs]),
        difference=over_seeds(
            [ours.effective_quality - other.effective_quality for ours, other in zip(own, theirs, strict=True)]
        ),
    )


def _mean(results: Sequence[Result]) -> float:
    return fmean([result.effective_quality for result in results])


def _named(cell: Cell) -> str:
    return f"{cell.curve}, {Path(cell.trace).name}, {cell.targets}, load {cell.load:g}"
