"""Photographs by the size that they are trained at: each goes to the one whose aspect ratio is nearest to its own.

A step is of one size, drawn from the run's seed and the step alone, as often as photographs are of it. Those of a size
come in one shuffled pass after another, whatever other sizes come between, so a resumed run sees what an unbroken one
would.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from elit_serve.errors import InvalidInput
from elit_serve.photographs import Photograph, size_of
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.trainer.data import Batch, Batches, DamageReport, HeldBatches, PictureSet, RunOrder, TrainingSet
from elit_serve.trainer.draws import seed_of

ALIKE = 1e-6  # logarithms of aspect ratios that differ by less are equal


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """whole: all photographs, or latents of them. parts: those of each size, by the shape of the samples that they
    become; none is empty, and where two sizes have one aspect ratio, photographs are in both."""

    whole: TrainingSet
    parts: Mapping[Shape, TrainingSet]

    @classmethod
    def of(cls, pictures: PictureSet, sizes: Mapping[Shape, Size]) -> Buckets:
        """sizes: of the pictures that samples of each shape become, the one that the damaged go to first."""
        if len(sizes) == 1:
            return cls(whole=pictures, parts=dict.fromkeys(sizes, pictures))
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(size_of, pictures.photographs))
        parts = {}
        for shape, size in sizes.items():
            members = [
                photograph
                for photograph, own in zip(pictures.photographs, found, strict=True)
                if size in nearest(own, list(sizes.values()))
            ]
            parts[shape] = _part(pictures, members, size)
        return cls(whole=pictures, parts={shape: part for shape, part in parts.items() if len(part)})

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.whole.classes

    @property
    def note(self) -> str | None:
        """See `TrainingSet`."""
        return self.whole.note

    @property
    def nbytes(self) -> int:
        """Size of all pictures decoded, in bytes."""
        return sum(part.nbytes for part in self.parts.values())

    def check_batch(self, batch: int, shapes: Sequence[Shape], max_repeats: int) -> None:
        """Raises `InvalidInput` where a size has no photographs, or so few that a batch would repeat them more often
        than `max_repeats` times."""
        for shape in shapes:
            if shape not in self.parts:
                allowed = "a size that is nearest to some photographs' aspect ratio; to this one none is"
                raise InvalidInput("data.sizes", _sides(shape), allowed)
            count = len(self.parts[shape])
            if batch > max_repeats * count:
                of_size = "" if len(shapes) == 1 else f" at {_sides(shape)}"
                allowed = f"at most {max_repeats * count}, {max_repeats} times the {count} {self.whole.what}"
                raise InvalidInput("training.batch", batch, f"{allowed} that are trained on{of_size}")

    def in_memory(self, damage: DamageReport, device: torch.device) -> BucketedData:
        """All decoded on the device."""
        return BucketedData(self.decoded(damage, device), self._counts)

    def streamed(self, workers: int, *, pin_memory: bool) -> BucketedData:
        """Decoded by worker processes, of which each size has its part, when they are needed."""
        of_each = math.ceil(workers / len(self.parts))
        parts = {shape: part.streamed(of_each, pin_memory=pin_memory) for shape, part in self.parts.items()}
        return BucketedData(parts, self._counts)

    def decoded(
        self, damage: DamageReport, device: torch.device, *, limit: int | None = None
    ) -> dict[Shape, HeldBatches]:
        """Those of each size on the device; with `limit`, about so many in all."""
        of_each = None if limit is None else max(1, limit // len(self.parts))
        return {shape: part.in_memory(damage, device, limit=of_each) for shape, part in self.parts.items()}

    @property
    def _counts(self) -> list[int]:
        return [len(part) for part in self.parts.values()]


class BucketedData:
    """parts: what there is of each size. weights: how often steps are of them, in the same order."""

    def __init__(self, parts: Mapping[Shape, Batches], weights: Sequence[int]) -> None:
        self.parts = parts
        self._weights = weights

    def batches(self, run_order: RunOrder, first_step: int) -> Iterator[Batch]:
        """From a step on, each of one size."""
        stages = [(end, self._weights_of(shapes)) for end, shapes in run_order.stages]
        drawn = SizeOrder(stages or [(math.inf, self._weights)], run_order.seed)
        streams = [
            part.batches(_order_of(run_order, index), earlier)
            for index, (part, earlier) in enumerate(zip(self.parts.values(), drawn.before(first_step), strict=True))
        ]
        shapes = list(self.parts)
        for step in itertools.count(first_step):
            index = drawn.at(step)
            yield replace(next(streams[index]), shape=shapes[index])

    def _weights_of(self, shapes: Collection[Shape]) -> list[int]:
        return [weight * (shape in shapes) for shape, weight in zip(self.parts, self._weights, strict=True)]


class SizeOrder:
    """Which of several sizes each step is of; the same on every rank.

    stages: the step at which each ends, and how often its steps are of each size; the last has no end.
    """

    def __init__(self, stages: Sequence[tuple[float, Sequence[int]]], seed: int) -> None:
        self._stages, self._seed = stages, seed
        self._num_sizes = len(stages[0][1])

    def at(self, step: int) -> int:
        """The index of a step's size, for a step counted from 0."""
        weights = next(weights for end, weights in self._stages if step < end)
        draw = random.Random(seed_of(self._seed, "size", step))
        return draw.choices(range(self._num_sizes), weights)[0]

    def before(self, step: int) -> list[int]:
        """How many of the steps before this one are of each size."""
        if self._num_sizes == 1:
            return [step]
        counts = Counter(map(self.at, range(step)))
        return [counts[index] for index in range(self._num_sizes)]


def nearest(own: Size | tuple[int, int] | None, sizes: Sequence[Size]) -> list[Size]:
    """Those whose aspect ratio is nearest to that of a picture (width, height); of a damaged one, whose is not known,
    the first."""
    if own is None or not all(own):
        return list(sizes[:1])
    apart = {size: abs(math.log(size.aspect / Size(*own).aspect)) for size in sizes}
    least = min(apart.values())
    return [size for size in sizes if apart[size] <= least + ALIKE]


def _order_of(run_order: RunOrder, index: int) -> RunOrder:
    """The order of the photographs of a size; of the first, or only one, it is the run's own."""
    return replace(run_order, seed=seed_of(run_order.seed, "size", "order", index)) if index else run_order


def _part(pictures: PictureSet, members: Sequence[Photograph], size: Size) -> PictureSet:
    return replace(pictures, photographs=tuple(members), height=size.height, width=size.width)


def _sides(shape: Shape) -> str:
    _, height, width = shape.size
    return str(Size(width, height))
