"""Which steps of a plan a rule skips, for one model: it follows from the plan's times and the model's timestep
embedding alone, so it is known before sampling, and is a part of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import SkipRule

if TYPE_CHECKING:
    from elit_serve.engine.pipeline import Pipeline


def with_skips(pipeline: Pipeline, plan: Plan, rule: SkipRule) -> Plan:
    """The plan with what the rule skips of it. A model that was not calibrated is taken to change by as much as its
    timestep embedding does."""
    shares = embedding_shares(pipeline, plan.times[:-1])
    changes = shares if pipeline.calibration is None else pipeline.calibration.expected(shares)
    return replace(plan, skips=rule.skips(changes, plan.is_guided))


@torch.inference_mode()
def embedding_shares(pipeline: Pipeline, times: Sequence[float]) -> list[float]:
    """By which share the timestep embedding at each time but the first differs from that at the time before."""
    embedded = pipeline.model.time_embedding(torch.tensor(times, device=pipeline.device)).float()
    return [share_of(now, before) for before, now in pairwise(embedded)]


def share_of(now: Tensor, before: Tensor) -> float:
    """The mean absolute difference over the mean absolute value before."""
    return float((now - before).abs().mean() / before.abs().mean())
