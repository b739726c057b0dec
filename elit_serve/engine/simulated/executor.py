"""Slots and steps as an executor has them, on a device that exists on paper: what a cost table says is waited for, and
nothing is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from torch import Tensor

from elit_serve.clock import Clock
from elit_serve.engine.conditions import Condition
from elit_serve.engine.executor.slots import RunningStep, Transfer
from elit_serve.engine.picture import Picture
from elit_serve.errors import GenerationFailed
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.noisy_costs import NoisyCosts


class SimulatedExecutor:
    """One thread owns it, as with any executor. Like a GPU it is given work ahead, and runs one piece after another.

    costs: what steps take; what decoding and encoding take is as the table has it, without noise.
    placeholders: by the name of a shape, what is answered: uint8 [H, W, 3] for a picture, float32 [C, h, w] for a
        latent.
    num_texts: how many are encoded for what a picture is of.
    failures: the share of launches that fail, with every picture in them.
    """

    is_asynchronous = True

    def __init__(
        self,
        costs: NoisyCosts,
        placeholders: Mapping[str, Tensor],
        *,
        num_texts: Callable[[Condition], int],
        num_slots: int,
        clock: Clock,
        failures: float = 0.0,
        rng: Random,
    ) -> None:
        self._costs = costs
        self._placeholders = placeholders
        self._num_texts = num_texts
        self._num_slots = num_slots
        self._free = list(range(num_slots))
        self._clock = clock
        self._free_s = clock.now()  # when all that was given to the device is done
        self._failures = failures
        self._rng = rng

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def num_free(self) -> int:
        return len(self._free)

    def add(self, *pictures: Picture) -> None:
        """What is encoded for them takes its time, as if none of it were known."""
        num_texts = sum(map(self._num_texts, {picture.condition for picture in pictures}))
        self._enqueue(self._costs.table.text_ms * num_texts)
        for picture in pictures:
            assert picture.slot is None, "it has a slot already"
            picture.slot = self._free.pop()

    def remove(self, picture: Picture) -> None:
        if picture.slot is not None:
            self._free.append(picture.slot)
            picture.slot = None

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        """Raises `GenerationFailed` for the share of launches that is to fail, but for a warm-up."""
        if pictures[0].has_caller and self._rng.random() < self._failures:
            raise GenerationFailed("a simulated failure, as this server was asked for")
        took_ms = self._costs.step_ms(kind, len(pictures))
        return _Due(self._clock, self._enqueue(took_ms), took_ms)

    def watch(self, pictures: Sequence[Picture]) -> None:
        """There is nothing to remember."""

    def preview(self, pictures: Sequence[Picture]) -> Transfer:
        """What a finished picture is."""
        return self._transfer(pictures)

    def collect(self, pictures: Sequence[Picture]) -> Transfer:
        transfer = self._transfer(pictures)
        for picture in pictures:
            self.remove(picture)
        return transfer

    def _transfer(self, pictures: Sequence[Picture]) -> Transfer:
        """Decoded on the device, and then as long on the way as it takes to encode all of them."""
        shape, number = pictures[0].shape, min(len(pictures), self._costs.table.max_batch)
        decode_ms = self._costs.table.decode_row(shape)[number]
        encode_ms = self._costs.table.after_ms(shape, number) - decode_ms
        decoded = _Due(self._clock, self._enqueue(decode_ms) + encode_ms / 1000, decode_ms)
        return _PlaceholderTransfer(decoded, [self._placeholders[shape]] * len(pictures))

    def _enqueue(self, took_ms: float) -> float:
        """When it will have been done."""
        self._free_s = max(self._clock.now(), self._free_s) + took_ms / 1000
        return self._free_s


@dataclass(frozen=True)
class _Due:
    """Done at `due_s` on the clock, having taken the device `took_ms`."""

    clock: Clock
    due_s: float
    took_ms: float

    def is_done(self) -> bool:
        return self.clock.now() >= self.due_s

    def wait(self) -> float:
        while (left_s := self.due_s - self.clock.now()) > 0:
            time.sleep(left_s)
        return self.took_ms


@dataclass(frozen=True)
class _PlaceholderTransfer:
    decoded: _Due
    samples: Sequence[Tensor]

    def result(self) -> list[Tensor | GenerationFailed]:
        self.decoded.wait()
        return list(self.samples)

    def took_ms(self) -> float:
        return self.decoded.took_ms
