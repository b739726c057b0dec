"""Photographs and a feature extractor, made here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = ("daisy", "rose", "tulip")


def write_photographs(folder: Path, counts: dict[str, int], seed: int) -> Path:
    """Smooth coloured noise, 40 x 36 pixels, in class folders."""
    random = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / label / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("sets") / "train", dict.fromkeys(CLASSES, 20), seed=0)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("sets") / "val", {"daisy": 4, "rose": 6, "tulip": 8}, seed=1)


class Pooled(nn.Module):
    """Random convolutions, averaged: [B, 3, H, W] -> [B, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).relu().mean((2, 3))


@pytest.fixture(scope="session")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Callable[[nn.Module, str], Path]:
    """Writes a module as a TorchScript file under a name."""

    def write(module: nn.Module, name: str) -> Path:
        path = tmp_path_factory.mktemp("features") / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
            torch.jit.trace(module.eval(), torch.rand(2, 3, 32, 32)).save(str(path))
        return path

    return write


@pytest.fixture(scope="session")
def feature_file(torchscript: Callable[[nn.Module, str], Path]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchscript(Pooled(), "pooled_features.ts")
