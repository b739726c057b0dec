"""An autoencoder's folder, on its way into a model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from elit_serve.errors import CheckpointError, InvalidInput

NAME = "autoencoder"  # of the folder in a model directory


def check_autoencoder(folder: Path | None) -> None:
    """Raises `InvalidInput` unless a folder in diffusers' format is there, if any is given."""
    if folder is not None and not (folder / "config.json").is_file():
        raise InvalidInput("--autoencoder", str(folder), "a folder in diffusers' format; it has no config.json")


def copy_autoencoder(folder: Path | None, model: Path) -> None:
    """Copies a folder into a model directory, if any is given.

    Configuration and safetensors only: a folder in diffusers' format may hold pickled weights as well.
    """
    if folder is None:
        return
    destination = model / NAME
    try:
        destination.mkdir(exist_ok=True)
        for file in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
            shutil.copyfile(file, destination / file.name)
    except OSError as error:
        raise CheckpointError(model, [f"it cannot be written: {error}"]) from None
