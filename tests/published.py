"""A tiny ELIT-SiT in the form in which such checkpoints are published."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from elit_serve.nn.backbones.sit import sine_positions

TENSORS = Path(__file__).parent / "importing/elit-sit-tiny.safetensors"
READ = "input_token_editor.adapters.0"
CLASSES = "y_embedder.embedding_table.weight"
ARGS = {"model": "ELIT-SiT-tiny/2", "encoder_depth": 2, "num_classes": 10, "elit_group_size": 4, "resolution": 128}


def published_tensors() -> dict[str, Tensor]:
    """`weights.NAME` and `vectors.NAME`: random weights of width 64 in 2 + 3 + 1 blocks, and velocities from them."""
    return load_file(TENSORS)


def published_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under their published names. The file of tensors leaves out what nobody reads and what follows."""
    named = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    positions = named[f"{READ}.latent_pos_embed"]
    named[f"{READ}.latent_pos_embed"] = torch.cat([positions, torch.zeros(4096 - len(positions), 64)])
    place = torch.arange(64)
    return {"pos_embed": sine_positions(place // 8, place % 8, 64).unsqueeze(0), **named}


def of_classes(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The same for the first so many classes, and for none."""
    return {**weights, CLASSES: torch.cat([weights[CLASSES][:number], weights[CLASSES][-1:]])}


def save_published(path: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """Writes a checkpoint as training leaves it; keywords change or add entries."""
    worse = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    whole = {"model": worse, "ema": weights, "opt": optimizer, "args": Namespace(**ARGS), "steps": 7}
    torch.save(whole | changes, path)
    return path
