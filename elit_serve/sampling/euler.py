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


def guided(main: Tensor, apart: Tensor, scale: float | Tensor) -> Tensor:
    """Equation 3, w v_main - (w - 1) v_weak, from v_main and v_main - v_weak [B, *shape]; w is a number or [B, 1, ...].

    Exactly v_main at scale 1 and where both agree.
    """
    return main + (scale - 1) * apart


class Differences(Protocol):
    """How far main and weak velocity of samples are apart, as far as it is kept from one step to the next."""

    def used(self, fresh: Tensor | None) -> Tensor:
        """What guides the present step [B, *shape]. fresh: as this step found it; None has no weak pass."""


def guided_step(
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    dt: Tensor,
    scale: Tensor,
    condition: Any,
    kind: StepKind,
    differences: Differences | None = None,
) -> Tensor:
    """One step: x [B, *shape] at t [B] -> x at t + dt [B].

    condition: what the velocity is told, of all B main passes and, where the step is guided, of the B weak ones after
    them. scale: w of equation 3 [B]. Main and weak passes share one call, so that a model's head and tail run once.
    differences: where they are kept, a step without a weak pass is guided too, by what is kept; at scale 1 it is not.
    """
    fresh: Tensor | None = None
    if kind.weak_level is None:
        main = velocity(x, t, condition, kind.level).to(x.dtype)
    else:
        levels = kind.level if kind.weak_level == kind.level else [kind.level, kind.weak_level]
        main, weak = velocity(torch.cat([x, x]), t.repeat(2), condition, levels).to(x.dtype).chunk(2)
        fresh = main - weak
    used = fresh if differences is None else differences.used(fresh)
    combined = main if used is None else guided(main, used, expand_like(scale, x))
    return x + expand_like(dt, x) * combined
