"""A backbone as the velocity function that the sampler integrates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elit_serve.nn import Backbone
from elit_serve.sampling import Branch, Velocity


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
