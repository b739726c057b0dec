"""From a recipe and the paths that a user gave to the data to train on: photographs, or latents of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.engine.autoencoders import Autoencoder, kind_of
from elit_serve.engine.autoencoders.folder import fingerprint
from elit_serve.errors import InvalidInput
from elit_serve.files.latent_index import holds_latents
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.trainer.buckets import Buckets
from elit_serve.trainer.data import PictureSet
from elit_serve.trainer.draws import augment, to_unit
from elit_serve.trainer.gradients import MicroBatch
from elit_serve.trainer.latents import LatentSet, drawn_latents, plain_latents
from elit_serve.trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Source:
    """training, validation: what is read. drawn: of a micro-batch, changed as drawn, to samples [B, C, h, w]; plain:
    of what a batch holds, as it is."""

    training: Buckets
    validation: Buckets
    drawn: Callable[[MicroBatch], Tensor]
    plain: Callable[[Tensor], Tensor]


def check_folder_given(recipe: Recipe, autoencoder: Path | None) -> None:
    """Raises `InvalidInput` unless a folder for the autoencoder is given exactly if the recipe's has files."""
    if kind_of(recipe.autoencoder).has_files != (autoencoder is not None):
        raise InvalidInput("--autoencoder", autoencoder, f"this recipe's autoencoder is {recipe.autoencoder.kind}")


def open_source(
    recipe: Recipe, autoencoder: Autoencoder, folder: Path | None, data: Path, validation: Path | None
) -> Source:
    """What is trained on and validated with. folder: of the autoencoder, if it has any."""
    if holds_latents(data):
        training, held_out = _open_latents(recipe, folder, data, validation)
        return Source(training=training, validation=held_out, drawn=drawn_latents, plain=plain_latents)
    pictures, others = open_data(recipe, autoencoder, data, validation)
    return Source(
        training=pictures,
        validation=others,
        drawn=encoded_by(autoencoder),
        plain=lambda images: autoencoder.encode(to_unit(images)),
    )


def encoded_by(autoencoder: Autoencoder) -> Callable[[MicroBatch], Tensor]:
    """Of pictures, moved and mirrored as drawn: micro-batches of images [B, 3, H, W] uint8 -> samples [B, C, h, w]."""

    @torch.no_grad()
    def encoded(micro: MicroBatch) -> Tensor:
        return autoencoder.encode(augment(micro.images, micro.draws))

    return encoded


def open_data(recipe: Recipe, autoencoder: Autoencoder, data: Path, validation: Path | None) -> tuple[Buckets, Buckets]:
    """(training, validation) pictures at the sizes that the model's samples have as pictures."""
    sizes = picture_sizes(recipe, autoencoder)
    width, height = next(iter(sizes.values()))
    is_captioned = recipe.text is not None
    pictures = (PictureSet.open_captioned if is_captioned else PictureSet.open)(data, height, width)
    if validation is None:
        pictures, others = pictures.split(recipe.data.holdout)
    elif is_captioned:
        others = PictureSet.open_captioned(validation, height, width, part="held out")
    else:
        others = PictureSet.open(validation, height, width, pictures.classes, part="held out")
    return Buckets.of(pictures, sizes), Buckets.of(others, sizes)


def _open_latents(recipe: Recipe, folder: Path | None, data: Path, validation: Path | None) -> tuple[Buckets, Buckets]:
    """(training, validation) latents that are of this autoencoder and this size."""
    if folder is None:
        raise InvalidInput("--data", str(data), f"photographs: this recipe's autoencoder is {recipe.autoencoder.kind}")
    if validation is not None and not holds_latents(validation):
        raise InvalidInput("--val", str(validation), "latents, as --data; elit-serve encode makes them of photographs")
    if len(recipe.shapes) > 1:
        raise InvalidInput("data.sizes", ", ".join(recipe.data.sizes), "nothing with latents, which are of one size")
    (shape,), digest = recipe.shapes, fingerprint(folder)
    latents = LatentSet.open(data, shape.size, digest)
    is_captioned = recipe.text is not None
    _check_told("--data", latents, is_captioned=is_captioned)
    if recipe.data.shift:
        raise InvalidInput("data.shift", recipe.data.shift, "0 with latents, which cannot be moved by pixels")
    if recipe.data.flip and not latents.index.encoding.mirrored:
        raise InvalidInput("data.flip", "true", "false: these latents were encoded without mirrored ones")
    if validation is None:
        latents, others = latents.split(recipe.data.holdout)
    else:
        others = LatentSet.open(validation, shape.size, digest, None if is_captioned else latents.classes)
        _check_told("--val", others, is_captioned=is_captioned)
    return Buckets(whole=latents, parts={shape: latents}), Buckets(whole=others, parts={shape: others})


def _check_told(field: str, latents: LatentSet, *, is_captioned: bool) -> None:
    """Raises `InvalidInput` for latents with classes where captions are learned, and the other way round."""
    if latents.index.encoding.captioned != is_captioned:
        allowed = "latents with captions: elit-serve encode --captions" if is_captioned else "latents with classes"
        raise InvalidInput(field, str(latents.folder), allowed)


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
    yield from dict.fromkeys(data.note for data in (training, held_out) if data.note)
    how = "read into memory now" if fits_memory(recipe, training) else "read when they are needed"
    names = "classes" if recipe.text is None else "captions"
    yield (
        f"{len(training):,} {training.whole.what} of {len(training.classes):,} {names} to train on, {how}; "
        f"{len(held_out):,} to validate with"
    )
    if len(training.parts) > 1:
        counts = ", ".join(f"{len(part):,} at {part.size}" for part in training.parts.values())
        yield f"by their aspect ratios: {counts}"


def fits_memory(recipe: Recipe, training: Buckets) -> bool:
    """Decoded; otherwise pictures are read when they are needed."""
    return training.nbytes <= recipe.data.memory_gb * 1e9
