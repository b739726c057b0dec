"""Pictures side by side on a device, against Euler's method written out for one of them alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import GenerationFailed
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise

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
    seed: int,
    *,
    class_id: int = 0,
    num_steps: int = 4,
    guidance: Guidance = CCFG,
) -> Picture:
    plan = Plan(levels=(max(pipeline.config.levels),) * num_steps, guidance=guidance)
    (picture,) = pipeline.pictures([pipeline.conditions[class_id]], [seed], plan)
    executor.add(picture)
    return picture


def step(executor: Executor, *pictures: Picture, level: int, weak_level: int | None = 1) -> float:
    return offline.advance(executor, pictures, StepKind(pictures[0].shape, level, weak_level)).wait()


def collected(executor: Executor, *pictures: Picture) -> list[Tensor]:
    samples = executor.collect(pictures).result()
    assert not any(isinstance(sample, GenerationFailed) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Tensor)]


@torch.inference_mode()
def states(pipeline: Pipeline, seed: int, plan: Plan, class_id: int = 0) -> list[Tensor]:
    """Before the first step, and after each: [1, C, H, W]."""
    x = initial_noise([seed], pipeline.shapes[0].size)
    given, none = torch.tensor([class_id]), torch.tensor([len(pipeline.config.classes)])
    grid, guidance, found = time_grid(plan.num_steps, plan.time_shift), plan.guidance, [x]
    for level, t, t_next in zip(plan.levels, grid, grid[1:], strict=False):
        at = torch.tensor([t])
        velocity = pipeline.model(x, at, given, level)
        if guidance.method != "none" and guidance.interval[0] <= t <= guidance.interval[1]:
            weak_level = level if guidance.method == "cfg" else min(guidance.weak_level, level)
            weak = pipeline.model(x, at, given if guidance.method == "ag" else none, weak_level)
            velocity = guidance.scale * velocity - (guidance.scale - 1) * weak
        x = x + (t_next - t) * velocity
        found.append(x)
    return found


def alone(pipeline: Pipeline, seed: int, plan: Plan, class_id: int = 0) -> Tensor:
    """uint8 [H, W, 3]"""
    return pipeline.decode(states(pipeline, seed, plan, class_id)[-1])[0]


def assert_same_picture(left: Tensor, right: Tensor) -> None:
    assert int((left.int() - right.int()).abs().max()) <= 1


def test_pictures_join_and_leave_between_steps_and_none_notices(executor: Executor, pipeline: Pipeline) -> None:
    one = add(executor, pipeline, 1)
    step(executor, one, level=4)
    step(executor, one, level=4)
    other = add(executor, pipeline, 2, class_id=2, num_steps=3)
    step(executor, one, other, level=2)
    step(executor, other, one, level=3)
    (first,) = collected(executor, one)
    step(executor, other, level=1)
    (second,) = collected(executor, other)
    assert_same_picture(first, alone(pipeline, 1, Plan(levels=(4, 4, 2, 3), guidance=CCFG)))
    assert_same_picture(second, alone(pipeline, 2, Plan(levels=(2, 3, 1), guidance=CCFG), class_id=2))


def test_members_keep_their_own_guidance(executor: Executor, pipeline: Pipeline) -> None:
    one = add(executor, pipeline, 1, class_id=1, num_steps=2, guidance=CCFG)
    other = add(executor, pipeline, 2, class_id=1, num_steps=2, guidance=AG)  # keeps its class in the weak pass
    for _ in range(2):
        step(executor, one, other, level=4)
    first, second = collected(executor, one, other)
    assert_same_picture(first, alone(pipeline, 1, Plan(levels=(4, 4), guidance=CCFG), class_id=1))
    assert_same_picture(second, alone(pipeline, 2, Plan(levels=(4, 4), guidance=AG), class_id=1))


def test_steps_outside_the_guidance_interval_have_no_weak_pass(executor: Executor, pipeline: Pipeline) -> None:
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    picture = add(executor, pipeline, 1, num_steps=2, guidance=late)
    step(executor, picture, level=4, weak_level=None)
    step(executor, picture, level=4)
    (sample,) = collected(executor, picture)
    assert_same_picture(sample, alone(pipeline, 1, Plan(levels=(4, 4), guidance=late)))


def test_an_unguided_step_may_ride_in_a_guided_launch(executor: Executor, pipeline: Pipeline) -> None:
    late = Guidance(method="ccfg", scale=3.0, weak_level=1, interval=(0.5, 1.0))
    one = add(executor, pipeline, 1, num_steps=2, guidance=late)
    other = add(executor, pipeline, 2, num_steps=2, guidance=CCFG)
    step(executor, one, other, level=4)
    step(executor, one, other, level=4)
    rode, _ = collected(executor, one, other)
    assert_same_picture(rode, alone(pipeline, 1, Plan(levels=(4, 4), guidance=late)))


def test_a_mixed_launch_moves_each_picture_at_its_own_level(executor: Executor, pipeline: Pipeline) -> None:
    """Their guidance is their own too, and the weak pass of each at min(2, its level)."""
    ccfg, ag, late = (
        Guidance(method="ccfg", scale=2.0, weak_level=2),
        Guidance(method="ag", scale=1.5, weak_level=2),
        Guidance(method="ccfg", scale=3.0, weak_level=2, interval=(0.5, 1.0)),
    )
    plans = [
        Plan(levels=(1, 2), guidance=ccfg),
        Plan(levels=(4, 3), guidance=ag),
        Plan(levels=(3, 1), guidance=late),
    ]
    pictures = [add(executor, pipeline, seed, num_steps=2, guidance=plan.guidance) for seed, plan in enumerate(plans)]
    for number, level in enumerate((4, 3)):
        kind = StepKind("32x32", level, 2, is_mixed=True)
        offline.advance(executor, pictures, kind, [plan.levels[number] for plan in plans])
    assert [tuple(picture.levels) for picture in pictures] == [plan.levels for plan in plans]
    for made, (seed, plan) in zip(executor.samples(pictures), enumerate(plans), strict=True):
        torch.testing.assert_close(made, states(pipeline, seed, plan)[-1][0], atol=2e-5, rtol=1e-4)


def test_an_unguided_launch_may_be_mixed(executor: Executor, pipeline: Pipeline) -> None:
    plans = [Plan(levels=(level,) * 2) for level in (2, 3)]
    pictures = [add(executor, pipeline, seed, num_steps=2, guidance=Guidance()) for seed in range(2)]
    for _ in range(2):
        offline.advance(executor, pictures, StepKind("32x32", 3, is_mixed=True), [2, 3])
    for made, (seed, plan) in zip(executor.samples(pictures), enumerate(plans), strict=True):
        torch.testing.assert_close(made, states(pipeline, seed, plan)[-1][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [Guidance(), CCFG, AG, Guidance(method="cfg", scale=3.0)])
def test_the_offline_path_makes_the_same_pictures(guidance: Guidance, pipeline: Pipeline) -> None:
    plan = Plan(levels=(2, 4, 3, 4), guidance=guidance)
    done: list[int] = []
    pictures = pipeline.run([pipeline.conditions[2], pipeline.conditions[0]], [5, 6], plan, done.append)
    made = torch.frombuffer(bytearray(pictures[0].image.tobytes()), dtype=torch.uint8).view(32, 32, 3)
    assert_same_picture(made, alone(pipeline, 5, plan, class_id=2))
    assert done == [1, 2, 3, 4]


def test_pictures_of_several_shapes_are_made_side_by_side(pipeline: Pipeline) -> None:
    shapes = (pipeline.shapes[0], Shape.of((3, 16, 24)))
    model = offline.BareModel(
        model=pipeline.model, device=pipeline.device, conditions=pipeline.conditions, shapes=shapes
    )
    executor, plan = Executor(model, num_slots=4), Plan(levels=(4, 2, 4), guidance=CCFG)
    made = {}
    for seed, shape in enumerate(shapes):
        made[shape] = offline.pictures_of(
            pipeline.conditions[:2], [seed, seed], plan, shape, initial_noise([seed, seed], shape.size)
        )
        for picture in made[shape]:
            executor.add(picture)
    for step in range(plan.num_steps):
        for shape in shapes:
            offline.advance(executor, made[shape], plan.step_kinds(shape.name)[step])
    for shape in shapes:
        samples = executor.samples(made[shape])
        seeds = [picture.seed for picture in made[shape]]
        alone = offline.samples_of(replace(model, shapes=(shape,)), pipeline.conditions[:2], seeds, plan, shape)
        assert samples.shape == (2, *shape.size)
        torch.testing.assert_close(samples, alone)


def test_a_slot_is_free_again_after_its_picture(executor: Executor, pipeline: Pipeline) -> None:
    pictures = [add(executor, pipeline, seed) for seed in range(3)]
    assert executor.num_free == 0
    executor.remove(pictures[1])
    late = add(executor, pipeline, 7, num_steps=1)
    step(executor, late, level=4)
    (sample,) = collected(executor, late)
    assert executor.num_free == 1
    assert_same_picture(sample, alone(pipeline, 7, Plan(levels=(4,), guidance=CCFG)))


def test_a_sample_that_is_not_finite_fails_alone(executor: Executor, pipeline: Pipeline) -> None:
    with torch.inference_mode():
        pipeline.model.class_embed.weight[1] = torch.nan
    one = add(executor, pipeline, 1, class_id=0, num_steps=1, guidance=Guidance())
    other = add(executor, pipeline, 2, class_id=1, num_steps=1, guidance=Guidance())
    step(executor, one, other, level=4, weak_level=None)
    whole, broken = executor.collect([one, other]).result()
    assert isinstance(whole, Tensor)
    assert isinstance(broken, GenerationFailed)


def test_a_model_without_autoencoder_answers_its_latent() -> None:
    pipeline = Pipeline.random("elit-dit-s/2", 64, device="cpu")
    executor = Executor(pipeline, num_slots=1)
    picture = add(executor, pipeline, 1, num_steps=1, guidance=Guidance())
    step(executor, picture, level=1, weak_level=None)
    (latent,) = collected(executor, picture)
    assert latent.shape == pipeline.shapes[0].size
    assert latent.dtype == torch.float32


def test_random_weights_leave_no_part_of_the_model_at_zero_and_depend_on_the_seed() -> None:
    weights = [Pipeline.random("elit-dit-s/2", 64, device="cpu", seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(bool(tensor.any()) for tensor in weights[0].values())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["final.linear.weight"], weights[2]["final.linear.weight"])


def test_a_preview_is_where_the_last_velocity_leads(executor: Executor, pipeline: Pipeline) -> None:
    """x + (1 - t) v with v from t to t + 1/4, and so the picture at the end."""
    plan = Plan(levels=(3,) * 4, guidance=CCFG)
    grid, path = time_grid(4), states(pipeline, 1, plan)
    one, other = (add(executor, pipeline, seed) for seed in (1, 2))
    shown = []
    for number in range(4):
        executor.watch([other, one])
        step(executor, one, other, level=3)
        _, preview = executor.preview([other, one]).result()
        heading = path[number] + (1 - grid[number]) * (path[number + 1] - path[number]) / 0.25
        assert isinstance(preview, Tensor)
        assert_same_picture(preview, pipeline.decode(heading)[0])
        shown.append(preview)
    assert int((shown[0].int() - shown[1].int()).abs().max()) > 1
    (sample,) = collected(executor, one)
    assert_same_picture(shown[-1], sample)
    assert_same_picture(sample, alone(pipeline, 1, plan))
