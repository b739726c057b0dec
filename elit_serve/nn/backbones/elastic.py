"""What specs of transformers with a latent interface share: how it splits blocks and tokens, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import BackboneSpec
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.fields import Checked, nested, pair, whole
from elit_serve.nn.flops import Flops, block_flops, read_and_write_flops


@dataclass(frozen=True, kw_only=True)
class SplitSpec(Checked):
    """Where a latent interface stands in a transformer (paper, section 3.3).

    window: (rows, columns) of tokens in a group; their product is J, the latents per group.
    head, core, tail: transformer blocks before Read, between Read and Write, and after Write.
    """

    window: tuple[int, int] = pair(1, 4096)
    head: int = whole(0, 512)
    core: int = whole(1, 512)
    tail: int = whole(0, 512)


@dataclass(frozen=True, kw_only=True)
class WithLatents(BackboneSpec):
    """Mixed into the spec of a transformer of `depth` blocks in all, which its interface splits."""

    interface: SplitSpec = nested(SplitSpec)  # noqa: RUF009 (it makes a field)

    if TYPE_CHECKING:  # fields of what it is mixed into
        dim: int
        depth: int

    def check(self) -> None:
        head, core, tail = self.interface.head, self.interface.core, self.interface.tail
        if head + core + tail != self.depth:
            raise InvalidInput(
                "split", f"{head}-{core}-{tail}", f"head, core and tail must add up to depth {self.depth}"
            )
        super().check()

    @property
    def latents_per_group(self) -> int:
        """J."""
        rows, columns = self.interface.window
        return rows * columns

    @property
    def droppable_latents(self) -> int:
        return self.latents_per_group

    @property
    def skips_at_any_level(self) -> bool:
        return self.reads_all or super().skips_at_any_level

    @property
    def reads_all(self) -> bool:
        """Whether Read and Write work on all latents below the full level, of which the first run through the core."""
        return True

    def flops(self, level: int) -> Flops:
        """Head and tail over all tokens, the core over the latents that are kept, Read and Write in between."""
        blocks = self.spatial_flops() + self.core_flops(level)

        def with_read_and_write(latents_per_group: int) -> float:
            return blocks + read_and_write_flops(self.num_groups, self.latents_per_group, latents_per_group, self.dim)

        return Flops(
            prefix=with_read_and_write(level),
            all_latents=with_read_and_write(self.latents_per_group),
            reads_all=self.reads_all,
        )

    def spatial_flops(self) -> float:
        """Of head and tail."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ElasticSpec(WithLatents, TransformerSpec):
    """A transformer of our own with a latent interface."""

    def check(self) -> None:
        super().check()
        if min(self.window) <= self.zeros_between:
            allowed = f"at least {self.zeros_between + 1} tokens a side: of smaller groups some hold nothing but zeros"
            raise InvalidInput("window", self.window, allowed)

    @property
    def window(self) -> tuple[int, int]:
        return self.interface.window

    def plain_fields(self) -> dict[str, Any]:
        """Fields of the plain spec that `plain` gives: those of `TransformerSpec`, and what its conditions are. Raises
        `InvalidInput` where no level of a fresh model is a plain one."""
        start = getattr(self.interface, "start", None)
        if start != "tokens":
            raise InvalidInput("interface.start", start, "tokens: otherwise no level is a plain model at the start")
        if self.positions == "learned":
            raise InvalidInput("positions", self.positions, "those that are the same whatever the window is")
        return {**self.conditions, **{each.name: getattr(self, each.name) for each in fields(TransformerSpec)}}

    def spatial_flops(self) -> float:
        """Of head and tail."""
        return (self.interface.head + self.interface.tail) * block_flops(self.num_tokens, self.dim)

    def core_flops(self, level: int) -> float:
        """Of the core over `level` latents of each group."""
        return self.interface.core * block_flops(self.num_groups * level, self.dim)


def in_split(weights: Mapping[str, Tensor], interface: SplitSpec) -> dict[str, Tensor]:
    """Weights by name whose `blocks` are the blocks of head, core and tail in turn."""
    places = [
        f"{part}.{index}" for part in ("head", "core", "tail") for index in range(getattr(interface, part))
    ]  # of each block
    renamed = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, inside = rest.partition(".")
            name = f"{places[int(number)]}.{inside}"
        renamed[name] = tensor
    return renamed
