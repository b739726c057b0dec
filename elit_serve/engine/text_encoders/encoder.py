"""What every text encoder is to those who make pictures of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from elit_serve.files.config import Strict


class TextEncoder(Protocol):
    """dim: the width D of a token. max_tokens: the places T that every text has. dtype: of what it makes."""

    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts, at least one -> [B, T, D + 1] as in `nn.text`, on the encoder's device.

        What a prompt becomes does not depend on those beside it, but for rounding.
        """


def on_device(tokens: Tensor, device: torch.device) -> Tensor:
    """Copied from pinned memory: from any other, the host would wait for all that is on its way on a GPU."""
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens


class NoFields(Strict):
    """Of a kind that is told nothing."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderKind:
    """make: of the model's directory, where the encoder's files lie, what its fields are, the width and the places of
    its tokens, and a device. Raises `CheckpointError`, `MissingPackage`.

    fields: what `config.json` may say of it beside its kind. files: its folders and files in the model's directory;
    without any it comes with a package.
    """

    make: Callable[[Path, Any, int, int, torch.device], TextEncoder]
    fields: type[BaseModel] = NoFields
    files: tuple[str, ...] = ()

    @property
    def has_files(self) -> bool:
        return bool(self.files)
