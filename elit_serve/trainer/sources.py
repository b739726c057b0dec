"""From a recipe and the paths that a user gave to the pictures to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from elit_serve.engine.autoencoders import Autoencoder, kind_of
from elit_serve.errors import InvalidInput
from elit_serve.trainer.data import PictureSet
from elit_serve.trainer.recipe import Recipe


def check_folder_given(recipe: Recipe, autoencoder: Path | None) -> None:
    """Raises `InvalidInput` unless a folder for the autoencoder is given exactly if the recipe's has files."""
    if kind_of(recipe.autoencoder).has_files != (autoencoder is not None):
        raise InvalidInput("--autoencoder", autoencoder, f"this recipe's autoencoder is {recipe.autoencoder.kind}")


def open_data(
    recipe: Recipe, autoencoder: Autoencoder, data: Path, validation: Path | None
) -> tuple[PictureSet, PictureSet]:
    """(training, validation) pictures at the size that the model's samples have as pictures."""
    height, width = picture_size(recipe, autoencoder)
    pictures = PictureSet.open(data, height, width)
    if validation is None:
        return pictures.split(recipe.data.holdout)
    return pictures, PictureSet.open(validation, height, width, pictures.classes, part="held out")


def picture_size(recipe: Recipe, autoencoder: Autoencoder) -> tuple[int, int]:
    """Height and width of the pictures of a recipe's samples. Raises `InvalidInput` if they are moved too far."""
    height, width = autoencoder.picture_size(recipe.backbone.sketch.sample_shape)
    if recipe.data.shift >= min(height, width):
        raise InvalidInput("data.shift", recipe.data.shift, f"less than the picture, {height} x {width}")
    return height, width


def about(recipe: Recipe, training: PictureSet, held_out: PictureSet) -> Iterator[str]:
    """What is read, and what of it is not taken, before reading begins."""
    yield from dict.fromkeys(pictures.note for pictures in (training, held_out) if pictures.note)
    how = "read into memory now" if fits_memory(recipe, training) else "read when they are needed"
    yield (
        f"{len(training):,} photographs of {len(training.classes):,} classes to train on, {how}; "
        f"{len(held_out):,} to validate with"
    )


def fits_memory(recipe: Recipe, training: PictureSet) -> bool:
    """Decoded; otherwise pictures are read when they are needed."""
    return training.nbytes <= recipe.data.memory_gb * 1e9
