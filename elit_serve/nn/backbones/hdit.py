"""HDiT: a DiT whose middle blocks run on a quarter of the tokens, at twice the width (Crowson et al., 2024).

As the paper has it (section 4.2 and appendix A): one 2x2 down- and up-sampling, DiT's blocks, full attention. Its text
names blocks 8 and 20 for the two, its appendix blocks 6 and 22. The FLOPs of its Tables 1 and 6 are those of 8 and 20,
so 12 of 28 blocks are wide. They are modulated by the condition that all blocks share, of the narrow width: that makes
1.37 billion parameters, the paper's "1.4B"; with a condition of their own width there would be 1.56 billion.

Letters: B batch, N spatial tokens, G groups, L tokens in each, Q quads in each (L / 4, rounded up), D width, E head
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.plain import Plain, PlainSpec
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, Layout, TransformerSpec, preset_fields, tiny_fields
from elit_serve.nn.fields import whole
from elit_serve.nn.flops import block_flops
from elit_serve.nn.fused import Residual
from elit_serve.nn.kept import Kept, mask_of, masked
from elit_serve.nn.layers import Block, run, settled

QUAD = 4  # tokens that become one
WIDER = 2  # times the width, and the heads, of what they become
WIDE = {"s": 4, "b": 4, "xl": 12}  # wide blocks of each size; the paper has the last only


class Down(nn.Module):
    """Four consecutive tokens of a group become one of twice the width. What is no whole quad is filled with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(QUAD * dim, WIDER * dim)

    def forward(self, tokens: Tensor, num_groups: int) -> Tensor:
        """tokens [B, G * L, D] -> [B, G * Q, 2D]"""
        grouped = torch.unflatten(tokens, 1, (num_groups, -1))  # [B, G, L, D]
        missing = -grouped.shape[2] % QUAD
        if missing:
            grouped = F.pad(grouped, (0, 0, 0, missing))
        return self.linear(grouped.reshape(len(tokens), -1, QUAD * tokens.shape[2]))


