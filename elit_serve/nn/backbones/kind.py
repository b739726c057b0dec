"""What the table of backbones knows of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elit_serve.nn.backbones.backbone import Backbone, BackboneSpec

Conditions = Mapping[
    str, int
]  # the fields of a spec that say what its pictures may be of: how many classes, or which text
Preset = Callable[[int, int, Conditions], BackboneSpec]  # of (resolution in pixels, channels, conditions)


@dataclass(frozen=True, kw_only=True)
class BackboneKind:
    """spec: its fields, under the name `spec.kind`. module: a spec -> the network, freshly initialised.

    tiny: a spec that is as small as it can be and has all of its parts: what the tests of every kind run.
    presets: specs by name, for descriptions and measurements before anything is learned.
    channels: of their samples where nobody says; that is of the autoencoder that such models were published with.
    is_published: whether its weights come with a folder of diffusers, which makes its module, so that nothing of it is
        initialised here.
    conditions: of its presets where nobody says.
    """

    spec: type[BackboneSpec]
    module: Callable[[Any], Backbone]
    tiny: BackboneSpec
    presets: Mapping[str, Preset] = field(default_factory=dict)
    channels: int = 16
    is_published: bool = False
    conditions: Conditions = field(default_factory=lambda: {"num_classes": 1000})
