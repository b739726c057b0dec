"""Steps of cohorts on one device: every image in flight has a slot, and a launch moves some of them one step on.

The same code runs on CPU and GPU; on a GPU a launch only enqueues work, and steps that were captured are replayed
as CUDA graphs. One thread, the worker, owns an executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from elit_serve.engine.executor.step import guided_step
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import StepSet
from elit_serve.errors import GenerationFailed
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.sampling import initial_noise
from elit_serve.scheduler.requests import Launch

SCRATCH = 0  # the slot that fills up a batch; what is in it means nothing


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """What an image needs beside the levels of its steps. noise [C, H, W] is drawn by whoever asks, from the seed."""

    request_id: int
    class_id: int
    num_steps: int
    guidance: Guidance
    time_shift: float
    noise: Tensor

    @classmethod
    def draw(cls, *, seed: int, sample_shape: tuple[int, int, int], **fields: object) -> ImageTask:
        """A task with the noise of `seed`."""
        return cls(noise=initial_noise([seed], sample_shape)[0], **fields)  # type: ignore[arg-type]


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


class Executor:
    """Slots and steps of one pipeline."""

    is_asynchronous = False  # whether `launch` returns before the device is done

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        self._pipeline = pipeline
        self._model = pipeline.model
        self._device = pipeline.device
        self._state = torch.zeros((num_slots + 1, *pipeline.config.spec.sample_shape), device=self._device)
        self._free = list(range(num_slots, SCRATCH, -1))
        self._slots: dict[int, _Slot] = {}

    @property
    def num_slots(self) -> int:
        return len(self._state) - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    def capture(self, wanted: StepSet, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Prepares steps so that they cost the host nothing; where there is no way to, as on a CPU, does nothing."""

    @torch.inference_mode()
    def add(self, task: ImageTask) -> None:
        """Gives an image a slot; there must be a free one."""
        index = self._free.pop()
        self._slots[task.request_id] = _Slot(index, task, _grid(task.num_steps, task.time_shift))
        self._state[index].copy_(task.noise, non_blocking=True)

    def remove(self, request_id: int) -> None:
        """Frees a slot; steps that are already on their way may still write to it, before the next owner does."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._free.append(slot.index)

    @torch.inference_mode()
    def launch(self, launch: Launch) -> RunningStep:
        """Runs, or on a GPU enqueues, the next step of every member.

        Raises whatever the device raises; no member has then moved.
        """
        slots = [self._slots[request_id] for request_id in launch.request_ids]
        step = self._run(_inputs(slots, launch, self._model.null_class), launch)
        for slot in slots:
            slot.step += 1
        return step

    def _run(self, inputs: Tensor, launch: Launch) -> RunningStep:
        started_s = time.perf_counter()
        step_in_place(self._model, self._state, inputs, level=launch.kind.level, weak_level=launch.kind.weak_level)
        return _DoneStep(1000 * (time.perf_counter() - started_s))

    @torch.inference_mode()
    def watch(self, request_ids: Sequence[int]) -> None:
        """Remembers where these images are, so that `preview` sees how far the next step moves them."""
        for slot, state in zip(*self._states(request_ids), strict=True):
            slot.before = state

    @torch.inference_mode()
    def preview(self, request_ids: Sequence[int]) -> Transfer:
        """Decodes where images that are watched are heading: x + (1 - t) v, with the velocity of the step just run."""
        slots, states = self._states(request_ids)
        heading = []
        for slot, state in zip(slots, states, strict=True):
            assert slot.before is not None, "it is watched before the step"
            t_before, t = slot.grid[slot.step - 1 : slot.step + 1]
            heading.append(state + (1 - t) / (t - t_before) * (state - slot.before))
            slot.before = None
        return self._decode(torch.stack(heading))

    def _states(self, request_ids: Sequence[int]) -> tuple[list[_Slot], Tensor]:
        """Slots, and copies of their states [B, C, H, W]."""
        slots = [self._slots[request_id] for request_id in request_ids]
        index = torch.tensor([slot.index for slot in slots])
        return slots, self._state.index_select(0, self._on_device(index))

    @torch.inference_mode()
    def collect(self, request_ids: Sequence[int]) -> Transfer:
        """Decodes finished images, and frees their slots."""
        _, samples = self._states(request_ids)
        for request_id in request_ids:
            self.remove(request_id)
        return self._decode(samples)

    def _on_device(self, small: Tensor) -> Tensor:
        return small.to(self._device)

    def _decode(self, samples: Tensor) -> Transfer:
        return _DoneTransfer(self._pipeline.decode(samples), are_finite(samples))


def step_in_place(model: torch.nn.Module, state: Tensor, inputs: Tensor, *, level: int, weak_level: int | None) -> None:
    """Moves the slots that `inputs` [6, B] names one step on, in `state` [S, C, H, W].

    Rows: slot, class, class of the weak pass, t, dt, guidance scale. Indices are exact in float32 up to 2^24, so one
    small tensor carries everything.
    """
    index, label, weak_label = inputs[:3].long()
    t, dt, scale = inputs[3:]
    x = state.index_select(0, index)
    moved = guided_step(model, x, t, dt, scale, label, weak_label, level=level, weak_level=weak_level)  # type: ignore[arg-type]
    state.index_copy_(0, index, moved)


class _Slot:
    """Where an image's state lies, and how far it is. before: its state [C, H, W] before the next step, if watched."""

    def __init__(self, index: int, task: ImageTask, grid: tuple[float, ...]) -> None:
        self.index = index
        self.task = task
        self.grid = grid
        self.step = 0
        self.before: Tensor | None = None


def _inputs(slots: Sequence[_Slot], launch: Launch, null_class: int) -> Tensor:
    columns = []
    for slot in slots:
        guidance, t = slot.task.guidance, slot.grid[slot.step]
        weak_class = slot.task.class_id if guidance.method == "ag" else null_class
        assert launch.kind.weak_level is not None or not guidance.applies_at(t), (
            "a guided step is in an unguided launch"
        )
        scale = guidance.scale if guidance.applies_at(t) else 1.0  # unguided steps may ride along
        columns.append((slot.index, slot.task.class_id, weak_class, t, slot.grid[slot.step + 1] - t, scale))
    return torch.tensor(columns, dtype=torch.float32).T.contiguous()


@lru_cache(maxsize=64)
def _grid(num_steps: int, shift: float) -> tuple[float, ...]:
    return tuple(time_grid(num_steps, shift))


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

    def result(self) -> list[Tensor | GenerationFailed]:
        return split_samples(self.samples, self.finite)


def split_samples(samples: Tensor, finite: Tensor) -> list[Tensor | GenerationFailed]:
    """Decoded samples one by one, or why there is none."""
    failure = GenerationFailed("the model produced NaN or infinite values")
    return [sample if ok else failure for sample, ok in zip(samples, finite.tolist(), strict=True)]
