"""All autoencoders by kind. To add one: a file with its class and its `AutoencoderKind`, and a line here."""

from __future__ import annotations

from pathlib import Path

import torch

from elit_serve.engine.autoencoders import diffusers, nothing, pixels
from elit_serve.engine.autoencoders.autoencoder import Autoencoder, AutoencoderKind, Enlarged, PictureSizes
from elit_serve.errors import InvalidInput
from elit_serve.files.config import AutoencoderConfig

KINDS: dict[str, AutoencoderKind] = {
    "pixels": pixels.KIND,
    "diffusers": diffusers.KIND,
    "none": nothing.KIND,
}


def kind_of(config: AutoencoderConfig) -> AutoencoderKind:
    """What the table knows of it. Raises `InvalidInput`."""
    if config.kind not in KINDS:
        raise InvalidInput("autoencoder.kind", config.kind, f"one of {', '.join(KINDS)}")
    return KINDS[config.kind]


def open_autoencoder(config: AutoencoderConfig, folder: Path, device: torch.device) -> Autoencoder:
    """The autoencoder that `config` names; `folder` is where its files lie, if it has any."""
    return kind_of(config).make(folder, device)


def picture_sizes_of(config: AutoencoderConfig, folder: Path) -> PictureSizes:
    """What sizes its pictures have. Reads no weight."""
    kind = kind_of(config)
    return kind.make(folder, torch.device("cpu")) if kind.facts is None else Enlarged(kind.facts(folder).factor)
