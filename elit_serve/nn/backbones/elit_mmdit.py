"""ELIT-MM-DiT: an MM-DiT with a latent interface in the stream of the picture (paper, section 4.4).

Text is short and stays whole: it runs through head, core and tail, and in the core it is beside the latents that are
kept, instead of the picture's tokens.

Letters: B batch, N tokens of the picture, T places for tokens of text, G groups, L level, K = G * L + T tokens of the
core, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from elit_serve.nn.backbones.backbone import LatentParts
from elit_serve.nn.backbones.elit import Elit, ElitSpec, elit_preset_fields, tiny_elit_fields
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.mmdit import (
    LastBlock,
    MMDiTSpec,
    Streams,
    double_blocks,
    halves_of,
    last_block_flops,
    run_double,
    seen_behind,
)
from elit_serve.nn.backbones.texts import PRESET_TEXT, TINY_TEXT, TextLayout, TextSpec, TextTransformer
from elit_serve.nn.backbones.transformer import PRESETS
from elit_serve.nn.flops import block_flops
from elit_serve.nn.fused import Residual
from elit_serve.nn.kept import Kept, only_kept
from elit_serve.nn.layers import settled
from elit_serve.nn.reuse import CoreChange, are_given, through_core


@dataclass(frozen=True, kw_only=True)
class ElitMMDiTSpec(ElitSpec, TextSpec):
    """An MM-DiT of `depth` blocks in all, split by its interface."""

    kind: ClassVar[str] = "elit-mmdit"

    def plain(self) -> MMDiTSpec:
        return MMDiTSpec(**self.plain_fields())

    @property
    def text_in_core(self) -> int:
        return self.max_tokens

    def core_shape(self, level: int) -> tuple[int, int]:
        return self.num_groups * level + self.text_in_core, self.dim

    def spatial_flops(self) -> float:
        return self._blocks_flops(self.interface.head, self.num_tokens) + self._blocks_flops(
            self.interface.tail, self.num_tokens, has_last=True
        )

    def core_flops(self, level: int) -> float:
        return self._blocks_flops(self.interface.core, self.num_groups * level, has_last=not self.interface.tail)

    def _blocks_flops(self, count: int, tokens: int, *, has_last: bool = False) -> float:
        last = min(count, int(has_last))
        whole = block_flops(tokens + self.max_tokens, self.dim)
        return (count - last) * whole + last * last_block_flops(tokens, self.max_tokens, self.dim)


class ElitMMDiT(TextTransformer, Elit):
    """ELIT-MM-DiT: a spatial head, a core on a prefix of the latents, a spatial tail, and text through all of them."""

    spec: ElitMMDiTSpec

    def make_blocks(self) -> None:
        super().make_blocks()
        last_part = self.tail if self.spec.interface.tail else self.core
        last_part[-1] = LastBlock(self.spec.dim, self.spec.num_heads)

    def new_blocks(self, count: int) -> nn.ModuleList:
        return double_blocks(self.spec.dim, self.spec.num_heads, count)

    def latent_parts(self) -> LatentParts:
        return LatentParts(
            reading=self.read.attention,
            read=self.read,
            core=tuple(self.core),
            writing=self.write.attention,
            leaving=lambda streams: settled(streams.image),
        )

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
        """Velocity at a level, or at several levels in one call, as `Elit.forward`, of texts [B, T, text_dim + 1]."""
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        known = self._known(levels, own_levels, changes, len(x))
        tokens, c = self.embed(x, t, condition, known)  # [B, N, D], [B, D]
        text, text_mask = self.embed_text(condition)  # [B, T, D], [B, 1, 1, T]
        told = layout.token_rope, layout.text_rope, seen_behind(tokens.shape[1], text_mask)
        core = [] if are_given(changes) else list(halves_of(self.core))
        modulations = self.modulations([*halves_of(self.head), self.read, *core, *halves_of(self.tail), self.final], c)
        joined = run_double(self.head, Streams(tokens, text), modulations, *told).joined()  # [B, N + T, D]
        of_samples = [next(modulations) for _ in (self.read, *core)] + [text_mask]
        part_at = partial(self._part_with_text, order=latent_order, layout=layout)
        joined = self.at_each_level(part_at, joined, of_samples, levels, own_levels, changes)
        streams = run_double(self.tail, Streams.of(joined, self.spec.max_tokens), modulations, *told)
        return self.unembed(streams.image, next(modulations), layout)  # [B, C, H, W]

    def _part_with_text(
        self,
        joined: Tensor,
        of_samples: Sequence[Tensor],
        level: int,
        own_levels: Tensor | None,
        change: CoreChange | None,
        *,
        order: Tensor | None,
        layout: TextLayout,
    ) -> Tensor:
        """Read, core on the first `level` latents of each group and on all text, Write: [B, N + T, D] -> the same."""
        of_read, *of_core, text_mask = of_samples
        tokens, text = Streams.of(joined, self.spec.max_tokens)
        kept = Kept.of(own_levels, level, layout.num_groups, self.spec.max_tokens)

        def core(z: Tensor | Residual, rope: Tensor) -> Tensor:
            nonlocal text
            both = Streams(z, text).joined()  # [B, K + T, D]
            mask = seen_behind(both.shape[1] - self.spec.max_tokens, text_mask)
            mask = mask if kept is None else mask + kept.mask(mask.dtype)

            def run_core(both: Tensor | Residual) -> Tensor:
                streams = Streams.of(settled(both), self.spec.max_tokens)
                return run_double(self.core, streams, iter(of_core), rope, layout.text_rope, mask).joined()

            latents, text = Streams.of(through_core(only_kept(run_core, kept), both, change), self.spec.max_tokens)
            return settled(latents)

        written = self.interface.through(
            core,
            settled(tokens),
            of_read,
            level,
            num_groups=layout.num_groups,
            token_rope=layout.token_rope,
            latent_rope=layout.latent_rope,
            latent_tokens=layout.latent_tokens if self.carries_tokens else None,
            order=order,
            kept=kept,
        )
        return Streams(written, text).joined()


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> ElitMMDiTSpec:
    return ElitMMDiTSpec(**elit_preset_fields("elit-mmdit", size, patch, resolution, channels, conditions))


KIND = BackboneKind(
    spec=ElitMMDiTSpec,
    module=ElitMMDiT,
    tiny=ElitMMDiTSpec(**tiny_elit_fields(head=1, core=2, tail=1, conditions=TINY_TEXT)),
    presets={f"elit-mmdit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
    conditions=PRESET_TEXT,
)
