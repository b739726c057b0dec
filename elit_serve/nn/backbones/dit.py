"""DiT and ELIT-DiT: the same blocks, with and without a latent interface (paper, section 3.3).

Letters: B batch, C channels, H x W sample size, P patch, N spatial tokens, G groups, J latents per group,
L level (J̃), D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import (
    Read,
    Write,
    group_centres,
    initial_latents,
    latent_rope,
    patchify,
    token_positions,
    unpatchify,
)
from elit_serve.nn.layers import Block, FinalLayer, TimestepEmbedder, initialise, rope_table, settled
from elit_serve.nn.spec import BackboneSpec


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything that depends on the sample size alone: RoPE tables and the number of groups. Padding is included."""

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
        self.positions = nn.Parameter(torch.empty(spec.num_tokens, spec.dim)) if spec.positions == "learned" else None
        self._make_blocks()
        self.final = FinalLayer(spec.dim, spec.channels * spec.patch**2)
        self._layouts: dict[tuple[int, int, torch.device], Layout] = {}
        self.side_stream: torch.cuda.Stream | None = None  # with one, independent parts of a pass run side by side
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

    def null_like(self, condition: Tensor) -> Tensor:
        """What stands for no condition, in place of each of these: class ids [B] -> [B]."""
        return torch.full_like(condition, self.null_class)

    def layout(self, height: int, width: int, device: torch.device) -> Layout:
        """RoPE tables for a sample size, computed once per size and device."""
        key = (height, width, device)
        if key not in self._layouts:
            with torch.inference_mode(False):  # sampling may come first, and training must be able to use them too
                self._layouts[key] = self._make_layout(height, width, device)
        return self._layouts[key]

    def _make_layout(self, height: int, width: int, device: torch.device) -> Layout:
        self.spec.check_size(height, width)
        height, width = height + 2 * self.spec.padding, width + 2 * self.spec.padding
        head_size = self.spec.dim // self.spec.num_heads
        rows, columns = height // self.spec.patch, width // self.spec.patch
        positions = token_positions(rows, columns, self.window, device)
        if self.positions is not None:
            positions = torch.zeros_like(positions)  # all in one place: RoPE then turns nothing
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
        x = F.pad(x.to(self.patch_embed.weight.dtype), (self.spec.padding,) * 4)
        tokens = self.patch_embed(patchify(x, patch=self.spec.patch, window=self.window))
        if self.positions is not None:
            tokens = tokens + self.positions
        return tokens, F.silu(self.time_embed(t) + self.class_embed(label))

    def modulations(self, modules: Sequence[Block | Read | FinalLayer], c: Tensor) -> Iterator[Tensor]:
        """`modulation(c)` of each module in turn, for c [B, D].

        They read a quarter of the weights and compute next to nothing: beside the first module's work, all others cost
        no time of their own.
        """
        first = modules[0].modulation(c)
        with self.beside():
            others = [module.modulation(c) for module in modules[1:]]
        return self._after_joining(first, others)

    def _after_joining(self, first: Tensor, others: Sequence[Tensor]) -> Iterator[Tensor]:
        yield first
        self.join()
        yield from others

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is done inside may run beside what follows on a GPU, until `join`."""
        if self.side_stream is None:
            yield
            return
        self.side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side_stream):
            yield

    def join(self) -> None:
        """Whatever follows sees all that was done `beside`."""
        if self.side_stream is not None:
            torch.cuda.current_stream().wait_stream(self.side_stream)

    def unembed(self, residual: Tensor | Residual, modulation: Tensor, layout: Layout) -> Tensor:
        """A stream of tokens [B, N, D], `modulation(c)` [B, 2D] -> velocity [B, C, H, W]."""
        patches = self.final(residual, modulation)  # [B, N, C * P * P]
        padded = unpatchify(
            patches, patch=self.spec.patch, window=self.window, height=layout.height, width=layout.width
        )
        inside = slice(self.spec.padding, -self.spec.padding or None)
        return padded[:, :, inside, inside]


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
        modulations = self.modulations([*self.blocks, self.final], c)
        for block in self.blocks:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, next(modulations), layout)  # [B, C, H, W]


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
        modulations = self.modulations([*self.head, self.read, *self.core, *self.tail, self.final], c)
        for block in self.head:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        core = [next(modulations) for _ in (self.read, *self.core)]  # [B, 6D] each
        tokens = self._through_latents(settled(tokens), core, levels, latents, layout)  # [B, N, D]
        for block in self.tail:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, next(modulations), layout)  # [B, C, H, W]

    def _through_latents(
        self, tokens: Tensor, modulations: Sequence[Tensor], levels: Sequence[int], latents: Tensor, layout: Layout
    ) -> Tensor:
        """Equal parts of the batch, each at its level: tokens [B, N, D] -> [B, N, D].

        A core at a low level leaves most of a GPU idle: beside the main pass a weak one costs little time.
        """
        count = len(levels)
        parts = zip(tokens.chunk(count), zip(*(m.chunk(count) for m in modulations), strict=True), levels, strict=True)
        main, *weak = parts
        with self.beside():
            weak_tokens = [self._part_through_latents(*part, latents, layout) for part in weak]
        main_tokens = self._part_through_latents(*main, latents, layout)
        self.join()
        return torch.cat([main_tokens, *weak_tokens]) if weak else main_tokens

    def _part_through_latents(
        self, tokens: Tensor, modulations: Sequence[Tensor], level: int, latents: Tensor, layout: Layout
    ) -> Tensor:
        """Read, core and Write with the first `level` latents of each group: tokens [B, N, D] -> [B, N, D]."""
        assert 1 <= level <= self.spec.latents_per_group, level
        groups = layout.num_groups
        rope = latent_rope(layout.group_rope, level)  # [2, G * L, 1, E/2]
        z = initial_latents(latents, level, len(tokens), groups)  # [B, G * L, D]
        z = self.read(z, tokens, modulations[0], rope, layout.token_rope, groups)  # [B, G * L, D]
        for block, modulation in zip(self.core, modulations[1:], strict=True):
            z = block(z, modulation, rope)  # [B, G * L, D]
        return self.write(tokens, settled(z), layout.token_rope, rope, groups)  # [B, N, D]
