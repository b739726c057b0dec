"""Which steps of a plan a rule skips, for one model: it follows from the plan's times and the model's timestep
embedding alone, so it is known before sampling, and is a part of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from elit_serve.files.skips import SkipCalibration
from elit_serve.nn import Backbone
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import SkipRule


class Calibrated(Protocol):
    """A model on a device, and what is known of its cores; `Pipeline` is one."""

    @property
    def model(self) -> Backbone: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def calibration(self) -> SkipCalibration | None: ...


def with_skips(of: Calibrated, plan: Plan, rule: SkipRule) -> Plan:
    """The plan with what the rule skips of it. A model that was not calibrated is taken to change by as much as its
    timestep embedding does."""
    shares = embedding_shares(of, plan.times[:-1])
    changes = shares if of.calibration is None else of.calibration.expected(shares)
    return replace(plan, skips=rule.skips(changes, plan.is_guided))


@torch.inference_mode()
def embedding_shares(of: Calibrated, times: Sequence[float]) -> list[float]:
    """By which share the timestep embedding at each time but the first differs from that at the time before."""
    embedded = of.model.time_embedding(torch.tensor(times, device=of.device)).float()
    return [share_of(now, before) for before, now in pairwise(embedded)]


def share_of(now: Tensor, before: Tensor) -> float:
    """The mean absolute difference over the mean absolute value before."""
    return float((now - before).abs().mean() / before.abs().mean())
