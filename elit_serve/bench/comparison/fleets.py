"""Routers side by side: each in front of the same replicas, at every load on the same arrivals, beside one scheduler
that has all devices, which comes in two forms:

    pooled  Its launches are spread evenly over all devices, so that n devices run n times as many pictures in the time
            in which one runs its share, and pictures may change devices at every step. But all devices are in step, at
            one level and as fast as the most urgent picture needs it.
    fast    It has one device that is n times as fast. Whatever n devices do, this one can do in the same time, a launch
            after the other, so it bounds every fleet as far as its scheduler does its best. No fleet reaches it: a
            picture takes no less time on n devices than on one, and here an nth of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

from rich import box
from rich.table import Table

from elit_serve.bench.comparison.side_by_side import Comparison, named_figures, over_seeds
from elit_serve.bench.rivals.routers import ROUTERS
from elit_serve.bench.simulate.fleet import Fleet, FleetRun, Replica, simulate_fleet
from elit_serve.bench.simulate.simulation import Fate, simulate
from elit_serve.errors import InvalidInput
from elit_serve.plans.estimate import Estimate
from elit_serve.scheduler import ElasticPolicy, RequestScheduler
from elit_serve.scheduler.costs import AnswerCost, CostTable
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand


def pooled(table: CostTable, num_devices: int) -> CostTable:
    """What steps take whose pictures are spread evenly over so many devices like this one."""
    steps_ms = {(kind, num_devices * batch): step_ms for (kind, batch), step_ms in table.steps_ms.items()}
    alone_ms = {(kind, 1): step_ms for (kind, batch), step_ms in table.steps_ms.items() if batch == table.batches[0]}
    answers_ms = {(shape, num_devices * number): cost for (shape, number), cost in table.answers_ms.items()}
    return replace(table, steps_ms=alone_ms | steps_ms, answers_ms=answers_ms)


def fast(table: CostTable, num_devices: int) -> CostTable:
    """One device that is so many times as fast; what follows a picture's last step beside the device stays as it is."""
    answers_ms = {
        key: AnswerCost(decode_ms / num_devices, encode_ms) for key, (decode_ms, encode_ms) in table.answers_ms.items()
    }
    return replace(table.scaled(1 / num_devices), answers_ms=answers_ms)


TOGETHER: Mapping[str, Callable[[CostTable, int], CostTable]] = {"pooled": pooled, "fast": fast}
ALL_ROUTERS = (*ROUTERS, *TOGETHER)


def check_router(name: str) -> None:
    """Raises `InvalidInput` for a name that is none of `ALL_ROUTERS`."""
    if name not in ALL_ROUTERS:
        raise InvalidInput("router", name, f"one of {', '.join(ALL_ROUTERS)}")


