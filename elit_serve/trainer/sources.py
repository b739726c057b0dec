"""From a recipe and the paths that a user gave to the data to train on: photographs, or latents of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.engine.autoencoders import Autoencoder, kind_of
from elit_serve.engine.autoencoders.folder import fingerprint
from elit_serve.errors import DataError, InvalidInput
from elit_serve.files.latent_index import latent_folders, read_latent_index
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.trainer.buckets import Buckets
from elit_serve.trainer.data import PictureSet
from elit_serve.trainer.draws import augment, to_unit
from elit_serve.trainer.gradients import MicroBatch
from elit_serve.trainer.latents import LatentSet, drawn_latents, plain_latents
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.texts import StoredTexts


@dataclass(frozen=True, kw_only=True)
class Source:
    """training, validation: what is read. drawn: of a micro-batch, changed as drawn, to samples [B, C, h, w]; plain:
    of what a batch holds, as it is. texts: encoded captions, where they lie beside latents."""

    training: Buckets
    validation: Buckets
    drawn: Callable[[MicroBatch], Tensor]
    plain: Callable[[Tensor], Tensor]
    texts: StoredTexts | None = None


def check_folder_given(recipe: Recipe, autoencoder: Path | None) -> None:
    """Raises `InvalidInput` unless a folder for the autoencoder is given exactly if the recipe's has files."""
    if kind_of(recipe.autoencoder).has_files != (autoencoder is not None):
        raise InvalidInput("--autoencoder", autoencoder, f"this recipe's autoencoder is {recipe.autoencoder.kind}")


def open_source(
    recipe: Recipe, autoencoder: Autoencoder, folder: Path | None, data: Path, validation: Path | None
) -> Source:
    """What is trained on and validated with. folder: of the autoencoder, if it has any."""
    if latent_folders(data):
        training, held_out = _open_latents(recipe, folder, data, validation)
        folders = [*latent_folders(data), *(latent_folders(validation) if validation else [])]
        texts = None if recipe.text is None else StoredTexts.found_in(folders, recipe.text)
        return Source(training=training, validation=held_out, drawn=drawn_latents, plain=plain_latents, texts=texts)
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
    """(training, validation) latents that are of this autoencoder, at each of the recipe's sizes."""
    if folder is None:
        raise InvalidInput("--data", str(data), f"photographs: this recipe's autoencoder is {recipe.autoencoder.kind}")
    if validation is not None and not latent_folders(validation):
        raise InvalidInput("--val", str(validation), "latents, as --data; elit-serve encode makes them of photographs")
    if recipe.data.shift:
        raise InvalidInput("data.shift", recipe.data.shift, "0 with latents, which cannot be moved by pixels")
    digest, is_captioned = fingerprint(folder), recipe.text is not None
    training = _at_each_size(data, recipe.shapes, digest)
    for latents in training.values():
        _check_told("--data", latents, is_captioned=is_captioned)
        if recipe.data.flip and not latents.index.encoding.mirrored:
            raise InvalidInput("data.flip", "true", "false: these latents were encoded without mirrored ones")
    if validation is None:
        parts = {shape: latents.split(recipe.data.holdout) for shape, latents in training.items()}
        training, others = ({shape: part[which] for shape, part in parts.items()} for which in (0, 1))
    else:
        classes = None if is_captioned else next(iter(training.values())).classes
        others = _at_each_size(validation, recipe.shapes, digest, classes)
        for latents in others.values():
            _check_told("--val", latents, is_captioned=is_captioned)
    return _of_all_sizes(training), _of_all_sizes(others)


def _at_each_size(
    data: Path, shapes: Sequence[Shape], autoencoder_sha256: str, classes: Sequence[str] | None = None
) -> dict[Shape, LatentSet]:
    """The latents of samples of each shape, all of the same photographs. Raises `DataError`."""
    folders = latent_folders(data)
    found = {
        shape: LatentSet.open(_folder_of(data, folders, shape), shape.size, autoencoder_sha256, classes)
        for shape in shapes
    }
    first, *others = found.values()
    for other in others:
        told = [(each.index.encoding.data_sha256, each.classes, len(each)) for each in (first, other)]
        if told[0] != told[1]:
            raise DataError(f"{data}: {first.folder.name} and {other.folder.name} are of other photographs or classes")
    return found


def _folder_of(data: Path, folders: Sequence[Path], shape: Shape) -> Path:
    """Of several the one with samples of this shape; one alone says itself what does not fit. Raises `DataError`."""
    if len(folders) == 1:
        return folders[0]
    shapes = {folder: read_latent_index(folder).encoding.sample_shape for folder in folders}
    found = [folder for folder in folders if shapes[folder] == shape.size]
    if len(found) != 1:
        there = "; ".join(f"{folder.name}: {' x '.join(map(str, shapes[folder]))}" for folder in folders)
        wanted = " x ".join(map(str, shape.size))
        raise DataError(f"{data} must hold one folder with latents of {wanted}; {len(found)} are: {there}")
    return found[0]


def _of_all_sizes(sets: Mapping[Shape, LatentSet]) -> Buckets:
    first, *others = sets.values()
    return Buckets(whole=replace(first, others=tuple(other.digest for other in others)), parts=sets)


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
