"""`config.json` as version 1 wrote it, and what of it still matters: one class-conditional kind, whose only shape stood
in the backbone, and whose classes stood beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elit_serve.plans.shape import Shape

FIRST_KINDS = ("dit", "elit-dit")
UNWRITTEN = {"positions": "rope", "zeros_between": 0}  # fields whose defaults hashes leave out
MEANT_NOTHING = (("interface", None), ("padding", 0))  # what fields that are gone or left out now were written as
MISSING = object()


def upgraded(content: Any) -> Any:
    """The content of a `config.json` of any version in the present one; what is no table stays as it is."""
    if not isinstance(content, dict) or content.get("format_version", 1) != 1:
        return content
    new = {name: value for name, value in content.items() if name not in ("classes", "backbone")}
    new["format_version"] = 2
    if "classes" in content:
        new["conditions"] = {"kind": "class", "names": content["classes"]}
    if "backbone" in content:
        new["backbone"] = _with_first_interface(with_kind(content["backbone"]))
        new |= _derived(content["backbone"])
    return new


def with_kind(backbone: Any) -> Any:
    """A backbone as files and recipes had it before its kind had a name: with an interface it is elastic."""
    if not isinstance(backbone, Mapping) or backbone.get("kind", "dit") != "dit":
        return backbone
    fields = {name: value for name, value in backbone.items() if (name, value) not in MEANT_NOTHING}
    return fields | {"kind": "elit-dit" if "interface" in fields else "dit"}


def _with_first_interface(backbone: Any) -> Any:
    """An interface of version 1 was what is an option now."""
    interface = backbone.get("interface") if isinstance(backbone, Mapping) else None
    if not isinstance(interface, Mapping):
        return backbone
    return {**backbone, "interface": {**interface, "start": "alike", "reach": "prefix"}}


def _derived(backbone: Any) -> dict[str, Any]:
    """Its shape and its latents per group, as far as the numbers behind them are numbers."""
    if not isinstance(backbone, Mapping):
        return {}
    derived: dict[str, Any] = {}
    size = [side for name in ("channels", "height", "width") if isinstance(side := backbone.get(name), int)]
    if len(size) == 3:
        derived["shapes"] = {Shape.of(size).name: size}
    interface = backbone.get("interface")
    window = interface.get("window") if isinstance(interface, Mapping) else [1, 1]
    if isinstance(window, list | tuple) and len(window) == 2 and all(isinstance(side, int) for side in window):
        derived["latents_per_group"] = window[0] * window[1]
    return derived
