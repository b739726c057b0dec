"""What the simulator says of the very arrivals and targets that a server was sent, in the same figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from elit_serve.bench.load.plan import budgets_of
from elit_serve.bench.load.report import Summary, open_summary, shown, unit_of
from elit_serve.bench.load.run import LoadOptions, LoadReport
from elit_serve.bench.load.sender import PlannedCall
from elit_serve.bench.simulate.device import AS_SERVED, SimulatedDevice
from elit_serve.bench.simulate.planning import PlanningScheduler
from elit_serve.bench.simulate.quality_file import read_measurements
from elit_serve.bench.simulate.simulation import Fate, simulate
from elit_serve.catalogue import ModelQuality
from elit_serve.errors import InvalidInput
from elit_serve.files.records import RequestEnding, RequestRecord
from elit_serve.plans.levels import Budgets
from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.drive import Device, Scheduler
from elit_serve.scheduler.menu import PlanMenu
from elit_serve.scheduler.policy.elastic import ElasticPolicy
from elit_serve.scheduler.policy.fixed import FixedPolicy
from elit_serve.scheduler.policy.view import Policy
from elit_serve.scheduler.quality import QualityTable, placeholder_quality
from elit_serve.scheduler.requests import Demand

COMPARED = (
    "slo_attainment_rate",
    "accepted_attainment",
    "request_throughput",
    "request_goodput",
    "refused",
    "expired",
    "failed",
    "mean_budget",
    "mean_e2el_ms",
    "median_e2el_ms",
    "p99_e2el_ms",
)

# As a server makes them that is told no more than their names, but for its limit on the queue: requests whose time
# has passed leave it, so targets of seconds keep it short.
POLICIES: Mapping[str, Callable[[QualityTable], Policy]] = {
    "elastic": ElasticPolicy,
    "fixed": lambda _: FixedPolicy(),
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What every request of a run asks for, as the scheduler sees it.

    shapes: of the sizes that are asked for. pinned_level: of every step, or None to leave it to the policy.
    text_ms: to encode a prompt.
    """

    shapes: Mapping[str | None, str]
    weak_caps: tuple[int | None, ...]
    levels: tuple[int, ...]
    pinned_level: int | None = None
    is_hard: bool = True
    text_ms: float = 0.0

    def demands(self, calls: Sequence[PlannedCall]) -> list[Demand]:
        """In this order. A prompt is encoded for the first that has it; from then on the server knows it."""
        known: set[str | None] = {None}
        demands = []
        for request_id, call in enumerate(calls):
            prepare_s = 0.0 if call.prompt in known else self.text_ms / 1000
            known.add(call.prompt)
            demands.append(replace(self.demand(request_id, call), prepare_s=prepare_s))
        return demands

    def demand(self, request_id: int, call: PlannedCall) -> Demand:
        assert call.latency_ms is not None, "attainment is of targets"
        return Demand(
            request_id=request_id,
            shape=self.shapes[call.size],
            arrived_s=call.at_s,
            deadline_s=call.at_s + call.latency_ms / 1000,
            weak_caps=self.weak_caps,
            min_level=self.levels[0],
            max_level=self.levels[-1],
            pinned=None if self.pinned_level is None else (self.pinned_level,) * len(self.weak_caps),
            is_hard=self.is_hard,
        )


def check_comparable(options: LoadOptions, policy: str) -> None:
    """Before a run: whether the simulator can be asked about it."""
    if policy not in POLICIES:
        raise InvalidInput("policy", policy, f"a server's policy: {', '.join(POLICIES)}")
    if options.cost is None:
        raise InvalidInput("compare", True, "the simulator needs --cost")
    if options.closed_loop is not None or not options.slo_scales:
        raise InvalidInput(
            "compare", True, "an open loop with targets of --slo-scale, which is what attainment is about"
        )


