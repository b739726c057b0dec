"""Servers without a budget to choose: every image at full budget, first come, first served, deadlines ignored."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.bench.rivals.base import Cohort, Job, Rival
from elit_serve.bench.simulate.workload import Setting


class BatchedFifo(Rival):
    """Dynamic batching of whole images: whoever waits when the device falls idle starts together and ends together."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._batch: list[Job] = []

    def choose(self, jobs: Sequence[Job], now_s: float) -> Cohort:  # noqa: ARG002
        running = [job for job in self._batch if job in jobs]
        self._batch = running or list(jobs[: self._setting.table.max_batch])
        return Cohort(jobs=self._batch, level=self._setting.full_level)


class StepFifo(Rival):
    """Step-level joining of requests whose parameters are equal, in order of arrival (as vLLM-Omni does)."""

    def choose(self, jobs: Sequence[Job], now_s: float) -> Cohort:  # noqa: ARG002
        return Cohort(jobs=jobs[: self._setting.table.max_batch], level=self._setting.full_level)
