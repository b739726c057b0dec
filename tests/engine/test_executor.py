from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from elit_serve.engine.executor.slots import Executor, ImageTask
from elit_serve.engine.executor.step import class_velocity
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import GenerationFailed
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import euler_step, initial_noise
from elit_serve.scheduler.requests import Launch

CCFG = Guidance(method="ccfg", scale=2.0, weak_level=1)
AG = Guidance(method="ag", scale=1.5, weak_level=1)


@pytest.fixture
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture
def executor(pipeline: Pipeline) -> Executor:
    return Executor(pipeline, num_slots=3)


def add(
    executor: Executor,
    pipeline: Pipeline,
    request_id: int,
    *,
    class_id: int = 0,
    num_steps: int = 4,
    guidance: Guidance = CCFG,
) -> None:
    """An image whose seed is its id."""
    executor.add(
        ImageTask.draw(
            request_id=request_id,
            class_id=class_id,
            num_steps=num_steps,
            guidance=guidance,
            time_shift=1.0,
            seed=request_id,
            sample_shape=pipeline.config.spec.sample_shape,
        )
    )


def step(executor: Executor, *request_ids: int, level: int, weak_cap: int | None = 1) -> float:
    kind = StepKind.capped("32x32", level, weak_cap)
    launch = Launch(launch_id=0, request_ids=request_ids, kind=kind, predicted_ms=1.0)
    return executor.launch(launch).wait()


def collected(executor: Executor, *request_ids: int) -> list[Tensor]:
    samples = executor.collect(request_ids).result()
    assert not any(isinstance(sample, GenerationFailed) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Tensor)]


def alone(pipeline: Pipeline, seed: int, plan: Plan, class_id: int = 0) -> Tensor:
    """The same picture from the offline path, uint8 [H, W, 3]."""
    images = pipeline.sample([class_id], [seed], plan)[0]
    return (images * 255).round().to(torch.uint8).permute(1, 2, 0)


def assert_same_picture(left: Tensor, right: Tensor) -> None:
    assert int((left.int() - right.int()).abs().max()) <= 1


def test_images_join_and_leave_a_cohort_between_steps_and_none_notices(executor: Executor, pipeline: Pipeline) -> None:
    add(executor, pipeline, 1)
    step(executor, 1, level=4)
    step(executor, 1, level=4)
    add(executor, pipeline, 2, class_id=2, num_steps=3)
    step(executor, 1, 2, level=2)
    step(executor, 2, 1, level=3)
    (first,) = collected(executor, 1)
    step(executor, 2, level=1)
    (second,) = collected(executor, 2)
    assert_same_picture(first, alone(pipeline, 1, Plan(levels=(4, 4, 2, 3), guidance=CCFG)))
    assert_same_picture(second, alone(pipeline, 2, Plan(levels=(2, 3, 1), guidance=CCFG), class_id=2))


def test_members_keep_their_own_guidance(executor: Executor, pipeline: Pipeline) -> None:
    add(executor, pipeline, 1, class_id=1, num_steps=2, guidance=CCFG)
    add(executor, pipeline, 2, class_id=1, num_steps=2, guidance=AG)  # keeps its class in the weak pass
    for _ in range(2):
        step(executor, 1, 2, level=4)
    first, second = collected(executor, 1, 2)
    assert_same_picture(first, alone(pipeline, 1, Plan(levels=(4, 4), guidance=CCFG), class_id=1))
    assert_same_picture(second, alone(pipeline, 2, Plan(levels=(4, 4), guidance=AG), class_id=1))


def test_steps_outside_the_guidance_interval_have_no_weak_pass(executor: Executor, pipeline: Pipeline) -> None:
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    add(executor, pipeline, 1, num_steps=2, guidance=late)
    step(executor, 1, level=4, weak_cap=None)
    step(executor, 1, level=4)
    (sample,) = collected(executor, 1)
    assert_same_picture(sample, alone(pipeline, 1, Plan(levels=(4, 4), guidance=late)))


