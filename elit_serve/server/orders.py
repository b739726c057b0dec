"""From a request to an order of the engine, by what the model and the settings allow. Nothing here waits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import takewhile

from elit_serve.engine.conditions import Condition
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import InvalidInput
from elit_serve.http.negotiation import bare_format, check_format
from elit_serve.http.schemas import (
    RANDOM_SEEDS,
    GenerateRequest,
    GuidanceRequest,
    Wishes,
)
from elit_serve.plans.bounds import MAX_SEED
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.formats import FILE_QUALITY, LOSSY_FORMATS, AnswerFormat, answer_formats
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import NO_SKIPS, Skips
from elit_serve.scheduler import CostTable
from elit_serve.scheduler.requests import Priority
from elit_serve.server.engines import Engine
from elit_serve.server.settings import Settings

SOFT_SCALE = 3.0  # a request without a target should be answered within so many times what it takes alone


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A request that an engine has taken. Cancelling `future` gives it up."""

    engine: Engine
    body: GenerateRequest
    order: Order
    future: Future[Outcome]


def format_of(request: GenerateRequest, model: ServedModel) -> AnswerFormat:
    """Of the files in a JSON answer. Raises `InvalidInput`."""
    return check_format(request.output_format, answer_formats(model.is_latent))


def bare_format_of(accept: str | None, request: GenerateRequest, model: ServedModel) -> AnswerFormat | None:
    """Of the bare file that `Accept` asks for, or None if it is JSON. Raises `InvalidInput`, or a 406."""
    bare = bare_format(accept, request.output_format, answer_formats(model.is_latent))
    if bare is not None and request.n != 1:
        raise InvalidInput("n", request.n, "1, because Accept asks for a bare picture")
    return bare


def order_of(
    request: GenerateRequest,
    model: ServedModel,
    cost: CostTable,
    settings: Settings,
    *,
    arrived_s: float,
    open_plans: Mapping[str, OpenPlans],
    output_format: AnswerFormat | None = None,
) -> Order:
    """What the engine is to do, by one of the `open_plans` of its shape if the request leaves it open how.

    output_format: of the files; None leaves it to the request.

    Raises `InvalidInput` for what cannot be asked of this model.
    """
    condition = _condition(request, model)
    shape = model.sizes.shape_of(request.size)
    seeds = _seeds(request, settings)
    plan = _plan(request, model, _skips(request, cost, shape.name))
    if len(seeds) * plan.num_steps > settings.max_image_steps:
        raise InvalidInput(
            "steps", plan.num_steps, f"at most {settings.max_image_steps} steps over all images of a request"
        )
    pinned = plan.levels if request.budget is not None or request.levels is not None else None
    offered = open_plans_of(request, open_plans.get(shape.name), settings)
    if offered is None:
        plan.guidance.check_negative(request.negative_prompt)
    low, high = _bounds(request, plan, model)
    coarsening = _coarsening_of(request, plan, model)
    if request.min_quality is not None and offered is None:
        low, high = _good_levels(request.min_quality, plan, model, low, high)
        worth = quality_of(model, plan.at_level(low))
        coarsening = coarsening and coarsening.up_to(0.0 if worth is None else 1 - request.min_quality / worth)
    caps = plan.weak_caps(max(model.config.levels))
    file_format = output_format or format_of(request, model)
    latency_ms = request.latency_ms or settings.soft_latency_ms
    if latency_ms is None:
        levels = pinned or (high,) * plan.num_steps
        latency_ms = SOFT_SCALE * cost.alone_ms(shape.name, levels, caps, len(seeds), skipped=plan.skips.core)
    return Order(
        condition=condition,
        shape=shape.name,
        seeds=seeds,
        guidance=plan.guidance,
        time_shift=plan.time_shift,
        weak_caps=caps,
        arrived_s=arrived_s,
        latency_ms=latency_ms,
        is_hard=request.latency_ms is not None and not request.best_effort,
        min_level=low,
        max_level=high,
        pinned=pinned,
        skips=plan.skips,
        strides=plan.strides,
        coarsening=coarsening,
        priority=Priority(request.priority),
        output_format=file_format,
        file_quality=_file_quality(request, file_format),
        expected_quality=quality_of(model, replace(plan, levels=pinned or (high,) * plan.num_steps)),
        open_plans=offered,
    )


