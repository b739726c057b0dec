"""Captions that are encoded once, beside latents: a run then needs no text encoder, which may not fit beside its model.

Letters: B prompts, S tokens of all prompts of a shard, T places for tokens of text, D their width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve.engine.checkpoint import read_spec
from elit_serve.engine.text_encoders import TextEncoder, encoder_digest, open_encoder
from elit_serve.errors import DataError, InvalidInput
from elit_serve.files.config import TextConfig
from elit_serve.files.opening import regular
from elit_serve.nn.text import TextTokens

logger = logging.getLogger(__name__)

KEY = "elit-serve"  # of a shard's metadata: what it was made with, and its prompts
PER_SHARD = 512  # prompts in a file: 0.4 GB of 100 tokens each, 3584 wide
SHARDS = "text-*.safetensors"


def encode_texts(out: Path, captions: Sequence[str], model: Path, device: torch.device) -> None:
    """Writes into a folder of latents what a model's text encoder makes of captions, the empty prompt and its examples.

    Shards that are there already stay. Raises `InvalidInput` for a model that is told no texts, and `CheckpointError`.
    """
    config, _ = read_spec(model)
    text = config.conditions
    if not isinstance(text, TextConfig):
        raise InvalidInput("--text", str(model), "a model whose pictures are of a text")
    prompts = list(dict.fromkeys([*captions, "", *text.examples]))
    parts = [prompts[first : first + PER_SHARD] for first in range(0, len(prompts), PER_SHARD)]
    files = [out / f"text-{number:05d}.safetensors" for number in range(len(parts))]
    made_by = {**_facts(text), "encoder_sha256": encoder_digest(text.encoder, model)}
    told = [json.dumps({**made_by, "prompts": part}) for part in parts]
    _forget(sorted({*out.glob(SHARDS)} - {*files}))
    missing = [each for each in zip(files, parts, told, strict=True) if _metadata(each[0]) != each[2]]
    if not missing:
        return
    encoder = open_encoder(text, model, device)
    for file, part, facts in missing:
        states, mask = TextTokens.of(_encoded(encoder, part))
        tensors = {"tokens": states[mask], "lengths": mask.sum(dim=1)}
        _write(file, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, facts)


def _facts(text: TextConfig) -> dict[str, Any]:
    """What decides how prompts are encoded, as far as a configuration says it."""
    return text.model_dump(mode="json", include={"encoder", "dim", "max_tokens"})


def _forget(files: Sequence[Path]) -> None:
    """Shards of captions that are there no more, so that none of another encoder stays among them."""
    for file in files:
        try:
            file.unlink()
        except OSError as error:
            raise DataError(f"{file} cannot be removed: {error.strerror or error}") from None


def _encoded(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """[B, T, D + 1] on the host, a few at a time."""
    return torch.cat([encoder.encode(prompts[first : first + 32]).cpu() for first in range(0, len(prompts), 32)])


def _metadata(file: Path) -> str | None:
    """Of a shard that is whole; a damaged one, or another's, is written again."""
    try:
        with safe_open(regular(file), framework="pt") as tensors:
            metadata: str | None = (tensors.metadata() or {}).get(KEY)
            return metadata
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.warning("%s is not whole and is written again: %s", file, error)
        return None


def _write(file: Path, tensors: Mapping[str, Tensor], facts: str) -> None:
    """A file that is there whole or not at all."""
    staging = file.with_name(f".{file.name}")
    try:
        save_file(dict(tensors), staging, metadata={KEY: facts})
        staging.chmod(0o644)  # safetensors makes it private
        staging.replace(file)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise DataError(f"{file} cannot be written: {error}") from None


class Texts(NamedTuple):
    """A shard. tokens: [S, D], mapped. places: where those of each prompt lie. encoder_sha256: see `encoder_digest`."""

    tokens: Tensor
    places: Mapping[str, slice]
    encoder_sha256: str


class StoredTexts:
    """A text encoder that knows what `encode_texts` has stored, and nothing else. Its tensors are on the host."""

    def __init__(self, folders: Sequence[Path], text: TextConfig, shards: Sequence[Texts]):
        self._folders = ", ".join(map(str, folders))
        self._shards = shards
        digests = {shard.encoder_sha256 for shard in shards}
        if len(digests) > 1:
            raise DataError(f"{self._folders}: their texts are of several encoders; encode them again with --text")
        (self.encoder_sha256,) = digests
        self.dim, self.max_tokens, self.dtype = text.dim, text.max_tokens, shards[0].tokens.dtype

    @classmethod
    def found_in(cls, folders: Sequence[Path], text: TextConfig) -> Self | None:
        """Of folders of latents; None where none of them has any. Raises `DataError` unless what they have is of this
        encoder."""
        files = [file for folder in folders for file in sorted(folder.glob(SHARDS))]
        return cls(folders, text, [_opened(file, text) for file in files]) if files else None

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """See `TextEncoder`. Raises `DataError` for prompts that were not encoded."""
        packed = torch.zeros(len(prompts), self.max_tokens, self.dim + 1, dtype=self.dtype)
        for row, prompt in zip(packed, prompts, strict=True):
            tokens = self._tokens(prompt)
            row[: len(tokens), :-1] = tokens
            row[: len(tokens), -1] = 1
        return packed

    def check(self, prompts: Sequence[str]) -> None:
        """Raises `DataError` for the first of these that was not encoded."""
        for prompt in prompts:
            self._tokens(prompt)

    def _tokens(self, prompt: str) -> Tensor:
        """[its length, D], of the file that is mapped"""
        for shard in self._shards:
            if prompt in shard.places:
                return shard.tokens[shard.places[prompt]]
        allowed = "encode them again with --text; captions, the empty prompt and the model's examples are stored"
        raise DataError(f"{self._folders}: {prompt[:100]!r} is not among the encoded prompts; {allowed}")


def _opened(file: Path, text: TextConfig) -> Texts:
    """Raises `DataError`."""
    try:
        with safe_open(regular(file), framework="pt") as tensors:
            told = json.loads((tensors.metadata() or {})[KEY])
            tokens, lengths = tensors.get_tensor("tokens"), tensors.get_tensor("lengths").tolist()
        prompts, digest = list(told.pop("prompts")), str(told["encoder_sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read: {error!r}") from None
    if wrong := [name for name, value in _facts(text).items() if told.get(name) != value]:
        raise DataError(f"{file} holds texts of another encoder than [text] names: {', '.join(wrong)} differ")
    if not _fits(tokens, lengths, prompts, text):
        raise DataError(f"{file} is damaged: its tokens are not those of its prompts")
    return Texts(tokens, dict(zip(prompts, _places(lengths), strict=True)), digest)


def _fits(tokens: Tensor, lengths: Sequence[int], prompts: Sequence[str], text: TextConfig) -> bool:
    is_counted = len(lengths) == len(prompts) and all(0 <= length <= text.max_tokens for length in lengths)
    return is_counted and tuple(tokens.shape) == (sum(lengths), text.dim)


def _places(lengths: Sequence[int]) -> Iterator[slice]:
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        yield slice(end - length, end)
