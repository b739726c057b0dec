"""From a decoded sample to the file that is answered."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
from PIL import Image
from torch import Tensor

from elit_serve.pictures import encode
from elit_serve.plans.formats import FILE_QUALITY, LATENT, AnswerFormat, PngCompression

FACTS_KEY = "elit-serve"  # one key, as in a PNG: safetensors writes several in no fixed order


def encode_sample(
    sample: Tensor,
    output_format: AnswerFormat,
    facts: dict[str, Any],
    *,
    quality: int = FILE_QUALITY,
    compression: PngCompression = "fast",
) -> bytes:
    """A picture, uint8 [H, W, 3], as an encoded file, or a latent, float32 [C, h, w], as safetensors; facts inside.

    quality: of JPEG and lossy WebP, 0 to 100. compression: of PNG.

    The same sample and facts give the same bytes.
    """
    if output_format == LATENT:
        text = json.dumps(facts, sort_keys=True)
        return safetensors.torch.save({"latent": sample.contiguous()}, metadata={FACTS_KEY: text})
    image = Image.fromarray(sample.numpy())
    return encode(image, output_format, facts, quality=quality, compression=compression)