class Up(nn.Module):
    """One wide token becomes four, which are added to what went down (Crowson et al. learn how much of each to take).

    It starts at zero, so that a fresh HDiT is a DiT of its outer blocks, and latents are still the tokens that they
    start as when Write asks for them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDER * dim, QUAD * dim)
        self.zero_at_start = (self.linear,)

    def forward(self, quads: Tensor, tokens: Tensor, num_groups: int) -> Tensor:
        """quads [B, G * Q, 2D] and tokens as they went down [B, G * L, D] -> [B, G * L, D]"""
        in_groups = torch.unflatten(tokens, 1, (num_groups, -1))  # [B, G, L, D]
        spread = self.linear(quads).view(len(tokens), num_groups, -1, tokens.shape[2])  # [B, G, 4Q, D]
        return (in_groups + spread[:, :, : in_groups.shape[2]]).flatten(1, 2).contiguous()


def hourglass_blocks(spec: TransformerSpec, count: int, wide: int) -> nn.ModuleList:
    """`count` blocks, of which `wide` in the middle are wide."""
    narrow_each_side = (count - wide) // 2
    widths = [1] * narrow_each_side + [WIDER] * wide + [1] * narrow_each_side
    return nn.ModuleList(Block(width * spec.dim, width * spec.num_heads, condition_dim=spec.dim) for width in widths)


def run_hourglass(
    blocks: Sequence[nn.Module],
    wide: int,
    between: tuple[Down, Up],
    stream: Tensor | Residual,
    modulations: Iterator[Tensor],
    rope: Tensor,
    group_rope: Tensor,
    kept: Kept | None = None,
) -> Tensor | Residual:
    """A stream [B, G * L, D] through narrow blocks, wide ones over quads [B, G * Q, 2D], and narrow ones.

    rope [2, G * L, 1, E/2], group_rope [2, G, 1, E/2]: all quads of a group stand in its centre. kept: where samples
    keep different tokens; the others go down as the zeros that fill what is no whole quad.
    """
    down, up = between
    first, last = (len(blocks) - wide) // 2, (len(blocks) + wide) // 2
    num_groups = group_rope.shape[1]
    mask = mask_of(kept, stream)
    tokens = settled(run(masked(blocks[:first], mask), stream, modulations, rope))
    quads = down(tokens if kept is None else kept.chosen(tokens, 0.0), num_groups)
    quads_in_group = quads.shape[1] // num_groups
    quad_rope = group_rope.unsqueeze(2).expand(-1, -1, quads_in_group, -1, -1).flatten(1, 2).contiguous()
    quad_mask = None if kept is None else kept.every(QUAD).mask(quads.dtype)
    quads = settled(run(masked(blocks[first:last], quad_mask), quads, modulations, quad_rope))
    return run(masked(blocks[last:], mask), up(quads, tokens, num_groups), modulations, rope)


def hourglass_flops(count: int, wide: int, tokens: int, quads: int, dim: int) -> float:
    """Of `count` blocks over n tokens, of which `wide` run over q quads, and of down and up: 2 * 2 q (4d) (2d)."""
    blocks = (count - wide) * block_flops(tokens, dim) + wide * block_flops(quads, WIDER * dim)
    return blocks + 4 * quads * QUAD * WIDER * dim**2


def check_wide(wide: int, count: int, of: str) -> None:
    """Raises `InvalidInput` unless so many of `count` blocks can be in their middle, with others on both sides."""
    if wide > count - 2 or (count - wide) % 2:
        allowed = f"equally many of the {count} blocks {of} must be left before and after the wide ones, 1 at least"
        raise InvalidInput("wide", wide, allowed)


@dataclass(frozen=True, kw_only=True)
class HDiTSpec(PlainSpec, ClassSpec):
    """A DiT of `depth` blocks in all, of which `wide` in the middle run on quads of 2 x 2 tokens."""

    kind: ClassVar[str] = "hdit"
    wide: int = whole(1, 512)

    def check(self) -> None:
        check_wide(self.wide, self.depth, "in all")
        super().check()

    @property
    def window(self) -> tuple[int, int]:
        """A quad: its tokens follow one another."""
        return 2, 2

    def blocks_flops(self) -> float:
        return hourglass_flops(self.depth, self.wide, self.num_tokens, self.num_tokens // QUAD, self.dim)


class HDiT(ClassTransformer, Plain):
    """HDiT; its only level is 1."""

    spec: HDiTSpec

    def make_blocks(self) -> None:
        self.blocks = hourglass_blocks(self.spec, self.spec.depth, self.spec.wide)
        self.down, self.up = Down(self.spec.dim), Up(self.spec.dim)

    def compilable(self) -> list[nn.Module]:
        return [*super().compilable(), self.down, self.up]

    def spatial_blocks(self) -> list[Block]:
        """The narrow ones."""
        blocks, narrow = super().spatial_blocks(), (self.spec.depth - self.spec.wide) // 2
        return [*blocks[:narrow], *blocks[-narrow:]]

    def run_blocks(self, tokens: Tensor, modulations: Iterator[Tensor], layout: Layout) -> Tensor | Residual:
        between, ropes = (self.down, self.up), (layout.token_rope, layout.group_rope)
        return run_hourglass(list(self.blocks), self.spec.wide, between, tokens, modulations, *ropes)


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> HDiTSpec:
    fields, _ = preset_fields(f"hdit-{size}/{patch}", SIZES[size], patch, resolution, channels, conditions)
    return HDiTSpec(**fields, wide=WIDE[size])


KIND = BackboneKind(
    spec=HDiTSpec,
    module=HDiT,
    tiny=HDiTSpec(**tiny_fields(3, TINY_CLASSES), wide=1),
    presets={f"hdit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
