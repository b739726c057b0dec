"""`elit-serve calibrate`: how much a model's cores change from step to step, on samples of its own (TeaCache's
calibration, with the timestep embedding as in the paper's appendix A).

Letters: B samples, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.skips import embedding_shares, share_of
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.files.skips import SkipCalibration
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.plan import Plan
from elit_serve.sampling import guided_step

DEGREE = 4  # of the polynomial, as TeaCache's; less where there are few distinct points


def calibrate(
    pipeline: Pipeline,
    *,
    steps: Sequence[int],
    levels: Sequence[int],
    num_samples: int,
    prompts: Sequence[str] = (),
    console: Console | None = None,
) -> SkipCalibration:
    """Makes `num_samples` pictures by the model's recommended sampling with each of these numbers of steps, at each
    level, their seeds from 0, and fits the polynomial to the main passes. They are of the prompts in turn; without any,
    of the model's classes or the prompts that it shows.

    Raises `InvalidInput` for fewer than 3 steps: the first has nothing before it, and one point is no curve.
    """
    for count in steps:
        if count < 3:
            raise InvalidInput("steps", count, "at least 3")
    known = pipeline.conditions
    shown = [known.prompted(prompt) for prompt in prompts] or [known[index] for index in range(len(known))]
    conditions = [shown[index % len(shown)] for index in range(num_samples)]
    shares, changes = [], []
    for count, level in product(steps, levels):
        plan = pipeline.plan(levels=[level] * count)
        shares += embedding_shares(pipeline, plan.times[:-1])
        changes += output_shares(pipeline, plan, conditions, range(num_samples))
        if console is not None:
            console.print(f"{count} steps at level {level}")
    polynomial, error = fitted(shares, changes)
    return SkipCalibration(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        polynomial=polynomial,
        lowest=min(shares),
        highest=max(shares),
        error=error,
        mean=float(np.mean(changes)),
        steps=tuple(steps),
        levels=tuple(levels),
        guidance=pipeline.config.sampling.guidance,
        num_samples=num_samples,
        provenance=provenance(pipeline, num_samples),
    )


def fitted(shares: Sequence[float], changes: Sequence[float]) -> tuple[tuple[float, ...], float]:
    """Coefficients of a polynomial, the constant first, and the root mean square of what it leaves."""
    degree = min(DEGREE, len(set(shares)) - 1)
    polynomial = np.polynomial.Polynomial.fit(shares, changes, degree)  # scaled to the points, for it to be exact
    left = np.asarray(changes) - polynomial(np.asarray(shares))
    return tuple(float(each) for each in polynomial.convert().coef), float(np.sqrt(np.mean(left**2)))


@torch.inference_mode()
def output_shares(pipeline: Pipeline, plan: Plan, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[float]:
    """By which share the output of the core in the main pass differs from the step before, over all samples: S - 1."""
    device, count = pipeline.device, len(seeds)
    slots = pipeline.conditions.slots(count, pipeline.model)
    slots.put(range(count), conditions)
    own = torch.arange(count, device=device)
    without = torch.tensor([slots.without(slot) for slot in range(count)], device=device)
    weak = without if plan.guidance.drops_condition else own
    x = pipeline.noise(seeds, pipeline.sizes.default).to(device)
    before: Tensor | None = None
    shares = []
    for kind, t, t_next in zip(plan.step_kinds(""), plan.times, plan.times[1:], strict=False):
        num_parts = 2 if kind.weak_level not in (None, kind.level) else 1
        changes = [CoreChange() for _ in range(num_parts)]
        told = slots.at(own if kind.weak_level is None else torch.cat([own, weak]))
        at, dt, scale = (torch.full((count,), value, device=device) for value in (t, t_next - t, plan.guidance.scale))
        x = guided_step(
            partial(pipeline.model, changes=changes),
            x,
            at,
            dt,
            scale,
            told,
            kind,
            norm_patch=pipeline.model.spec.guidance_patch,
        )
        output = changes[0].output
        assert output is not None
        output = output[:count].float()
        if before is not None:
            shares.append(share_of(output, before))
        before = output
    return shares
