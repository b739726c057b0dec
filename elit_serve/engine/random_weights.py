"""A preset of the paper as a model without training: what it costs can be measured before anything is learned."""

from __future__ import annotations

import torch

from elit_serve.catalogue import bundled_models
from elit_serve.engine.checkpoint import Checkpoint
from elit_serve.files.config import (
    AutoencoderConfig,
    ClassesConfig,
    ModelConfig,
    SamplingConfig,
    WeightsConfig,
)
from elit_serve.nn import Backbone, BackboneSpec, build, preset
from elit_serve.plans.guidance import Guidance

SPREAD = 0.02  # of the tensors that training would start at zero
NUM_CLASSES = 1000  # as of ImageNet
LOWEST_SHARE = 16  # the weak pass of guidance keeps one latent in 16 (paper, section 3.4)


def random_checkpoint(preset_name: str, resolution: int, *, device: torch.device, seed: int) -> Checkpoint:
    """Weights drawn on `device` from `seed`, with the classes named by their numbers and CCFG as the default."""
    spec = preset(preset_name, resolution, num_classes=NUM_CLASSES)
    return Checkpoint(
        path=bundled_models() / "recipes",
        config=_config(preset_name, resolution, spec),
        model=_draw(spec, device, seed).eval().requires_grad_(False),
    )


def _config(preset_name: str, resolution: int, spec: BackboneSpec) -> ModelConfig:
    weak_level = max(1, spec.levels[-1] // LOWEST_SHARE)
    is_elastic = len(spec.levels) > 1
    guidance = Guidance(method="ccfg" if is_elastic else "cfg", scale=2.0, weak_level=weak_level)
    return ModelConfig(
        name=f"{preset_name.replace('/', '-')}-{resolution}-random",
        **spec.config_fields(),
        levels=spec.levels,
        conditions=ClassesConfig(names=tuple(str(index) for index in range(NUM_CLASSES))),
        autoencoder=AutoencoderConfig(kind="none"),
        sampling=SamplingConfig(guidance=guidance),
        weights=WeightsConfig(dtype="float32", files={"random.safetensors": "0" * 64}),
    )


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
