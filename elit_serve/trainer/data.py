"""Photographs to training batches: decoded once into memory when they fit, streamed when not.

Which sample comes at which step depends on the seed alone, so a resumed run sees what an unbroken one would,
and two ranks together see what one would. Letters: B batch, H x W picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elit_serve.errors import DamagedPicture, DataError
from elit_serve.photographs import Part, Photograph, decode, open_captioned_set, open_data_set
from elit_serve.pictures import fit
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.trainer.draws import seed_of
from elit_serve.trainer.identity import content_digest


@dataclass(frozen=True, kw_only=True)
class Batch:
    """images [B, 3, H, W] uint8 or stored latents [B, 1 or 2, C, h, w], condition [B] int64 (which of the classes or
    captions of the set), and the damaged pictures met on the way.

    shape: of the samples that they become; None is the one of the backbone.
    """

    images: Tensor
    condition: Tensor
    damaged: tuple[str, ...] = ()
    shape: Shape | None = None


class Batches(Protocol):
    """What a run reads: the batches of this rank from a step on."""

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]: ...


class HeldBatches(Batches, Protocol):
    """The same, all on the device."""

    images: Tensor
    condition: Tensor


class TrainingSet(Protocol):
    """What can be trained on, of one size: a `PictureSet` is one, and a `LatentSet`.

    what: a word for its members. classes: by name; of a captioned set all different captions. note: one line on what
    their source holds that is not taken. digest: by which it is known again.
    """

    @property
    def what(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> Size: ...
    @property
    def note(self) -> str | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def in_memory(self, damage: DamageReport, device: torch.device, *, limit: int | None = None) -> HeldBatches: ...
    def streamed(self, workers: int, *, pin_memory: bool) -> Batches: ...


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Photographs of one size, by class or by caption. note: one line on what their source holds that is not taken."""

    photographs: tuple[Photograph, ...]
    classes: tuple[str, ...]
    height: int
    width: int
    note: str | None = None
    what: ClassVar[str] = "photographs"

    @classmethod
    def open_captioned(cls, source: Path, height: int, width: int, part: Part = "training") -> PictureSet:
        """The captioned photographs of a folder or tar, or of a part of it."""
        found = open_captioned_set(source, part)
        captions = tuple(sorted({photograph.caption for photograph in found.photographs}))
        return cls(photographs=found.photographs, classes=captions, height=height, width=width, note=found.note)

    @classmethod
    def open(
        cls, source: Path, height: int, width: int, classes: Sequence[str] | None = None, part: Part = "training"
    ) -> PictureSet:
        """The photographs of a folder or tar, or of a part of it; with `classes` the labels must be among those."""
        found = open_data_set(source, part)
        photographs = found.photographs
        names = tuple(classes or sorted({photograph.label for photograph in photographs}))
        unknown = sorted({photograph.label for photograph in photographs} - set(names))
        if unknown:
            raise DataError(f"{source} has classes that the training data lacks: {', '.join(unknown[:5])}")
        return cls(photographs=photographs, classes=names, height=height, width=width, note=found.note)

    def __len__(self) -> int:
        return len(self.photographs)

    @property
    def nbytes(self) -> int:
        """Size of all pictures decoded, in bytes."""
        return len(self) * 3 * self.height * self.width

    def split(self, fraction: float) -> tuple[PictureSet, PictureSet]:
        """(rest, held out): every k-th photograph in order of class and name is held out, k = 1 / fraction."""
        rest, held_out = (
            tuple(self.photographs[place] for place in places)
            for places in held_out_places(len(self), fraction, self.what)
        )
        return replace(self, photographs=rest), replace(self, photographs=held_out)

    @property
    def size(self) -> Size:
        """Of its pictures."""
        return Size(self.width, self.height)

    @property
    def digest(self) -> str:
        """By which it is known again, see `identity`."""
        return content_digest(self.photographs)

    def in_memory(self, damage: DamageReport, device: torch.device, *, limit: int | None = None) -> MemoryData:
        """All decoded on the device; with `limit`, that many spread evenly over them."""
        return MemoryData(self, damage, device, limit=limit)

    def streamed(self, workers: int, *, pin_memory: bool) -> StreamedData:
        """Decoded by worker processes when they are needed."""
        return StreamedData(self, workers, pin_memory=pin_memory)

    def label(self, index: int) -> int:
        """Which of the classes, or of the captions, a photograph has."""
        photograph = self.photographs[index]
        return self._numbers[photograph.caption or photograph.label]

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def picture(self, index: int) -> Tensor:
        """[3, H, W] uint8; raises `DamagedPicture` or `DataSetGone`."""
        pixels = np.asarray(fit(decode(self.photographs[index]), self.height, self.width))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def held_out_places(count: int, fraction: float, what: str) -> tuple[list[int], list[int]]:
    """(rest, held out) of so many in order: every k-th is held out, k = 1 / fraction. what: a word for them."""
    step = max(2, round(1 / fraction))
    held_out = list(range(step - 1, count, step))
    if not held_out:
        raise DataError(
            f"{count} {what} are too few to hold out a fraction of {fraction:g} for the validation loss; "
            f"hold out more, as with --set data.holdout=0.2, or name others with --val"
        )
    return [place for place in range(count) if place % step != step - 1], held_out


