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
WRITE = "output_token_editor.adapters.0"
ATTENTIONS = (f"{READ}.fit_layer.latents_attend_to_patches.0", f"{WRITE}.patches_attend_to_latents.0")
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


def random_weights(
    *, dim: int, depth: int, patch: int, channels: int, side: int, latents: int, num_classes: int
) -> dict[str, Tensor]:
    """A model of other sizes. side: of its grid of tokens. latents: in a group."""
    attention = {"q_proj": (dim, dim), "kv_proj": (2 * dim, dim), "proj": (dim, dim)}
    layers = {
        "t_embedder.mlp.0": (dim, 256),
        "t_embedder.mlp.2": (dim, dim),
        f"{READ}.fit_layer.adaLN_modulation.1": (7 * dim, dim),
        "final_layer.linear": (patch * patch * channels, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
    }
    block = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "adaLN_modulation.1": 6}
    layers |= {f"blocks.{i}.{name}": (rows * dim, dim) for i in range(depth) for name, rows in block.items()}
    layers |= {f"blocks.{i}.mlp.fc2": (dim, 4 * dim) for i in range(depth)}
    layers |= {f"{place}.{name}": shape for place in ATTENTIONS for name, shape in attention.items()}
    tensors: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    tensors |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    tensors |= {f"{place}.{norm}.scale": (dim,) for place in ATTENTIONS for norm in ("q_norm", "k_norm")}
    tensors |= {f"{READ}.fit_layer.read_ff.0.{name}.weight": (dim, dim) for name in ("fc1", "fc2")}
    tensors |= {f"{WRITE}.write_ff.0.{name}.weight": (dim, dim) for name in ("fc1", "fc2")}
    tensors |= {f"{READ}.{name}": (latents, dim) for name in ("learned_query_embed", "pos_embed")}
    tensors |= {f"{WRITE}.pos_embed": (latents, dim), f"{READ}.latent_pos_embed": (4096, dim)}
    tensors |= {"x_embedder.proj.weight": (dim, channels, patch, patch), "x_embedder.proj.bias": (dim,)}
    tensors |= {CLASSES: (num_classes + 1, dim)}
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(side * side)
    positions = {"pos_embed": sine_positions(place // side, place % side, dim).unsqueeze(0)}
    return positions | {
        name: 0.1 * torch.randn(shape, generator=generator) + (name.endswith(".scale"))
        for name, shape in tensors.items()
    }


def save_published(path: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """Writes a checkpoint as training leaves it; keywords change or add entries."""
    worse = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    whole = {"model": worse, "ema": weights, "opt": optimizer, "args": Namespace(**ARGS), "steps": 7}
    torch.save(whole | changes, path)
    return path
