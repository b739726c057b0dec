"""What a server answers. Fields that a newer server adds are ignored."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Answer(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def _decoded(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


File = Annotated[bytes, BeforeValidator(_decoded)]


class ImageFacts(Answer):
    """levels, strides: one per step that was run; a stride is how many steps of the plan's time grid it was.
    quality: as measured for pictures made like that.

    gflops, device_ms: what it cost, as in `Generation`.
    Other milliseconds as there; None where the answer tells them for all images only.
    """

    seed: int
    level: float
    budget: float
    levels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    quality: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None
    gflops: float | None = None
    device_ms: float | None = None


class Image(ImageFacts):
    """data: the file: an encoded picture, or a latent where the model has no autoencoder."""

    data: File = Field(alias="b64_json", repr=False)


class GenerationFacts(Answer):
    """How pictures were made.

    label: the class, or prompt: the words; the other is None. A bare file's headers do not tell its prompt.
    output_format: png, webp, jpeg or safetensors. size: of the pictures, as "640x384".
    simulated: the device whose time was taken instead of computing, so that pictures are placeholders; None otherwise.
    promised: whether the target was one that the server had to keep.
    deadline_met: None without a target.
    skips: which steps used again what earlier ones computed, of `core` and of `weak` passes; None if none did.
    finished_early: whether its caller had it finished early.
    queue_ms, compute_ms, encode_ms: to the first step, from there to the end of the last, from there to the files.
    total_ms: all of the server's time, from arrival to the answer.
    gflops: what the steps of its pictures computed, in 10^9 floating-point operations. device_ms: their share of the
    device's time, measured.
    quality: of what was done, the mean of its pictures; None where nothing was measured.
    expected_quality: of the plan when it was chosen; likewise.
    quality_size: of the pictures whose quality was measured. Where `size` is another, qualities are taken from there.
    """

    output_format: str
    size: str | None = None
    label: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    model: str
    model_hash: str = ""
    dtype: str = ""
    simulated: str | None = None
    steps: int
    guidance: Mapping[str, Any] = {}
    skips: Mapping[str, Any] | None = None
    latency_ms: float | None = None
    promised: bool | None = None
    deadline_met: bool | None = None
    finished_early: bool | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None
    total_ms: float | None = None
    gflops: float | None = None
    device_ms: float | None = None
    quality: float | None = None
    expected_quality: float | None = None
    quality_size: str | None = None


class Generation(GenerationFacts):
    """Pictures, and how they were made."""

    images: tuple[Image, ...]


class PartialImage(Answer):
    """What a picture promises to become, by its last step. index: 0, 1, ... among the previews of one picture."""

    data: File = Field(alias="b64_json", repr=False)
    index: int = Field(alias="partial_image_index")
    output_format: str = ""


class Course(Answer):
    """What would be done if nobody else came. levels: for each picture one per step; level and budget are means.

    latency_ms: from arrival to the answer, as predicted. queue_ms: from arrival to the first step. answer_ms: of
    `latency_ms` what follows the last step.
    quality: as measured for such pictures. expected_quality: as in `Generation`.
    """

    steps: int
    guidance: Mapping[str, Any] = {}
    skips: Mapping[str, Any] | None = None
    level: float
    budget: float
    levels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...] = ()
    queue_ms: float
    latency_ms: float
    answer_ms: float | None = None
    deadline_met: bool | None = None
    quality: float | None = None
    expected_quality: float | None = None


class Refusal(Answer):
    """reason: `infeasible`, `overloaded` or `queue_full`. min_latency_ms: the smallest target that would do.
    retry_after_ms: after how long the same request would be taken, if nobody else came meanwhile."""

    reason: str
    detail: str = ""
    min_latency_ms: float | None = None
    retry_after_ms: float | None = None


class Alternative(Answer):
    """Another way to make the pictures. latency_ms: as crowded as it is now; alone_ms: on an idle server.
    min_latency_ms: the smallest target that leaves time for it. fits: whether the target does; None without one."""

    steps: int
    guidance: Mapping[str, Any] = {}
    skips: Mapping[str, Any] | None = None
    level: float
    budget: float
    latency_ms: float
    alone_ms: float
    min_latency_ms: float | None = None
    quality: float | None = None
    fits: bool | None = None


class Plan(Answer):
    """What would become of a request if it were sent now: either `course` or `refusal` is None.

    label, prompt, size, quality_size: as in `Generation`. promised: whether the target would be one that the server has
    to keep.
    alternatives: the fastest first.
    """

    model: str
    label: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    n: int
    accepted: bool
    promised: bool
    latency_ms: float | None = None
    size: str | None = None
    quality_size: str | None = None
    course: Course | None = None
    refusal: Refusal | None = None
    alternatives: tuple[Alternative, ...] = ()


class LevelInfo(Answer):
    """latency_ms: of one picture at this level on an idle server, as the server predicts it. quality: as measured."""

    level: int
    budget: float
    latency_ms: float | None = None
    quality: float | None = None


class GuidanceInfo(Answer):
    """As in the model's recommended sampling; times of the interval run from 0 (noise) to 1."""

    method: Literal["none", "cfg", "ag", "ccfg"] = "none"
    scale: float = 1.0
    weak_level: int = 1
    interval: tuple[float, float] = (0.0, 1.0)


class TimeShiftInfo(Answer):
    """A shift of the time grid whose last step starts at a noise level of its own: before the shift (`last`), or after
    it (`terminal`). growth: of the shift's logarithm with each step, where it depends on their number."""

    factor: float
    last: float | None = None
    terminal: float | None = None
    growth: float | None = None


class SamplingInfo(Answer):
    """How the model is sampled where a request does not say. shape_shifts: of sizes that have another shift than
    `time_shift`, by the `shape` of `SizeInfo`."""

    steps: int
    time_shift: float | TimeShiftInfo = 1.0
    shape_shifts: dict[str, float | TimeShiftInfo] = {}
    guidance: GuidanceInfo = GuidanceInfo()


class SizeInfo(Answer):
    """A size of pictures, in pixels. latency_ms: of one at full budget on an idle server, as the server predicts it.
    shape: what latency files call it."""

    size: str
    width: int
    height: int
    shape: str = ""
    latency_ms: float | None = None


class MeasuredQuality(Answer):
    """What the qualities that a server tells were measured in, and what they are multiplied by for its own dtype.
    full_plan: the plan that 1 is as good as; None are photographs."""

    measured_in: str | None = None
    factor: float | None = None
    factor_half_width: float | None = None
    num_plans: int | None = None
    full_plan: str | None = None


class PromptInfo(Answer):
    """max_tokens: so many of a prompt are read. negative: whether negative prompts are known. examples: of prompts."""

    max_tokens: int
    negative: bool = False
    examples: tuple[str, ...] = ()


class Model(Answer):
    """A model that a server serves. classes: by id; none of a model of prompts. prompts: what it does with these; None
    of a model of classes. sizes: what a request may ask for, the default first. response_ms: what its predictions count
    for HTTP."""

    id: str
    hash: str = ""
    classes: tuple[str, ...]
    prompts: PromptInfo | None = None
    levels: tuple[LevelInfo, ...]
    sizes: tuple[str, ...] = ()
    size_details: tuple[SizeInfo, ...] = ()
    sampling: SamplingInfo
    device: str = ""
    simulated: str | None = None
    dtype: str = ""
    response_ms: float = 0.0
    quality: MeasuredQuality | None = None


class ModelList(Answer):
    data: tuple[Model, ...]


class Health(Answer):
    status: str
    model: str
    queue_length: int = 0
