"""The rectified-flow objective (paper, equation 1), for training and for validation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.sampling import expand_like


def rectified_flow_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    level: int,
    latent_order: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the velocity at X_t = (1 - t) X_0 + t X_1 against X_1 - X_0.

    data X_1 and noise X_0 [B, *], t [B], condition [B, ...] -> scalar. `latent_order`: see `Backbone.forward`.
    """
    time = expand_like(t, data)
    noisy = (1 - time) * noise + time * data
    extra = {} if latent_order is None else {"latent_order": latent_order}
    velocity = model(noisy, t, condition, level, **extra)
    return F.mse_loss(velocity.float(), data - noise)


def validation_times(count: int, mean: float, std: float, device: torch.device) -> Tensor:
    """`count` evenly spaced quantiles of the logit-normal distribution, so the loss has little noise. -> [count]"""
    quantiles = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count
    return torch.sigmoid(mean + std * torch.special.ndtri(quantiles))
