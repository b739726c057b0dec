"""A budget fixed when a request is admitted; deadlines order the work at step level."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.bench.rivals.base import Cohort, Job, Rival, by_deadline
from elit_serve.bench.rivals.pace import largest_in_pace
from elit_serve.bench.workload import Setting
from elit_serve.scheduler.requests import Demand, Refusal


class BudgetAtAdmission(Rival):
    """The highest level at which everybody is predicted to be in time, or a refusal; never changed afterwards.

    Earliest deadline first; whoever has the head's level may share its launch, as long as all keep their pace.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._granted: dict[int, int] = {}

    def refusal(self, demand: Demand, now_s: float) -> Refusal | None:
        for level in reversed(self._setting.levels):
            if self.would_be_in_time(demand, level, now_s):
                self._granted[demand.request_id] = level
                return None
        return Refusal(reason="overloaded")

    def is_hopeless(self, job: Job, now_s: float) -> bool:
        return not self.can_still_make_it(job, now_s)

    def choose(self, jobs: Sequence[Job], now_s: float) -> Cohort:
        for job in jobs:
            job.level = job.level or self._granted.pop(job.demand.request_id)
        queue = by_deadline(jobs)
        level = queue[0].level
        cohort = [job for job in queue if job.level == level]
        size = largest_in_pace(
            [self.need(job) for job in cohort],
            now_s,
            self._setting.table.max_batch,
            lambda batch: self._setting.step_s(level, batch),
        )
        return Cohort(jobs=cohort[: max(size, 1)], level=level)
