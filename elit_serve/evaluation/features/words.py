"""What a picture shows in the words of the grammar of captions, as an extractor: no network, and no weights.

Letters: B batch, H x W picture, P parts of a caption.
"""

from __future__ import annotations

import hashlib

import torch
from PIL import Image
from torch import Tensor

from elit_serve.evaluation.features.extractor import Described
from elit_serve.photographs.grammar import VERSION, WORDS, words_seen


class WordsSeen:
    """images [B, 3, H, W] -> features [B, P]: of each part of a caption the number of the word that fits."""

    metric = "words of captions"
    fingerprint = hashlib.sha256(f"{metric} {VERSION}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> Described:
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return Described(features=numbered([words_seen(Image.fromarray(each)) for each in pictures]).float())


def numbered(words: list[dict[str, str]]) -> Tensor:
    """The place in `WORDS` of each part's word. -> [B, P], int64"""
    return torch.tensor([[allowed.index(each[part]) for part, allowed in WORDS.items()] for each in words])
