"""Tensors to 8-bit pictures. Letters: B batch, H x W picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def from_signed(images: Tensor) -> Tensor:
    """Decoded images, about [-1, 1], to [0, 1]: [B, 3, H, W] -> [B, 3, H, W], float32."""
    return (images.float() * 0.5 + 0.5).clamp(0, 1)


def to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> uint8, rounded."""
    return (images * 255).round().to(torch.uint8)


def to_images(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [0, 1] -> Pillow images, rounded to 8 bits."""
    array = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
