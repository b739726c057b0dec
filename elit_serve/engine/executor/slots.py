"""Steps of pictures on one device: every picture that has begun has a slot, and a launch moves some one step on.

The same code runs on CPU and GPU; on a GPU a launch only enqueues work, and steps that were captured are replayed
as CUDA graphs. One thread owns an executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elit_serve.engine.conditions import Conditions
from elit_serve.engine.executor.memory import SCRATCH, Memory
from elit_serve.engine.picture import Picture
from elit_serve.errors import GenerationFailed
from elit_serve.nn import Backbone
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import guided_step

Inputs = NDArray[np.float32]  # [8, B], see `Executor._step`


class Drawing(Protocol):
    """What an executor needs: a model and what surrounds it. `Pipeline` is one.

    model: a backbone on `device`. conditions: those that it knows. shapes: of the samples that it makes.
    """

    @property
    def model(self) -> Backbone: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def conditions(self) -> Conditions: ...
    @property
    def shapes(self) -> Sequence[Shape]: ...

    def decode(self, samples: Tensor) -> Tensor:
        """Samples [B, *shape] on the device as they are answered, there too."""

    def preview(self, samples: Tensor) -> Tensor:
        """As `decode`, of samples that are not finished: it may be less exact."""


class RunningStep(Protocol):
    """A launch on its way."""

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> float:
        """Milliseconds that the device took, once it has. Raises what went wrong."""


class Transfer(Protocol):
    """Samples on their way to the host."""

    def result(self) -> list[Tensor | GenerationFailed]:
        """Waits (on any thread). uint8 [H, W, 3] for a picture, float32 [C, H, W] for a bare latent, in order;
        a sample that is not finite is a failure of its own."""

    def took_ms(self) -> float:
        """Milliseconds that the device decoded, to be asked after `result`."""


class AnyExecutor(Protocol):
    """What a worker drives. `Executor` computes; `engine.simulated` takes the time that this takes.

    A picture keeps its slot from `add` to `collect` or `remove`. All are as those of `Executor`.
    """

    @property
    def is_asynchronous(self) -> bool: ...
    @property
    def num_slots(self) -> int: ...

    def add(self, *pictures: Picture) -> None: ...
    def remove(self, picture: Picture) -> None: ...
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep: ...
    def watch(self, pictures: Sequence[Picture]) -> None: ...
    def preview(self, pictures: Sequence[Picture]) -> Transfer: ...
    def collect(self, pictures: Sequence[Picture]) -> Transfer: ...


class Executor:
    """Slots and steps of one model. A picture keeps its slot from `add` to `collect` or `remove`.

    keeps: whether slots also keep what later steps may use again; pictures whose plans skip something need it.
    """

    is_asynchronous = False  # whether `launch` returns before the device is done

    def __init__(self, drawing: Drawing, *, num_slots: int, keeps: bool = False) -> None:
        self._drawing = drawing
        self._model = drawing.model
        self._device = drawing.device
        self._conditions = drawing.conditions.slots(num_slots + 1, drawing.model)
        self._states = {
            shape.name: torch.zeros((num_slots + 1, *shape.size), device=self._device) for shape in drawing.shapes
        }
        slots, device = num_slots + 1, self._device
        self._memories = {
            shape.name: Memory(self._model, shape, slots=slots, device=device) for shape in drawing.shapes if keeps
        }
        self._num_slots = num_slots
        self._free = list(range(num_slots, SCRATCH, -1))

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def keeps(self) -> bool:
        """Whether pictures may skip something."""
        return bool(self._memories)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def capture(
        self, wanted: Sequence[tuple[StepKind, int]], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Prepares steps of these kinds and batches, in this order, so that they cost the host nothing.

        Where there is no way to, as on a CPU, does nothing."""

    def capture_decoding(self, batches: Sequence[int]) -> None:
        """The same for the decoding of so many pictures of each shape."""

    @torch.inference_mode()
    def add(self, *pictures: Picture) -> None:
        """Gives each a slot; there must be as many free ones. Raises whatever the device raises, and none has one."""
        try:
            slots = [self._slot_for(picture) for picture in pictures]
            self._conditions.put(slots, [picture.condition for picture in pictures])
        except BaseException:
            for picture in pictures:
                self.remove(picture)
            raise

    def _slot_for(self, picture: Picture) -> int:
        assert picture.slot is None, "it has a slot already"
        assert self.keeps or not picture.skips, "it skips what nobody keeps"
        picture.slot = self._free.pop()
        if self.keeps:
            self._memories[picture.shape].forget(picture.slot)
        self._states[picture.shape][picture.slot].copy_(picture.noise, non_blocking=True)
        return picture.slot

    def remove(self, picture: Picture) -> None:
        """Frees a slot; steps that are already on their way may still write to it, before the next owner does."""
        if picture.slot is not None:
            self._free.append(picture.slot)
            picture.slot = None

    @torch.inference_mode()
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        """Runs, or on a GPU enqueues, the present step of each of these, which in a mixed one are at levels of their
        own. Raises whatever the device raises."""
        return self._run(self._inputs(pictures, kind), self._as_run(kind))

    def _run(self, inputs: Inputs, kind: StepKind) -> RunningStep:
        started_s = time.perf_counter()
        self._step(self._on_device(torch.from_numpy(inputs)), kind)
        return _DoneStep(1000 * (time.perf_counter() - started_s))

    def _as_run(self, kind: StepKind) -> StepKind:
        """The kind that one is run as, see `Memory.as_run`."""
        return self._memories[kind.shape].as_run(kind) if kind.is_skipped else kind

    def _step(self, inputs: Tensor, kind: StepKind) -> None:
        """Moves the slots that `inputs` [8, B] names one step on.

        Rows: slot, condition of the main and of the weak pass, level, t, dt, guidance scale, and 1 where the picture
        has no weak pass of its own. Indices are exact in float32 up to 2^24, so one small tensor carries everything.
        Levels are used in mixed steps alone: in others they are that of the kind.
        """
        state, memory = self._states[kind.shape], self._memories.get(kind.shape)
        index = inputs[:4].long()
        t, dt, scale, uses_kept = inputs[4:]
        told = self._conditions.at(index[1] if kind.weak_level is None else index[1:3].flatten())
        own_levels = _levels_of_passes(index[3], kind.weak_level) if kind.is_mixed else None
        velocity = self._model if own_levels is None else partial(self._model, own_levels=own_levels)
        x, norm_patch = state.index_select(0, index[0]), self._model.spec.guidance_patch
        if memory is None:
            moved = guided_step(velocity, x, t, dt, scale, told, kind, norm_patch=norm_patch)
        else:
            kept = memory.step(kind, index[0], uses_kept, own_levels)
            velocity = partial(velocity, changes=kept.changes)
            moved = guided_step(velocity, x, t, dt, scale, told, kind, kept, norm_patch)
            kept.keep()
        state.index_copy_(0, index[0], moved)

    def _inputs(self, pictures: Sequence[Picture], kind: StepKind) -> Inputs:
        columns = [_column(picture, kind, self._conditions.without) for picture in pictures]
        return np.ascontiguousarray(np.array(columns, np.float32).T)

    @torch.inference_mode()
    def watch(self, pictures: Sequence[Picture]) -> None:
        """Remembers where these, of one shape, are, so that `preview` sees how far the next step moves them."""
        for picture, state in zip(pictures, self.samples(pictures), strict=True):
            picture.before = state

    @torch.inference_mode()
    def preview(self, pictures: Sequence[Picture]) -> Transfer:
        """Decodes where watched pictures are heading: x + (1 - t) v, with the velocity of the step just run."""
        heading = []
        for picture, state in zip(pictures, self.samples(pictures), strict=True):
            assert picture.before is not None, "it is watched before the step"
            t_before, t = picture.present_times
            heading.append(state + (1 - t) / (t - t_before) * (state - picture.before))
            picture.before = None
        samples = torch.stack(heading)
        return self._transfer(self._drawing.preview, samples)

    def samples(self, pictures: Sequence[Picture]) -> Tensor:
        """Copies of the states of pictures of one shape. [B, *shape], float32"""
        index = torch.tensor([picture.slot for picture in pictures])
        return self._states[pictures[0].shape].index_select(0, self._on_device(index))

    def conditions_of(self, pictures: Sequence[Picture]) -> Any:
        """What the model is told of these."""
        return self._conditions.at(self._on_device(torch.tensor([picture.slot for picture in pictures])))

    @torch.inference_mode()
    def collect(self, pictures: Sequence[Picture]) -> Transfer:
        """Decodes finished pictures of one shape, and frees their slots."""
        samples = self.samples(pictures)
        for picture in pictures:
            self.remove(picture)
        return self._transfer(self._decoded, samples)

    def _on_device(self, small: Tensor) -> Tensor:
        return small.to(self._device)

    def _decoded(self, samples: Tensor) -> Tensor:
        return self._drawing.decode(samples)

    def _transfer(self, decode: Callable[[Tensor], Tensor], samples: Tensor) -> Transfer:
        """Decoded and on the way to the host, with word of which samples are finite."""
        started_s = time.perf_counter()
        decoded = decode(samples).cpu()
        return _DoneTransfer(decoded, are_finite(samples), 1000 * (time.perf_counter() - started_s))


