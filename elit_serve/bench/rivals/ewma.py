"""A global budget from smoothed demand, as Proteus scales accuracy with load; on one device, at step level."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from elit_serve.bench.rivals.base import Cohort, Rival, Ticket, by_deadline
from elit_serve.bench.simulate.workload import Setting
from elit_serve.scheduler.requests import Refusal

MEMORY_S = 3.0  # of the arrival rate; Proteus' tens of seconds are for requests of milliseconds on many devices
HEADROOM = 1.05  # capacity asked for over the estimated demand


class EwmaBudget(Rival):
    """Everybody runs at the highest level whose throughput covers the demand, in batches that fit the mean target.

    Earliest deadline first; requests that cannot make it any more are dropped.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._rate_per_s = 0.0
        self._target_s = setting.solo_s
        self._seen_s = float("-inf")
        self._batches: dict[int, int] = {}  # by level, for the present mean target

    def refusal(self, newcomer: Ticket, now_s: float) -> Refusal | None:
        """Refuses nobody; notes that somebody came."""
        self._rate_per_s = self._rate_at(now_s) + 1 / MEMORY_S
        self._target_s += (newcomer.deadline_s - now_s - self._target_s) * 0.1
        self._seen_s = now_s
        self._batches.clear()
        return None

    def is_hopeless(self, ticket: Ticket, now_s: float) -> bool:
        return not self.can_still_make_it(ticket, now_s)

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:
        wanted_per_s = HEADROOM * self._rate_at(now_s)
        enough = [level for level in self._setting.levels if self._throughput_per_s(level) >= wanted_per_s]
        level = max(enough, default=self._setting.levels[0])
        return Cohort(tickets=by_deadline(tickets)[: self._batch(level)], level=level)

    def _rate_at(self, now_s: float) -> float:
        return self._rate_per_s * exp((self._seen_s - now_s) / MEMORY_S)

    def _batch(self, level: int) -> int:
        """The largest whose images take no longer than the mean target."""
        if level not in self._batches:
            step_s = (self._target_s - self._setting.overhead_s) / self._setting.num_steps
            sizes = range(1, self._setting.table.max_batch + 1)
            fitting = (size for size in sizes if self._setting.step_s(level, size) <= step_s)
            self._batches[level] = max(fitting, default=1)
        return self._batches[level]

    def _throughput_per_s(self, level: int) -> float:
        batch = self._batch(level)
        return batch / (self._setting.num_steps * self._setting.step_s(level, batch))
