"""What the engine is asked to make, and what it made, as values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elit_serve.engine.executor.slots import ImageTask
from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.formats import FILE_QUALITY, AnswerFormat
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.sampling import initial_noise
from elit_serve.scheduler.requests import Demand, Priority


@dataclass(frozen=True, kw_only=True)
class Job:
    """Images of one class, one for each seed, taken all or none.

    noise: one [C, H, W] for each seed, drawn by whoever asks, so that the worker's thread need not.
    weak_caps: see `Demand`; one entry per step.
    arrived_s: when the caller asked, on the worker's clock.
    latency_ms: when, after that, the answer should be out; `is_hard` says whether it is promised.
    min_level, max_level: what may be picked; without meaning for a `pinned` level per step.
    num_previews: of each image while it is made, evenly spread over its steps; fewer if it has few steps.
    file_quality: of JPEG and lossy WebP, 0 to 100.
    ceilings: one level per step that is not exceeded either, or None.
    owner: for whom; None is nobody in particular.
    expected_quality: at the levels that are expected when the job is made or given its plan; None is not known.
    """

    class_id: int
    seeds: tuple[int, ...]
    noise: tuple[Tensor, ...]
    guidance: Guidance
    time_shift: float
    weak_caps: tuple[int | None, ...]
    arrived_s: float
    latency_ms: float
    is_hard: bool
    min_level: int
    max_level: int
    pinned: tuple[int, ...] | None
    priority: Priority
    output_format: AnswerFormat
    num_previews: int = 0
    file_quality: int = FILE_QUALITY
    ceilings: tuple[int, ...] | None = None
    owner: str | None = None
    expected_quality: float | None = None

    @property
    def num_steps(self) -> int:
        return len(self.weak_caps)

    @property
    def shape(self) -> str:
        """The name of its samples' shape."""
        return Shape.of(self.noise[0].shape).name

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The numbers of steps after which there is a preview."""
        parts = self.num_previews + 1
        spread = {round(part * self.num_steps / parts) for part in range(1, parts)}
        return tuple(sorted(spread - {0, self.num_steps}))

    def demand(self, request_id: int) -> Demand:
        """One of the images, as the scheduler sees it."""
        return Demand(
            request_id=request_id,
            shape=self.shape,
            arrived_s=self.arrived_s,
            deadline_s=self.arrived_s + self.latency_ms / 1000,
            weak_caps=self.weak_caps,
            min_level=self.min_level,
            max_level=self.max_level,
            ceilings=self.ceilings,
            pinned=self.pinned,
            is_hard=self.is_hard,
            priority=self.priority,
        )

    def task(self, request_id: int, index: int) -> ImageTask:
        """The image of the seed at `index`, as the executor sees it."""
        return ImageTask(
            request_id=request_id,
            class_id=self.class_id,
            num_steps=self.num_steps,
            guidance=self.guidance,
            time_shift=self.time_shift,
            noise=self.noise[index],
        )

    def plan(self, levels: tuple[int, ...]) -> Plan:
        """The plan of an image that was made at these levels."""
        return Plan(levels=levels, guidance=self.guidance, time_shift=self.time_shift)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an unfinished image promises to become: a file as of a finished one.

    index: from 0, of the image's previews. num_steps: how many of its steps have run.
    """

    file: bytes
    seed: int
    index: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class StepRun:
    """One step of an image has run. number: from 1."""

    seed: int
    number: int
    num_steps: int
    level: int


@dataclass(frozen=True, kw_only=True)
class ImageOutcome:
    """A finished image: its file, the level of each of its steps, and where its time went.

    queue_ms: from arrival to the first step. compute_ms: from there to the end of the last step, waits between steps
    included. encode_ms: from there to the file: decoding, transfer, encoding.
    """

    file: bytes
    seed: int
    levels: tuple[int, ...]
    queue_ms: float
    compute_ms: float
    encode_ms: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One image for each seed of the job, in order. The three times are those of `ImageOutcome` for all of them.

    job: as it was run, with the plan that it was given if it had left that open.
    """

    job: Job
    images: tuple[ImageOutcome, ...]

    @property
    def queue_ms(self) -> float:
        return min(image.queue_ms for image in self.images)

    @property
    def compute_ms(self) -> float:
        return max(image.queue_ms + image.compute_ms for image in self.images) - self.queue_ms

    @property
    def encode_ms(self) -> float:
        ended_ms = max(image.queue_ms + image.compute_ms + image.encode_ms for image in self.images)
        return ended_ms - self.queue_ms - self.compute_ms


def draw_noise(seeds: tuple[int, ...], pipeline: Pipeline) -> tuple[Tensor, ...]:
    """The noise of each seed, [C, H, W], on the host; for a GPU in pinned memory, where copying does not wait."""
    drawn = (initial_noise([seed], pipeline.config.spec.sample_shape)[0] for seed in seeds)
    return tuple(noise.pin_memory() if pipeline.device.type == "cuda" else noise for noise in drawn)
