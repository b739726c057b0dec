"""An autoencoder's folder: whether it fits a model, which it is, and its way into a model directory."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from elit_serve.engine.autoencoders import diffusers
from elit_serve.engine.autoencoders.autoencoder import FolderFacts
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.opening import open_file, regular

FIELD = "--autoencoder"  # as a command names such a folder
NAME = "autoencoder"  # of the folder in a model directory
PREVIEW_NAME = "preview_autoencoder"  # of the one for previews, which is smaller and faster


def check_autoencoder(
    folder: Path | None, sample_shape: Sequence[int], factor: int | None = None, *, field: str = FIELD
) -> FolderFacts | None:
    """What a folder in diffusers' format says of itself, if any is given.

    sample_shape: channels first, of the model that it is for. factor: pixels of a picture per side of a sample's
    element, where that is known. Raises `InvalidInput` for `field` if it is no such folder, or does not fit.
    """
    if folder is None:
        return None
    facts = read_folder(folder, field)
    if wrong := [*misfits(facts, sample_shape, factor), *_damaged(folder)]:
        raise InvalidInput(field, str(folder), "; ".join(wrong))
    return facts


def read_folder(folder: Path, field: str = FIELD) -> FolderFacts:
    """What a folder in diffusers' format says of itself. Raises `InvalidInput` for `field` if it is none."""
    try:
        return diffusers.folder_facts(folder)
    except CheckpointError as error:
        raise InvalidInput(field, str(folder), "; ".join(error.problems)) from None


def misfits(facts: FolderFacts, sample_shape: Sequence[int], factor: int | None = None) -> list[str]:
    """Why an autoencoder is not for samples of this shape (channels first), or for pictures so many times as large."""
    problems = []
    if facts.latent_channels != sample_shape[0]:
        problems.append(f"it has {facts.latent_channels} channels, and the model {sample_shape[0]}")
    if factor is not None and facts.factor != factor:
        problems.append(
            f"it makes {facts.factor} pixels of a side of a sample's element, and the model stands for {factor}"
        )
    return problems


def _damaged(folder: Path) -> list[str]:
    """What is wrong with the files of its weights, by their heads alone: no weight is read."""
    files = sorted(folder.glob("*.safetensors"))
    problems = [] if files else ["it has no weights in safetensors"]
    for file in files:
        try:
            with safe_open(regular(file), "pt"):
                pass
        except (OSError, SafetensorError) as error:
            problems.append(f"{file.name} is no whole file of safetensors: {error}")
    return problems


def fingerprint(folder: Path) -> str:
    """64 hex digits of what a folder's autoencoder computes: its configuration and its weights.

    Raises `CheckpointError`.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted((*folder.glob("config.json"), *folder.glob("*.safetensors"))):
            digest.update(f"{file.name}\0".encode())
            with open_file(file) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CheckpointError(folder, [f"it cannot be read: {error.strerror or error}"]) from None
    return digest.hexdigest()


def copy_autoencoder(folder: Path | None, model: Path, name: str = NAME) -> None:
    """Copies a folder into a model directory, if any is given.

    Configuration and safetensors only: a folder in diffusers' format may hold pickled weights as well.
    """
    if folder is None:
        return
    destination = model / name
    try:
        destination.mkdir(exist_ok=True)
        for file in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
            shutil.copyfile(file, destination / file.name)
    except OSError as error:
        raise CheckpointError(model, [f"it cannot be written: {error}"]) from None
