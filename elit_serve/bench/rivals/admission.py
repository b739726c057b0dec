"""A budget fixed when a request is admitted; deadlines order the work at step level."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.bench.rivals.base import Cohort, Rival, Ticket, by_deadline
from elit_serve.bench.rivals.pace import largest_in_pace
from elit_serve.scheduler.requests import Refusal


class BudgetAtAdmission(Rival):
    """The highest level at which everybody is predicted to be in time, or a refusal; never changed afterwards.

    Earliest deadline first; whoever has the head's level may share its launch, as long as all keep their pace.
    """

    def refusal(self, newcomer: Ticket, now_s: float) -> Refusal | None:
        for level in reversed(self._setting.levels):
            if self.would_be_in_time(newcomer, level, now_s):
                newcomer.level = level
                return None
        return Refusal(reason="overloaded")

    def is_hopeless(self, ticket: Ticket, now_s: float) -> bool:
        return not self.can_still_make_it(ticket, now_s)

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:
        queue = by_deadline(tickets)
        level = queue[0].level
        cohort = [ticket for ticket in queue if ticket.level == level]
        size = largest_in_pace(
            [self.need(ticket) for ticket in cohort],
            now_s,
            self._setting.table.max_batch,
            lambda batch: self._setting.step_s(level, batch),
        )
        return Cohort(tickets=cohort[: max(size, 1)], level=level)
