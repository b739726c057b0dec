"""How long the elastic policy takes to decide when many requests are in flight, and when many more wait.

Processor time of the deciding thread, so the machine's other work does not count; Python's garbage collector does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from statistics import fmean, median

import numpy as np
from rich import box
from rich.table import Table

from elit_serve.bench.comparison.side_by_side import Comparison
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import Timed
from elit_serve.scheduler import ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.requests import Demand, Priority

WARM_UP = 100  # decisions before any is counted
TARGET_SHARES = (0.5, 2.0)  # targets are drawn between these shares of what the crowd takes at full budget


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A crowd that never shrinks: whoever ends is replaced at once by the next that the policy accepts.

    counted: how many of `RequestScheduler`'s accepted requests make the crowd of `size`: all, or those not started.
    is_mixed: a tenth each pinned, unguided for a part, and of the batch class, a fifth soft; else all hard and free.
    """

    name: str
    size: int
    counted: Callable[[RequestScheduler], int]
    is_mixed: bool


SITUATIONS = (
    Situation(
        name="64 in flight",
        size=64,
        counted=lambda scheduler: scheduler.num_waiting + scheduler.num_running,
        is_mixed=True,
    ),
    Situation(name="1,000 waiting", size=1000, counted=lambda scheduler: scheduler.num_waiting, is_mixed=False),
)


@dataclass(frozen=True, kw_only=True)
class DecisionTimes:
    """Microseconds over the decisions of one run."""

    situation: str
    seed: int
    mean_us: float
    p50_us: float
    p99_us: float
    max_us: float
    mean_batch: float


def time_decisions(comparison: Comparison, decisions: int) -> Iterator[DecisionTimes]:
    """A run of each situation for every seed, which draws requests and noise of its own."""
    quality = next(iter(comparison.curves.values()))
    for situation in SITUATIONS:
        for seed in range(comparison.seeds):
            yield _Crowd(situation, comparison, quality, comparison.device(seed), seed).measure(decisions)


def decision_table(title: str, runs: list[DecisionTimes]) -> Table:
    """The least and the median of the repeats: what disturbs a run only makes it longer."""
    table = Table(title=title, caption="of processor time: least, median of repeats", box=box.SIMPLE_HEAD)
    table.add_column("situation")
    for column in ("batch\npictures", "mean\nµs", "p50\nµs", "p99\nµs", "max\nµs"):
        table.add_column(column, justify="right")
    for situation in dict.fromkeys(run.situation for run in runs):
        alike = [run for run in runs if run.situation == situation]
        columns = [[getattr(run, name) for run in alike] for name in ("mean_us", "p50_us", "p99_us", "max_us")]
        batch = f"{fmean(run.mean_batch for run in alike):.1f}"
        table.add_row(situation, batch, *(f"{min(column):.0f}, {median(column):.0f}" for column in columns))
    return table


class _Crowd:
    """Drives a scheduler on a simulated device, and keeps the crowd complete."""

    def __init__(
        self, situation: Situation, comparison: Comparison, quality: QualityTable, device: SimulatedDevice, seed: int
    ) -> None:
        self._situation, self._setting, self._coarsening = situation, comparison.setting, comparison.coarsening
        self._seed = seed
        self._scheduler = RequestScheduler(comparison.setting.table, ElasticPolicy(quality))
        self._timed = Timed(self._scheduler)
        self._driver = Driver(self._timed, device)
        self._rng = Random(f"crowd {seed}")
        self._ids = count()

    def measure(self, decisions: int) -> DecisionTimes:
        self._complete()
        gc.collect()
        gc.freeze()  # a server's heap before its first request is not what a decision should be charged for
        try:
            for _ in range(WARM_UP):
                self._decide()
            timed = [self._decide() for _ in range(decisions)]
        finally:
            gc.unfreeze()
        took_us = [1e6 * seconds for seconds, _ in timed]
        return DecisionTimes(
            situation=self._situation.name,
            seed=self._seed,
            mean_us=fmean(took_us),
            p50_us=median(took_us),
            p99_us=float(np.percentile(took_us, 99)),
            max_us=max(took_us),
            mean_batch=fmean(batch for _, batch in timed),
        )

    def _decide(self) -> tuple[float, int]:
        """(Seconds of one decision, requests in its launch); then runs the launch and replaces whoever ended."""
        started = self._driver.start()
        assert started is not None, "a crowd always has work"
        self._driver.finish()
        self._driver.forget()  # a growing record would have Python's collector of garbage slow decisions down
        self._complete()
        return self._timed.decision_s[-1], len(started.launch.request_ids)

    def _complete(self) -> None:
        while self._situation.counted(self._scheduler) < self._situation.size:
            self._driver.submit([self._drawn()])

    def _drawn(self) -> Demand:
        setting, rng = self._setting, self._rng
        steps, mixed = setting.num_steps, self._situation.is_mixed
        target_s = rng.uniform(*TARGET_SHARES) * self._situation.size / setting.saturated_rate_per_s
        unguided = steps // 4 if mixed and rng.random() < 0.1 else 0
        pinned = (rng.choice(setting.levels),) * steps if mixed and rng.random() < 0.1 else None
        return Demand(
            request_id=next(self._ids),
            shape=setting.shape,
            arrived_s=self._driver.now_s,
            deadline_s=self._driver.now_s + target_s,
            weak_caps=(None,) * unguided + (setting.weak_cap,) * (steps - unguided),
            min_level=setting.levels[0],
            max_level=setting.full_level,
            pinned=pinned,
            coarsening=None if pinned else self._coarsening,
            is_hard=not (mixed and rng.random() < 0.2),
            priority=Priority.BATCH if mixed and rng.random() < 0.1 else Priority.INTERACTIVE,
        )