@dataclass(frozen=True, kw_only=True)
class FleetRow:
    """A router at a load under a curve; figures as in `side_by_side.Row`.

    lead: effective quality of the first router less this one's, window by window, which tells far smaller differences
        than the two figures do: both had the same arrivals. None of the first router itself.
    asked: replicas that were asked for an order, on average.
    """

    router: str
    load: float
    quality_curve: str
    attainment: Estimate
    accepted_attainment: Estimate
    mean_quality: Estimate
    effective_quality: Estimate
    lead: Estimate | None
    asked: float

    def as_dict(self) -> dict[str, object]:
        """For JSON, see `named_figures`."""
        return named_figures(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class FleetComparison:
    """alone: what one device is asked; of a fleet, so many times as many requests at so many times the rate.

    digest_s: how often a replica tells of itself. ingresses: how many processes route, see `PromiseRouter`; rivals know
        what they know of all.
    """

    alone: Comparison
    replicas: int
    routers: Sequence[str]
    digest_s: float
    ingresses: int = 1

    def rows(self, progress: Callable[[str], None] = lambda _: None) -> Iterator[FleetRow]:
        """Load by load, curve by curve."""
        fleet = replace(self.alone, requests=self.alone.requests * self.replicas)
        for load in self.alone.loads:
            drawn = [fleet.orders(load * self.replicas, seed) for seed in range(self.alone.seeds)]
            for curve, quality in self.alone.curves.items():
                first: list[float] | None = None  # of the first router, what each window is worth
                for name in self.routers:
                    progress(f"load {load:g}, {curve}: {name}")
                    runs = [self._run(name, quality, seed, orders) for seed, orders in enumerate(drawn)]
                    worth = [fmean(fate.worth(quality) for fate in run.fates) for run in runs]
                    yield _row(name, load, curve, quality, runs, worth, first)
                    first = first or worth

    def _run(self, name: str, quality: QualityTable, seed: int, orders: Sequence[tuple[Demand, ...]]) -> FleetRun:
        table = self.alone.setting.table
        if name in TOGETHER:
            one = TOGETHER[name](table, self.replicas)
            device = replace(self.alone, setting=replace(self.alone.setting, table=one)).device(seed)
            run = simulate(RequestScheduler(one, ElasticPolicy(quality)), orders, device)
            return FleetRun(fates=run.fates, num_orders=len(orders), num_asked=len(orders))
        replicas = [
            Replica(f"{place}", RequestScheduler(table, ElasticPolicy(quality)), self.alone.device(f"{seed} {place}"))
            for place in range(self.replicas)
        ]
        return simulate_fleet(
            Fleet(replicas, ROUTERS[name](table, seed, self.ingresses), digest_s=self.digest_s), orders
        )


def fleet_table(title: str, rows: Sequence[FleetRow]) -> Table:
    table = Table(
        title=title,
        caption="taken: on time of those not refused; quality: 0 to 1; lead: of the first router, on the same "
        "arrivals; asked: replicas for an order; ±: 95 %",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("router", no_wrap=True)
    for column in ("on time\n%", "taken\n%", "quality", "effective", "lead", "asked"):
        table.add_column(column, justify="right", no_wrap=True)
    for (load, curve), group in groupby(rows, key=lambda row: (row.load, row.quality_curve)):
        table.add_row(f"[bold]load {load:g}, {curve}")
        for row in group:
            table.add_row(
                row.router,
                f"{100 * row.attainment.value:.1f}",
                f"{100 * row.accepted_attainment.value:.2f}",
                f"{row.mean_quality.value:.3f}",
                _with_interval(row.effective_quality, ".4f"),
                "–" if row.lead is None else _with_interval(row.lead, "+.4f"),
                f"{row.asked:.2f}",
            )
        table.add_section()
    return table


def _with_interval(estimate: Estimate, digits: str) -> str:
    return f"{estimate.value:{digits}}" + (f" ±{estimate.half_width:.4f}" if estimate.has_interval else "")


def _row(
    name: str,
    load: float,
    curve: str,
    quality: QualityTable,
    runs: Sequence[FleetRun],
    worth: Sequence[float],
    first: Sequence[float] | None,
) -> FleetRow:
    """worth: effective quality of each window. first: the same of the first router."""
    fates = [run.fates for run in runs]
    return FleetRow(
        router=name,
        load=load,
        quality_curve=curve,
        attainment=over_seeds([fmean(fate.is_on_time for fate in of) for of in fates]),
        accepted_attainment=over_seeds([_share_kept(of) for of in fates]),
        mean_quality=over_seeds([fmean([f.worth(quality) for f in of if f.is_on_time] or [0.0]) for of in fates]),
        effective_quality=over_seeds(worth),
        lead=None if first is None else over_seeds([ours - its for ours, its in zip(first, worth, strict=True)]),
        asked=fmean(run.num_asked / run.num_orders for run in runs),
    )


def _share_kept(fates: Sequence[Fate]) -> float:
    return fmean([fate.is_on_time for fate in fates if fate.refusal is None] or [True])
