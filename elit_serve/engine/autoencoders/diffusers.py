"""Autoencoders of diffusers, from a folder in its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from elit_serve.engine.autoencoders.autoencoder import AutoencoderKind
from elit_serve.errors import CheckpointError, MissingPackage
from elit_serve.files.opening import MAX_JSON_BYTES, read_file, regular_folder
from elit_serve.files.validation import problems_in

Channels = Annotated[int, Field(ge=1, le=16384)]


class _Numbers(BaseModel):
    """Those of diffusers' `config.json` that decide sizes or scales, so that none takes all memory or gives NaN."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    in_channels: Channels = 3
    out_channels: Channels = 3
    latent_channels: Channels = 4
    block_out_channels: tuple[Channels, ...] = Field(default=(64,), min_length=1, max_length=8)
    layers_per_block: int = Field(default=1, ge=1, le=64)
    norm_num_groups: Channels = 32
    scaling_factor: float = Field(default=0.18215, ge=1e-3, le=1e3)
    shift_factor: float | None = Field(default=None, ge=-1e3, le=1e3)


class DiffusersAutoencoder:
    """An AutoencoderKL (FLUX, SD 3, ...) from a local folder in diffusers' format, safetensors only.

    factor: pixels of a picture per side of a sample's element.
    """

    makes_pictures = True

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise MissingPackage("diffusers", "autoencoder") from None
        try:
            untyped: Any = AutoencoderKL
            _Numbers.model_validate_json(read_file(folder / "config.json", MAX_JSON_BYTES))
            vae = untyped.from_pretrained(str(regular_folder(folder)), local_files_only=True, use_safetensors=True)
        except ValidationError as error:
            problems = [f"autoencoder/config.json: {problem}" for problem in problems_in(error)]
            raise CheckpointError(folder, problems) from None
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(folder, [f"no AutoencoderKL in diffusers' format: {reason}"]) from None
        self._vae = vae.to(device, dtype).eval().requires_grad_(False)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.shift_factor or 0.0)
        self.channels = int(vae.config.latent_channels)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        _, height, width = sample_shape
        return height * self.factor, width * self.factor

    def encode(self, images: Tensor) -> Tensor:
        latents = self._vae.encode(images.to(self._vae.dtype)).latent_dist.mode()
        samples: Tensor = (latents - self._shift) * self._scale
        return samples.float()

    def decode(self, samples: Tensor) -> Tensor:
        latents = samples.to(self._vae.dtype) / self._scale + self._shift
        images: Tensor = self._vae.decode(latents).sample
        return images.float()


KIND = AutoencoderKind(make=DiffusersAutoencoder, has_files=True)
