"""All text encoders by kind. To add one: a file with its class and its `TextEncoderKind`, and a line here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import ValidationError

from elit_serve.engine.text_encoders import diffusers, transformers, wordllama
from elit_serve.engine.text_encoders.cache import CachedEncoder
from elit_serve.engine.text_encoders.encoder import TextEncoderKind
from elit_serve.errors import CheckpointError
from elit_serve.files.config import TextConfig, TextEncoderConfig
from elit_serve.files.opening import MAX_TOKENIZER_BYTES, open_file, regular_folder
from elit_serve.files.validation import problems_in

COPIED = (".json", ".jinja", ".model", ".safetensors", ".txt")  # of a folder of transformers

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


def copy_encoder(config: TextEncoderConfig, model: Path, destination: Path) -> None:
    """The files of a model's encoder, if it has any, into another model's directory. Raises `CheckpointError`."""
    try:
        for file in _files(config, model):
            copy = destination / file.relative_to(model)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    except OSError as error:
        raise CheckpointError(destination, [f"the text encoder of {model} cannot be copied: {error}"]) from None


def encoder_digest(config: TextEncoderConfig, model: Path) -> str:
    """64 hex digits of a model's encoder: what its configuration says, and the files that it has. Raises
    `CheckpointError`."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    try:
        for file in _files(config, model):
            digest.update(f"{file.relative_to(model)}\0".encode())
            with open_file(file) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CheckpointError(model, [f"its text encoder cannot be read: {error}"]) from None
    return digest.hexdigest()


def _files(config: TextEncoderConfig, model: Path) -> Iterator[Path]:
    """Nothing pickled and no code: a folder of transformers may hold both."""
    for name in KINDS[config.kind].files:
        if (model / name).is_file():
            yield model / name
        else:
            folder = regular_folder(model / name, MAX_TOKENIZER_BYTES)
            yield from (file for file in sorted(folder.iterdir()) if file.suffix in COPIED)


def open_encoder(config: TextConfig, model: Path, device: torch.device) -> CachedEncoder:
    """The encoder of a model, with its cache. model: its directory. Raises `CheckpointError`, `MissingPackage`."""
    kind = KINDS[config.encoder.kind]
    fields = kind.fields.model_validate(config.encoder.fields)
    return CachedEncoder(kind.make(model, fields, config.dim, config.max_tokens, device))
