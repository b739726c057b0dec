"""ELIT-U-ViT: a U-ViT with a latent interface (paper, section 4.2).

A skip joins what is equally long: the tail joins the head, over all tokens, and the second half of the core its first
half, over the latents that are kept. Letters: B batch, N spatial tokens, G groups, L level, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.elit import Elit, ElitSpec, elit_preset_fields, tiny_elit_fields
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.transformer import PRESETS, Layout
from elit_serve.nn.backbones.uvit import (
    Skip,
    UViTSpec,
    num_skips,
    run_joining,
    run_keeping,
    run_with_skips,
    skip_flops,
    start_skips,
)
from elit_serve.nn.fused import Residual
from elit_serve.nn.kept import Kept, mask_of, masked
from elit_serve.nn.layers import run


@dataclass(frozen=True, kw_only=True)
class ElitUViTSpec(ElitSpec, ClassSpec):
    """A U-ViT of `depth` blocks in all, split by its interface.

    Where head and tail are not equally long, the first blocks of the head and the last of the tail have skips.
    """

    kind: ClassVar[str] = "elit-uvit"

    @property
    def num_spatial_skips(self) -> int:
        """From head to tail."""
        return min(self.interface.head, self.interface.tail)

    @property
    def num_core_skips(self) -> int:
        """Inside the core."""
        return num_skips(self.interface.core)

    def plain(self) -> UViTSpec:
        head, tail = self.interface.head, self.interface.tail
        if head != tail:
            raise InvalidInput(
                "interface.tail", tail, f"{head}, as many as in the head: skips of a plain U-ViT join both"
            )
        return UViTSpec(**self.plain_fields())

    def spatial_flops(self) -> float:
        return super().spatial_flops() + self.num_spatial_skips * skip_flops(self.num_tokens, self.dim)

    def core_flops(self, level: int) -> float:
        return super().core_flops(level) + self.num_core_skips * skip_flops(self.num_groups * level, self.dim)


class ElitUViT(ClassTransformer, Elit):
    """ELIT-U-ViT: skips from head to tail and inside the core."""

    spec: ElitUViTSpec

    def make_blocks(self) -> None:
        super().make_blocks()
        self.skips = nn.ModuleList(Skip(self.spec.dim) for _ in range(self.spec.num_spatial_skips))
        self.core_skips = nn.ModuleList(Skip(self.spec.dim) for _ in range(self.spec.num_core_skips))

    def start(self) -> None:
        super().start()
        start_skips(self.skips)
        start_skips(self.core_skips)

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Skips are counted from the middle outwards, so those inside the core come first."""
        inside, renamed = self.spec.num_core_skips, {}
        for name, tensor in super().from_plain(weights).items():
            part, _, rest = name.partition(".")
            if part == "skips":
                number, _, parameter = rest.partition(".")
                is_inside = int(number) < inside
                name = f"core_skips.{number}.{parameter}" if is_inside else f"skips.{int(number) - inside}.{parameter}"
            renamed[name] = tensor
        return renamed

    def compilable(self) -> list[nn.Module]:
        return [*super().compilable(), *self.skips, *self.core_skips]

    def run_around(
        self, inside: Callable[[Tensor], Tensor], tokens: Tensor, modulations: Iterator[Tensor], rope: Tensor
    ) -> Tensor | Residual:
        made = run_keeping(list(self.head), tokens, modulations, rope)  # [B, N, D] each
        tail, count = list(self.tail), len(self.skips)
        written = inside(made[-1] if made else tokens)
        written_and_run = run(tail[: len(tail) - count], written, modulations, rope)
        return run_joining(
            tail[len(tail) - count :], list(self.skips), made[:count], written_and_run, modulations, rope
        )

    def run_core(
        self, z: Tensor | Residual, modulations: Iterator[Tensor], rope: Tensor, _: Layout, kept: Kept | None
    ) -> Tensor | Residual:
        return run_with_skips(masked(self.core, mask_of(kept, z)), list(self.core_skips), z, modulations, rope)


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> ElitUViTSpec:
    return ElitUViTSpec(**elit_preset_fields("elit-uvit", size, patch, resolution, channels, conditions))


KIND = BackboneKind(
    spec=ElitUViTSpec,
    module=ElitUViT,
    tiny=ElitUViTSpec(**tiny_elit_fields(head=2, core=3, tail=1, conditions=TINY_CLASSES)),
    presets={f"elit-uvit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
