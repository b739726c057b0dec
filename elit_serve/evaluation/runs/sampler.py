"""Many pictures of one plan as fast as the engine makes them: batches in lock step, some enqueued ahead.

While the device runs them, a thread draws the noise of the next, and the host takes the pictures of the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.graphs import open_executor
from elit_serve.engine.executor.slots import Executor, Transfer
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.runs.background import in_background
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind

BATCHES_AHEAD = 2  # enqueued on the device, beside the one whose pictures the host waits for


class Sampler:
    """Owns an executor, and another one for plans that skip something, from the first of these on. Graphs are captured
    when a plan first needs them, and kept."""

    def __init__(self, pipeline: Pipeline, *, batch_size: int) -> None:
        if batch_size < 1:
            raise InvalidInput("batch_size", batch_size, "at least 1")
        self._pipeline = pipeline
        self._batch_size = batch_size
        self._executors: dict[bool, Executor] = {}  # by whether it keeps anything
        self._captured: set[tuple[Executor, StepKind, int]] = set()

    def prepare(self, plan: Plan, num_samples: int) -> None:
        """Captures the steps of `plan` that have not been; nothing may run on the device meanwhile."""
        executor, batch = self._executor_for(plan), even_batch(num_samples, self._batch_size)
        for kind in dict.fromkeys(plan.step_kinds(self._pipeline.shapes[0].name)):
            if (executor, kind, batch) not in self._captured:
                executor.capture([(kind, batch)])
                self._captured.add((executor, kind, batch))

    def pictures(self, plan: Plan, conditions: Sequence[Condition], seeds: Sequence[int]) -> Iterator[Tensor]:
        """Pictures [B, H, W, 3], uint8 on the CPU, in order, as they are done; the last batch may be smaller."""
        self.prepare(plan, len(seeds))
        executor = self._executor_for(plan)
        batch = even_batch(len(seeds), self._batch_size)
        parts = [slice(start, start + batch) for start in range(0, len(seeds), batch)]

        def drawn(part: slice) -> list[Picture]:
            return self._pipeline.pictures(conditions[part], seeds[part], plan)

        enqueued: deque[Transfer] = deque()
        for pictures in in_background(drawn, parts, ahead=1):
            offline.run(executor, pictures, plan)
            enqueued.append(executor.collect(pictures))
            if len(enqueued) > BATCHES_AHEAD:
                yield _arrived(enqueued.popleft())
        while enqueued:
            yield _arrived(enqueued.popleft())

    def _executor_for(self, plan: Plan) -> Executor:
        keeps = bool(plan.skips)
        if keeps not in self._executors:
            slots = 2 * self._batch_size
            self._executors[keeps] = open_executor(self._pipeline, num_slots=slots, keeps=keeps)
        return self._executors[keeps]


def even_batch(count: int, largest: int) -> int:
    """The batch size of at most `largest` that spreads `count` over as few batches, evenly.

    >>> even_batch(715, 64)  # 12 batches, the last of 55
    60
    """
    return ceil(count / ceil(count / largest))


def _arrived(transfer: Transfer) -> Tensor:
    samples = transfer.result()
    for sample in samples:
        if not isinstance(sample, Tensor):
            raise sample
    return torch.stack([sample for sample in samples if isinstance(sample, Tensor)])
