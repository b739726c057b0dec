"""ELIT inside a transformer of diffusers (paper, section 4.4): a dense folder, and a small file beside it.

The dense weights keep their names and files; those of Read, Write and the latents are new. Each latent carries one
token of its group through the core, so that a fresh interface changes nothing at the full level. A family says how its
blocks run.

Letters: B batch, N image tokens, K tokens of the core, T text tokens, G groups, J latents per group, L level, H heads,
D width, E head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import LatentParts
from elit_serve.nn.backbones.dense.dense import Dense, DenseSpec
from elit_serve.nn.backbones.elastic import WithLatents
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import (
    Core,
    LatentInterface,
    Read,
    Write,
    first_of_each_group,
    in_order,
    spread_places,
    token_positions,
)
from elit_serve.nn.kept import Kept
from elit_serve.nn.layers import initialise, rope_table, settled
from elit_serve.plans.size import nearest_multiples

Tensors = TypeVar("Tensors", bound=NamedTuple)


@dataclass(frozen=True, kw_only=True)
class ElitDenseSpec(WithLatents, DenseSpec):
    """Mixed into the spec of a family. plain_kind: that spec."""

    plain_kind: ClassVar[type[DenseSpec]]

    def check(self) -> None:
        if self.dim % (4 * self.num_heads):
            raise InvalidInput("num_heads", self.num_heads, f"dim / num_heads divisible by 4, and dim is {self.dim}")
        super().check()

    def check_size(self, *size: int) -> None:
        super().check_size(*size)
        for name, side, tokens in zip(("height", "width"), size, self.interface.window, strict=True):
            if side % (step := tokens * self.patch):
                nearest = nearest_multiples(side, step)
                raise InvalidInput(name, side, f"it must be a multiple of {step} (whole windows), as {nearest}")

    def plain(self) -> DenseSpec:
        return self.plain_kind(**{each.name: getattr(self, each.name) for each in fields(self.plain_kind)})

    def core_shape(self, level: int) -> tuple[int, int]:
        return self.num_groups * level + self.text_in_core, self.dim

    def core_flops(self, level: int) -> float:
        return self._of_blocks(self.interface.core, self.num_groups * level)

    def spatial_flops(self) -> float:
        return self._of_blocks(self.interface.head + self.interface.tail, self.num_tokens)

    def _of_blocks(self, count: int, tokens: int) -> float:
        return count / self.depth * self.blocks_flops(tokens)


class Layout(NamedTuple):
    """Everything that depends on the sample size alone; tokens are laid out group by group.

    turns: of tokens, as blocks turn pairs of numbers, cosines and sines [2, N, 1, E / 2]. latent_turns: the same of the
    tokens that latents carry [2, G * J, 1, E / 2]. text_turns: of a text [2, T, 1, E / 2], None where it has none.
    rope, latent_rope: as Read and Write turn tokens and latents [2, N, 1, E / 2], [2, G * J, 1, E / 2]. places: of the
    tokens that latents carry, in their group [J].
    """

    num_groups: int
    turns: Tensor
    latent_turns: Tensor
    text_turns: Tensor | None
    rope: Tensor
    latent_rope: Tensor
    places: Tensor

    def core_turns(self, level: int, order: Tensor | None) -> Tensor:
        """Of the first `level` latents of each group in an order [J], None is their own. [2, G * L, 1, E / 2]"""
        turns = self.latent_turns
        turns = turns if order is None else in_order(turns, order, self.num_groups)
        return first_of_each_group(turns, level, self.num_groups)


class ElitDense(Dense):
    """A spatial head, a core on a prefix of the latents, a spatial tail, and text beside all of them."""

    spec: ElitDenseSpec

    def __init__(self, spec: ElitDenseSpec) -> None:
        super().__init__(spec)
        self.make_interface()

    def make_interface(self) -> None:
        """What a dense model lacks, as it starts; made anew if it is there, as in a model without memory."""
        spec = self.spec
        self.latents = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        self.places = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        self.read = Read(spec.dim, spec.num_heads)
        self.write = Write(spec.dim, spec.num_heads)
        for part in (self.read, self.write):
            initialise(part)
        self.interface.start(spec.interface.window)

    @property
    def interface(self) -> LatentInterface:
        """Of what there is at this moment: a checkpoint may put other tensors in the place of these."""
        return LatentInterface(
            read=self.read,
            write=self.write,
            latents=self.latents,
            places=self.places,
            core_positions=None,
            reach="all",
            carries=True,
        )

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(weights)

    def compilable(self) -> list[nn.Module]:
        return [*self.every_block(), self.read, self.write]

    def gathered(self) -> list[nn.Module]:
        """Read is modulated by what is computed before it runs."""
        return [self.read.modulation, *super().gathered()]

    def split_blocks(self) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
        """Those of head, core and tail."""
        blocks, split = list(self.every_block()), self.spec.interface
        behind = split.head + split.core
        return blocks[: split.head], blocks[split.head : behind], blocks[behind:]

    def latent_parts(self) -> LatentParts:
        _, core, _ = self.split_blocks()
        return LatentParts(
            reading=self.read.attention,
            read=self.read,
            core=tuple(core),
            writing=self.write.attention,
            leaving=self.tokens_among,
        )

    def tokens_among(self, made: Any) -> Tensor:
        """The image tokens, or latents, of what a block makes: [B, K, D]."""
        assert isinstance(made, Tensor | Residual), type(made)
        return settled(made)

    def levels_of(self, level: int | Sequence[int]) -> list[int]:
        """Of the equal parts of a batch."""
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        return levels

    def make_layout(self, rows: int, columns: int, device: torch.device) -> Layout:
        window, head_size = self.spec.interface.window, self.spec.dim // self.spec.num_heads
        positions = token_positions(rows, columns, window, torch.device("cpu"))  # [N, 2]
        places = torch.tensor(spread_places(window), device="cpu")
        count = len(positions) // len(places)
        carried = in_order(positions, places, count, dim=0)  # [G * J, 2]
        turns, text_turns = self.make_turns(rows, columns, positions)
        return Layout(
            num_groups=count,
            turns=turns.to(device),
            latent_turns=in_order(turns, places, count).to(device),
            text_turns=None if text_turns is None else text_turns.to(device),
            rope=rope_table(positions, head_size).to(device),
            latent_rope=rope_table(carried, head_size).to(device),
            places=places.to(device),
        )

    def make_turns(self, rows: int, columns: int, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """How blocks turn the tokens of a grid that stand at positions [N, 2], and those of a text: see `Layout`."""
        raise NotImplementedError

    def through_latents(
        self,
        core: Core,
        tokens: Tensor,
        vector: Tensor,
        level: int,
        *,
        layout: Layout,
        order: Tensor | None,
        kept: Kept | None,
    ) -> Tensor:
        """Read, core on the first `level` latents of each group, Write: tokens [B, N, D] -> [B, N, D], under the vector
        of time [B, D]."""
        return self.interface.through(
            core,
            tokens,
            self.read.modulation(F.silu(vector)),
            level,
            num_groups=layout.num_groups,
            token_rope=layout.rope,
            latent_rope=layout.latent_rope,
            latent_tokens=layout.places,
            order=order,
            kept=kept,
        )


def in_parts(tensors: Tensors, count: int) -> list[Tensors]:
    """Equal parts of the batch, of all tensors together."""
    return [tensors._make(part) for part in zip(*(each.chunk(count) for each in tensors), strict=True)]
