"""A fleet that follows its load: replicas come and go as `scheduler.routing.scaling` says, on one virtual clock.

A replica that is wanted takes orders when it has loaded, and one that is not wanted ends what it has promised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table

from elit_serve import charts
from elit_serve.bench.comparison.side_by_side import Comparison
from elit_serve.bench.rivals.routers import PromiseRouter
from elit_serve.bench.simulate.fleet import Fleet, Replica, Routing
from elit_serve.bench.simulate.simulation import Fate
from elit_serve.bench.simulate.workload import Setting
from elit_serve.charts import Chart, Point, Series
from elit_serve.plans.estimate import Estimate
from elit_serve.scheduler import ElasticPolicy, RequestScheduler
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand, Refusal
from elit_serve.scheduler.routing.scaling import Reading, Scaling, full_s, replicas_wanted

READINGS = 8  # in the time in which a replica loads
PARTS = 24  # of a day, in which it is told


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some time of a day.

    offered: the work that arrived, in replicas that it keeps busy at full budget. ready, present: replicas that took
    orders, and those that loaded besides, on average.
    refused: the share of pictures that nobody took. kept: the share of the others that were on time. quality: of these,
    on average. Both are 1 where nothing arrived.
    """

    until_s: float
    offered: float
    ready: float
    present: float
    refused: float
    kept: float
    quality: float


@dataclass(frozen=True, kw_only=True)
class Day:
    """parts: as told. num_taken, num_late: pictures of the whole day."""

    parts: tuple[Part, ...]
    num_taken: int
    num_late: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"parts": [asdict(part) for part in self.parts], "taken": self.num_taken, "late": self.num_late}


class ScaledFleet:
    """A fleet of as many replicas as its readings say. make: the replica of a number."""

    def __init__(
        self, make: Callable[[int], Replica], routing: Routing, scaling: Scaling, setting: Setting, *, digest_s: float
    ) -> None:
        self.sizes: list[tuple[float, int, int]] = []  # (from when, ready, present)
        self._make, self._scaling, self._setting = make, scaling, setting
        self._num_made = scaling.min_replicas
        self._fleet = Fleet([make(number) for number in range(scaling.min_replicas)], routing, digest_s=digest_s)
        self._loading: deque[float] = deque()  # when each is ready
        self._costs = CorrectedCosts(setting.table)
        self._readings: list[Reading] = []
        self._read_s = 0.0
        self._offered_s, self._num_orders, self._num_refused = 0.0, 0, 0
        self._granted = 0, 0
        self._note_size(0.0)

    def submit(self, pictures: Sequence[Demand]) -> Refusal | None:
        """As `Fleet.submit`, when they arrive."""
        now_s = pictures[0].arrived_s
        self._advance_to(now_s)
        refusal = self._fleet.submit(pictures, now_s)
        self._offered_s += sum(full_s(picture, self._costs) for picture in pictures)
        self._num_orders += 1
        self._num_refused += refusal is not None
        return refusal

    def finish(self) -> None:
        """Lets all that is there end."""
        self._fleet.advance_to(inf)

    def fate(self, picture: Demand, refusal: Refusal | None) -> Fate:
        """As `Fleet.fate`."""
        return self._fleet.fate(picture, refusal)

    def _advance_to(self, now_s: float) -> None:
        every_s = self._scaling.load_s / READINGS
        while True:
            next_s = min(self._read_s + every_s, self._loading[0] if self._loading else inf)
            if next_s > now_s:
                return
            if self._loading and next_s == self._loading[0]:
                self._loading.popleft()
                self._fleet.add(self._make(self._num_made), next_s)
                self._num_made += 1
            else:
                self._read(next_s)
            self._note_size(next_s)

    def _read(self, now_s: float) -> None:
        self._fleet.advance_to(now_s)
        self._readings.append(self._reading(now_s))
        ready, loading = len(self._fleet.replicas), len(self._loading)
        wanted = replicas_wanted(self._readings, self._scaling, ready=ready, loading=loading)
        change = wanted - ready - loading
        self._loading.extend([now_s + self._scaling.load_s] * change)
        if change < 0:
            for replica in sorted(self._fleet.replicas, key=lambda replica: replica.num_here)[:-change]:
                self._fleet.drain(replica)

    def _reading(self, now_s: float) -> Reading:
        levels, steps = self._fleet.granted
        new_levels, new_steps = levels - self._granted[0], steps - self._granted[1]
        reading = Reading(
            at_s=now_s,
            offered=self._offered_s / (now_s - self._read_s),
            granted=new_levels / new_steps / self._setting.full_level if new_steps else None,
            refused=self._num_refused / self._num_orders if self._num_orders else 0.0,
        )
        self._read_s, self._granted = now_s, (levels, steps)
        self._offered_s, self._num_orders, self._num_refused = 0.0, 0, 0
        return reading

    def _note_size(self, now_s: float) -> None:
        ready = len(self._fleet.replicas)
        self.sizes.append((now_s, ready, ready + len(self._loading)))


