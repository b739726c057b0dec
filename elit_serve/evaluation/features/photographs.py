"""Features of photographs, read at the size of a model's pictures. Letters: B batch, H x W picture, F features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.extractor import Described, FeatureExtractor
from elit_serve.photographs import Photograph, decode
from elit_serve.pictures import fit


def load_pictures(photographs: Sequence[Photograph], height: int, width: int, *, field: str = "reference") -> Tensor:
    """Photographs cropped and resized to height x width. -> [B, 3, height, width] in [0, 1], float32

    Smaller ones are refused: enlarged, they would be blurred, and so would what is measured against them.
    """
    arrays = []
    for photograph in photographs:
        image = decode(photograph)
        if image.width < width or image.height < height:
            name = f"{photograph.label}/{photograph.name}: {image.width} x {image.height}"
            raise InvalidInput(field, name, f"photographs of at least the model's {width} x {height} pixels")
        arrays.append(np.asarray(fit(image, height, width)))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def photograph_features(
    extractor: FeatureExtractor,
    photographs: Sequence[Photograph],
    *,
    height: int,
    width: int,
    batch_size: int = 128,
    field: str = "reference",
    on_batch: Callable[[int], None] | None = None,
) -> Described:
    """Features of photographs at height x width pixels, on the extractor's device.

    `on_batch` is called with the size of each batch when it is done.
    """
    described = []
    for batch in batches(photographs, batch_size):
        described.append(extractor(load_pictures(batch, height, width, field=field)))
        if on_batch is not None:
            on_batch(len(batch))
    return Described.cat(described)


def batches(photographs: Sequence[Photograph], size: int) -> Iterator[Sequence[Photograph]]:
    for start in range(0, len(photographs), size):
        yield photographs[start : start + size]