def _levels_of_passes(levels: Tensor, weak_level: int | None) -> Tensor:
    """Of all main passes, each at the level [B] of its picture, and behind them of the weak ones, if there are any."""
    return levels if weak_level is None else torch.cat([levels, levels.clamp(max=weak_level)])


def _column(picture: Picture, kind: StepKind, without: Callable[[int], int]) -> tuple[float, ...]:
    """What the present step of a picture needs to know, see `Executor._step`."""
    assert picture.slot is not None, "a picture is added before its first step"
    t, t_next = picture.present_times
    guidance, skips, step = picture.guidance, picture.skips, picture.present_step
    is_guided, uses_kept = guidance.applies_at(t), step in skips.weak
    assert (step in skips.core) == kind.is_skipped, "a step that computes its core is in a launch that does not"
    assert kind.weak_level is not None or uses_kept or not is_guided, "a guided step is in an unguided launch"
    level = picture.levels[step]
    assert level <= kind.level if kind.is_mixed else kind.is_skipped or level == kind.level, "not at its own level"
    weak = without(picture.slot) if guidance.drops_condition else picture.slot
    scale = guidance.scale if is_guided else 1.0  # steps without a weak pass may ride along
    return picture.slot, picture.slot, weak, level, t, t_next - t, scale, float(uses_kept)


def are_finite(samples: Tensor) -> Tensor:
    return samples.isfinite().flatten(1).all(dim=1)


@dataclass(frozen=True)
class _DoneStep:
    took_ms: float

    def is_done(self) -> bool:
        return True

    def wait(self) -> float:
        return self.took_ms


@dataclass(frozen=True)
class _DoneTransfer:
    samples: Tensor
    finite: Tensor
    decoded_in_ms: float

    def result(self) -> list[Tensor | GenerationFailed]:
        return split_samples(self.samples, self.finite)

    def took_ms(self) -> float:
        return self.decoded_in_ms


def split_samples(samples: Tensor, finite: Tensor) -> list[Tensor | GenerationFailed]:
    """Decoded samples one by one, or why there is none."""
    failure = GenerationFailed("the model produced NaN or infinite values")
    return [sample if ok else failure for sample, ok in zip(samples, finite.tolist(), strict=True)]
