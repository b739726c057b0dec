"""Autoencoders of diffusers, from a folder in its format: the folder's own `config.json` says which class it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json
from torch import Tensor

from elit_serve.engine.autoencoders.autoencoder import AutoencoderKind, FolderFacts
from elit_serve.engine.autoencoders.quick_blocks import quicken
from elit_serve.errors import CheckpointError, MissingPackage
from elit_serve.files.opening import MAX_JSON_BYTES, read_file, regular_folder
from elit_serve.files.validation import problems_in

DECODE_SHARE = 8  # of the device's memory, decoding or encoding takes one in so many
FLUX2_PATCH = 2  # latents a side of an element of FLUX.2's samples
FULL_COPIES = 6  # of the widest activation at full size; SD's decoder took 5.4 on a CPU (2026-11-30)

Channels = Annotated[int, Field(ge=1, le=16384)]
Blocks = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]


class _Numbers(BaseModel):
    """Those of diffusers' `config.json` that decide sizes or scales, so that none takes all memory or gives NaN."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Channels = 4
    scaling_factor: float = Field(default=1.0, ge=1e-3, le=1e3)
    shift_factor: float | None = Field(default=None, ge=-1e3, le=1e3)

    @property
    def scales(self) -> tuple[float, ...]:
        """What samples are multiplied by, one for all channels or for each."""
        return (self.scaling_factor,)

    @property
    def shifts(self) -> tuple[float, ...]:
        """What samples are moved by before; a class without it (SD's) moves nothing."""
        return (self.shift_factor or 0.0,)


class _NumbersOfKL(_Numbers):
    """Each block but the last halves the sides."""

    block_out_channels: Blocks = (64,)
    layers_per_block: int = Field(default=1, ge=1, le=64)
    norm_num_groups: Channels = 32
    scaling_factor: float = Field(default=0.18215, ge=1e-3, le=1e3)

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def widest(self) -> int:
        return max(self.block_out_channels[:2])


class _NumbersOfTiny(_Numbers):
    """Each block but the first halves the sides, and each of the decoder's but the last doubles them again."""

    encoder_block_out_channels: Blocks = (64,) * 4
    decoder_block_out_channels: Blocks = (64,) * 4
    upsampling_scaling_factor: Literal[2] = 2

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    @property
    def widest(self) -> int:
        return max(*self.encoder_block_out_channels[:2], *self.decoder_block_out_channels[-2:])


class _NumbersOfDC(_Numbers):
    """Each block but the last halves the sides; they are many."""

    latent_channels: Channels = 32
    encoder_block_out_channels: Blocks = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Blocks = (128, 256, 512, 512, 1024, 1024)

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    @property
    def widest(self) -> int:
        return max(*self.encoder_block_out_channels[:2], *self.decoder_block_out_channels[:2])


class _NumbersOfQwenImage(BaseModel):
    """Of Qwen-Image's, which is one for films: each block but the last halves the sides, and each channel has a mean
    and a spread of its own."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)

    latent_channels: Channels = Field(default=16, alias="z_dim")
    input_channels: Literal[3] = 3
    base_dim: Channels = 96
    dim_mult: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)] = (
        1,
        2,
        4,
        4,
    )
    num_res_blocks: int = Field(default=2, ge=1, le=64)
    latents_mean: tuple[Annotated[float, Field(ge=-1e3, le=1e3)], ...]
    latents_std: tuple[Annotated[float, Field(ge=1e-3, le=1e3)], ...]

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        if not len(self.latents_mean) == len(self.latents_std) == self.latent_channels:
            raise ValueError(f"latents_mean and latents_std need {self.latent_channels} numbers each, as z_dim says")
        return self

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def widest(self) -> int:
        return self.base_dim * max(self.dim_mult[:2])

    @property
    def scales(self) -> tuple[float, ...]:
        return tuple(1 / spread for spread in self.latents_std)

    @property
    def shifts(self) -> tuple[float, ...]:
        return self.latents_mean


class _NumbersOfFlux2(BaseModel):
    """Of FLUX.2's: each block but the last halves the sides, and a sample's elements are patches of its latents, whose
    means and spreads are those of a batch norm among its weights."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    channels_of_patch: Channels = Field(default=32, alias="latent_channels")
    patch_size: tuple[Literal[2], Literal[2]] = (2, 2)
    block_out_channels: Blocks = (128, 256, 512, 512)
    decoder_block_out_channels: Blocks | None = None
    layers_per_block: int = Field(default=2, ge=1, le=64)
    norm_num_groups: Channels = 32
    batch_norm_eps: float = Field(default=1e-4, ge=1e-12, le=1)

    @property
    def latent_channels(self) -> int:
        return self.channels_of_patch * FLUX2_PATCH**2

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1)) * FLUX2_PATCH

    @property
    def widest(self) -> int:
        return max(*self.block_out_channels[:2], *(self.decoder_block_out_channels or ())[:2])


