"""Answers that the server alone gives: plans, models, and how it is itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from elit_serve.http.schemas import GuidanceUsed, SkipsUsed


class PlanCourse(BaseModel):
    """What would be done if nobody else came. levels, strides: for each picture one per step, as in an answer; level
    and budget are means."""

    steps: int
    guidance: GuidanceUsed
    skips: SkipsUsed | None = Field(description="What steps use again of earlier ones; null is nothing.")
    level: int | float
    budget: float
    levels: list[list[int]]
    strides: list[list[int]]
    queue_ms: float = Field(description="From arrival to the first step of the first picture.")
    latency_ms: float = Field(description="From arrival to the answer, as predicted.")
    answer_ms: float = Field(description="Of that what follows the last step: decoding, encoding and the response.")
    deadline_met: bool | None = Field(description="Whether that is within the target; null without a target.")
    quality: float | None = Field(
        description="Measured, the mean over the steps of what their levels are worth; null without measurements."
    )
    expected_quality: float | None = Field(description="Of the plan as it would be promised, as in an answer.")


class PlanRefusal(BaseModel):
    """reason: `infeasible`, `overloaded` or `queue_full`."""

    reason: str
    detail: str
    min_latency_ms: float | None = Field(description="The smallest target that would do, alone on the device.")
    retry_after_ms: int | None = Field(description="After how long it would be taken, if nobody else came meanwhile.")


class PlanAlternative(BaseModel):
    """A level with the steps and guidance that a request like this one gets there, or a plan of the model's front.

    level and budget: means over the steps.
    """

    steps: int
    guidance: GuidanceUsed
    skips: SkipsUsed | None = Field(description="As of a course.")
    level: int | float
    budget: float
    latency_ms: float = Field(description="Estimated, as crowded as it is now.")
    alone_ms: float = Field(description="Predicted on an idle server.")
    min_latency_ms: float = Field(
        description="The smallest target that leaves time for it, as crowded as it is now: more than `latency_ms`, "
        "because what is promised is kept with a little to spare."
    )
    quality: float | None = Field(description="Measured; null without measurements.")
    fits: bool | None = Field(description="Whether the target leaves time for it; null without a target.")


class PlanResponse(BaseModel):
    """What would become of a request if it were sent now. Either course or refusal is null."""

    model: str
    label: str | None = Field(default=None, description="Null of a model of prompts.")
    class_id: int | None = None
    prompt: str | None = Field(default=None, description="Null of a model of classes.")
    negative_prompt: str | None = None
    size: str = Field(description="Of the pictures, as WIDTHxHEIGHT.")
    n: int
    latency_ms: float | None = Field(description="The target as it was asked for.")
    promised: bool = Field(description="Whether the target would be promised.")
    quality_size: str | None = Field(description="The size of the pictures whose quality was measured, as in answers.")
    accepted: bool
    course: PlanCourse | None
    refusal: PlanRefusal | None
    alternatives: list[PlanAlternative] = Field(description="Fastest first.")


class LevelInfo(BaseModel):
    """latency_ms: predicted from measurements for one picture of the default size, recommended sampling and an idle
    server.

    None for a level that the recommended autoguidance cannot use.
    quality: measured, of recommended sampling at this level; None where it was not.
    """

    level: int
    budget: float
    latency_ms: float | None
    quality: float | None


class SizeInfo(BaseModel):
    """latency_ms: predicted, of one picture of this size at full budget, on an idle server."""

    size: str = Field(description="What `size` of a request says.")
    width: int = Field(description="In pixels; without an autoencoder, of the sample.")
    height: int
    shape: str = Field(description="What latency files call it.")
    sample_shape: tuple[int, ...]
    latency_ms: float


class MeasuredQuality(BaseModel):
    """Where the qualities that this server tells come from."""

    measured_in: str | None = Field(description="What the measured pictures were computed in; null is not known.")
    factor: float | None = Field(
        description="What the `dtype` of this server makes of them, by measurement: every quality told is multiplied "
        "by it, and is 1 at most. Null: not measured, and qualities are told as in `measured_in`."
    )
    factor_half_width: float | None = Field(description="Of its 95 % interval.")
    num_plans: int | None = Field(
        description="Plans that were measured in both; null where there was nothing to measure, or nothing was."
    )
    full_plan: str | None = Field(
        description="What a quality of 1 is as good as: pictures by this plan of the model; null are photographs."
    )


class PromptInfo(BaseModel):
    """What a model of prompts does with them."""

    max_tokens: int = Field(description="So many tokens of a prompt are read, a few letters each; the rest is not.")
    negative: bool = Field(description="Whether `negative_prompt` is known.")
    examples: list[str]


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this server loaded it: Unix time in seconds.")
    owned_by: Literal["elit-serve"] = "elit-serve"
    hash: str
    classes: list[str] = Field(description="Empty of a model of prompts.")
    prompts: PromptInfo | None = Field(description="Null of a model of classes.")
    levels: list[LevelInfo]
    sizes: list[str] = Field(description="What a request may ask for, the default first.")
    size_details: list[SizeInfo] = Field(description="In the same order.")
    sample_shape: tuple[int, ...] = Field(description="Of the default size.")
    sampling: dict[str, Any]
    device: str
    simulated: str | None = Field(
        description="The device whose time is taken instead of computing: then pictures are placeholders. Null if they "
        "are made."
    )
    dtype: str
    response_ms: float = Field(description="What every prediction counts for HTTP: `--response-ms`.")
    quality: MeasuredQuality | None = Field(description="Null without measurements.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    """queue_length: pictures that wait for their first step; running: pictures between their first and last step."""

    status: Literal["ok", "draining"] = "ok"
    model: str
    queue_length: int
    running: int


class Ready(BaseModel):
    status: Literal["ok"] = "ok"


class Version(BaseModel):
    version: str
