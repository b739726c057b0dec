"""Servers without a budget to choose: every image at full budget, first come, first served, deadlines ignored."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.bench.rivals.base import Cohort, Rival, Ticket
from elit_serve.bench.simulate.workload import Setting


class BatchedFifo(Rival):
    """Dynamic batching of whole images: whoever waits when the device falls idle starts together and ends together."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._batch: list[Ticket] = []

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:  # noqa: ARG002
        running = [ticket for ticket in self._batch if ticket in tickets]
        self._batch = running or list(tickets[: self._setting.table.max_batch])
        return Cohort(tickets=self._batch, level=self._setting.full_level)


class StepFifo(Rival):
    """Step-level joining of requests whose parameters are equal, in order of arrival (as vLLM-Omni does)."""

    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort:  # noqa: ARG002
        return Cohort(tickets=tickets[: self._setting.table.max_batch], level=self._setting.full_level)
