"""From a recipe and the paths that a user gave to the pictures to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from elit_serve.engine.autoencoders import Autoencoder, kind_of
from elit_serve.errors import InvalidInput
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.trainer.buckets import Buckets
from elit_serve.trainer.data import PictureSet
from elit_serve.trainer.recipe import Recipe


def check_folder_given(recipe: Recipe, autoencoder: Path | None) -> None:
    """Raises `InvalidInput` unless a folder for the autoencoder is given exactly if the recipe's has files."""
    if kind_of(recipe.autoencoder).has_files != (autoencoder is not None):
        raise InvalidInput("--autoencoder", autoencoder, f"this recipe's autoencoder is {recipe.autoencoder.kind}")


def open_data(recipe: Recipe, autoencoder: Autoencoder, data: Path, validation: Path | None) -> tuple[Buckets, Buckets]:
    """(training, validation) pictures at the sizes that the model's samples have as pictures."""
    sizes = picture_sizes(recipe, autoencoder)
    width, height = next(iter(sizes.values()))
    pictures = PictureSet.open(data, height, width)
    if validation is None:
        pictures, others = pictures.split(recipe.data.holdout)
    else:
        others = PictureSet.open(validation, height, width, pictures.classes, part="held out")
    return Buckets.of(pictures, sizes), Buckets.of(others, sizes)


def picture_sizes(recipe: Recipe, autoencoder: Autoencoder) -> dict[Shape, Size]:
    """Of the pictures of a recipe's samples, the backbone's own first. Raises `InvalidInput` if they are moved too
    far."""
    sizes = {}
    for shape in recipe.shapes:
        height, width = autoencoder.picture_size(shape.size)
        if recipe.data.shift >= min(height, width):
            raise InvalidInput("data.shift", recipe.data.shift, f"less than the picture, {height} x {width}")
        sizes[shape] = Size(width, height)
    return sizes


def about(recipe: Recipe, training: Buckets, held_out: Buckets) -> Iterator[str]:
    """What is read, and what of it is not taken, before reading begins."""
    yield from dict.fromkeys(pictures.note for pictures in (training, held_out) if pictures.note)
    how = "read into memory now" if fits_memory(recipe, training) else "read when they are needed"
    yield (
        f"{len(training):,} photographs of {len(training.classes):,} classes to train on, {how}; "
        f"{len(held_out):,} to validate with"
    )
    if len(training.parts) > 1:
        counts = ", ".join(f"{len(part):,} at {part.width}x{part.height}" for part in training.parts.values())
        yield f"by their aspect ratios: {counts}"


def fits_memory(recipe: Recipe, training: Buckets) -> bool:
    """Decoded; otherwise pictures are read when they are needed."""
    return training.nbytes <= recipe.data.memory_gb * 1e9
