"""Euler's method along the velocity field, with guidance, for samples that are each at a time of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling.shapes import expand_like


class Velocity(Protocol):
    """The model as the sampler sees it."""

    def __call__(self, x: Tensor, t: Tensor, condition: Any, level: int | Sequence[int], /) -> Tensor:
        """x [B, *shape] at t [B], B conditions -> velocity [B, *shape]; of S levels each goes for B / S in a row."""


def guided(main: Tensor, weak: Tensor, scale: float | Tensor) -> Tensor:
    """Equation 3, w v_main - (w - 1) v_weak, from velocities [B, *shape]; w is `scale`, a number or [B, 1, ...].

    Exactly v_main at scale 1 and where both agree.
    """
    return main + (scale - 1) * (main - weak)


def guided_step(
    velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, scale: Tensor, condition: Any, kind: StepKind
) -> Tensor:
    """One step: x [B, *shape] at t [B] -> x at t + dt [B].

    condition: what the velocity is told, of all B main passes and, where the step is guided, of the B weak ones after
    them. scale: w of equation 3 [B]. Main and weak passes share one call, so that a model's head and tail run once.
    """
    if kind.weak_level is None:
        combined = velocity(x, t, condition, kind.level).to(x.dtype)
    else:
        levels = kind.level if kind.weak_level == kind.level else [kind.level, kind.weak_level]
        main, weak = velocity(torch.cat([x, x]), t.repeat(2), condition, levels).to(x.dtype).chunk(2)
        combined = guided(main, weak, expand_like(scale, x))
    return x + expand_like(dt, x) * combined
