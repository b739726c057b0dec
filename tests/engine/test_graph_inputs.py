"""What captured steps read, where the device is many launches behind its host."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from elit_serve.engine.executor import graphs, offline
from elit_serve.engine.executor.graphs import PAGES, GraphExecutor
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.sampling import initial_noise

LAUNCHES = 5 * PAGES


class Behind:
    """A device that copies nothing before somebody waits for it."""

    def __init__(self) -> None:
        self.asked: deque[Tensor | Copied] = deque()
        self.arrived: list[Tensor] = []

    def copy_(self, page: Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        self.asked.append(page)

    def run_until(self, event: Copied) -> None:
        while not event.is_done:
            next_one = self.asked.popleft()
            if isinstance(next_one, Tensor):
                self.arrived.append(next_one.clone())
            else:
                next_one.is_done = True


class Copied:
    """An event of that device."""

    def __init__(self, device: Behind) -> None:
        self.device, self.is_done = device, False

    def record(self) -> None:
        self.device.asked.append(self)

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.device.run_until(self)


def test_a_launch_gets_its_own_inputs_however_far_behind_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_pinned", torch.zeros)
    inputs, device = graphs._GraphInputs(2, torch.device("cpu")), Behind()
    monkeypatch.setattr(inputs, "on_device", device)
    asked = [np.full((8, 2), number, np.float32) for number in range(LAUNCHES)]
    for each in asked:
        event = Copied(device)
        inputs.put(each, copied=event)
    assert len(device.arrived) >= LAUNCHES - PAGES, "it waited for no more than it had to"
    event.synchronize()
    assert [arrived.tolist() for arrived in device.arrived] == [each.tolist() for each in asked]


@pytest.mark.gpu
def test_a_plan_of_many_steps_that_nobody_waits_for_makes_the_same_picture(shared_tiny_model_dir: Path) -> None:
    pipeline = Pipeline.load(shared_tiny_model_dir, device="cuda", dtype="float32")
    plan = Plan(levels=(4,) * LAUNCHES, guidance=Guidance(method="ccfg", scale=2.0, weak_level=1))
    noise, condition = initial_noise([7], pipeline.shapes[0].size), pipeline.conditions[0]
    made, samples = [], []
    for executor in (Executor(pipeline, num_slots=1), GraphExecutor(pipeline, num_slots=1)):
        if isinstance(executor, GraphExecutor):
            executor.capture([(kind, 1) for kind in set(plan.step_kinds(pipeline.shapes[0].name))])
            with torch.cuda.stream(executor._steps):
                torch.cuda._sleep(1_000_000_000)  # for half a second, in which all steps are enqueued
        pictures = offline.pictures_of([condition], [7], plan, pipeline.shapes[0], noise)
        offline.run(executor, pictures, plan)
        samples.append(executor.samples(pictures))  # from a stream of its own, with all steps still to come
        (sample,) = executor.collect(pictures).result()
        assert isinstance(sample, Tensor)
        made.append(sample.float())
    torch.testing.assert_close(samples[1], samples[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(made[1], made[0], atol=1.5, rtol=0)  # of 255
