"""DiT and ELIT-DiT: the same blocks, with and without a latent interface (paper, section 3.3).

Letters: B batch, C channels, H x W sample size, P patch, N spatial tokens, G groups, J latents per group,
L level (J̃), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.elit import (
    Read,
    Write,
    group_centres,
    initial_latents,
    latent_rope,
    patchify,
    token_positions,
    unpatchify,
)
from elit_serve.nn.layers import Block, FinalLayer, TimestepEmbedder, initialise, rope_table
from elit_serve.nn.spec import BackboneSpec


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything that depends on the sample size alone: RoPE tables and the number of groups."""

    height: int
    width: int
    num_groups: int
    token_rope: Tensor  # [2, N, 1, E/2]
    group_rope: Tensor  # [2, G, 1, E/2]


class Backbone(nn.Module):
    """What both share: patches in, velocity X_1 - X_0 out (paper, section 3.1), class and time as condition."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.window = spec.interface.window if spec.interface else (1, 1)
        self.patch_embed = nn.Linear(spec.channels * spec.patch**2, spec.dim)
        self.time_embed = TimestepEmbedder(spec.dim)
        self.class_embed = nn.Embedding(spec.num_classes + 1, spec.dim)  # the last one means "no class"
        self._make_blocks()
        self.final = FinalLayer(spec.dim, spec.channels * spec.patch**2)
        self._layouts: dict[tuple[int, int, torch.device], Layout] = {}
        initialise(self)

    def _make_blocks(self) -> None:
        raise TypeError("a Backbone is either a DiT or an ElitDiT")

    def compilable(self) -> list[nn.Module]:
        """The modules worth compiling, one by one."""
        raise TypeError("a Backbone is either a DiT or an ElitDiT")

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.spec.num_classes

    def layout(self, height: int, width: int, device: torch.device) -> Layout:
        """RoPE tables for a sample size, computed once per size and device."""
        key = (height, width, device)
        if key not in self._layouts:
            with torch.inference_mode(False):  # sampling may come first, and training must be able to use them too
                self._layouts[key] = self._make_layout(height, width, device)
        return self._layouts[key]

    def _make_layout(self, height: int, width: int, device: torch.device) -> Layout:
        self.spec.check_size(height, width)
        head_size = self.spec.dim // self.spec.num_heads
        rows, columns = height // self.spec.patch, width // self.spec.patch
        positions = token_positions(rows, columns, self.window, device)
        centres = group_centres(positions, self.window[0] * self.window[1])
        return Layout(
            height=height,
            width=width,
            num_groups=len(centres),
            token_rope=rope_table(positions, head_size),
            group_rope=rope_table(centres, head_size),
        )

    def embed(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], t [B] in [0, 1], label [B] -> tokens [B, N, D] and activated condition [B, D]."""
        tokens = self.patch_embed(
            patchify(x.to(self.patch_embed.weight.dtype), patch=self.spec.patch, window=self.window)
        )
        return tokens, F.silu(self.time_embed(t) + self.class_embed(label))

    def unembed(self, tokens: Tensor, c: Tensor, layout: Layout) -> Tensor:
        """tokens [B, N, D], condition [B, D] -> velocity [B, C, H, W]."""
        patches = self.final(tokens, c)  # [B, N, C * P * P]
        return unpatchify(patches, patch=self.spec.patch, window=self.window, height=layout.height, width=layout.width)


class DiT(Backbone):
    """A plain class-conditional diffusion transformer, the baseline; its only level is 1."""

    def _make_blocks(self) -> None:
        spec = self.spec
        self.blocks = nn.ModuleList(Block(spec.dim, spec.num_heads) for _ in range(spec.depth))

    def compilable(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, level: int = 1) -> Tensor:
        """Velocity [B, C, H, W] at x [B, C, H, W], t [B], label [B]."""
        assert level == 1, level
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        tokens, c = self.embed(x, t, label)  # [B, N, D], [B, D]
        for block in self.blocks:
            tokens = block(tokens, c, layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, c, layout)  # [B, C, H, W]


class ElitDiT(Backbone):
    """ELIT-DiT: a spatial head, a core on a prefix of the latents, a spatial tail."""

    def _make_blocks(self) -> None:
        spec, interface = self.spec, self.spec.interface
        assert interface is not None

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(spec.dim, spec.num_heads) for _ in range(count))

        self.head = blocks(interface.head)
        self.latents = nn.Parameter(torch.empty(interface.latents_per_group, spec.dim))  # [J, D]
        self.read = Read(spec.dim, spec.num_heads)
        self.core = blocks(interface.core)
        self.write = Write(spec.dim, spec.num_heads)
        self.tail = blocks(interface.tail)

    def compilable(self) -> list[nn.Module]:
        return [*self.head, self.read, *self.core, self.write, *self.tail]

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, level: int | Sequence[int], latents: Tensor | None = None
    ) -> Tensor:
        """Velocity at a level, or at several levels in one call.

        x [B, C, H, W], t [B], label [B] -> [B, C, H, W]. With a sequence of S levels the batch is S equal
        parts and part i runs at level[i]: head and tail run once over all of them, which costs less
        than S calls. `latents` [J, D] replaces the learned ones (training with random drop permutes them).
        """
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        latents = self.latents if latents is None else latents
        levels = [level] if isinstance(level, int) else list(level)
        tokens, c = self.embed(x, t, label)  # [B, N, D], [B, D]
        for block in self.head:
            tokens = block(tokens, c, layout.token_rope)  # [B, N, D]
        parts = zip(tokens.chunk(len(levels)), c.chunk(len(levels)), levels, strict=True)
        tokens = torch.cat([self._through_latents(*part, latents, layout) for part in parts])  # [B, N, D]
        for block in self.tail:
            tokens = block(tokens, c, layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, c, layout)  # [B, C, H, W]

    def _through_latents(self, tokens: Tensor, c: Tensor, level: int, latents: Tensor, layout: Layout) -> Tensor:
        """Read, core and Write with the first `level` latents of each group: tokens [B, N, D] -> [B, N, D]."""
        assert 1 <= level <= self.spec.latents_per_group, level
        groups = layout.num_groups
        rope = latent_rope(layout.group_rope, level)  # [2, G * L, 1, E/2]
        z = initial_latents(latents, level, len(tokens), groups)  # [B, G * L, D]
        z = self.read(z, tokens, c, rope, layout.token_rope, groups)  # [B, G * L, D]
        for block in self.core:
            z = block(z, c, rope)  # [B, G * L, D]
        return self.write(tokens, z, layout.token_rope, rope, groups)  # [B, N, D]
