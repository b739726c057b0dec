"""SlackFit (SuperServe): the slack of the most urgent request picks a latency bucket, and within it the largest batch
wins, then the highest level. Requests that cannot make it any more are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elit_serve.bench.rivals.base import Cohort, Rival, Ticket, by_deadline
from elit_serve.bench.rivals.pace import largest_in_pace
from elit_serve.bench.simulate.workload import Setting
from elit_serve.scheduler.requests import Refusal

NUM_BUCKETS = 20  # of equal width between the shortest and the longest step; the results hardly depend on it


class SlackFit(Rival):
    """Once per image, as published: a batch is chosen together with its level and runs to its end."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._batch: list[Ticket] = []
        self._level = 0

    def is_hopeless(self, ticket: Ticket, now_s: float) -> bool:
        return ticket not in self._batch and not self.can_still_make_it(ticket, now_s)

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:
        self._batch = [ticket for ticket in self._batch if ticket in tickets]
        if not self._batch:
            queue = by_deadline(tickets)
            slack_s = self.need(queue[0]).due_s - now_s
            size, self._level = self._best_fit(slack_s / self._setting.num_steps, len(queue))
            self._batch = queue[:size]
        return Cohort(tickets=self._batch, level=self._level)

    def _best_fit(self, step_slack_s: float, num_queued: int) -> tuple[int, int]:
        """(batch, level) from the highest bucket below the slack."""
        shortest_s = self.lowest_step_s()
        longest_s = self._setting.step_s(self._setting.full_level, self._setting.table.max_batch)
        width_s = (longest_s - shortest_s) / NUM_BUCKETS
        fitting = (choice for choice in self._choices(num_queued) if choice[0] <= step_slack_s)
        buckets = ((int((step_s - shortest_s) / width_s), batch, level) for step_s, batch, level in fitting)
        return max(buckets, default=(0, 1, self._setting.levels[0]))[1:]

    def _choices(self, num_queued: int) -> Iterator[tuple[float, int, int]]:
        """(seconds of a step, batch, level) of everything that could run."""
        for level in self._setting.levels:
            for batch in range(1, min(num_queued, self._setting.table.max_batch) + 1):
                yield self._setting.step_s(level, batch), batch, level


class StepSlackFit(Rival):
    """SlackFit chosen anew at every step: the largest batch, then the highest level, that keeps the tightest pace.

    Taken further than published, since without admission control it collapses under overload: a request is refused
    unless everybody accepted can be in time at the lowest level.
    """

    def refusal(self, newcomer: Ticket, now_s: float) -> Refusal | None:
        lowest = self._setting.levels[0]
        return (
            None if self.would_be_in_time(newcomer, lowest, now_s, others_at=lowest) else Refusal(reason="overloaded")
        )

    def is_hopeless(self, ticket: Ticket, now_s: float) -> bool:
        return not self.can_still_make_it(ticket, now_s)

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:
        queue = by_deadline(tickets)
        needs, lowest = [self.need(ticket) for ticket in queue], self._setting.levels[0]
        size = largest_in_pace(
            needs, now_s, self._setting.table.max_batch, lambda batch: self._setting.step_s(lowest, batch)
        )
        size = max(size, 1)
        pace_s = min(need.pace_s(now_s) for need in needs[:size])
        fitting = [level for level in self._setting.levels if self._setting.step_s(level, size) <= pace_s]
        return Cohort(tickets=queue[:size], level=max(fitting, default=lowest))
