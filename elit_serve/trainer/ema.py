"""The exponential moving average of the weights: what is validated, sampled and exported."""

from __future__ import annotations

import copy

import torch

from elit_serve.nn import Backbone
from elit_serve.trainer.sharding import own_rows


class Ema:
    """A second model whose weights follow the first's. Its decay warms up, so early steps do not linger."""

    def __init__(self, model: Backbone, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Backbone, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [own_rows(average.detach()) for average in self.model.parameters()]
        torch._foreach_lerp_(averages, [own_rows(weight.detach()) for weight in model.parameters()], 1 - decay)
