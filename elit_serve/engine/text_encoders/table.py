"""All text encoders by kind. To add one: a file with its class and its `TextEncoderKind`, and a line here."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from elit_serve.engine.text_encoders import diffusers, transformers, wordllama
from elit_serve.engine.text_encoders.cache import CachedEncoder
from elit_serve.engine.text_encoders.encoder import TextEncoderKind
from elit_serve.files.config import TextConfig, TextEncoderConfig
from elit_serve.files.validation import problems_in

KINDS: dict[str, TextEncoderKind] = {
    "diffusers": diffusers.KIND,
    "transformers": transformers.KIND,
    "wordllama": wordllama.KIND,
}


def encoder_problems(config: TextEncoderConfig) -> list[str]:
    """What is wrong with what a model's `config.json` says of its encoder. Looks at no other file."""
    if config.kind not in KINDS:
        return [f"conditions.encoder.kind: {config.kind!r} is not allowed; one of {', '.join(KINDS)}"]
    try:
        KINDS[config.kind].fields.model_validate(config.fields)
    except ValidationError as error:
        return [f"conditions.encoder.{problem}" for problem in problems_in(error)]
    return []


def open_encoder(config: TextConfig, model: Path, device: torch.device) -> CachedEncoder:
    """The encoder of a model, with its cache. model: its directory. Raises `CheckpointError`, `MissingPackage`."""
    kind = KINDS[config.encoder.kind]
    fields = kind.fields.model_validate(config.encoder.fields)
    return CachedEncoder(kind.make(model, fields, config.dim, config.max_tokens, device))
