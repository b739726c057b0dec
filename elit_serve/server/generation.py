"""From a request to a job of the engine, and from its outcome to an answer. Nothing here waits."""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Sequence
from urllib.parse import quote

from starlette.responses import Response

from elit_serve.budget import budget_of_level
from elit_serve.engine.pipeline import MAX_SEED, Pipeline
from elit_serve.engine.predict import Predictor
from elit_serve.engine.worker import Job, Outcome
from elit_serve.errors import Infeasible, InvalidInput
from elit_serve.pictures import OutputFormat
from elit_serve.sampling import Guidance, Plan
from elit_serve.scheduler import highest_level_within
from elit_serve.server.negotiation import media_type_of
from elit_serve.server.schemas import GeneratedImage, GenerateRequest, GenerateResponse, GuidanceRequest, GuidanceUsed

RANDOM_SEEDS = 1 << 32  # small enough to survive a client that reads numbers as doubles


def job_of(
    request: GenerateRequest,
    pipeline: Pipeline,
    predictor: Predictor,
    *,
    max_images: int,
    max_image_steps: int,
    is_bare: bool,
    arrived_s: float,
) -> Job:
    """What the engine is to do. Raises `InvalidInput`, and `Infeasible` for a target that cannot be met even alone."""
    class_id = _class_id(request, pipeline)
    seeds = _seeds(request, max_images=max_images, is_bare=is_bare)
    if request.levels is not None and request.latency_ms is not None:
        raise InvalidInput("latency_ms", request.latency_ms, "levels already fix the compute; leave one of them out")
    plan = pipeline.plan(
        budget=request.budget,
        levels=request.levels,
        steps=request.steps,
        guidance=_guidance(request.guidance, pipeline),
    )
    if len(seeds) * plan.num_steps > max_image_steps:
        raise InvalidInput("steps", plan.num_steps, f"at most {max_image_steps} steps over all images of a request")
    candidates: tuple[int, ...] = ()
    if request.latency_ms is not None and request.budget is None:
        candidates = usable_levels(plan, pipeline.config.levels)
    job = Job(
        class_ids=(class_id,) * len(seeds),
        seeds=seeds,
        plan=plan,
        arrived_s=arrived_s,
        latency_ms=request.latency_ms,
        candidates=candidates,
    )
    _check_feasible(job, predictor)
    return job


def _class_id(request: GenerateRequest, pipeline: Pipeline) -> int:
    if request.label is not None and request.prompt is not None:
        raise InvalidInput("prompt", request.prompt, "label already names the class; leave one of them out")
    if request.label is not None:
        return pipeline.class_id(request.label)
    if request.prompt is None:
        raise InvalidInput("label", None, "a class name or id, or a prompt that is exactly a class name")
    if request.prompt.strip().isdecimal() and request.prompt not in pipeline.config.classes:
        raise InvalidInput("prompt", request.prompt, "exactly a class name; a class id goes into label")
    return pipeline.class_id(request.prompt, field="prompt", exact=True)


def _seeds(request: GenerateRequest, *, max_images: int, is_bare: bool) -> tuple[int, ...]:
    if is_bare and request.n != 1:
        raise InvalidInput("n", request.n, "1, because Accept asks for a bare picture")
    if request.n > max_images:
        raise InvalidInput("n", request.n, f"between 1 and {max_images}")
    first = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
    if first + request.n - 1 > MAX_SEED:
        raise InvalidInput("seed", first, f"at most {MAX_SEED - request.n + 1} with n = {request.n}")
    return tuple(range(first, first + request.n))


def _guidance(request: GuidanceRequest, pipeline: Pipeline) -> Guidance:
    guidance = pipeline.guidance(
        method=request.method,
        scale=request.scale,
        weak_budget=request.weak_budget,
        interval=None if request.interval is None else (request.interval[0], request.interval[1]),
    )
    if request.weak_budget is not None and guidance.method not in ("ag", "ccfg"):
        raise InvalidInput(
            "guidance.weak_budget", request.weak_budget, f"only ccfg and ag have a weak pass, not {guidance.method}"
        )
    return guidance


def usable_levels(plan: Plan, levels: Sequence[int]) -> tuple[int, ...]:
    """Those of `levels` that a policy may give this plan; autoguidance needs one above its weak level."""
    lowest = plan.guidance.weak_level + 1 if plan.guidance.method == "ag" else 1
    return tuple(level for level in levels if level >= lowest)


def _check_feasible(job: Job, predictor: Predictor) -> None:
    if job.latency_ms is None:
        return
    num_images = len(job.seeds)
    if job.candidates:
        highest_level_within(
            job.latency_ms, job.candidates, lambda level: predictor.plan_ms(job.plan.at_level(level), num_images)
        )
    elif (needed_ms := predictor.plan_ms(job.plan, num_images)) > job.latency_ms:
        raise Infeasible(job.latency_ms, math.ceil(needed_ms))


def encoded(outcome: Outcome, output_format: OutputFormat) -> list[bytes]:
    """The files. Takes milliseconds a picture, so it has no place on the event loop."""
    return [picture.encode(output_format) for picture in outcome.pictures]


def answer(
    job: Job,
    outcome: Outcome,
    files: Sequence[bytes],
    *,
    pipeline: Pipeline,
    output_format: OutputFormat,
    total_ms: float,
) -> GenerateResponse:
    """The JSON answer."""
    latents_per_group = pipeline.config.spec.latents_per_group
    guidance = outcome.plan.guidance
    class_id = job.class_ids[0]
    return GenerateResponse(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        label=pipeline.config.classes[class_id],
        class_id=class_id,
        output_format=output_format,
        steps=outcome.plan.num_steps,
        guidance=GuidanceUsed(
            method=guidance.method,
            scale=guidance.scale,
            weak_level=guidance.weak_level,
            weak_budget=budget_of_level(guidance.weak_level, latents_per_group),
            interval=guidance.interval,
        ),
        latency_ms=job.latency_ms,
        deadline_met=None if job.latency_ms is None else total_ms <= job.latency_ms,
        queue_ms=round(outcome.queue_ms, 3),
        compute_ms=round(outcome.compute_ms, 3),
        total_ms=round(total_ms, 3),
        images=[
            GeneratedImage(
                b64_json=base64.b64encode(file).decode("ascii"),
                seed=seed,
                level=_whole(outcome.plan.mean_level),
                budget=budget_of_level(outcome.plan.mean_level, latents_per_group),
                levels=list(outcome.plan.levels),
            )
            for file, seed in zip(files, job.seeds, strict=True)
        ],
    )


def bare_answer(facts: GenerateResponse, file: bytes) -> Response:
    """One encoded picture, with the facts of the JSON answer in `X-Elit-` headers."""
    image = facts.images[0]
    headers = {
        "Model": facts.model,
        "Model-Hash": facts.model_hash,
        "Label": quote(facts.label, safe=" "),  # a header is ASCII
        "Class-Id": facts.class_id,
        "Seed": image.seed,
        "Level": image.level,
        "Budget": image.budget,
        "Levels": ",".join(map(str, image.levels)),
        "Steps": facts.steps,
        "Guidance": facts.guidance.model_dump_json(),
        "Latency-Ms": facts.latency_ms,
        "Deadline-Met": None if facts.deadline_met is None else str(facts.deadline_met).lower(),
        "Queue-Ms": facts.queue_ms,
        "Compute-Ms": facts.compute_ms,
        "Total-Ms": facts.total_ms,
    }
    named = {f"X-Elit-{name}": str(value) for name, value in headers.items() if value is not None}
    return Response(file, media_type=media_type_of(facts.output_format), headers=named)


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value
