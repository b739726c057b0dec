"""What every backbone is to those who train, run, measure and look at it. A kind is a spec and a module of these.

Letters: B batch, * the size of one sample (its channels first), J latents per group, L level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.fields import Checked, as_table
from elit_serve.nn.flops import Flops
from elit_serve.nn.layers import Block, GroupedCrossAttention, settled
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.levels import Budgets
from elit_serve.plans.shape import Shape


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Checked):
    """A backbone as a value: enough to build it, to count its FLOPs, and to check a checkpoint.

    kind: its name in the table. The fields are those of each kind, made by `nn.fields`; a kind that knows classes has a
    field `num_classes`.
    """

    kind: ClassVar[str]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The size of one sample, channels first; the one that it is trained at, where it runs at several."""
        raise NotImplementedError

    @property
    def latents_per_group(self) -> int:
        """J: the highest level. 1 for what has no levels."""
        return 1

    @property
    def num_tokens(self) -> int:
        """How many tokens a sample is."""
        raise NotImplementedError

    @property
    def num_groups(self) -> int:
        """G: at level L it keeps G x L latents."""
        return self.num_tokens // self.latents_per_group

    @property
    def droppable_latents(self) -> int:
        """How many learned latents a group has, for training that drops random ones; 0 for what has none."""
        return 0

    def flops(self, level: int) -> Flops:
        """Of one forward pass of one sample at a level."""
        raise NotImplementedError

    def core_flops(self, level: int) -> float:
        """What a pass at a level spares that skips its core, see `nn.reuse`."""
        raise NotImplementedError

    def core_shape(self, level: int) -> tuple[int, int]:
        """Tokens and width of what runs through the core at a level. The tokens of a group follow one another."""
        raise NotImplementedError

    @property
    def text_in_core(self) -> int:
        """How many of these tokens are of a text: the last ones, the same number at every level and of no group."""
        return 0

    @property
    def skips_at_any_level(self) -> bool:
        """Whether a pass that skips its core computes the same at every level: it adds a change to the latents that the
        core had, and all others are as they were."""
        return len(self.levels) == 1

    def check_size(self, *size: int) -> None:
        """Raises `InvalidInput` unless a sample may have these sides, channels left out."""
        if size != self.sample_shape[1:]:
            raise InvalidInput("size", size, f"this model takes {self.sample_shape[1:]}")

    def at_size(self, *size: int) -> Self:
        """The same for samples of these sides: what it costs there. Raises `InvalidInput` as `check_size` does."""
        self.check_size(*size)
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """All at which it runs, lowest first."""
        return tuple(range(1, self.latents_per_group + 1))

    @property
    def guidance_patch(self) -> int | None:
        """The side of the square patches of a sample whose norms guidance leaves as the main pass has them; None where
        it may change them."""
        return None

    @property
    def budgets(self) -> Budgets:
        """Between budgets and levels, if it is trained at all of them."""
        return Budgets(levels=self.levels, latents_per_group=self.latents_per_group)

    @property
    def shape(self) -> Shape:
        """`sample_shape` and how files and costs call it."""
        return Shape.of(self.sample_shape)

    def plain(self) -> BackboneSpec:
        """Of a model without latents that this one is when it is fresh, at its full level. Raises `InvalidInput` where
        there is none."""
        raise InvalidInput("kind", self.kind, "one with a latent interface, which a plain model can become")

    def config_fields(self) -> dict[str, Any]:
        """What a model's `config.json` says of it: fields of `files.ModelConfig`."""
        return {
            "backbone": {"kind": self.kind, **as_table(self)},
            "shapes": {self.shape.name: self.sample_shape},
            "latents_per_group": self.latents_per_group,
        }


@dataclass(frozen=True, kw_only=True)
class LatentParts:
    """What the latents of a backbone run through: each part once in a pass at one level, in this order.

    reading and writing are the attention of Read and of Write; `read` makes the latents. leaving: the latents [B, K, D]
    among what the last part of the core makes.
    """

    reading: GroupedCrossAttention
    read: nn.Module
    core: tuple[nn.Module, ...]
    writing: GroupedCrossAttention
    leaving: Callable[[Any], Tensor] = settled


class Backbone(nn.Module):
    """A velocity field at several levels of compute: samples in, velocity X_1 - X_0 out (paper, section 3.1)."""

    spec: BackboneSpec
    side_stream: torch.cuda.Stream | None = None  # with one, independent parts of a pass may run side by side

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec

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
        """Velocity [B, *] at x [B, *], t [B] in [0, 1], under condition [B, ...], at one level or at several.

        With S levels the batch is S equal parts, and part i runs at level[i]. latent_order: [J] int64, the order in
        which a kind with `droppable_latents` keeps its learned latents; None is their own. changes: one for each part,
        of its core: to be used, or to be left there; without any nothing is kept. own_levels: [B] int64, of each sample
        its own, none above the level of its part, which is what it costs (`nn.kept`); None is that level for all. Not
        together with changes that are to be used.
        """
        raise NotImplementedError

    def time_embedding(self, t: Tensor) -> Tensor:
        """What t [B] in [0, 1] is to the blocks before the condition is added: [B, D]. Which steps may skip their cores
        follows from how it changes."""
        raise NotImplementedError

    def null_like(self, condition: Tensor) -> Tensor:
        """What stands for no condition, in place of each of these: condition [B, ...] -> [B, ...]."""
        raise NotImplementedError

    def read_once(self, condition: Tensor) -> Any:
        """What its forward pass takes in place of a condition [B, ...] at every step of a picture, where a part of the
        work on it is the same at all of them: a tensor, or a named tuple of tensors, each [B, ...]."""
        return condition

    def compilable(self) -> list[nn.Module]:
        """The modules worth compiling, one by one."""
        return []

    def unfused(self) -> list[nn.Module]:
        """The modules that are worth compiling for inference on a GPU, too: those without kernels of `fused`."""
        return []

    def gathered(self) -> list[nn.Module]:
        """Parts whose parameters nothing uses but their own forward pass, inner ones before those that hold them: where
        weights are spread over devices, each is gathered for itself."""
        return self.compilable()

    def spatial_blocks(self) -> list[Block]:
        """The blocks whose tokens are patches of the sample, in the order in which they run."""
        return []

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its own weights by name that those of a model of `spec.plain()` become; all others stay as they start."""
        raise NotImplementedError

    def latent_parts(self) -> LatentParts | None:
        """What its latents run through, if it has any."""
        return None
