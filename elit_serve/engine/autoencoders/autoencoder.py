"""What every autoencoder is to those who make pictures of samples, or samples of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class PictureSizes(Protocol):
    """What is known of an autoencoder before it is opened.

    makes_pictures: False where the sample itself is what a caller gets.
    """

    makes_pictures: bool

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels of the picture of a sample of this size (channels first)."""


class Autoencoder(PictureSizes, Protocol):
    """channels: C of its samples."""

    channels: int

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> samples [B, C, h, w] of about unit variance."""

    def decode(self, samples: Tensor) -> Tensor:
        """samples [B, C, h, w] -> images [B, 3, H, W], about [-1, 1]."""


class FolderFacts(Protocol):
    """What an autoencoder's folder says before anything of it is loaded.

    latent_channels: C of its samples. factor: pixels of a picture per side of a sample's element.
    """

    @property
    def latent_channels(self) -> int: ...
    @property
    def factor(self) -> int: ...


class Enlarged:
    """Pictures `factor` times as high and wide as their samples."""

    makes_pictures = True

    def __init__(self, factor: int) -> None:
        self._factor = factor

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        _, height, width = sample_shape
        return self._factor * height, self._factor * width


@dataclass(frozen=True, kw_only=True)
class AutoencoderKind:
    """make: of the folder where its files lie, for a device.

    facts: of that folder, which a model directory holds as `autoencoder/`; None is a kind without files. Raises
    `CheckpointError`.
    channels: of its samples, where that is known before it is opened.
    """

    make: Callable[[Path, torch.device], Autoencoder]
    facts: Callable[[Path], FolderFacts] | None = None
    channels: int | None = None

    @property
    def has_files(self) -> bool:
        """Whether it is read from a folder."""
        return self.facts is not None
