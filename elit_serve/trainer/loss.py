"""The rectified-flow objective (paper, equation 1), for training and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn import Backbone
from elit_serve.sampling import expand_like


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that does not learn, and how much its velocity counts beside that of the data."""

    model: Backbone
    scale: float

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """At its highest level, in the precision of its weights.

        x [B, *], t [B], condition [B, ...] -> [B, *] float32
        """
        with torch.autocast(x.device.type, enabled=False):
            velocity: Tensor = self.model(x, t, condition, self.model.spec.levels[-1])
        return velocity.float()


def rectified_flow_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    level: int | Sequence[int],
    latent_order: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the velocity at X_t = (1 - t) X_0 + t X_1 against X_1 - X_0.

    data X_1 and noise X_0 [B, *], t [B], condition [B, ...] -> scalar. `level`, `latent_order`: see `Backbone.forward`.
    """
    velocity = _velocity(model, data, noise, t, condition, level, latent_order)
    return F.mse_loss(velocity, data - noise)


def taught_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    level: int | Sequence[int],
    latent_order: Tensor | None = None,
    *,
    teacher: Teacher,
) -> tuple[Tensor, Tensor]:
    """`rectified_flow_loss`, and the mean squared distance of the same velocity to the teacher's: two scalars."""
    velocity = _velocity(model, data, noise, t, condition, level, latent_order)
    taught = teacher.velocity(_at(t, data, noise), t, condition)
    return F.mse_loss(velocity, data - noise), F.mse_loss(velocity, taught)


def distilled_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    levels: Sequence[int],
    latent_order: Tensor | None = None,
) -> Tensor:
    """`rectified_flow_loss` of the first half of the samples at the first of two levels, and beside it the mean squared
    error of the same samples at the second against what the first predicts; the mean of both.
    """
    data, noise, t, condition = (_first_half_twice(part) for part in (data, noise, t, condition))
    teacher, student = _velocity(model, data, noise, t, condition, levels, latent_order).chunk(2)
    half = len(teacher)
    return (F.mse_loss(teacher, data[:half] - noise[:half]) + F.mse_loss(student, teacher.detach())) / 2


def _velocity(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    level: int | Sequence[int],
    latent_order: Tensor | None,
) -> Tensor:
    """The model's, in float32, at X_t = (1 - t) X_0 + t X_1."""
    extra = {} if latent_order is None else {"latent_order": latent_order}
    velocity: Tensor = model(_at(t, data, noise), t, condition, level, **extra)
    return velocity.float()


def _at(t: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    """X_t. [B, *]"""
    time = expand_like(t, data)
    return (1 - time) * noise + time * data


def _first_half_twice(part: Tensor) -> Tensor:
    half = part[: len(part) // 2]
    return torch.cat([half, half])


def validation_times(count: int, mean: float, std: float, device: torch.device) -> Tensor:
    """`count` evenly spaced quantiles of the logit-normal distribution, so the loss has little noise. -> [count]"""
    quantiles = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count
    return torch.sigmoid(mean + std * torch.special.ndtri(quantiles))
