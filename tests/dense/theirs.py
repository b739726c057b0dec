"""How diffusers' own modules are called for one sample, as its pipelines call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Answer = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def of_prx(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    return net(hidden_states=x, timestep=sigma, encoder_hidden_states=states, attention_mask=None).sample


ANSWERS: dict[str, Answer] = {"PRXTransformer2DModel": of_prx}


def their_answer(net: Any, x: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
    """noise - data [1, C, H, W] at x [1, C, H, W] and sigma [1], told the states [1, T, D] of a prompt's tokens."""
    return ANSWERS[type(net).__name__](net, x, sigma, states)
