"""DiT: a plain class-conditional diffusion transformer, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.plain import Plain, PlainSpec
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, preset_fields, tiny_fields


@dataclass(frozen=True, kw_only=True)
class DiTSpec(PlainSpec, ClassSpec):
    """A plain DiT, whose only level is 1: each token stands alone."""

    kind: ClassVar[str] = "dit"


class DiT(ClassTransformer, Plain):
    """A plain class-conditional diffusion transformer, the baseline; its only level is 1."""

    spec: DiTSpec


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> DiTSpec:
    fields, _ = preset_fields(f"dit-{size}/{patch}", SIZES[size], patch, resolution, channels, conditions)
    return DiTSpec(**fields)


KIND = BackboneKind(
    spec=DiTSpec,
    module=DiT,
    tiny=DiTSpec(**tiny_fields(2, TINY_CLASSES)),
    presets={f"dit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
