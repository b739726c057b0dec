"""A tiny ELIT-SiT in the form in which such checkpoints are published, with what the published code makes of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elit_serve.nn.backbones.sit import sine_positions

READ = "input_token_editor.adapters.0"
ARGS = {"model": "ELIT-SiT-tiny/2", "encoder_depth": 2, "num_classes": 10, "elit_group_size": 4, "resolution": 128}

WritePublished = Callable[..., Path]


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """`weights.NAME` and `vectors.NAME`: random weights of width 64 in 2 + 3 + 1 blocks, and velocities from them."""
    return load_file(Path(__file__).with_name("elit-sit-tiny.safetensors"))


@pytest.fixture
def weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under their published names; a test may change them. The file leaves out what nobody reads and what follows."""
    named = {name.removeprefix("weights."): tensor for name, tensor in published.items() if name.startswith("weights.")}
    positions = named[f"{READ}.latent_pos_embed"]
    named[f"{READ}.latent_pos_embed"] = torch.cat([positions, torch.zeros(4096 - len(positions), 64)])
    place = torch.arange(64)
    return {"pos_embed": sine_positions(place // 8, place % 8, 64).unsqueeze(0), **named}


@pytest.fixture
def write_published(weights: dict[str, Tensor], tmp_path: Path) -> WritePublished:
    """Writes a checkpoint as training leaves it; keywords change or add entries."""

    def write(**changes: Any) -> Path:
        worse = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
        whole = {"model": worse, "ema": weights, "opt": optimizer, "args": Namespace(**ARGS), "steps": 7}
        torch.save(whole | changes, tmp_path / "published.pt")
        return tmp_path / "published.pt"

    return write