AnyNumbers = _NumbersOfFlux2 | _NumbersOfKL | _NumbersOfTiny | _NumbersOfDC | _NumbersOfQwenImage


def _of_kl(vae: Any, images: Tensor) -> Tensor:
    latents: Tensor = vae.encode(images).latent_dist.mode()
    return latents


def _of_tiny(vae: Any, images: Tensor) -> Tensor:
    latents: Tensor = vae.encode(images).latents
    return latents


def _of_dc(vae: Any, images: Tensor) -> Tensor:
    latents: Tensor = vae.encode(images).latent
    return latents


def _of_one_frame(vae: Any, images: Tensor) -> Tensor:
    latents: Tensor = vae.encode(images.unsqueeze(2)).latent_dist.mode()[:, :, 0]
    return latents


def _of_patches(vae: Any, images: Tensor) -> Tensor:
    return F.pixel_unshuffle(_of_kl(vae, images), FLUX2_PATCH)


def _picture_of_patches(vae: Any, latents: Tensor) -> Tensor:
    return _picture(vae, F.pixel_shuffle(latents, FLUX2_PATCH))


def _picture(vae: Any, latents: Tensor) -> Tensor:
    images: Tensor = vae.decode(latents).sample
    return images


def _one_frame(vae: Any, latents: Tensor) -> Tensor:
    images: Tensor = vae.decode(latents.unsqueeze(2)).sample[:, :, 0]
    return images


Scaling = tuple[Sequence[float], Sequence[float]]


def _told_scaling(vae: Any, numbers: Any) -> Scaling:  # noqa: ARG001
    return numbers.scales, numbers.shifts


def _scaling_of_batch_norm(vae: Any, numbers: _NumbersOfFlux2) -> Scaling:
    """Raises `ValueError` for spreads that are none."""
    means, spreads = vae.bn.running_mean.double(), (vae.bn.running_var.double() + numbers.batch_norm_eps).sqrt()
    if not bool(torch.isfinite(means).all() and (spreads > 0).all() and torch.isfinite(spreads).all()):
        raise ValueError("bn: its means and variances must be finite, and the latter not negative")
    return (1 / spreads).tolist(), means.tolist()


@dataclass(frozen=True, kw_only=True)
class DiffusersClass:
    """numbers: of its `config.json`. encode, decode: between images [B, 3, H, W] and latents [B, C, h, w], by its
    module. has_tiles: whether it can work on parts of a large picture. of_films: whether its convolutions are over
    frames too. scaling: what samples are multiplied by and, before, moved by, for all channels or for each."""

    numbers: type[AnyNumbers]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor] = _picture
    has_tiles: bool
    of_films: bool = False
    scaling: Callable[[Any, Any], Scaling] = _told_scaling


CLASSES: dict[str, DiffusersClass] = {
    "AutoencoderKL": DiffusersClass(numbers=_NumbersOfKL, encode=_of_kl, has_tiles=True),
    "AutoencoderTiny": DiffusersClass(numbers=_NumbersOfTiny, encode=_of_tiny, has_tiles=False),
    "AutoencoderDC": DiffusersClass(numbers=_NumbersOfDC, encode=_of_dc, has_tiles=True),
    "AutoencoderKLQwenImage": DiffusersClass(
        numbers=_NumbersOfQwenImage, encode=_of_one_frame, decode=_one_frame, has_tiles=True, of_films=True
    ),
    "AutoencoderKLFlux2": DiffusersClass(
        numbers=_NumbersOfFlux2,
        encode=_of_patches,
        decode=_picture_of_patches,
        has_tiles=True,
        scaling=_scaling_of_batch_norm,
    ),
}


def folder_facts(folder: Path) -> FolderFacts:
    """What a folder's `config.json` says. Raises one `CheckpointError`."""
    return _read_numbers(folder)[1]


