"""Steps that use again what earlier ones computed, against Euler's method written out for one picture alone."""

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
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise

CCFG = Guidance(method="ccfg", scale=2.5, weak_level=1)
CFG = Guidance(method="cfg", scale=2.5)
LATE = replace(CCFG, interval=(0.3, 1.0))


@pytest.fixture
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@torch.inference_mode()
def alone(pipeline: Pipeline, seed: int, plan: Plan, class_id: int = 0) -> Tensor:
    """[1, C, H, W]: each pass by itself, with what its core changed last."""
    x = initial_noise([seed], pipeline.shapes[0].size)
    given, none = torch.tensor([class_id]), torch.tensor([len(pipeline.config.classes)])
    kept: dict[str, CoreChange] = {}
    apart = torch.zeros_like(x)

    def velocity(name: str, t: float, condition: Tensor, level: int, step: int) -> Tensor:
        if step not in plan.skips.core:
            kept[name] = CoreChange(levels=torch.tensor([level]))
            return pipeline.model(x, torch.tensor([t]), condition, level, changes=[kept[name]])
        computed_at = int(kept[name].levels)  # type: ignore[arg-type]
        return pipeline.model(x, torch.tensor([t]), condition, computed_at, changes=[kept[name]])

    for step, (t, t_next, level) in enumerate(zip(plan.times, plan.times[1:], plan.levels, strict=False)):
        main = velocity("main", t, given, level, step)
        if plan.is_guided[step] and step not in plan.skips.weak:
            weak_level = plan.guidance.weak_level_at(level)
            apart = main - velocity("weak", t, none, weak_level, step)
        scale = plan.guidance.scale if plan.is_guided[step] else 1.0
        x = x + (t_next - t) * (main + (scale - 1) * apart)
    return x


def made(pipeline: Pipeline, seeds: list[int], plan: Plan) -> Tensor:
    conditions = [pipeline.conditions[0]] * len(seeds)
    return offline.samples_of(pipeline, conditions, seeds, plan, pipeline.shapes[0])


