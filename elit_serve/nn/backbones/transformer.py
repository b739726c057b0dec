"""What all transformers share: fields, patches in and velocity out, time, and presets. What pictures are of is added by
those of `classes` and `texts`.

Letters: B batch, C channels, H x W sample size, P patch, N spatial tokens, G groups, J latents per group, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import Backbone, BackboneSpec
from elit_serve.nn.backbones.kind import Conditions
from elit_serve.nn.fields import one_of, whole
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import (
    group_centres,
    patchify,
    token_positions,
    unpatchify,
    with_zeros_between,
    without_zeros_between,
)
from elit_serve.nn.layers import Block, FinalLayer, TimestepEmbedder, initialise, rope_table
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.bounds import MAX_TOKENS
from elit_serve.plans.size import nearest_multiples

MAX_SIDE = 4096  # of a sample
AUTOENCODER_FACTOR = 8  # pixels per latent side of the FLUX autoencoder that the paper uses
GROUPS_PER_SIDE = 4  # the paper keeps G = 16 at every resolution


@dataclass(frozen=True, kw_only=True)
class TransformerSpec(BackboneSpec):
    """A diffusion transformer.

    channels, height, width: the sample the model works on (pixels, or an autoencoder's latent).
    patch: side of a square patch. dim: token width d.
    positions: `rope`, or `learned` for an embedding of each token instead, which ties the model to one sample size.
    zeros_between: patches of zeros after each patch of the sample, to its right and below it: with 1 the grid of tokens
        has twice the rows and columns, and three quarters of it are zeros. The model computes on them and its output
        lacks them: tokens that nobody needs, for the experiment of the paper's section 3.2.
    """

    channels: int = whole(1, 1024)
    height: int = whole(1, MAX_SIDE)
    width: int = whole(1, MAX_SIDE)
    patch: int = whole(1, 64)
    dim: int = whole(4, 16384)
    depth: int = whole(1, 512)
    num_heads: int = whole(1, 512)
    positions: str = one_of(("rope", "learned"), "rope")
    zeros_between: int = whole(0, MAX_SIDE, 0)

    def check(self) -> None:
        if self.dim % (4 * self.num_heads):
            needed = f"2D positions need dim / num_heads divisible by 4, and dim is {self.dim}"
            raise InvalidInput("num_heads", self.num_heads, needed)
        rows, columns = self.token_grid(self.height, self.width)
        if rows * columns > MAX_TOKENS:
            size = f"{self.height} x {self.width} in patches of {self.patch} with {self.zeros_between} zeros between"
            allowed = f"{size} is {rows * columns} tokens; at most {MAX_TOKENS} are allowed"
            raise InvalidInput("height, width", (self.height, self.width), allowed)
        self.check_size(self.height, self.width)

    @property
    def conditions(self) -> Conditions:
        """The fields that say what its pictures may be of."""
        raise NotImplementedError

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of tokens in a group; without groups each token stands alone."""
        return 1, 1

    def check_size(self, *size: int) -> None:
        """Raises unless a sample of this size, zeros between its patches included, splits into whole windows."""
        height, width = size
        for name, side, tokens in zip(("height", "width"), size, self.window, strict=True):
            patches = tokens // math.gcd(tokens, 1 + self.zeros_between)  # the fewest that fill whole windows
            step = patches * self.patch
            if side < step or side % step:
                nearest = nearest_multiples(side, step)
                allowed = f"it must be a multiple of {step} (whole windows of whole patches), as {nearest}"
                raise InvalidInput(name, side, allowed)
        if self.positions == "learned" and (height, width) != (self.height, self.width):
            allowed = f"positions are learned for {self.height, self.width} alone; with rope there may be other sizes"
            raise InvalidInput("height, width", (height, width), allowed)

    def at_size(self, *size: int) -> Self:
        self.check_size(*size)
        height, width = size
        return replace(self, height=height, width=width)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a sample of this size, zeros included."""
        return (1 + self.zeros_between) * (height // self.patch), (1 + self.zeros_between) * (width // self.patch)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.channels, self.height, self.width

    def core_shape(self, level: int) -> tuple[int, int]:
        return self.num_groups * level, self.dim

    @property
    def num_tokens(self) -> int:
        """N, spatial tokens after patchify, zeros included."""
        rows, columns = self.token_grid(self.height, self.width)
        return rows * columns


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything that depends on the sample size alone: the grid of tokens, zeros included, and its RoPE tables."""

    rows: int
    columns: int
    num_groups: int
    token_rope: Tensor  # [2, N, 1, E/2]
    group_rope: Tensor  # [2, G, 1, E/2], of the centre of each group
    latent_rope: Tensor  # [2, G * J, 1, E/2]
    latent_tokens: Tensor  # [J] int64, the places in its group of the tokens that latents stand on


class Modulated(Protocol):
    """A module that is modulated by time and condition."""

    @property
    def modulation(self) -> nn.Module: ...


class Transformer(Backbone):
    """Patches in, velocity out, time and condition; a kind adds what its condition is, its blocks, and how tokens run
    through them."""

    spec: TransformerSpec

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__(spec)
        self.window = spec.window
        self.patch_embed = nn.Linear(spec.channels * spec.patch**2, spec.dim)
        self.time_embed = self.make_time_embed()
        self.make_condition_embed()
        self.positions = nn.Parameter(torch.empty(spec.num_tokens, spec.dim)) if spec.positions == "learned" else None
        self.make_blocks()
        self.final = FinalLayer(spec.dim, spec.channels * spec.patch**2)
        self._layouts: dict[tuple[int, int, torch.device], Layout] = {}
        initialise(self)
        self.start()

    def make_time_embed(self) -> TimestepEmbedder:
        """What makes a vector of t."""
        return TimestepEmbedder(self.spec.dim)

    def make_condition_embed(self) -> None:
        """Registers what `condition_embedding` needs."""
        raise NotImplementedError

    def condition_embedding(self, condition: Tensor) -> Tensor:
        """What is added to the embedding of time: condition [B, ...] -> [B, D]."""
        raise NotImplementedError

    def make_blocks(self) -> None:
        """Registers the kind's own modules, between the embeddings and the final layer."""
        raise NotImplementedError

    def new_blocks(self, count: int) -> nn.ModuleList:
        """Blocks of the model's width."""
        return nn.ModuleList(Block(self.spec.dim, self.spec.num_heads) for _ in range(count))

    def start(self) -> None:
        """What a kind changes of its initial weights."""

    def time_embedding(self, t: Tensor) -> Tensor:
        return self.time_embed(t)

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
        rows, columns = self.spec.token_grid(height, width)
        positions = token_positions(rows, columns, self.window, device)
        if self.positions is not None:
            positions = torch.zeros_like(positions)  # all in one place: RoPE then turns nothing
        centres = group_centres(positions, self.window)[:, 0]
        latents = self.latent_positions(positions)
        return Layout(
            rows=rows,
            columns=columns,
            num_groups=len(centres),
            token_rope=rope_table(positions, head_size),
            group_rope=rope_table(centres, head_size),
            latent_rope=rope_table(latents.flatten(0, 1), head_size),
            latent_tokens=torch.tensor(self.latent_tokens(), device=device),
        )

    def latent_positions(self, positions: Tensor) -> Tensor:
        """Where latents stand among tokens at positions [N, 2]; here each token is a group of its own. -> [G, J, 2]"""
        return positions.unsqueeze(1)

    def latent_tokens(self) -> list[int]:
        """The places in its group of the tokens that latents stand on, numbered row by row; as many as latents."""
        return list(range(self.spec.latents_per_group))

    def embed(self, x: Tensor, t: Tensor, condition: Tensor, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], t [B] in [0, 1], condition [B, ...], and whatever else modulates the blocks, [B, D] -> tokens
        [B, N, D] and activated condition [B, D]."""
        patch = self.spec.patch
        x = with_zeros_between(x.to(self.patch_embed.weight.dtype), patch=patch, count=self.spec.zeros_between)
        tokens = self.patch_embed(patchify(x, patch=patch, window=self.window))
        if self.positions is not None:
            tokens = tokens + self.positions
        c = self.time_embed(t) + self.condition_embedding(condition)
        return tokens, F.silu(c if also is None else c + also)

    def gathered(self) -> list[nn.Module]:
        """Modulations are computed before the blocks that they modulate run."""
        parts = super().gathered()
        inner = (getattr(module, "modulation", None) for part in parts for module in part.modules())
        return [*(modulation for modulation in inner if modulation is not None), *parts]

    def modulations(self, modules: Sequence[Modulated], c: Tensor) -> Iterator[Tensor]:
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

    def at_each_level(
        self,
        part_at: Callable[[Tensor, Sequence[Tensor], int, Tensor | None, CoreChange | None], Tensor],
        whole: Tensor,
        modulations: Sequence[Tensor],
        levels: Sequence[int],
        own_levels: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
    ) -> Tensor:
        """Equal parts of a batch, each at its level: whole [B, K, D] -> [B, K, D], through `part_at` of a part, its
        modulations [B / S, ...], its level, its samples' own levels [B / S] if they have some and, with changes, what
        becomes of its core.

        A core at a low level leaves most of a GPU idle: beside the main pass a weak one costs little time.
        """
        count = len(levels)
        divided = [equal_parts(modulation, count) for modulation in modulations]
        of_parts = [[parts[part] for parts in divided] for part in range(count)]
        own = (None,) * count if own_levels is None else equal_parts(own_levels, count)
        main, *weak = zip(equal_parts(whole, count), of_parts, levels, own, changes or (None,) * count, strict=True)
        with self.beside():
            weak_parts = [part_at(*part) for part in weak]
        main_part = part_at(*main)
        self.join()
        return torch.cat([main_part, *weak_parts]) if weak else main_part

    def unembed(self, residual: Tensor | Residual, modulation: Tensor, layout: Layout) -> Tensor:
        """A stream of tokens [B, N, D], `modulation(c)` [B, 2D] -> velocity [B, C, H, W]."""
        patches, patch = self.final(residual, modulation), self.spec.patch  # [B, N, C * P * P]
        height, width = layout.rows * patch, layout.columns * patch
        x = unpatchify(patches, patch=patch, window=self.window, height=height, width=width)
        return without_zeros_between(x, patch=patch, count=self.spec.zeros_between)


def blocks_of(modules: nn.ModuleList) -> list[Block]:
    """Its modules, which are all blocks."""
    return [module for module in modules if isinstance(module, Block)]


def equal_parts(whole: Tensor, count: int) -> Sequence[Tensor]:
    """Equal parts of a batch. In training each has memory of its own: compiled blocks take a view for another kind of
    input, and would be compiled twice as often."""
    if count == 1:
        return (whole,)
    parts = whole.chunk(count)
    return [part.clone() for part in parts] if torch.is_grad_enabled() else parts


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, depth and head-core-tail split of a preset (paper, section 4.1 and appendix B)."""

    dim: int
    depth: int
    num_heads: int
    split: tuple[int, int, int]


SIZES = {
    "s": Size(dim=384, depth=12, num_heads=6, split=(2, 8, 2)),
    "b": Size(dim=768, depth=12, num_heads=12, split=(2, 8, 2)),
    "xl": Size(dim=1152, depth=28, num_heads=16, split=(4, 20, 4)),
}


def tiny_fields(depth: int, conditions: Conditions) -> dict[str, Any]:
    """The fields of a model of so many blocks that runs within milliseconds, for pictures of 16 x 16 pixels."""
    sample = {"channels": 3, "height": 16, "width": 16, **conditions}
    return {**sample, "patch": 2, "dim": 32, "depth": depth, "num_heads": 2}


PATCHES = (1, 2, 4, 8)
PRESETS = {f"{size}/{patch}": (size, patch) for size in SIZES for patch in PATCHES}  # what follows the kind's name


def preset_fields(
    name: str, size: Size, patch: int, resolution: int, channels: int, conditions: Conditions
) -> tuple[dict[str, Any], int]:
    """The fields of a preset for square images of `resolution` pixels behind an 8x autoencoder, and its window."""
    step = AUTOENCODER_FACTOR * patch * GROUPS_PER_SIDE
    if resolution < step or resolution % step:
        raise InvalidInput("resolution", resolution, f"{name} takes multiples of {step}")
    latent = resolution // AUTOENCODER_FACTOR
    fields = {"dim": size.dim, "depth": size.depth, "num_heads": size.num_heads, "patch": patch}
    sample = {"channels": channels, "height": latent, "width": latent, **conditions}
    return {**sample, **fields}, latent // patch // GROUPS_PER_SIDE
