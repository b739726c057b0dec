"""What every autoencoder is to those who make pictures of samples, or samples of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """channels: C of its samples. makes_pictures: False where the sample itself is what a caller gets."""

    channels: int
    makes_pictures: bool

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels of the picture of a sample of this size (channels first)."""

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> samples [B, C, h, w] of about unit variance."""

    def decode(self, samples: Tensor) -> Tensor:
        """samples [B, C, h, w] -> images [B, 3, H, W], about [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderKind:
    """make: of the folder where its files lie, for a device and a dtype.

    has_files: whether it is read from a folder, which a model directory holds as `autoencoder/`.
    channels: of its samples, where that is known before it is opened.
    """

    make: Callable[[Path, torch.device, torch.dtype], Autoencoder]
    has_files: bool = False
    channels: int | None = None