PLANS = {
    "cores": Plan(levels=(4,) * 6, guidance=CCFG, skips=Skips(core=(1, 2, 4))),
    "cores without guidance": Plan(levels=(3,) * 4, skips=Skips(core=(1, 2))),
    "cores of equal passes": Plan(levels=(2,) * 4, guidance=CFG, skips=Skips(core=(1, 2))),
    "cores in an interval": Plan(levels=(4,) * 6, guidance=LATE, skips=Skips(core=(1, 3, 4))),
    "weak passes": Plan(levels=(4,) * 6, guidance=CCFG, skips=Skips(weak=(1, 3, 5))),
    "both": Plan(levels=(4,) * 6, guidance=CCFG, skips=Skips(core=(1, 3, 4), weak=(1, 2, 4))),
    "levels that change meanwhile": Plan(levels=(2, 4, 3, 3, 1, 4), guidance=CCFG, skips=Skips(core=(1, 3, 4))),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_picture_that_skips_is_made_as_it_is_written_out(pipeline: Pipeline, name: str) -> None:
    plan = PLANS[name]
    one, other = made(pipeline, [3, 8], plan)
    torch.testing.assert_close(one, alone(pipeline, 3, plan)[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(other, alone(pipeline, 8, plan)[0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(one, made(pipeline, [3], replace(plan, skips=Skips()))[0], atol=1e-3)


def test_what_is_kept_changes_no_step_that_skips_nothing(pipeline: Pipeline) -> None:
    plan = Plan(levels=(4, 2, 4), guidance=CCFG)
    executor = Executor(pipeline, num_slots=1, keeps=True)
    (picture,) = pipeline.pictures([pipeline.conditions[0]], [5], plan)
    offline.run(executor, [picture], plan)
    assert torch.equal(executor.samples([picture]), made(pipeline, [5], plan))


def test_pictures_of_several_plans_skip_side_by_side_and_none_notices(pipeline: Pipeline) -> None:
    """In one launch: one that skips weak passes rides with others that have theirs, and cores were computed at
    different levels."""
    skipping = Plan(levels=(4,) * 4, guidance=CCFG, skips=Skips(core=(2,), weak=(1, 2)))
    lower = Plan(levels=(2, 2, 2, 4), guidance=CCFG, skips=Skips(core=(2,)))
    executor = Executor(pipeline, num_slots=2, keeps=True)
    ((one,), (other,)) = (
        pipeline.pictures([pipeline.conditions[0]], [seed], plan) for seed, plan in ((1, skipping), (2, lower))
    )
    executor.add(one)
    executor.add(other)
    launches: list[tuple[list[Picture], StepKind]] = [
        ([one], StepKind("32x32", 4, 1)),
        ([other], StepKind("32x32", 2, 1)),
        ([one], StepKind("32x32", 4, 1)),  # a launch with a weak pass, of which it uses nothing
        ([other], StepKind("32x32", 2, 1)),
        ([one, other], StepKind("32x32", 1, 1, is_skipped=True)),
        ([one, other], StepKind("32x32", 4, 1)),
    ]
    for pictures, kind in launches:
        offline.advance(executor, pictures, kind)
    torch.testing.assert_close(executor.samples([one]), alone(pipeline, 1, skipping), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(executor.samples([other]), alone(pipeline, 2, lower), atol=2e-5, rtol=1e-4)


def test_a_step_skips_what_it_kept_in_a_mixed_launch(pipeline: Pipeline) -> None:
    """Each picture keeps what changed at its own level; one without a weak pass of its own keeps what it had."""
    low, high, riding = (
        Plan(levels=(1, 2, 2, 4, 4), guidance=CCFG, skips=Skips(core=(2, 4))),
        Plan(levels=(4, 3, 3, 2, 4), guidance=CCFG, skips=Skips(core=(2, 4))),
        Plan(levels=(2, 4, 4, 3, 4), guidance=CCFG, skips=Skips(core=(2, 4), weak=(3,))),
    )
    executor = Executor(pipeline, num_slots=3, keeps=True)
    plans = [low, high, riding]
    pictures = [pipeline.pictures([pipeline.conditions[0]], [seed], plan)[0] for seed, plan in enumerate(plans)]
    for picture in pictures:
        executor.add(picture)
    skipping, mixed = StepKind("32x32", 4, 1, is_skipped=True), StepKind("32x32", 4, 1, is_mixed=True)
    for number, kind in enumerate([mixed, mixed, skipping, mixed, skipping]):
        offline.advance(executor, pictures, kind, [plan.levels[number] for plan in plans])
    for seed, plan in enumerate(plans):
        made = executor.samples([pictures[seed]])
        torch.testing.assert_close(made, alone(pipeline, seed, plan), atol=2e-5, rtol=1e-4)


def test_a_slot_keeps_nothing_of_the_picture_before(pipeline: Pipeline) -> None:
    broken = Plan(levels=(4, 4), guidance=CCFG, skips=Skips(core=(1,)))
    executor = Executor(pipeline, num_slots=1, keeps=True)
    (picture,) = pipeline.pictures([pipeline.conditions[0]], [1], broken)
    picture.noise = picture.noise * torch.nan
    offline.run(executor, [picture], broken)
    executor.collect([picture])
    plan = Plan(levels=(4, 4, 4), guidance=LATE, skips=Skips(core=(2,)))
    (after,) = pipeline.pictures([pipeline.conditions[0]], [2], plan)
    executor.add(after)
    for kind in (StepKind("32x32", 4), StepKind("32x32", 4, 1), StepKind("32x32", 4, 1, is_skipped=True)):
        offline.advance(executor, [after], kind)
    torch.testing.assert_close(executor.samples([after]), alone(pipeline, 2, plan), atol=2e-5, rtol=1e-4)


def test_an_executor_that_keeps_nothing_takes_no_picture_that_skips(pipeline: Pipeline) -> None:
    (picture,) = pipeline.pictures([pipeline.conditions[0]], [1], PLANS["cores"])
    with pytest.raises(AssertionError, match="nobody keeps"):
        Executor(pipeline, num_slots=1).add(picture)
