"""Latents that `elit-serve encode` has stored, as training reads them: mapped, or all on the device when they fit.

Letters: B batch, C x h x w a latent; beside each lies its mirrored picture's, if there is one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elit_serve.engine.checkpoint import TORCH_DTYPES
from elit_serve.errors import DataError
from elit_serve.files.latent_index import LatentIndex, read_latent_index
from elit_serve.files.opening import regular
from elit_serve.plans.size import Size
from elit_serve.trainer.data import Batch, DamageReport, RunOrder, held_out_places
from elit_serve.trainer.gradients import MicroBatch


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """Stored latents by class or by caption, or some of them. places: among all of the folder. note: what was left out,
    in one line.

    shards: mapped tensors of samples [N, 1 or 2, C, h, w], and starts: the place of the first of each. others: the
    digests of sets of the same photographs at other sizes, which are trained on, too.
    """

    index: LatentIndex
    folder: Path
    places: Tensor
    labels: Tensor
    shards: tuple[Tensor, ...]
    starts: tuple[int, ...]
    classes: tuple[str, ...]
    others: tuple[str, ...] = ()
    what: ClassVar[str] = "latents"

    @classmethod
    def open(
        cls, folder: Path, sample_shape: Sequence[int], autoencoder_sha256: str, classes: Sequence[str] | None = None
    ) -> LatentSet:
        """Of a folder. sample_shape, autoencoder_sha256: of the model and autoencoder that it is to be for.

        Raises one `DataError` that says all that does not fit.
        """
        index = read_latent_index(folder)
        _check_fit(folder, index, sample_shape, autoencoder_sha256)
        shards, labels = zip(*(_mapped(folder, index, number) for number in range(len(index.shards))), strict=True)
        names = tuple(classes or index.classes)
        unknown = sorted(set(index.classes) - set(names))
        if unknown:
            raise DataError(f"{folder} has classes that the training data lacks: {', '.join(unknown[:5])}")
        counts = [shard.count for shard in index.shards]
        numbers = {name: number for number, name in enumerate(names)}
        to_names = torch.tensor([numbers[name] for name in index.classes])
        return cls(
            index=index,
            folder=folder,
            places=torch.arange(sum(counts)),
            labels=to_names[torch.cat(labels)],
            shards=shards,
            starts=tuple(sum(counts[:number]) for number in range(len(counts))),
            classes=names,
        )

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> Size:
        """Of the pictures that they are of."""
        return Size(self.index.encoding.width, self.index.encoding.height)

    @property
    def note(self) -> str | None:
        """What the photographs held that could not be read."""
        count = len(self.index.damaged)
        return f"{self.folder}: {count} damaged pictures were left out when it was encoded" if count else None

    @property
    def nbytes(self) -> int:
        """Of all its latents, the mirrored ones included."""
        encoding = self.index.encoding
        numbers = (1 + encoding.mirrored) * math.prod(encoding.sample_shape)
        return len(self) * numbers * TORCH_DTYPES[encoding.dtype].itemsize

    @cached_property
    def digest(self) -> str:
        """64 hex digits of what is trained on: the encoding, the shards' content, and which of them, at all sizes."""
        told = self.index.model_dump_json(include={"encoding", "classes", "shards"}) + "".join(self.others)
        return hashlib.sha256(told.encode() + self.places.numpy().tobytes()).hexdigest()

    def split(self, fraction: float) -> tuple[LatentSet, LatentSet]:
        """(rest, held out), as of photographs."""
        rest, held_out = held_out_places(len(self), fraction, self.what)
        return tuple(  # type: ignore[return-value]
            replace(self, places=self.places[part], labels=self.labels[part]) for part in (rest, held_out)
        )

    def in_memory(self, _damage: DamageReport, device: torch.device, *, limit: int | None = None) -> LatentData:
        """All on the device; with `limit`, that many spread evenly over them."""
        step = -(-len(self) // limit) if limit else 1
        wanted = torch.arange(0, len(self), step)
        return LatentData(self.samples(wanted).to(device), self.labels[wanted].to(device))

    def streamed(self, _workers: int, *, pin_memory: bool) -> MappedLatents:
        """Read from the files when they are needed."""
        return MappedLatents(self, pin_memory=pin_memory)

    def samples(self, which: Tensor) -> Tensor:
        """[B, 1 or 2, C, h, w] of these, on the host; `which` [B] counts within this set."""
        places = self.places[which]
        numbers = torch.bucketize(places, torch.tensor(self.starts), right=True) - 1
        found = torch.empty((len(which), *self.shards[0].shape[1:]), dtype=self.shards[0].dtype)
        for number in sorted(set(numbers.tolist())):
            here = numbers == number
            found[here] = self.shards[number][places[here] - self.starts[number]]
        return found


class LatentData:
    """All on one device. images: the latents [N, 1 or 2, C, h, w]."""

    def __init__(self, images: Tensor, condition: Tensor) -> None:
        self.images, self.condition = images, condition

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]:
        for indices in run_order.steps(len(self.images), first_step):
            here = indices.to(self.images.device)
            yield Batch(images=self.images[here], condition=self.condition[here])


