"""Small random instances of diffusers' autoencoders, as the folders that they are given as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_kl(folder: Path, *, channels: int = 4, blocks: int = 3, seed: int = 0, **config: Any) -> Path:
    """An AutoencoderKL of `2 ** (blocks - 1)` pixels per side of a latent."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoencoderKL(
            block_out_channels=(8,) * blocks,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
            **config,
        )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny(folder: Path, *, channels: int = 4, blocks: int = 3, seed: int = 1) -> Path:
    """An AutoencoderTiny of `2 ** (blocks - 1)` pixels per side of a latent."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoencoderTiny(
            encoder_block_out_channels=(8,) * blocks,
            decoder_block_out_channels=(8,) * blocks,
            num_encoder_blocks=(1,) * blocks,
            num_decoder_blocks=(1,) * blocks,
            latent_channels=channels,
        )
    model.save_pretrained(folder, safe_serialization=True)
    return folder
