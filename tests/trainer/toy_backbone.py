"""A third backbone, in one file as those of `nn.backbones` are: one hidden layer, of which a level keeps a part.

Letters: B batch, C x H x W one sample, U hidden units at level 1, L level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from elit_serve.nn import Backbone, BackboneSpec, Flops
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.fields import whole
from elit_serve.nn.reuse import CoreChange

NUM_LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class ToySpec(BackboneSpec):
    """side: of square pictures in pixels. units: hidden ones of each level."""

    kind: ClassVar[str] = "toy"
    side: int = whole(1, 64)
    units: int = whole(1, 1024)
    num_classes: int = whole(1, 1000)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return 3, self.side, self.side

    @property
    def latents_per_group(self) -> int:
        return NUM_LEVELS

    @property
    def num_tokens(self) -> int:
        return NUM_LEVELS

    def flops(self, level: int) -> Flops:
        count = 4.0 * 3 * self.side**2 * self.units * level
        return Flops(prefix=count, all_latents=count)

    def core_flops(self, level: int) -> float:  # noqa: ARG002
        return 0.0


class Toy(Backbone):
    """Velocity from pixels, time and class through the first L * U hidden units."""

    spec: ToySpec

    def __init__(self, spec: ToySpec) -> None:
        super().__init__(spec)
        pixels, hidden = 3 * spec.side**2, NUM_LEVELS * spec.units
        self.up = nn.Linear(pixels + 1, hidden)
        self.classes = nn.Embedding(spec.num_classes + 1, hidden)  # the last one is no class
        self.down = nn.Linear(hidden, pixels)

    def null_like(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, self.spec.num_classes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        assert latent_order is None
        assert not changes
        levels = [level] if isinstance(level, int) else list(level)
        flat = torch.cat([x.flatten(1), t.unsqueeze(1).to(x)], dim=1).to(self.up.weight.dtype)  # [B, C * H * W + 1]
        hidden = torch.tanh(self.up(flat) + self.classes(condition))  # [B, 4 * U]
        if own_levels is None:
            own_levels = torch.tensor(levels, device=x.device).repeat_interleave(len(x) // len(levels))
        is_kept = torch.arange(hidden.shape[1], device=x.device) < self.spec.units * own_levels.unsqueeze(1)
        return self.down(hidden * is_kept).view_as(x)  # [B, C, H, W]


KIND = BackboneKind(spec=ToySpec, module=Toy, tiny=ToySpec(side=16, units=8, num_classes=3))
