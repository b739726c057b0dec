"""ELIT-HDiT: an HDiT whose down- and up-sampling is inside the core, over latents of one group (paper, section 4.2).

Letters: G groups, J latents per group, L level, Q quads of latents in a group (L / 4, rounded up), D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.elit import Elit, ElitSpec, elit_preset_fields, tiny_elit_fields
from elit_serve.nn.backbones.hdit import (
    QUAD,
    WIDE,
    Down,
    HDiTSpec,
    Up,
    check_wide,
    hourglass_blocks,
    hourglass_flops,
    run_hourglass,
)
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.transformer import PRESETS, Layout
from elit_serve.nn.fields import whole
from elit_serve.nn.fused import Residual
from elit_serve.nn.kept import Kept


@dataclass(frozen=True, kw_only=True)
class ElitHDiTSpec(ElitSpec, ClassSpec):
    """An HDiT of `depth` blocks in all, split by its interface.

    wide: how many blocks in the middle of the core run on quads: latents 0..3 of a group, 4..7 and so on. It runs at
        every level: what is no whole quad is filled with zeros, and costs what a whole one does. The paper counts such
        levels as if there were parts of quads, which makes its multi-budget training 5 % cheaper than ours at 256
        pixels and 1 % at 512; at levels that four divides both are equal.
    """

    kind: ClassVar[str] = "elit-hdit"
    wide: int = whole(1, 512)

    def check(self) -> None:
        check_wide(self.wide, self.interface.core, "of the core")
        super().check()

    def plain(self) -> HDiTSpec:
        if self.window != (2, 2):
            raise InvalidInput("interface.window", self.window, "[2, 2]: the quads of a plain HDiT are 2 x 2 tokens")
        if self.interface.head != self.interface.tail:
            allowed = f"{self.interface.head}, as in the head: the wide blocks of a plain HDiT are in its middle"
            raise InvalidInput("interface.tail", self.interface.tail, allowed)
        return HDiTSpec(**self.plain_fields(), wide=self.wide)

    def core_flops(self, level: int) -> float:
        latents, quads = self.num_groups * level, self.num_groups * math.ceil(level / QUAD)
        return hourglass_flops(self.interface.core, self.wide, latents, quads, self.dim)


class ElitHDiT(ClassTransformer, Elit):
    """ELIT-HDiT: the middle of its core runs on quads of latents."""

    spec: ElitHDiTSpec

    def make_blocks(self) -> None:
        super().make_blocks()
        self.down, self.up = Down(self.spec.dim), Up(self.spec.dim)

    def core_blocks(self) -> nn.ModuleList:
        return hourglass_blocks(self.spec, self.spec.interface.core, self.spec.wide)

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A quad is in the order of latents here, and of tokens there."""
        own, order = super().from_plain(weights), self.latent_tokens()
        into = torch.unflatten(own["down.linear.weight"], 1, (QUAD, -1))  # [2D, 4, D]
        own["down.linear.weight"] = into[:, order].flatten(1)
        for name in ("up.linear.weight", "up.linear.bias"):
            own[name] = torch.unflatten(own[name], 0, (QUAD, -1))[order].flatten(0, 1)  # [4, D, ...]
        return own

    def compilable(self) -> list[nn.Module]:
        return [*super().compilable(), self.down, self.up]

    def run_core(
        self, z: Tensor | Residual, modulations: Iterator[Tensor], rope: Tensor, layout: Layout, kept: Kept | None
    ) -> Tensor | Residual:
        blocks, between, ropes = list(self.core), (self.down, self.up), (rope, layout.group_rope)
        return run_hourglass(blocks, self.spec.wide, between, z, modulations, *ropes, kept)


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> ElitHDiTSpec:
    fields = elit_preset_fields("elit-hdit", size, patch, resolution, channels, conditions)
    return ElitHDiTSpec(**fields, wide=WIDE[size])


KIND = BackboneKind(
    spec=ElitHDiTSpec,
    module=ElitHDiT,
    tiny=ElitHDiTSpec(**tiny_elit_fields(head=1, core=3, tail=1, conditions=TINY_CLASSES), wide=1),
    presets={f"elit-hdit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
