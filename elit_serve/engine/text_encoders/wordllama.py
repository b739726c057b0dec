"""Word pieces by a table of embeddings that a package carries with it: WordLlama's, 256 wide, under the MIT licence.

Of the package only two data files are read, a table in safetensors and a tokenizer in JSON; none of its code runs,
which would set up logging at import and may download. A token says nothing of the words beside it: what these make of
it is left to the blocks of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elit_serve.engine.text_encoders.encoder import NoFields, TextEncoderKind, on_device
from elit_serve.errors import CheckpointError, MissingPackage
from elit_serve.files.opening import regular
from elit_serve.nn.text import packed

WEIGHTS, TOKENIZER = Path("weights/l2_supercat_256.safetensors"), Path("tokenizers/l2_supercat_tokenizer_config.json")
DIM = 256
NO_TOKEN = 0  # stands where there is none; what it is does not matter


class WordLlamaEncoder:
    """A token for each piece of a word."""

    dim = DIM

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        folder = _package()
        self.max_tokens = max_tokens
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._tokenizer = _tokenizer(folder / TOKENIZER)
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(pad_id=NO_TOKEN, length=max_tokens)
        self._table = _table(folder / WEIGHTS).to(device, self.dtype)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        encoded = self._tokenizer.encode_batch(list(prompts), add_special_tokens=False)
        numbers = torch.tensor([(each.ids, each.attention_mask) for each in encoded])  # [B, 2, T]
        ids, mask = on_device(numbers, self._table.device).unbind(1)
        return packed(self._table[ids], mask, self.max_tokens)


def _package() -> Path:
    """Where its files lie."""
    found = find_spec("wordllama")
    if found is None or found.origin is None:
        raise MissingPackage("wordllama", "wordllama")
    return Path(found.origin).parent


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(regular(file)))
    except Exception as error:  # it raises nothing narrower
        raise CheckpointError(file.parent, [f"{file.name} is no tokenizer: {error}"]) from None


def _table(file: Path) -> Tensor:
    """[V, D]"""
    try:
        with safe_open(regular(file), framework="pt") as tensors:
            table: Tensor = tensors.get_tensor("embedding.weight")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(file.parent, [f"{file.name} is no table of embeddings: {error}"]) from None
    return table


def _make(model: Path, fields: NoFields, dim: int, max_tokens: int, device: torch.device) -> WordLlamaEncoder:  # noqa: ARG001
    if dim != DIM:
        raise CheckpointError(model, [f"conditions.dim is {dim}, and tokens of wordllama are {DIM} wide"])
    return WordLlamaEncoder(max_tokens, device)


KIND = TextEncoderKind(make=_make)
