"""A budget fixed when a request is admitted; deadlines order the work at step level."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.bench.rivals.base import Cohort, Job, Rival, by_deadline
from elit_serve.bench.rivals.pace import largest_in_pace
from elit_serve.scheduler.requests import Refusal


class BudgetAtAdmission(Rival):
    """The highest level at which everybody is predicted to be in time, or a refusal; never changed afterwards.

    Earliest deadline first; whoever has the head's level may share its launch, as long as all keep their pace.
    """

    def refusal(self, newcomer: Job, now_s: float) -> Refusal | None:
        for level in reversed(self._setting.levels):
            if self.would_be_in_time(newcomer, level, now_s):
                newcomer.level = level
                return None
        return Refusal(reason="overloaded")

    def is_hopeless(self, job: Job, now_s: float) -> bool:
        return not self.can_still_make_it(job, now_s)

    def choose(self, jobs: Sequence[Job], now_s: float) -> Cohort:
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
