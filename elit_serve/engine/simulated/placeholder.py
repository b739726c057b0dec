"""What a simulated engine answers: a picture that cannot be taken for one of a model."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WORD = "SIMULATED"
STRIPES = (90, 150)  # greys
NUM_STRIPES = 8  # across the height
LETTER = 1 / 7  # of the width is the height of a letter, so that the word fits


def placeholder_picture(height: int, width: int) -> Tensor:
    """Grey stripes with `WORD` across them. -> uint8 [H, W, 3]"""
    period = max(2, height // NUM_STRIPES)
    rows, columns = np.indices((height, width))
    grey = np.where((rows + columns) // period % 2 == 0, *STRIPES).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    font = ImageFont.load_default(max(4, width * LETTER))
    ImageDraw.Draw(image).text((width / 2, height / 2), WORD, fill="white", font=font, anchor="mm")
    return torch.from_numpy(np.array(image))


def placeholder_latent(size: tuple[int, ...]) -> Tensor:
    """For a model without an autoencoder: zeros. -> float32 `size`"""
    return torch.zeros(size)
