"""OpenAI's `quality`: presets that say how good pictures are at least. The server may give more, and says what it gave.

A preset stands for pictures of its budget with the model's recommended sampling, and for what these are worth by the
model's measurements. Whatever is worth as much may be made in their place, as a few steps at a high level for many at a
low one. So requests of all presets, and those without one, share their launches; exact budgets would keep them apart.
"""

from __future__ import annotations

from dataclasses import replace

from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import InvalidInput
from elit_serve.plans.plan import Plan
from elit_serve.plans.presets import PRESET_BUDGETS, QualityPreset
from elit_serve.server.answers import rounded
from elit_serve.server.openai.schemas import ImagesRequest
from elit_serve.server.orders import is_open, quality_of, usable_levels

LEGACY_QUALITIES: dict[str, QualityPreset] = {"standard": "medium", "hd": "high"}


def preset_of(request: ImagesRequest) -> QualityPreset | None:
    """The preset that a request asks for."""
    match request.quality:
        case None | "auto":
            return None
        case "standard" | "hd":
            return LEGACY_QUALITIES[request.quality]
        case preset:
            return preset


def floor_of(request: ImagesRequest, model: ServedModel) -> dict[str, float]:
    """The wishes of `/v1/generate` that its preset stands for: `min_quality`, or `min_budget` where nothing is measured
    or the request says itself how its pictures are made. Raises `InvalidInput` if it says something else besides."""
    preset = preset_of(request)
    if preset is None:
        return {}
    for field in ("budget", "min_budget", "min_quality", "levels"):
        if getattr(request, field) is not None:
            raise InvalidInput("quality", request.quality, f"auto or left out, because {field} says it already")
    if request.max_budget is not None and request.max_budget < PRESET_BUDGETS[preset]:
        raise InvalidInput("quality", request.quality, f"a preset below max_budget, {request.max_budget:g}; or auto")
    worth = quality_of(model, _plan_of(preset, model))
    return {"min_quality": worth} if worth is not None and is_open(request) else {"min_budget": PRESET_BUDGETS[preset]}


def reached_preset(quality: float | None, budget: float, model: ServedModel) -> QualityPreset:
    """The best one that pictures of this quality are as good as; by their budget where nothing was measured.

    The lowest one of pictures that are below all.
    """
    reached: QualityPreset = "low"
    for preset in PRESET_BUDGETS:
        plan = _plan_of(preset, model)
        worth = rounded(quality_of(model, plan))
        if quality is None or worth is None:
            is_reached = model.budgets.of_level(plan.mean_level) <= budget
        else:
            is_reached = worth <= quality
        reached = preset if is_reached else reached
    return reached


def _plan_of(preset: QualityPreset, model: ServedModel) -> Plan:
    """Recommended sampling at the level of its budget, or the nearest one that recommended autoguidance can use."""
    full = model.plan()
    usable = replace(model.budgets, levels=usable_levels(full, model.config.levels))
    return model.plan(levels=[usable.level_of(PRESET_BUDGETS[preset])] * full.num_steps)
