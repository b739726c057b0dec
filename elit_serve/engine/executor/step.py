"""A backbone as what a sampler needs: velocities of a batch, or one guided step of it. Letters: B batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elit_serve.nn import Backbone
from elit_serve.plans.plan import Branch
from elit_serve.sampling import Velocity, guided


def class_velocity(model: Backbone, labels: Tensor) -> Velocity:
    """The velocity of `model` for class labels [B]; all branches of a step share one call, so one head and tail."""
    null = torch.full_like(labels, model.null_class)

    def velocity(x: Tensor, t: float, branches: Sequence[Branch]) -> Sequence[Tensor]:
        levels = [branch.level for branch in branches]
        level = levels[0] if len(set(levels)) == 1 else levels
        count = len(branches)
        label = torch.cat([null if branch.class_dropped else labels for branch in branches])
        times = torch.full((count * len(x),), t, device=x.device)
        velocities: Tensor = model(x.repeat(count, 1, 1, 1), times, label, level)
        return velocities.float().chunk(count)

    return velocity


def guided_step(
    model: Backbone,
    x: Tensor,
    t: Tensor,
    dt: Tensor,
    scale: Tensor,
    label: Tensor,
    weak_label: Tensor,
    *,
    level: int,
    weak_level: int | None,
) -> Tensor:
    """One Euler step of samples that are each at a time of their own: x [B, C, H, W] at t [B] -> x at t + dt [B].

    Guided (equation 3) with scale w [B] by a pass for weak_label [B] at `weak_level`; for None there is no such pass.
    `sampling.euler_step` is the same for samples that share their time and guidance.
    """
    velocity: Tensor
    if weak_level is None:
        velocity = model(x, t, label, level).float()
    else:
        levels = level if level == weak_level else [level, weak_level]
        both = model(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([label, weak_label]), levels).float()
        main, weak = both.chunk(2)
        velocity = guided(main, weak, scale.view(-1, 1, 1, 1))
    moved: Tensor = x + dt.view(-1, 1, 1, 1) * velocity
    return moved
