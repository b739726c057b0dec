"""Between pictures and the samples that a model works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from elit_serve.engine.config import AutoencoderConfig
from elit_serve.errors import CheckpointError, MissingPackage


class Autoencoder(Protocol):
    """channels: C of its samples. factor: pixels of a picture per side of a sample's element."""

    channels: int
    factor: int

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> samples [B, C, h, w] of about unit variance."""

    def decode(self, samples: Tensor) -> Tensor:
        """samples [B, C, h, w] -> images [B, 3, H, W], about [-1, 1]."""


class Pixels:
    """The sample is the picture."""

    channels, factor = 3, 1

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, samples: Tensor) -> Tensor:
        return samples


class DiffusersAutoencoder:
    """An AutoencoderKL (FLUX, SD 3, ...) from a local folder in diffusers' format, safetensors only."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise MissingPackage("diffusers", "autoencoder") from None
        try:
            untyped: Any = AutoencoderKL
            vae = untyped.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(folder, [f"no AutoencoderKL in diffusers' format: {reason}"]) from None
        self._vae = vae.to(device, dtype).eval().requires_grad_(False)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.shift_factor or 0.0)
        self.channels = int(vae.config.latent_channels)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        latents = self._vae.encode(images.to(self._vae.dtype)).latent_dist.mode()
        samples: Tensor = (latents - self._shift) * self._scale
        return samples.float()

    def decode(self, samples: Tensor) -> Tensor:
        latents = samples.to(self._vae.dtype) / self._scale + self._shift
        images: Tensor = self._vae.decode(latents).sample
        return images.float()


def open_autoencoder(config: AutoencoderConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder that `config` names; `folder` is where a diffusers one lies."""
    if config.kind in ("pixels", "none"):
        return Pixels()
    return DiffusersAutoencoder(folder, device, dtype)
