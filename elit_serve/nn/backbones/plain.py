"""What all transformers without latents share: one run of blocks over all tokens, at the only level 1.

Letters: B batch, C channels, H x W sample size, N spatial tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from elit_serve.nn.backbones.transformer import Layout, Transformer, TransformerSpec, blocks_of
from elit_serve.nn.flops import Flops, block_flops
from elit_serve.nn.fused import Residual
from elit_serve.nn.layers import Block, run, settled
from elit_serve.nn.reuse import CoreChange, are_given, through_core


@dataclass(frozen=True, kw_only=True)
class PlainSpec(TransformerSpec):
    """A transformer without latents, whose only level is 1."""

    def flops(self, level: int) -> Flops:
        assert level == 1, level
        total = self.blocks_flops()
        return Flops(prefix=total, all_latents=total)

    def core_flops(self, level: int) -> float:
        """All that is counted."""
        assert level == 1, level
        return self.blocks_flops()

    def blocks_flops(self) -> float:
        """Of all blocks and what is between them."""
        return self.depth * block_flops(self.num_tokens, self.dim)


class Plain(Transformer):
    """Blocks over all tokens, here one after another; the only level is 1."""

    spec: PlainSpec

    def make_blocks(self) -> None:
        self.blocks = self.new_blocks(self.spec.depth)

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
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, H, W] at x [B, C, H, W], t [B], class ids [B]. What `changes` skips is all blocks."""
        assert latent_order is None, f"{self.spec.kind} has no latents"
        assert level == 1, level
        assert own_levels is None, f"{self.spec.kind} has one level"
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        tokens, c = self.embed(x, t, condition)  # [B, N, D], [B, D]
        modulations = self.modulations([*(() if are_given(changes) else self.blocks), self.final], c)
        stream: Tensor | Residual
        if changes:
            (change,) = changes
            stream = through_core(lambda stream: self.run_blocks(settled(stream), modulations, layout), tokens, change)
        else:
            stream = self.run_blocks(tokens, modulations, layout)
        return self.unembed(stream, next(modulations), layout)  # [B, C, H, W]

    def run_blocks(self, tokens: Tensor, modulations: Iterator[Tensor], layout: Layout) -> Tensor | Residual:
        """Tokens [B, N, D] through all blocks. -> a stream of tokens"""
        return run(self.blocks, tokens, modulations, layout.token_rope)
