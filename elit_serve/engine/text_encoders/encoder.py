"""What every text encoder is to those who make pictures of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TextEncoder(Protocol):
    """dim: the width D of a token. max_tokens: the places T that every text has. dtype: of what it makes."""

    dim: int
    max_tokens: int
    dtype: torch.dtype

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts, at least one -> [B, T, D + 1] as in `nn.text`, on the encoder's device.

        What a prompt becomes does not depend on those beside it, but for rounding.
        """
