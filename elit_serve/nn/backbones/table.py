"""All backbones by kind. To add one: a file with its spec, module and presets, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones import dit, elit_dit, elit_hdit, elit_mmdit, elit_sit, elit_uvit, hdit, mmdit, sit, uvit
from elit_serve.nn.backbones.backbone import Backbone, BackboneSpec
from elit_serve.nn.backbones.dense import elit_prx, elit_qwen_image, flux2, prx, qwen_image, z_image
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.fields import InvalidSpec, SpecProblem, parse

KINDS: dict[str, BackboneKind] = {
    dit.DiTSpec.kind: dit.KIND,
    elit_dit.ElitDiTSpec.kind: elit_dit.KIND,
    uvit.UViTSpec.kind: uvit.KIND,
    elit_uvit.ElitUViTSpec.kind: elit_uvit.KIND,
    hdit.HDiTSpec.kind: hdit.KIND,
    elit_hdit.ElitHDiTSpec.kind: elit_hdit.KIND,
    sit.SiTSpec.kind: sit.KIND,
    elit_sit.ElitSiTSpec.kind: elit_sit.KIND,
    prx.PRXSpec.kind: prx.KIND,
    elit_prx.ElitPRXSpec.kind: elit_prx.KIND,
    qwen_image.QwenImageSpec.kind: qwen_image.KIND,
    elit_qwen_image.ElitQwenImageSpec.kind: elit_qwen_image.KIND,
    flux2.Flux2Spec.kind: flux2.KIND,
    z_image.ZImageSpec.kind: z_image.KIND,
    mmdit.MMDiTSpec.kind: mmdit.KIND,
    elit_mmdit.ElitMMDiTSpec.kind: elit_mmdit.KIND,
}


def parse_spec(kind: str, fields: Mapping[str, object]) -> BackboneSpec:
    """The spec of a kind from the fields of a file. Raises `InvalidSpec` with all that is wrong."""
    return parse(_known(kind).spec, fields)


def build(spec: BackboneSpec) -> Backbone:
    """The module that `spec` describes, freshly initialised."""
    return KINDS[spec.kind].module(spec)


def build_empty(spec: BackboneSpec) -> Backbone:
    """The module that `spec` describes on the meta device: names and shapes, no memory."""
    with torch.device("meta"), _SkipDraws():
        return build(spec)


def count_parameters(spec: BackboneSpec) -> int:
    """Parameters of `spec`, without allocating any."""
    return sum(parameter.numel() for parameter in build_empty(spec).parameters())


def preset_conditions(kind: str) -> Conditions:
    """The fields that say what pictures of a kind may be of, as its presets have them. Raises `InvalidSpec`."""
    return _known(kind).conditions


def _known(kind: str) -> BackboneKind:
    if kind not in KINDS:
        raise InvalidSpec([SpecProblem(("kind",), kind, f"one of {', '.join(KINDS)}")])
    return KINDS[kind]


def preset_names() -> list[str]:
    """As `elit-dit-xl/2`: kind, size and patch."""
    return list(_presets())


def preset(
    name: str, resolution: int, *, channels: int | None = None, conditions: Conditions | None = None
) -> BackboneSpec:
    """The spec of a preset for square images of `resolution` pixels behind an 8x autoencoder.

    channels: of that autoencoder; None is those of the kind's own. conditions: None is those of the kind's own, as
        1000 classes.
    """
    if name not in _presets():
        raise InvalidInput("model", name, f"a preset is one of {', '.join(preset_names())}")
    kind = _presets()[name]
    return kind.presets[name](resolution, channels or kind.channels, conditions or kind.conditions)


def _presets() -> dict[str, BackboneKind]:
    """The kind of each preset."""
    return {name: kind for kind in KINDS.values() for name in kind.presets}


class _SkipDraws(TorchFunctionMode):
    """Leaves tensors as they are where a module would initialise itself.

    On the meta device that would change nothing, but torch would import its compiler for it: 1.4 s at each start.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
