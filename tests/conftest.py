"""What every test may use: a tiny elastic model on disk, with random weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and busy machines lose much
import torch

from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.config import (
    BackboneConfig,
    GuidanceConfig,
    ModelConfig,
    SamplingConfig,
    WeightsConfig,
)
from elit_serve.nn import BackboneSpec, InterfaceSpec, build


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """32x32 pixels, 4 levels, 3 classes, 4 steps of CCFG."""
    spec = BackboneSpec(
        channels=3,
        height=32,
        width=32,
        patch=4,
        dim=64,
        depth=4,
        num_heads=2,
        num_classes=3,
        interface=InterfaceSpec(window=(2, 2), head=1, core=2, tail=1),
    )
    return ModelConfig(
        name="tiny",
        backbone=BackboneConfig.of(spec),
        levels=(1, 2, 3, 4),
        classes=("daisy", "rose", "tulip"),
        sampling=SamplingConfig(steps=4, guidance=GuidanceConfig(method="ccfg", scale=2.0, weak_level=1)),
        weights=WeightsConfig(dtype="float32", files={"model.safetensors": "0" * 64}),
    )


@pytest.fixture(scope="session")
def shared_tiny_model_dir(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk, once for the whole run; no test may change it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(tiny_config.spec)
        for parameter in model.parameters():  # also those that start at zero: every level must matter
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    write_checkpoint(path, tiny_config, model.state_dict())
    return path


@pytest.fixture
def tiny_model_dir(shared_tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may damage."""
    return Path(shutil.copytree(shared_tiny_model_dir, tmp_path / "tiny"))
