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


def with_norms_of(main: Tensor, combined: Tensor, patch: int) -> Tensor:
    """Each square patch of `combined` as long as that of `main`, over all channels: [B, C, H, W] each.

    Guidance of Qwen-Image turns the velocity of a token, which is such a patch, and does not lengthen it.
    """
    wanted, found = _patch_norms(main, patch), _patch_norms(combined, patch)
    factor = wanted / torch.where(found > 0, found, 1)  # [B, 1, H / P, W / P]
    return combined * factor.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def _patch_norms(x: Tensor, patch: int) -> Tensor:
    """x [B, C, H, W] -> [B, 1, H / P, W / P]"""
    squares = x.square().sum(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(squares, patch).sqrt() * patch


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
    norm_patch: int | None = None,
) -> Tensor:
    """One step: x [B, *shape] at t [B] -> x at t + dt [B].

    condition: what the velocity is told, of all B main passes and, where the step is guided, of the B weak ones after
    them. scale: w of equation 3 [B]. Main and weak passes share one call, so that a model's head and tail run once.
    norm_patch: the side of the patches whose norms guidance leaves as the main pass has them, see `with_norms_of`.
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
    if norm_patch is not None and used is not None:
        combined = with_norms_of(main, combined, norm_patch)
    return x + expand_like(dt, x) * combined
