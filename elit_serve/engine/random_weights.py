"""A preset of the paper as a model without training: what it costs can be measured before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elit_serve.catalogue import bundled_models
from elit_serve.engine.checkpoint import Checkpoint
from elit_serve.errors import InvalidInput
from elit_serve.files.config import (
    AutoencoderConfig,
    ClassesConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TextEncoderConfig,
    WeightsConfig,
)
from elit_serve.nn import Backbone, BackboneSpec, build, preset, preset_conditions
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size, nearest_multiples

SPREAD = 0.02  # of the tensors that training would start at zero
CLASSES = ClassesConfig(names=tuple(str(index) for index in range(1000)))  # as many as ImageNet has
ENCODER = TextEncoderConfig(kind="wordllama")  # of presets for prompts: it needs no files of the model
RANDOM_RESOLUTION = 256  # where nobody says another
CLASSES_SHARE, TEXT_SHARE = 16, 8  # the weak pass of guidance keeps one latent in so many (paper, sections 3.4 and 4.4)


def random_checkpoint(
    preset_name: str,
    resolution: int,
    *,
    device: torch.device,
    seed: int,
    sizes: Sequence[str] = (),
    factor: int = 1,
    max_tokens: int | None = None,
) -> Checkpoint:
    """Weights drawn on `device` from `seed`, with classes that are named by their numbers, or with prompts, and CCFG as
    the default.

    sizes: as WIDTHxHEIGHT, so many times those of its samples as `factor` says; without any there is the one of its
        resolution. max_tokens: of a prompt; None is as many as the preset has places for.
    """
    config, spec = random_config(preset_name, resolution, sizes=sizes, factor=factor, max_tokens=max_tokens)
    return Checkpoint(
        path=bundled_models() / "recipes", config=config, model=_draw(spec, device, seed).eval().requires_grad_(False)
    )


def random_config(
    preset_name: str,
    resolution: int,
    *,
    sizes: Sequence[str] = (),
    factor: int = 1,
    max_tokens: int | None = None,
) -> tuple[ModelConfig, BackboneSpec]:
    """What `random_checkpoint` makes weights of."""
    spec = _spec(preset_name, resolution, max_tokens)
    shapes = [_shape(spec, Size.read(size, field="sizes"), factor) for size in sizes] or [spec.shape]
    return _config(preset_name, resolution, spec, shapes), spec


def _spec(preset_name: str, resolution: int, max_tokens: int | None) -> BackboneSpec:
    usual = preset(preset_name, resolution)
    if max_tokens is None:
        return usual
    conditions = preset_conditions(usual.kind)
    if "max_tokens" not in conditions:
        raise InvalidInput("max_tokens", max_tokens, f"{preset_name} is told classes; leave it out")
    return preset(preset_name, resolution, conditions={**conditions, "max_tokens": max_tokens})


def _shape(spec: BackboneSpec, size: Size, factor: int) -> Shape:
    for side in size:
        if side % factor:
            raise InvalidInput("sizes", str(size), f"multiples of {factor}, as {nearest_multiples(side, factor)}")
    return spec.at_size(size.height // factor, size.width // factor).shape


def _config(preset_name: str, resolution: int, spec: BackboneSpec, shapes: Sequence[Shape]) -> ModelConfig:
    conditions, is_elastic = _conditions(spec), len(spec.levels) > 1
    weak_level = max(1, spec.levels[-1] // (TEXT_SHARE if isinstance(conditions, TextConfig) else CLASSES_SHARE))
    guidance = Guidance(method="ccfg" if is_elastic else "cfg", scale=2.0, weak_level=weak_level)
    return ModelConfig(
        name=f"{preset_name.replace('/', '-')}-{resolution}-random",
        **{**spec.config_fields(), "shapes": {shape.name: shape.size for shape in shapes}},
        levels=spec.levels,
        conditions=conditions,
        autoencoder=AutoencoderConfig(kind="none"),
        sampling=SamplingConfig(guidance=guidance),
        weights=WeightsConfig(dtype="float32", files={"random.safetensors": "0" * 64}),
    )


def _conditions(spec: BackboneSpec) -> ClassesConfig | TextConfig:
    """What pictures of a preset are of."""
    fields = spec.config_fields()["backbone"]
    if "text_dim" not in fields:
        return CLASSES
    places = {"dim": fields["text_dim"], "max_tokens": fields["max_tokens"]}
    return TextConfig(encoder=ENCODER, examples=("a red tulip in a field",), **places)


def _draw(spec: BackboneSpec, device: torch.device, seed: int) -> Backbone:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        model = build(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=SPREAD)
    return model