class MappedLatents:
    """Files that are read as batches come: what a batch needs, and the system's cache keeps what fits."""

    def __init__(self, latents: LatentSet, *, pin_memory: bool) -> None:
        self._latents, self._pin_memory = latents, pin_memory

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]:
        for indices in run_order.steps(len(self._latents), first_step):
            samples = self._latents.samples(indices)
            yield Batch(
                images=samples.pin_memory() if self._pin_memory else samples, condition=self._latents.labels[indices]
            )


def drawn_latents(micro: MicroBatch) -> Tensor:
    """Of stored latents [B, 1 or 2, C, h, w] those of pictures mirrored as drawn -> [B, C, h, w]."""
    if micro.images.shape[1] == 1:
        return micro.images[:, 0].float()
    flipped = micro.draws.flipped.view(-1, 1, 1, 1)
    return torch.where(flipped, micro.images[:, 1], micro.images[:, 0]).float()


def plain_latents(stored: Tensor) -> Tensor:
    """Of stored latents [B, 1 or 2, C, h, w] those of the pictures as they are -> [B, C, h, w]."""
    return stored[:, 0].float()


def _check_fit(folder: Path, index: LatentIndex, sample_shape: Sequence[int], autoencoder_sha256: str) -> None:
    encoding, problems = index.encoding, []
    if encoding.sample_shape != tuple(sample_shape):
        theirs, ours = (" x ".join(map(str, shape)) for shape in (encoding.sample_shape, sample_shape))
        size = f"pictures of {encoding.width}x{encoding.height}"
        problems.append(f"they are {theirs}, of {size}, and the recipe's model is of {ours}")
    if encoding.autoencoder_sha256 != autoencoder_sha256:
        theirs, ours = (digest[:12] for digest in (encoding.autoencoder_sha256, autoencoder_sha256))
        problems.append(f"they were made by the autoencoder {index.autoencoder} ({theirs}), and this one is {ours}")
    if problems:
        raise DataError(f"{folder} holds other latents: {'; '.join(problems)}")


def _mapped(folder: Path, index: LatentIndex, number: int) -> tuple[Tensor, Tensor]:
    """The samples and labels of a shard, as far as its header says what the index does. Raises `DataError`."""
    shard, encoding = index.shards[number], index.encoding
    expected = (shard.count, 1 + encoding.mirrored, *encoding.sample_shape)
    try:
        with safe_open(regular(folder / shard.file), framework="pt") as tensors:
            samples, labels = tensors.get_tensor("samples"), tensors.get_tensor("labels")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: {shard.file} cannot be read: {error}") from None
    if tuple(samples.shape) != expected or samples.dtype != TORCH_DTYPES[encoding.dtype] or len(labels) != shard.count:
        raise DataError(f"{folder}: {shard.file} is not what {folder.name}/index.json says; encode it again")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(index.classes):
        raise DataError(f"{folder}: {shard.file} has labels of no class")
    return samples, labels
