"""From an outcome of the engine to an answer: JSON, or a bare file with the same facts in its headers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from urllib.parse import quote

from starlette.responses import Response

from elit_serve.engine.order import Order
from elit_serve.engine.picture import MadePicture, Outcome
from elit_serve.engine.served_model import ServedModel
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.schemas import (
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    GuidanceUsed,
    SkipsUsed,
)
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import Budgets
from elit_serve.plans.progress import Progress
from elit_serve.plans.skips import Skips
from elit_serve.server.orders import quality_of


def picture_quality(model: ServedModel, order: Order, steps: Progress) -> float | None:
    """Measured quality of pictures of this order whose steps are these, foretold or done."""
    return quality_of(model, order.plan(steps))


def mean_quality(model: ServedModel, order: Order, pictures: Sequence[Progress]) -> float | None:
    """Over the pictures of an order, by their steps."""
    qualities = [picture_quality(model, order, steps) for steps in pictures]
    known = [quality for quality in qualities if quality is not None]
    return fmean(known) if known else None


def answer(request: GenerateRequest, outcome: Outcome, *, model: ServedModel, total_ms: float) -> GenerateResponse:
    """The JSON answer."""
    order = outcome.order
    return GenerateResponse(
        model=model.config.name,
        model_hash=model.model_hash,
        dtype=model.precision,
        simulated=model.simulated,
        **order.condition.facts(),
        output_format=order.output_format,
        size=str(model.sizes.size_of(order.shape)),
        steps=order.grid_steps,
        guidance=guidance_used(order.guidance, model.budgets),
        skips=skips_used(order.skips),
        priority=request.priority,
        latency_ms=request.latency_ms,
        promised=order.is_hard,
        deadline_met=None if request.latency_ms is None else total_ms <= request.latency_ms,
        finished_early=outcome.is_hurried,
        queue_ms=round(outcome.queue_ms, 3),
        compute_ms=round(outcome.compute_ms, 3),
        encode_ms=round(outcome.encode_ms, 3),
        total_ms=round(total_ms, 3),
        gflops=outcome.cost.gflops,
        device_ms=round(outcome.cost.device_ms, 3),
        quality=rounded(mean_quality(model, order, [picture.progress for picture in outcome.pictures])),
        expected_quality=rounded(order.expected_quality),
        quality_size=model.quality_size,
        images=[_image(picture, order, model) for picture in outcome.pictures],
    )


def guidance_used(guidance: Guidance, budgets: Budgets) -> GuidanceUsed:
    weak_budget = budgets.of_level(guidance.weak_level) if guidance.has_weak_level else None
    return GuidanceUsed(
        method=guidance.method, scale=guidance.scale, weak_budget=weak_budget, interval=list(guidance.interval)
    )


def skips_used(skips: Skips) -> SkipsUsed | None:
    return SkipsUsed(core=list(skips.core), weak=list(skips.weak)) if skips else None


def _image(picture: MadePicture, order: Order, model: ServedModel) -> GeneratedImage:
    plan = order.plan(picture.progress)
    return GeneratedImage(
        b64_json=picture.file,
        seed=picture.seed,
        level=whole(plan.mean_level),
        budget=model.budgets.of_level(plan.mean_level),
        levels=list(plan.levels),
        strides=list(plan.strides),
        quality=rounded(quality_of(model, plan)),
        queue_ms=round(picture.queue_ms, 3),
        compute_ms=round(picture.compute_ms, 3),
        encode_ms=round(picture.encode_ms, 3),
        gflops=picture.cost.gflops,
        device_ms=round(picture.cost.device_ms, 3),
    )


def bare_answer(facts: GenerateResponse) -> Response:
    """The file of the only picture, with the facts of the JSON answer in `X-Elit-` headers.

    Prompts are not among them: proxies log headers, and refuse long ones.
    """
    image = facts.images[0]
    headers = {
        "Model": facts.model,
        "Model-Hash": facts.model_hash,
        "Dtype": facts.dtype,
        "Simulated": None if facts.simulated is None else quote(facts.simulated, safe=" "),
        "Label": None if facts.label is None else quote(facts.label, safe=" "),  # a header is ASCII
        "Class-Id": facts.class_id,
        "Size": facts.size,
        "Seed": image.seed,
        "Level": image.level,
        "Budget": image.budget,
        "Levels": ",".join(map(str, image.levels)),
        "Strides": ",".join(map(str, image.strides)),
        "Steps": facts.steps,
        "Guidance": facts.guidance.model_dump_json(),
        "Skips": None if facts.skips is None else facts.skips.model_dump_json(),
        "Priority": facts.priority,
        "Latency-Ms": facts.latency_ms,
        "Promised": str(facts.promised).lower(),
        "Deadline-Met": None if facts.deadline_met is None else str(facts.deadline_met).lower(),
        "Finished-Early": str(facts.finished_early).lower(),
        "Queue-Ms": facts.queue_ms,
        "Compute-Ms": facts.compute_ms,
        "Encode-Ms": facts.encode_ms,
        "Total-Ms": facts.total_ms,
        "Gflops": image.gflops,
        "Device-Ms": image.device_ms,
        "Expected-Quality": facts.expected_quality,
        "Quality": image.quality,
        "Quality-Size": facts.quality_size,
    }
    named = {f"X-Elit-{name}": str(value) for name, value in headers.items() if value is not None}
    return Response(image.b64_json, media_type=media_type_of(facts.output_format), headers=named)


def rounded(quality: float | None) -> float | None:
    return None if quality is None else round(quality, 4)


def whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value
