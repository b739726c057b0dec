"""No autoencoder is needed: the sample is the picture, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from elit_serve.engine.autoencoders.autoencoder import AutoencoderKind


class Pixels:
    """The sample is the picture."""

    channels = 3
    makes_pictures = True

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        _, height, width = sample_shape
        return height, width

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, samples: Tensor) -> Tensor:
        return samples


KIND = AutoencoderKind(make=lambda _folder, _device: Pixels(), channels=Pixels.channels)
