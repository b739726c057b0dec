"""ELIT-DiT: a DiT with a latent interface (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.dit import DiTSpec
from elit_serve.nn.backbones.elit import Elit, ElitSpec, elit_preset_fields, tiny_elit_fields
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.transformer import PRESETS


@dataclass(frozen=True, kw_only=True)
class ElitDiTSpec(ElitSpec, ClassSpec):
    """A DiT of `depth` blocks in all, split by its interface."""

    kind: ClassVar[str] = "elit-dit"

    def plain(self) -> DiTSpec:
        return DiTSpec(**self.plain_fields())


class ElitDiT(ClassTransformer, Elit):
    """ELIT-DiT: a spatial head, a core on a prefix of the latents, a spatial tail."""

    spec: ElitDiTSpec


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> ElitDiTSpec:
    return ElitDiTSpec(**elit_preset_fields("elit-dit", size, patch, resolution, channels, conditions))


KIND = BackboneKind(
    spec=ElitDiTSpec,
    module=ElitDiT,
    tiny=ElitDiTSpec(**tiny_elit_fields(head=1, core=2, tail=1, conditions=TINY_CLASSES)),
    presets={f"elit-dit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