@dataclass
class DamageReport:
    """Counts damaged pictures and stops when there are too many."""

    total: int
    max_fraction: float
    names: dict[str, None] = field(default_factory=dict)  # an ordered set

    def add(self, names: Sequence[str]) -> list[str]:
        """The names not reported before."""
        fresh = [name for name in names if name not in self.names]
        self.names.update(dict.fromkeys(fresh))
        if len(self.names) > self.max_fraction * self.total:
            shown = "; ".join(list(self.names)[:5])
            raise DataError(
                f"{len(self.names)} of {self.total} pictures are damaged, more than the allowed fraction "
                f"{self.max_fraction}: {shown}"
            )
        return fresh


class SampleOrder:
    """Which samples form the global batch of a step: one shuffled pass over the data after another."""

    def __init__(self, num_samples: int, batch: int, seed: int) -> None:
        assert num_samples > 0
        self._num_samples, self._batch, self._seed = num_samples, batch, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """[batch] int64 for a step counted from 0."""
        position, end = step * self._batch, (step + 1) * self._batch
        parts = []
        while position < end:
            epoch, place = divmod(position, self._num_samples)
            part = self._pass(epoch)[place : place + end - position]
            parts.append(part)
            position += len(part)
        return torch.cat(parts)

    def _pass(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self._num_samples, generator=generator)
        return self._permutation


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """The order of a run, and this rank's part of each global batch. stages: up to which step samples are of
    which shapes, see `Recipe.stages`; without any they are of all."""

    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    stages: Sequence[tuple[float, Collection[Shape]]] = ()

    def build(self, num_samples: int) -> SampleOrder:
        return SampleOrder(num_samples, self.batch, self.seed)

    def steps(self, num_samples: int, first_step: int) -> Iterator[Tensor]:
        """This rank's samples of each step from one on: [B] int64."""
        order = self.build(num_samples)
        for step in itertools.count(first_step):
            yield self.mine(order.indices(step))

    def mine(self, indices: Tensor) -> Tensor:
        """The part of a global draw [batch, ...] that belongs to this rank."""
        return indices.chunk(self.world)[self.rank]


class MemoryData:
    """All pictures decoded on the device; with `limit`, that many spread evenly over them."""

    def __init__(
        self, pictures: PictureSet, damage: DamageReport, device: torch.device, *, limit: int | None = None
    ) -> None:
        wanted = range(0, len(pictures), math.ceil(len(pictures) / limit) if limit else 1)
        kept, images = [], []
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda index: picture_or_damage(pictures, index), wanted)
            for index, picture in zip(wanted, decoded, strict=True):
                if isinstance(picture, DamagedPicture):
                    damage.add([str(picture)])
                else:
                    kept.append(index)
                    images.append(picture)
        if not images:
            raise DataError(f"none of {len(wanted)} photographs can be read")
        self.images = torch.stack(images).to(device)
        self.condition = torch.tensor([pictures.label(index) for index in kept], device=device)

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]:
        for indices in run_order.steps(len(self.images), first_step):
            here = indices.to(self.images.device)
            yield Batch(images=self.images[here], condition=self.condition[here])


class StreamedData:
    """Pictures decoded when they are needed, by worker processes.

    A damaged picture is replaced by the next readable one in order of class and name.
    """

    def __init__(self, pictures: PictureSet, workers: int, pin_memory: bool) -> None:
        self._pictures, self._workers, self._pin_memory = pictures, workers, pin_memory

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]:
        loader = DataLoader(
            _DecodedPictures(self._pictures),
            batch_sampler=_BatchSampler(run_order, len(self._pictures), first_step),
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=self._pin_memory,
        )
        for loaded in loader:
            if isinstance(loaded, DataError):
                raise loaded
            yield loaded


class _BatchSampler:
    def __init__(self, run_order: RunOrder, num_samples: int, first_step: int) -> None:
        self._run_order, self._num_samples, self._first_step = run_order, num_samples, first_step

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._run_order.steps(self._num_samples, self._first_step):
            yield indices.tolist()


_Sample = tuple[Tensor, int, list[str]]  # a picture, its label, and the damaged ones in whose place it is


class _DecodedPictures(Dataset[_Sample | DataError]):
    """What stops the run is given back instead of raised: a worker process would add its traceback to it."""

    def __init__(self, pictures: PictureSet) -> None:
        self._pictures = pictures

    def __getitem__(self, index: int) -> _Sample | DataError:
        try:
            return self._sample(index)
        except DataError as error:
            return error

    def _sample(self, index: int) -> _Sample:
        damaged: list[str] = []
        for offset in range(len(self._pictures)):
            place = (index + offset) % len(self._pictures)
            picture = picture_or_damage(self._pictures, place)
            if not isinstance(picture, DamagedPicture):
                return picture, self._pictures.label(place), damaged
            damaged.append(str(picture))
        raise DataError(f"none of {len(self._pictures)} photographs can be read")


def picture_or_damage(pictures: PictureSet, index: int) -> Tensor | DamagedPicture:
    """As `PictureSet.picture`; a damaged one is given back instead of raised."""
    try:
        return pictures.picture(index)
    except DamagedPicture as damage:
        return damage


def _collate(items: list[_Sample | DataError]) -> Batch | DataError:
    samples = []
    for item in items:
        if isinstance(item, DataError):
            return item
        samples.append(item)
    images, labels, damaged = zip(*samples, strict=True)
    return Batch(
        images=torch.stack(images),
        condition=torch.tensor(labels),
        damaged=tuple(name for names in damaged for name in names),
    )
