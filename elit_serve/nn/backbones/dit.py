"""DiT: a plain class-conditional diffusion transformer, the baseline.

Letters: B batch, C channels, H x W sample size, N spatial tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.transformer import (
    PRESETS,
    SIZES,
    Transformer,
    TransformerSpec,
    blocks_of,
    preset_fields,
)
from elit_serve.nn.flops import Flops, block_flops
from elit_serve.nn.layers import Block


@dataclass(frozen=True, kw_only=True)
class DiTSpec(TransformerSpec):
    """A plain DiT, whose only level is 1: each token stands alone."""

    kind: ClassVar[str] = "dit"

    def flops(self, level: int) -> Flops:
        assert level == 1, level
        total = self.depth * block_flops(self.num_tokens, self.dim)
        return Flops(prefix=total, all_latents=total)


class DiT(Transformer):
    """A plain class-conditional diffusion transformer, the baseline; its only level is 1."""

    spec: DiTSpec

    def make_blocks(self) -> None:
        spec = self.spec
        self.blocks = nn.ModuleList(Block(spec.dim, spec.num_heads) for _ in range(spec.depth))

    def compilable(self) -> list[nn.Module]:
        return list(self.blocks)

    def spatial_blocks(self) -> list[Block]:
        return blocks_of(self.blocks)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, H, W] at x [B, C, H, W], t [B], class ids [B]."""
        assert latent_order is None, "a plain DiT has no latents"
        assert level == 1, level
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        tokens, c = self.embed(x, t, condition)  # [B, N, D], [B, D]
        modulations = self.modulations([*self.blocks, self.final], c)
        for block in self.blocks:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, next(modulations), layout)  # [B, C, H, W]


def _preset(size: str, patch: int, resolution: int, channels: int, num_classes: int) -> DiTSpec:
    fields, _ = preset_fields(f"dit-{size}/{patch}", SIZES[size], patch, resolution, channels, num_classes)
    return DiTSpec(**fields)


KIND = BackboneKind(
    spec=DiTSpec,
    module=DiT,
    presets={f"dit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
