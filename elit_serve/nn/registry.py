"""Names to backbones: `elit-dit-xl/2` is a preset (kind, size, patch); a spec becomes a module here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dit import Backbone, DiT, ElitDiT
from elit_serve.nn.spec import BackboneSpec, InterfaceSpec

AUTOENCODER_FACTOR = 8  # pixels per latent side of the FLUX autoencoder that the paper uses
GROUPS_PER_SIDE = 4  # the paper keeps G = 16 at every resolution


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
PATCHES = (1, 2, 4, 8)


def preset_names() -> list[str]:
    return [f"{kind}-{size}/{patch}" for kind in ("dit", "elit-dit") for size in SIZES for patch in PATCHES]


def preset(name: str, resolution: int, *, channels: int = 16, num_classes: int = 1000) -> BackboneSpec:
    """The spec of a preset for square images of `resolution` pixels behind an 8x autoencoder."""
    if name not in preset_names():
        raise InvalidInput("model", name, f"a preset is one of {', '.join(preset_names())}")
    kind, patch = name.rsplit("-", 1)[0], int(name.rsplit("/", 1)[1])
    size = SIZES[name.rsplit("-", 1)[1].split("/")[0]]
    step = AUTOENCODER_FACTOR * patch * GROUPS_PER_SIDE
    if resolution < step or resolution % step:
        raise InvalidInput("resolution", resolution, f"{name} takes multiples of {step}")
    latent = resolution // AUTOENCODER_FACTOR
    window = latent // patch // GROUPS_PER_SIDE
    head, core, tail = size.split
    interface = InterfaceSpec(window=(window, window), head=head, core=core, tail=tail)
    return BackboneSpec(
        channels=channels,
        height=latent,
        width=latent,
        patch=patch,
        dim=size.dim,
        depth=size.depth,
        num_heads=size.num_heads,
        num_classes=num_classes,
        interface=interface if kind == "elit-dit" else None,
    )


def build(spec: BackboneSpec) -> Backbone:
    """The module that `spec` describes, freshly initialised."""
    return ElitDiT(spec) if spec.interface else DiT(spec)


def build_empty(spec: BackboneSpec) -> Backbone:
    """The module that `spec` describes on the meta device: names and shapes, no memory."""
    with torch.device("meta"), _SkipDraws():
        return build(spec)


def count_parameters(spec: BackboneSpec) -> int:
    """Parameters of `spec`, without allocating any."""
    return sum(parameter.numel() for parameter in build_empty(spec).parameters())


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
