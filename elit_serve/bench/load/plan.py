"""What a load run asks for, drawn by its seed: arrivals, targets, subjects, seeds, relative to what the device can do.

Load 1 is the saturated full-budget throughput; a target is a multiple of the full-budget latency of a request alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from statistics import fmean, harmonic_mean

from elit_serve.bench.load.sender import PlannedCall
from elit_serve.bench.load.subjects import Subject
from elit_serve.bench.simulate.arrivals import Arrivals, arrival_times, recorded_targets_ms
from elit_serve.bench.simulate.workload import draw_targets
from elit_serve.client import Model, SamplingInfo
from elit_serve.errors import InvalidInput
from elit_serve.plans.grid import Shift, TimeShift
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import Budgets
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable

SEEDS = 1 << 32
ONE_SIZE: Mapping[str | None, float] = {None: 1.0}  # the model's default


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What targets and loads are relative to; None is not known.

    solo_ms: a full-budget request alone on the device, from arrival to answer.
    rate_per_s: full-budget requests per second when every step has the largest batch.
    Both with what encoding prompts takes of a request in the mean, where a latency file tells it.
    """

    solo_ms: float | None
    rate_per_s: float | None

    @classmethod
    def measured(
        cls, table: CostTable, weak_caps: Sequence[int | None], shape: str | None = None, *, new_prompts: float = 0.0
    ) -> Capacity:
        """Of pictures of a shape (default: the first that was measured), from a latency file. new_prompts: the share of
        requests whose prompt has to be encoded."""
        shape, full_level = shape or table.shapes[0], table.levels[-1]
        kinds = [StepKind.capped(shape, full_level, cap) for cap in weak_caps]
        text_ms, batch = new_prompts * table.text_ms, table.max_batch
        return cls(
            solo_ms=text_ms + table.alone_ms(shape, (full_level,) * len(kinds), weak_caps),
            rate_per_s=1000 / (text_ms + sum(table.step_ms(kind, batch) for kind in kinds) / batch),
        )

    @classmethod
    def reported(cls, model: Model, size: str | None = None) -> Capacity:
        """Of pictures of a size (default: the model's), from what the server says of itself, which is the latency
        alone, with the room that it adds for noise."""
        of_default = max(model.levels, key=lambda info: info.level).latency_ms
        told = {details.size: details.latency_ms for details in model.size_details}
        return cls(solo_ms=of_default if size is None else told.get(size), rate_per_s=None)

    @classmethod
    def mixed(cls, parts: Sequence[Capacity]) -> Capacity:
        """Of requests that are of each of these kinds equally often: the mean time alone, and what can be made."""
        solos_ms = [part.solo_ms for part in parts if part.solo_ms is not None]
        rates_per_s = [part.rate_per_s for part in parts if part.rate_per_s is not None]
        return cls(
            solo_ms=fmean(solos_ms) if len(solos_ms) == len(parts) else None,
            rate_per_s=harmonic_mean(rates_per_s) if len(rates_per_s) == len(parts) else None,
        )

    def target_ms(self, scale: float) -> float:
        if not (math.isfinite(scale) and scale > 0):
            raise InvalidInput("slo-scale", scale, "multiples of the solo latency, above 0")
        if self.solo_ms is None:
            raise InvalidInput("cost", None, "a latency/<device>.json: this server does not say what it takes alone")
        return scale * self.solo_ms

    def rate_at(self, load: float) -> float:
        """Requests per second."""
        if not (math.isfinite(load) and load > 0):
            raise InvalidInput("load", load, "above 0; 1 is the saturated full-budget throughput")
        if self.rate_per_s is None:
            raise InvalidInput("cost", None, "a latency/<device>.json, which says what load 1 is; or give --rate")
        return load * self.rate_per_s


def full_plan(sampling: SamplingInfo, num_steps: int, full_level: int) -> Plan:
    """How a request is made that leaves everything but its steps to the server, and has the full budget."""
    guidance = Guidance(**sampling.guidance.model_dump())
    return Plan(levels=(full_level,) * num_steps, guidance=guidance, time_shift=_shift(sampling))


def _shift(sampling: SamplingInfo) -> Shift:
    told = sampling.time_shift
    if isinstance(told, float):
        return told
    return TimeShift(factor=told.factor, last=told.last, terminal=told.terminal, growth=told.growth)


def budgets_of(model: Model) -> Budgets:
    """Between the model's budgets and its levels, as the server has it."""
    return Budgets.told({info.level: info.budget for info in model.levels})


def open_calls(
    source: Arrivals,
    *,
    count: int,
    rate_per_s: float,
    targets_ms: Sequence[float],
    subjects: Sequence[Subject],
    seed: int,
    recorded_targets: bool = False,
    sizes: Mapping[str | None, float] = ONE_SIZE,
) -> tuple[PlannedCall, ...]:
    """`count` calls in order of arrival, at this mean rate. targets_ms: one is drawn for each; none is no target.

    recorded_targets: the source's own targets instead. subjects, sizes: one is drawn for each; of sizes with how many
    times as long the targets are for it.
    """
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise InvalidInput("rate", rate_per_s, "requests per second, above 0")
    arrivals = arrival_times(source, count=count, rate_per_s=rate_per_s, seed=seed)
    targets: Sequence[float | None] = draw_targets(targets_ms, count, seed) if targets_ms else (None,) * count
    if recorded_targets:
        targets = recorded_targets_ms(source, count=count, seed=seed)
    stretches = dict.fromkeys(sizes, 1.0) if recorded_targets else sizes
    return tuple(
        replace(call, at_s=at_s, latency_ms=None if target is None else stretches[call.size] * target)
        for at_s, target, call in zip(arrivals, targets, closed_calls(subjects, seed, list(sizes)), strict=False)
    )


def closed_calls(
    subjects: Sequence[Subject], seed: int, sizes: Sequence[str | None] = (None,)
) -> Iterator[PlannedCall]:
    """Calls without end, to be sent whenever there is room, each of one of these subjects and sizes."""
    rng = Random(f"sizes {seed}")
    for index, image_seed in pictures(len(subjects), seed):
        of = subjects[index]
        yield PlannedCall(at_s=0.0, label=of.label, prompt=of.prompt, seed=image_seed, size=rng.choice(sizes))


def share_of_new_prompts(subjects: Sequence[Subject], seed: int, count: int) -> float:
    """Of so many calls, those with a prompt that none before them had; no class has one."""
    drawn = [subjects[index].prompt for index, _ in islice(pictures(len(subjects), seed), count)]
    return len({prompt for prompt in drawn if prompt is not None}) / count


def pictures(num_subjects: int, seed: int) -> Iterator[tuple[int, int]]:
    """(index of a subject, noise seed) without end."""
    rng = Random(f"pictures {seed}")
    while True:
        yield rng.randrange(num_subjects), rng.randrange(SEEDS)
