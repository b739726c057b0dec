"""Policies side by side: every policy at every load on the same arrivals, judged by the same curves and bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import inf, sqrt
from statistics import fmean, stdev

import numpy as np

from elit_serve.bench.bound.bound import ClairvoyantBound
from elit_serve.bench.bound.programme import package
from elit_serve.bench.comparison.policies import contender
from elit_serve.bench.simulate.arrivals import Arrivals
from elit_serve.bench.simulate.device import NOTHING, Charges, SimulatedDevice
from elit_serve.bench.simulate.simulation import SimulatedRun, simulate
from elit_serve.bench.simulate.workload import PLAIN, Mix, Setting, draw_workload, mixed
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.estimate import Estimate
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand

CONFIDENCE = 0.95


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over seeds, with Student's t for its interval, which one seed tells nothing of."""
    if len(values) < 2:
        return Estimate(value=fmean(values), half_width=inf)
    quantile = float(package("scipy.special").stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return Estimate(value=fmean(values), half_width=quantile * stdev(values) / sqrt(len(values)))


def named_figures(row: Mapping[str, object]) -> dict[str, object]:
    """Figures for JSON: NAME is the mean, NAME_ci half the width of its interval, null for one seed."""
    named: dict[str, object] = {}
    for name, value in row.items():
        named[name] = value.value if isinstance(value, Estimate) else value
        if isinstance(value, Estimate):
            named[f"{name}_ci"] = value.half_width if value.has_interval else None
    return named


@dataclass(frozen=True, kw_only=True)
class Row:
    """A policy at a load under a curve. Shares are fractions, of pictures.

    attainment: on time, of all that were offered: a refusal is a miss. accepted_attainment: of those accepted.
    mean_quality: of on-time pictures, step by step. effective_quality: of all that were offered, a miss counting 0.
    bound: no schedule has more effective quality, even if it knew all arrivals. regret: what is missing to the bound,
        as a share of it.
    latency_ms, decision_us: percentiles of answered pictures, and of calls of `decide`, over all seeds.
    """

    policy: str
    load: float
    quality_curve: str
    seeds: int
    attainment: Estimate
    accepted_attainment: Estimate
    mean_quality: Estimate
    effective_quality: Estimate
    regret: Estimate
    bound: Estimate
    p50_latency_ms: float | None
    p99_latency_ms: float | None
    mean_decision_us: float
    p99_decision_us: float

    def as_dict(self) -> dict[str, object]:
        """For JSON, see `named_figures`."""
        return named_figures(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """noise, bias, charges: of the simulated device, see `SimulatedDevice`; policies are told none of them.

    coarsening: how long steps may become under those policies that take that, and what it costs. The bound knows of no
    longer steps.
    mix: of the requests of `orders`; those of a `window` are of one kind.
    """

    setting: Setting
    source: Arrivals
    curves: Mapping[str, QualityTable]
    loads: Sequence[float]
    policies: Sequence[str]
    slo_scales: Sequence[float]
    requests: int
    seeds: int
    noise: float
    bias: float
    recorded_targets: bool = False
    coarsening: Coarsening | None = None
    charges: Charges = NOTHING
    mix: Mix = PLAIN

    def rows(self, progress: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
        """Load by load, curve by curve; bounds are computed once for all policies."""
        contenders = {name: contender(name) for name in self.policies}
        for load in self.loads:
            drawn = [self.orders(load, seed) for seed in range(self.seeds)]
            blind: dict[str, list[SimulatedRun]] = {}
            for curve, quality in self.curves.items():
                progress(f"load {load:g}, {curve}: bound")
                bounds = [self._bounds[curve].mean_quality(list(chain.from_iterable(orders))) for orders in drawn]
                for name, made in contenders.items():
                    progress(f"load {load:g}, {curve}: {name}")
                    runs = blind.get(name) or [
                        self._run(name, quality, seed, asked) for seed, asked in enumerate(drawn)
                    ]
                    if not made.reads_quality:
                        blind[name] = runs
                    yield _row(name, load, curve, quality, runs, bounds)

    def window(self, load: float, seed: int) -> tuple[Demand, ...]:
        """The requests that a seed draws, if all are of one kind."""
        return draw_workload(
            self.setting,
            self.source,
            load=load,
            slo_scales=self.slo_scales,
            count=self.requests,
            seed=seed,
            recorded_targets=self.recorded_targets,
        )

    def orders(self, load: float, seed: int) -> tuple[tuple[Demand, ...], ...]:
        """The pictures of each request that a seed draws. Load is of pictures: those who ask for more come later."""
        return mixed(self.window(load / self.mix.mean_images, seed), self.mix, self.setting, seed)

    def device(self, seed: object) -> SimulatedDevice:
        """On which a seed's requests run. seed: of its noise; in a fleet every device has its own."""
        return SimulatedDevice(self.setting.table, noise=self.noise, bias=self.bias, charges=self.charges, seed=seed)

    @cached_property
    def _bounds(self) -> Mapping[str, ClairvoyantBound]:
        """Of the device as it is, its bias included; as if each step of a mix were of the size and guidance that takes
        least."""
        setting, mix = self.setting, self.mix
        table = setting.table.scaled(1 + self.bias).least_of(
            setting.table.shapes if mix.other_sizes else (setting.shape,),
            (setting.weak_cap, None) if mix.unguided else (setting.weak_cap,),
        )
        least = Setting(table=table, num_steps=setting.num_steps, weak_cap=None)
        return {name: ClairvoyantBound(least, quality) for name, quality in self.curves.items()}

    def _run(self, policy: str, quality: QualityTable, seed: int, orders: Sequence[tuple[Demand, ...]]) -> SimulatedRun:
        made = contender(policy)
        if made.takes_strides:
            orders = [tuple(map(self._in_longer_steps, pictures)) for pictures in orders]
        return simulate(made.make(self.setting, quality), orders, self.device(seed))

    def _in_longer_steps(self, demand: Demand) -> Demand:
        return demand if demand.pinned else replace(demand, coarsening=self.coarsening)


def _row(
    policy: str, load: float, curve: str, quality: QualityTable, runs: Sequence[SimulatedRun], bounds: Sequence[float]
) -> Row:
    on_time = [[fate for fate in run.fates if fate.is_on_time] for run in runs]
    offered = [len(run.fates) for run in runs]
    accepted = [sum(fate.refusal is None for fate in run.fates) for run in runs]
    worth = [[fate.worth(quality) for fate in done] for done in on_time]
    effective = [sum(values) / count for values, count in zip(worth, offered, strict=True)]
    latencies_ms = [1000 * s for run in runs for fate in run.fates if (s := fate.latency_s) is not None]
    decisions_us = [1e6 * seconds for run in runs for seconds in run.decision_s]
    return Row(
        policy=policy,
        load=load,
        quality_curve=curve,
        seeds=len(runs),
        attainment=over_seeds([len(done) / count for done, count in zip(on_time, offered, strict=True)]),
        accepted_attainment=over_seeds(
            [len(done) / count if count else 1.0 for done, count in zip(on_time, accepted, strict=True)]
        ),
        mean_quality=over_seeds([fmean(values) if values else 0.0 for values in worth]),
        effective_quality=over_seeds(effective),
        regret=over_seeds([1 - value / bound for value, bound in zip(effective, bounds, strict=True)]),
        bound=over_seeds(bounds),
        p50_latency_ms=_percentile(latencies_ms, 50),
        p99_latency_ms=_percentile(latencies_ms, 99),
        mean_decision_us=fmean(decisions_us),
        p99_decision_us=float(np.percentile(decisions_us, 99)),
    )


def _percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None
