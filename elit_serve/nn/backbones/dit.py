"""DiT: a plain class-conditional diffusion transformer, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.plain import Plain, PlainSpec
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, preset_fields, tiny_fields


@dataclass(frozen=True, kw_only=True)
class DiTSpec(PlainSpec):
    """A plain DiT, whose only level is 1: each token stands alone."""

    kind: ClassVar[str] = "dit"


class DiT(Plain):
    """A plain class-conditional diffusion transformer, the baseline; its only level is 1."""

    spec: DiTSpec


def _preset(size: str, patch: int, resolution: int, channels: int, num_classes: int) -> DiTSpec:
    fields, _ = preset_fields(f"dit-{size}/{patch}", SIZES[size], patch, resolution, channels, num_classes)
    return DiTSpec(**fields)


KIND = BackboneKind(
    spec=DiTSpec,
    module=DiT,
    tiny=DiTSpec(**tiny_fields(depth=2)),
    presets={f"dit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