def simulate_day(
    fleet: ScaledFleet, orders: Sequence[tuple[Demand, ...]], quality: QualityTable, setting: Setting
) -> Day:
    """Runs until nothing is left to run or to arrive. `orders` come in order of arrival."""
    refusals = [fleet.submit(order) for order in orders]
    fleet.finish()
    fates = [fleet.fate(picture, refusal) for order, refusal in zip(orders, refusals, strict=True) for picture in order]
    taken = [fate for fate in fates if fate.refusal is None]
    part_s = orders[-1][0].arrived_s / PARTS
    by_part: list[list[Fate]] = [[] for _ in range(PARTS)]
    for fate in fates:
        by_part[min(int(fate.demand.arrived_s / part_s), PARTS - 1)].append(fate)
    return Day(
        parts=tuple(
            _part(of, place * part_s, part_s, fleet.sizes, quality, setting) for place, of in enumerate(by_part)
        ),
        num_taken=len(taken),
        num_late=sum(not fate.is_on_time for fate in taken),
    )


def run_day(comparison: Comparison, scaling: Scaling, *, digest_s: float) -> Day:
    """Of the first seed, under the first curve and at the first load, which is of each of the fewest replicas."""
    fewest, load = scaling.min_replicas, comparison.loads[0]
    setting, quality = comparison.setting, next(iter(comparison.curves.values()))

    def made(number: int) -> Replica:
        scheduler = RequestScheduler(setting.table, ElasticPolicy(quality))
        return Replica(f"{number}", scheduler, comparison.device(f"day {number}"))

    fleet = ScaledFleet(made, PromiseRouter(setting.table, 0), scaling, setting, digest_s=digest_s)
    orders = replace(comparison, requests=comparison.requests * fewest).orders(load * fewest, 0)
    return simulate_day(fleet, orders, quality, setting)


def _part(
    fates: Sequence[Fate],
    from_s: float,
    part_s: float,
    sizes: Sequence[tuple[float, int, int]],
    quality: QualityTable,
    setting: Setting,
) -> Part:
    costs = CorrectedCosts(setting.table)
    taken = [fate for fate in fates if fate.refusal is None]
    ready = _mean_over([(at_s, number) for at_s, number, _ in sizes], from_s, from_s + part_s)
    present = _mean_over([(at_s, number) for at_s, _, number in sizes], from_s, from_s + part_s)
    return Part(
        until_s=from_s + part_s,
        offered=sum(full_s(fate.demand, costs) for fate in fates) / part_s,
        ready=ready,
        present=present,
        refused=1 - len(taken) / len(fates) if fates else 0.0,
        kept=fmean([fate.is_on_time for fate in taken] or [True]),
        quality=fmean([fate.worth(quality) for fate in taken if fate.is_on_time] or [1.0]),
    )


def _mean_over(steps: Sequence[tuple[float, int]], from_s: float, until_s: float) -> float:
    """Of a number that changes at the times given, in order, over a time."""
    ends = [at_s for at_s, _ in steps[1:]] + [inf]
    total = 0.0
    for (begins_s, number), ends_s in zip(steps, ends, strict=True):
        total += number * max(0.0, min(ends_s, until_s) - max(begins_s, from_s))
    return total / (until_s - from_s)


def day_table(title: str, day: Day) -> Table:
    table = Table(
        title=title,
        caption=f"offered: in replicas at full budget; {day.num_late} of {day.num_taken} promises broken",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for column in ("until s", "offered", "ready", "with those\nthat load", "refused\n%", "kept\n%", "quality"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in day.parts:
        table.add_row(
            f"{part.until_s:.0f}",
            f"{part.offered:.2f}",
            f"{part.ready:.1f}",
            f"{part.present:.1f}",
            f"{100 * part.refused:.1f}",
            f"{100 * part.kept:.2f}",
            f"{part.quality:.3f}",
        )
    return table


def draw_day(day: Day, file: Path, trace: str) -> None:
    """Replicas and quality, one above the other."""
    sizes = {"asked for, at full budget": "offered", "ready": "ready", "with those that load": "present"}
    most = max(max(part.present, part.offered) for part in day.parts)
    charts.save(
        [[_chart(day, "replicas", sizes, (0.0, most))], [_chart(day, "mean quality", {"quality": "quality"})]],
        file,
        title=f"{trace}: {day.num_late} of {day.num_taken} promises broken",
    )


def _chart(day: Day, y_label: str, fields: Mapping[str, str], limits: tuple[float, float] | None = None) -> Chart:
    """fields: of a part, by what the legend calls them. limits: of the y axis."""
    part_s = day.parts[0].until_s

    def points(field: str) -> tuple[Point, ...]:
        return tuple(
            Point(x=part.until_s - part_s / 2, y=Estimate(value=getattr(part, field), half_width=inf))
            for part in day.parts
        )

    return Chart(
        title=f"{y_label}, by time",
        x_label="seconds",
        y_label=y_label,
        series=tuple(Series(name=name, points=points(field), joined=True) for name, field in fields.items()),
        y_limits=limits,
    )