def _file_quality(request: GenerateRequest, file_format: AnswerFormat) -> int:
    """What loses nothing has no quality; 100 is then taken, as OpenAI's API does."""
    quality = request.output_compression
    if quality is None:
        return FILE_QUALITY
    if file_format not in LOSSY_FORMATS and quality < 100:
        allowed = f"100 for {file_format}, which loses nothing; or output_format {' or '.join(LOSSY_FORMATS)}"
        raise InvalidInput("output_compression", quality, allowed)
    return quality


def open_plans_of(request: GenerateRequest, plans: OpenPlans | None, settings: Settings) -> OpenPlans | None:
    """The measured plans that this request may get, or None if it says itself how its pictures are to be made.

    Raises `InvalidInput` where none is as good as it asks for.
    """
    offered = plans.within(settings.max_image_steps // request.n) if plans is not None and is_open(request) else None
    if offered is None or request.min_quality is None:
        return offered
    good = offered.at_least(request.min_quality)
    if good is None:
        raise InvalidInput("min_quality", request.min_quality, f"at most {_floored(offered.best_quality)}")
    return good


def is_open(wishes: Wishes) -> bool:
    """Whether it leaves open how the pictures are made."""
    says_how = (wishes.budget, wishes.min_budget, wishes.max_budget, wishes.levels, wishes.steps, wishes.skips)
    return wishes.guidance == GuidanceRequest() and all(value is None for value in says_how)


def quality_of(model: ServedModel, plan: Plan) -> float | None:
    """Measured quality of pictures made by this plan."""
    return None if model.quality is None else model.quality.of(plan)


def _coarsening_of(request: GenerateRequest, plan: Plan, model: ServedModel) -> Coarsening | None:
    """How long steps may become; None where the request itself says how many there are, or which."""
    if model.quality is None or (request.steps, request.budget, request.levels) != (None, None, None):
        return None
    return model.quality.coarsening_of(plan)


def _condition(request: GenerateRequest, model: ServedModel) -> Condition:
    if request.label is not None and request.prompt is not None:
        raise InvalidInput("prompt", request.prompt, "label already names the class; leave one of them out")
    if request.label is not None and request.negative_prompt is not None:
        raise InvalidInput("negative_prompt", request.negative_prompt, "left out beside a label, or beside a prompt")
    if request.label is not None:
        return model.conditions.named(request.label)
    if request.prompt is None:
        raise model.conditions.nothing_said()
    return model.conditions.prompted(request.prompt, request.negative_prompt)


def _seeds(request: GenerateRequest, settings: Settings) -> tuple[int, ...]:
    if request.n > settings.max_images:
        raise InvalidInput("n", request.n, f"between 1 and {settings.max_images}")
    if request.n > settings.max_queue:
        raise InvalidInput("n", request.n, f"at most {settings.max_queue}, which may wait for the engine")
    first = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
    if first + request.n - 1 > MAX_SEED:
        raise InvalidInput("seed", first, f"at most {MAX_SEED - request.n + 1} with n = {request.n}")
    return tuple(range(first, first + request.n))


def _plan(request: GenerateRequest, model: ServedModel, skips: Skips) -> Plan:
    """What the request says of it, and the rest as the model recommends. What is wrong is told in fields of requests:
    these have a weak budget where plans have a weak level."""
    try:
        return model.plan(
            budget=request.budget,
            levels=request.levels,
            strides=request.strides,
            steps=request.steps,
            guidance=_guidance(request.guidance, model),
            skips=skips,
            size=request.size,
        )
    except InvalidInput as error:
        if error.field != "guidance.weak_level" or not isinstance(error.value, int):
            raise
        weak_budget = model.budgets.of_level(error.value)
        allowed = "below the budget of every step, because autoguidance needs a weaker pass"
        raise InvalidInput("guidance.weak_budget", weak_budget, allowed) from error


def _guidance(request: GuidanceRequest, model: ServedModel) -> Guidance | None:
    """None where nothing of it is said, so that the levels decide."""
    if request == GuidanceRequest():
        return None
    guidance = model.guidance(
        method=request.method,
        scale=request.scale,
        weak_budget=request.weak_budget,
        interval=None if request.interval is None else (request.interval[0], request.interval[1]),
    )
    if request.weak_budget is not None and not guidance.has_weak_level:
        raise InvalidInput(
            "guidance.weak_budget", request.weak_budget, f"only ccfg and ag have a weak pass, not {guidance.method}"
        )
    return guidance


def _skips(request: GenerateRequest, cost: CostTable, shape: str) -> Skips:
    """Raises `InvalidInput` for steps without a core where none are measured: nothing is kept for them then."""
    if request.skips is None:
        return NO_SKIPS
    skips = Skips(core=tuple(request.skips.core), weak=tuple(request.skips.weak))
    if skips and not cost.knows_skips(shape):
        allowed = "left out: no plan of the model's quality.json that is served here skips anything"
        raise InvalidInput("skips", f"{len(skips.core)} cores, {len(skips.weak)} weak passes", allowed)
    return skips


def usable_levels(plan: Plan, levels: Sequence[int]) -> tuple[int, ...]:
    """Those of `levels` that a policy may give this plan; autoguidance needs one above its weak level."""
    return tuple(level for level in levels if level >= plan.guidance.min_level)


def _bounds(request: GenerateRequest, plan: Plan, model: ServedModel) -> tuple[int, int]:
    """The lowest and the highest level that the scheduler may pick: none beyond what the request says."""
    levels = usable_levels(plan, model.config.levels)
    usable = replace(model.budgets, levels=levels)
    for field in ("min_budget", "max_budget", "min_quality"):
        share = getattr(request, field)
        if share is not None and (request.budget is not None or request.levels is not None):
            raise InvalidInput(field, share, "the compute is already fixed by budget or levels; leave it out")
    low = levels[0] if request.min_budget is None else usable.level_from(request.min_budget)
    high = levels[-1] if request.max_budget is None else usable.level_up_to(request.max_budget, field="max_budget")
    if low > high:
        assert request.min_budget is not None
        assert request.max_budget is not None
        allowed = f"at most max_budget, {request.max_budget:g}"
        if request.min_budget <= request.max_budget:
            allowed = f"at most {model.budgets.of_level(high):g}, the highest budget of a level up to max_budget"
        raise InvalidInput("min_budget", request.min_budget, allowed)
    return low, high


def _good_levels(min_quality: float, plan: Plan, model: ServedModel, low: int, high: int) -> tuple[int, int]:
    """The bounds narrowed to the levels around the best one at which pictures of this plan are worth so much."""
    levels = [level for level in usable_levels(plan, model.config.levels) if low <= level <= high]
    worth = {level: quality_of(model, plan.at_level(level)) for level in levels}
    known = {level: quality for level, quality in worth.items() if quality is not None}
    if not known:
        allowed = "left out, as nothing was measured of these steps and this guidance; min_budget is there without that"
        raise InvalidInput("min_quality", min_quality, allowed)
    best = max(known, key=lambda level: (known[level], level))
    if known[best] < min_quality:
        raise InvalidInput("min_quality", min_quality, f"at most {_floored(known[best])} with what else is asked for")
    below, above = levels[: levels.index(best)][::-1], levels[levels.index(best) + 1 :]
    lower = list(takewhile(lambda level: known[level] >= min_quality, below))
    higher = list(takewhile(lambda level: known[level] >= min_quality, above))
    return min(lower, default=best), max(higher, default=best)


def _floored(quality: float) -> float:
    """To four digits, so that it can be asked for."""
    return math.floor(1e4 * quality) / 1e4
