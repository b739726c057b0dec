"""Pictures whose plans are known, made without a scheduler: all of them at once, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elit_serve.engine.conditions import Condition, Conditions
from elit_serve.engine.executor.slots import AnyExecutor, Drawing, Executor, RunningStep
from elit_serve.engine.picture import Picture
from elit_serve.nn import Backbone
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise


@dataclass(frozen=True, kw_only=True)
class BareModel:
    """A model with no pipeline around it, as training has one: what it answers are its samples. See `Drawing`."""

    model: Backbone
    device: torch.device
    conditions: Conditions
    shapes: tuple[Shape, ...]

    def decode(self, samples: Tensor) -> Tensor:
        return samples.float()

    preview = decode


def pictures_of(
    conditions: Sequence[Condition], seeds: Sequence[int], plan: Plan, shape: Shape, noise: Tensor
) -> list[Picture]:
    """One for each condition, seed and noise [B, *shape], to be made under one plan."""
    return [
        Picture.of_plan(index, plan, condition=condition, shape=shape.name, seed=seed, noise=noise[index])
        for index, (condition, seed) in enumerate(zip(conditions, seeds, strict=True))
    ]


def samples_of(
    drawing: Drawing,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    plan: Plan,
    shape: Shape,
    *,
    after_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Samples of one of the drawing's shapes, one for each condition and seed. [B, *shape], float32, on its device"""
    executor = Executor(drawing, num_slots=len(seeds), keeps=bool(plan.skips))
    pictures = pictures_of(conditions, seeds, plan, shape, initial_noise(seeds, shape.size))
    run(executor, pictures, plan, after_step=after_step)
    return executor.samples(pictures)


def advance(
    executor: AnyExecutor, pictures: Sequence[Picture], kind: StepKind, levels: Sequence[int] | None = None
) -> RunningStep:
    """Decides and launches one step of pictures that nobody schedules. levels: one for each; None is the kind's."""
    for picture, level in zip(pictures, levels or [kind.level] * len(pictures), strict=True):
        assert not picture.has_caller, "a scheduler decides the steps of this picture"
        picture.progress.take(level)
    return executor.launch(pictures, kind)


def run(
    executor: Executor,
    pictures: Sequence[Picture],
    plan: Plan,
    *,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """All steps of pictures of one shape and plan, which the executor gives slots; they keep these.

    before_step, after_step: called with the number of steps that have run, or on a GPU are on their way.
    """
    executor.add(*pictures)
    for step, kind in enumerate(plan.step_kinds(pictures[0].shape)):
        if before_step is not None:
            before_step(step)
        advance(executor, pictures, kind)
        if after_step is not None:
            after_step(step + 1)