def _read_numbers(folder: Path) -> tuple[str, AnyNumbers]:
    """The class of a folder, by its name in `CLASSES`, and its numbers."""
    try:
        content = from_json(read_file(folder / "config.json", MAX_JSON_BYTES))
        name = content.get("_class_name") if isinstance(content, dict) else None
        if not isinstance(name, str) or name not in CLASSES:
            problem = f"config.json: _class_name: {name!r} is not allowed; one of {', '.join(CLASSES)}"
            raise CheckpointError(folder, [problem])
        return name, CLASSES[name].numbers.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(folder, [f"config.json: {problem}" for problem in problems_in(error)]) from None
    except (OSError, ValueError) as error:
        raise _no_folder(folder, error) from None


class DiffusersAutoencoder:
    """One of `CLASSES` from a local folder in diffusers' format, safetensors only.

    It computes in bfloat16, channels last, on a GPU and in float32 on a CPU: decoders overflow in float16. Pictures
    that are decoded together differ from those decoded alone by what the order of sums makes of it: 1 of 255 at most
    in float32.

    max_bytes: what it may take of memory beside its weights, by default a share of the device's. As many pictures as
    fit are worked on at a time, and of one that is too large for that, tiles, which overlap and are blended.
    """

    makes_pictures = True

    def __init__(self, folder: Path, device: torch.device, max_bytes: int | None = None) -> None:
        name, numbers = _read_numbers(folder)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        kind = CLASSES[name]
        is_flat = device.type == "cuda" and not kind.of_films
        layout = torch.channels_last if is_flat else torch.contiguous_format
        self._vae = _load(folder, name, dtype).to(device, memory_format=layout).eval().requires_grad_(False)
        if device.type == "cuda":
            quicken(self._vae)
        self._has_tiles = kind.has_tiles
        self._max_bytes = _memory_bytes(device) // DECODE_SHARE if max_bytes is None else max_bytes
        self._pixel_bytes = FULL_COPIES * numbers.widest * dtype.itemsize
        self._encode, self._decode = kind.encode, kind.decode
        self.device = device
        try:
            scaling = kind.scaling(self._vae, numbers)
        except ValueError as error:
            raise _no_folder(folder, error) from None
        self._scale, self._shift = (torch.tensor(values, device=device).view(-1, 1, 1) for values in scaling)
        self.channels, self.factor = numbers.latent_channels, numbers.factor

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        _, height, width = sample_shape
        return height * self.factor, width * self.factor

    def encode(self, images: Tensor) -> Tensor:
        at_a_time = self._at_a_time(images.shape[-2] * images.shape[-1])
        parts = torch.split(images.to(self._vae.dtype), at_a_time)
        latents = torch.cat([self._encode(self._vae, part) for part in parts])
        return (latents.float() - self._shift) * self._scale

    def decode(self, samples: Tensor) -> Tensor:
        height, width = self.picture_size(samples.shape[1:])
        latents = (samples / self._scale + self._shift).to(self._vae.dtype)
        parts = torch.split(latents, self._at_a_time(height * width))
        return torch.cat([self._decode(self._vae, part) for part in parts]).float()

    def _at_a_time(self, num_pixels: int) -> int:
        """How many pictures of so many pixels are worked on together; where not even one is, by tiles."""
        at_a_time = self._max_bytes // (num_pixels * self._pixel_bytes)
        if self._has_tiles:
            (self._vae.disable_tiling if at_a_time else self._vae.enable_tiling)()
        return max(1, at_a_time)


def _load(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """The module that a folder holds. Raises `CheckpointError`."""
    try:
        import diffusers
    except ImportError:
        raise MissingPackage("diffusers", "autoencoder") from None
    untyped: Any = getattr(diffusers, name)
    try:
        return untyped.from_pretrained(
            str(regular_folder(folder)),
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=dtype,
            low_cpu_mem_usage=False,  # what saves memory needs accelerate, and an autoencoder is small
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _no_folder(folder, error) from None


def _memory_bytes(device: torch.device) -> int:
    """Of the device, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _no_folder(folder: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0]
    return CheckpointError(folder, [f"no autoencoder in diffusers' format: {reason}"])


KIND = AutoencoderKind(make=DiffusersAutoencoder, facts=folder_facts)
