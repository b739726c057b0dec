"""U-ViT: a DiT whose later blocks also see what earlier ones made, over long skips (Bao et al., 2023).

As the paper has it (appendix A), blocks, condition and training are those of DiT. Letters: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.plain import Plain, PlainSpec
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, Layout, preset_fields, tiny_fields
from elit_serve.nn.fused import Residual
from elit_serve.nn.layers import AnyBlock, run, settled


def num_skips(blocks: int) -> int:
    """How many skips a run of blocks has: its middle block, or the two in the middle, take none and give none.

    13 over 28 blocks, and 4 + 9 with a split of 4-20-4, are what gives the FLOPs of the paper's Table 1.
    """
    return (blocks - 1) // 2


def skip_flops(tokens: int, dim: int) -> float:
    """Of one skip over n tokens of width d: 2 n (2d) d."""
    return 4 * tokens * dim**2


class Skip(nn.Module):
    """A stream and what an earlier block made, side by side, back to one width.

    It starts as the stream alone, so that a fresh U-ViT is a DiT, and latents are still the tokens that they start as
    when Write asks for them. (Bao et al. draw it like any linear layer.)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)

    def start(self) -> None:
        """Its initial weights."""
        with torch.no_grad():
            nn.init.zeros_(self.linear.weight)
            nn.init.ones_(self.linear.weight.diagonal())

    def forward(self, stream: Tensor | Residual, kept: Tensor) -> Tensor:
        """A stream and kept [B, N, D]. -> [B, N, D]"""
        return self.linear(torch.cat([settled(stream), kept], dim=-1))


def run_keeping(
    blocks: Sequence[AnyBlock], stream: Tensor | Residual, modulations: Iterator[Tensor], rope: Tensor
) -> list[Tensor]:
    """What each block made of a stream, in their order. [B, N, D] each"""
    made: list[Tensor] = []
    for block in blocks:
        stream = settled(run([block], stream, modulations, rope))
        made.append(stream)
    return made


def run_joining(
    blocks: Sequence[AnyBlock],
    skips: Sequence[nn.Module],
    kept: Sequence[Tensor],
    stream: Tensor | Residual,
    modulations: Iterator[Tensor],
    rope: Tensor,
) -> Tensor | Residual:
    """A stream through blocks, each behind a skip: the first joins what was kept last, [B, N, D] each."""
    for block, skip, joined in zip(blocks, skips, reversed(kept), strict=True):
        stream = run([block], skip(stream, joined), modulations, rope)
    return stream


def run_with_skips(
    blocks: Sequence[AnyBlock],
    skips: Sequence[nn.Module],
    stream: Tensor | Residual,
    modulations: Iterator[Tensor],
    rope: Tensor,
) -> Tensor | Residual:
    """A stream through blocks, of which the last joins what the first made, and so on towards the middle."""
    count, rest = len(skips), len(blocks) - len(skips)
    kept = run_keeping(blocks[:count], stream, modulations, rope)
    stream = run(blocks[count:rest], kept[-1] if kept else stream, modulations, rope)
    return run_joining(blocks[rest:], skips, kept, stream, modulations, rope)


@dataclass(frozen=True, kw_only=True)
class UViTSpec(PlainSpec, ClassSpec):
    """A DiT of `depth` blocks with skips over all but the middle."""

    kind: ClassVar[str] = "uvit"

    def blocks_flops(self) -> float:
        return super().blocks_flops() + num_skips(self.depth) * skip_flops(self.num_tokens, self.dim)


class UViT(ClassTransformer, Plain):
    """U-ViT; its only level is 1."""

    spec: UViTSpec

    def make_blocks(self) -> None:
        super().make_blocks()
        self.skips = nn.ModuleList(Skip(self.spec.dim) for _ in range(num_skips(self.spec.depth)))

    def start(self) -> None:
        start_skips(self.skips)

    def compilable(self) -> list[nn.Module]:
        return [*super().compilable(), *self.skips]

    def run_blocks(self, tokens: Tensor, modulations: Iterator[Tensor], layout: Layout) -> Tensor | Residual:
        return run_with_skips(list(self.blocks), list(self.skips), tokens, modulations, layout.token_rope)


def start_skips(skips: nn.ModuleList) -> None:
    """The initial weights of all skips among these."""
    for skip in skips:
        assert isinstance(skip, Skip)
        skip.start()


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> UViTSpec:
    fields, _ = preset_fields(f"uvit-{size}/{patch}", SIZES[size], patch, resolution, channels, conditions)
    return UViTSpec(**fields)


KIND = BackboneKind(
    spec=UViTSpec,
    module=UViT,
    tiny=UViTSpec(**tiny_fields(depth=4, conditions=TINY_CLASSES)),
    presets={f"uvit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