def test_an_unguided_step_may_ride_in_a_guided_launch(executor: Executor, pipeline: Pipeline) -> None:
    late = Guidance(method="ccfg", scale=3.0, weak_level=1, interval=(0.5, 1.0))
    add(executor, pipeline, 1, num_steps=2, guidance=late)
    add(executor, pipeline, 2, num_steps=2, guidance=CCFG)
    step(executor, 1, 2, level=4)
    step(executor, 1, 2, level=4)
    rode, _ = collected(executor, 1, 2)
    add(executor, pipeline, 1, num_steps=2, guidance=late)
    step(executor, 1, level=4, weak_cap=None)
    step(executor, 1, level=4)
    (alone,) = collected(executor, 1)
    assert (rode.int() - alone.int()).abs().max() <= 1


def test_a_slot_is_free_again_after_its_image(executor: Executor, pipeline: Pipeline) -> None:
    for request_id in range(3):
        add(executor, pipeline, request_id)
    assert executor.num_free == 0
    executor.remove(1)
    add(executor, pipeline, 7, num_steps=1)
    step(executor, 7, level=4)
    (sample,) = collected(executor, 7)
    assert executor.num_free == 1
    assert_same_picture(sample, alone(pipeline, 7, Plan(levels=(4,), guidance=CCFG)))


def test_a_sample_that_is_not_finite_fails_alone(executor: Executor, pipeline: Pipeline) -> None:
    with torch.inference_mode():
        pipeline.model.class_embed.weight[1] = torch.nan
    for request_id, class_id in ((1, 0), (2, 1)):
        add(executor, pipeline, request_id, class_id=class_id, num_steps=1, guidance=Guidance())
    step(executor, 1, 2, level=4, weak_cap=None)
    whole, broken = executor.collect((1, 2)).result()
    assert isinstance(whole, Tensor)
    assert isinstance(broken, GenerationFailed)


def test_a_model_without_autoencoder_answers_its_latent() -> None:
    pipeline = Pipeline.random("elit-dit-s/2", 64, device="cpu")
    executor = Executor(pipeline, num_slots=1)
    add(executor, pipeline, 1, num_steps=1, guidance=Guidance())
    step(executor, 1, level=1, weak_cap=None)
    (latent,) = collected(executor, 1)
    assert latent.shape == pipeline.config.spec.sample_shape
    assert latent.dtype == torch.float32


def test_random_weights_leave_no_part_of_the_model_at_zero_and_depend_on_the_seed() -> None:
    weights = [Pipeline.random("elit-dit-s/2", 64, device="cpu", seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(bool(tensor.any()) for tensor in weights[0].values())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["final.linear.weight"], weights[2]["final.linear.weight"])


def test_a_preview_is_where_the_last_velocity_leads(executor: Executor, pipeline: Pipeline) -> None:
    """Against the states of Euler's method: x + (1 - t) v with v from t to t + 1/4, and so the picture at the end."""
    plan = Plan(levels=(3,) * 4, guidance=CCFG, time_shift=1.0)
    grid = time_grid(4, 1.0)
    velocity = class_velocity(pipeline.model, torch.tensor([0]))
    x = initial_noise([1], pipeline.config.spec.sample_shape)
    for request_id in (1, 2):
        add(executor, pipeline, request_id)
    shown = []
    for number in range(4):
        with torch.inference_mode():
            moved = euler_step(velocity, x, plan, grid, number)
            heading = x + (1 - grid[number]) * (moved - x) / (grid[number + 1] - grid[number])
        executor.watch([2, 1])
        step(executor, 1, 2, level=3)
        _, preview = executor.preview([2, 1]).result()
        assert isinstance(preview, Tensor)
        assert_same_picture(preview, pipeline.decode(heading)[0])
        shown.append(preview)
        x = moved
    assert int((shown[0].int() - shown[1].int()).abs().max()) > 1
    (sample,) = collected(executor, 1)
    assert_same_picture(shown[-1], sample)
    assert_same_picture(sample, alone(pipeline, 1, plan))
