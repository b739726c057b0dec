"""Many pictures of one plan as fast as the engine makes them: batches in lock step, some enqueued ahead.

While the device runs them, a thread draws the noise of the next, and the host takes the pictures of the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor

from elit_serve.engine.executor.graphs import open_executor
from elit_serve.engine.executor.slots import ImageTask, Transfer
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import StepSet
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.runs.background import in_background
from elit_serve.plans.grid import time_grid
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise
from elit_serve.scheduler.requests import Launch

Step = tuple[int, int | None]  # level, level of the weak pass or None


BATCHES_AHEAD = 2  # enqueued on the device, beside the one whose pictures the host waits for


class Sampler:
    """Owns an executor. Graphs are captured when a plan first needs them, and kept."""

    def __init__(self, pipeline: Pipeline, *, batch_size: int) -> None:
        if batch_size < 1:
            raise InvalidInput("batch_size", batch_size, "at least 1")
        self._pipeline = pipeline
        self._batch_size = batch_size
        self._executor = open_executor(pipeline, num_slots=2 * batch_size)
        self._captured: set[tuple[Step, int]] = set()

    def prepare(self, plan: Plan, num_samples: int) -> None:
        """Captures the steps of `plan` that have not been; nothing may run on the device meanwhile."""
        batch = even_batch(num_samples, self._batch_size)
        for step in dict.fromkeys(steps_of(plan)):
            if (step, batch) not in self._captured:
                level, weak_level = step
                caps = (weak_level,)
                self._executor.capture(StepSet(levels=(level,), weak_caps=caps, captured_caps=caps, batches=(batch,)))
                self._captured.add((step, batch))

    def pictures(self, plan: Plan, class_ids: Sequence[int], seeds: Sequence[int]) -> Iterator[Tensor]:
        """Pictures [B, H, W, 3], uint8 on the CPU, in order, as they are done; the last batch may be smaller."""
        self.prepare(plan, len(seeds))
        batch = even_batch(len(seeds), self._batch_size)
        parts = [slice(start, start + batch) for start in range(0, len(seeds), batch)]
        noises = in_background(self._noise, [seeds[part] for part in parts], ahead=1)
        enqueued: deque[Transfer] = deque()
        for part, noise in zip(parts, noises, strict=True):
            enqueued.append(self._enqueue(plan, class_ids[part], seeds[part], noise))
            if len(enqueued) > BATCHES_AHEAD:
                yield _arrived(enqueued.popleft())
        while enqueued:
            yield _arrived(enqueued.popleft())

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        noise = initial_noise(seeds, self._pipeline.config.spec.sample_shape)
        return noise.pin_memory() if self._executor.is_asynchronous else noise  # else each copy would wait for steps

    def _enqueue(self, plan: Plan, class_ids: Sequence[int], seeds: Sequence[int], noise: Tensor) -> Transfer:
        """All steps of one batch, and its decoding."""
        for index, class_id in enumerate(class_ids):
            task = ImageTask(
                request_id=seeds[index],
                class_id=class_id,
                num_steps=plan.num_steps,
                guidance=plan.guidance,
                time_shift=plan.time_shift,
                noise=noise[index],
            )
            self._executor.add(task)
        for level, weak_level in steps_of(plan):
            kind = StepKind(Shape.of(noise.shape[1:]).name, level, weak_level)
            launch = Launch(launch_id=0, request_ids=tuple(seeds), kind=kind, predicted_ms=0.0)
            self._executor.launch(launch)
        return self._executor.collect(seeds)


def steps_of(plan: Plan) -> list[Step]:
    """(level, weak level) of every step; the weak level is None where guidance does not apply."""
    steps: list[Step] = []
    for step, t in enumerate(time_grid(plan.num_steps, plan.time_shift)[:-1]):
        main, *weak = plan.branches(step, t)
        steps.append((main.level, weak[0].level if weak else None))
    return steps


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