def simulated(report: LoadReport, options: LoadOptions, policy: str) -> Summary:
    """The figures that the simulator predicts for a run, with a policy of this name.

    On a device that is as much slower than its cost table as the server has observed, or as `bias` says, and that is
    charged what a server adds; promises count as much for HTTP as the server's do. Requests that leave their plan open
    get one of those that `quality` has, as a server gives them.
    """
    check_comparable(options, policy)
    table, budgets = report.target.table, budgets_of(report.target.model)
    assert table is not None
    wish = Wish(
        shapes={size: report.target.shape_of(size) for size in report.target.sizes},
        weak_caps=report.target.weak_caps,
        levels=table.levels,
        pinned_level=None if options.budget is None else budgets.level_of(options.budget),
        is_hard=not options.best_effort,
        text_ms=table.text_ms,
    )
    measured = None if options.quality is None else read_measurements(options.quality)
    bias = options.bias if options.bias is not None else (report.correction or 1.0) - 1
    device = SimulatedDevice(table, bias=bias, charges=AS_SERVED)
    promised = replace(table, overhead_ms=table.overhead_ms + report.target.model.response_ms)
    scheduler = as_served(promised, policy, measured, is_open=options.budget is None and options.steps is None)
    return predicted(report.calls, wish, scheduler=scheduler, device=device, budgets=budgets)


def as_served(table: CostTable, policy: str, measured: ModelQuality | None, *, is_open: bool) -> RequestScheduler:
    """The scheduler of a server whose model has this quality. is_open: whether requests leave their plan open."""
    quality = placeholder_quality(table.levels) if measured is None else measured.table
    made = POLICIES[policy](quality)
    if not (is_open and quality.plans):
        return RequestScheduler(table, made)
    menus = {shape: PlanMenu.of(quality, table, shape, quality.plans) for shape in table.shapes}
    return PlanningScheduler(table, made, menus)


def predicted(
    calls: Sequence[PlannedCall], wish: Wish, *, scheduler: Scheduler, device: Device, budgets: Budgets
) -> Summary:
    """Figures of a run on this device, with a client without delay."""
    run = simulate(scheduler, wish.demands(calls), device)
    return open_summary([_record(fate, budgets) for fate in run.fates])


def _record(fate: Fate, budgets: Budgets) -> RequestRecord:
    demand = fate.demand
    record = RequestRecord(
        planned_s=demand.arrived_s,
        sent_s=demand.arrived_s,
        ended_s=demand.arrived_s,
        latency_ms=1000 * (demand.deadline_s - demand.arrived_s),
        ending=RequestEnding.REFUSED,
        reason=fate.refusal.reason if fate.refusal else None,
    )
    if fate.refusal:
        return record
    if fate.answered_s is None:
        return record.model_copy(
            update={"ended_s": demand.deadline_s, "ending": RequestEnding.EXPIRED, "reason": "expired"}
        )
    # An answer at the very deadline is on time, however sums of seconds are rounded.
    ended_s = min(fate.answered_s, demand.deadline_s) if fate.is_on_time else fate.answered_s
    return record.model_copy(
        update={
            "ended_s": ended_s,
            "ending": RequestEnding.DONE,
            "budget": budgets.of_level(fate.mean_level),
        }
    )


def comparison(measured: Summary, expected: Summary, policy: str) -> dict[str, object]:
    """For JSON: the simulator's figures, and by how many points the server's attainment is above them."""
    simulation = {"policy": policy, **expected.as_dict()}
    return {"simulated": simulation, "attainment_difference_points": attainment_points(measured, expected)}


def attainment_points(measured: Summary, expected: Summary) -> float:
    """Percentage points by which the measured attainment is higher."""
    assert measured.slo_attainment_rate is not None
    assert expected.slo_attainment_rate is not None
    return 100 * (measured.slo_attainment_rate - expected.slo_attainment_rate)


def comparison_table(measured: Summary, expected: Summary, policy: str) -> Table:
    points = attainment_points(measured, expected)
    table = Table(title=f"The server's attainment is {points:+.1f} points from the simulator's")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column(f"simulated: {policy}", justify="right")
    table.add_column("unit")
    for name in COMPARED:
        table.add_row(name, shown(measured.as_dict()[name]), shown(expected.as_dict()[name]), unit_of(name))
    return table
