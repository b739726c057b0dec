"""What a load run asks for, drawn by its seed: arrivals, targets, labels and seeds, relative to what the device can do.

Load 1 is the saturated full-budget throughput; a target is a multiple of the full-budget latency of a request alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from elit_serve.bench.load.sender import PlannedCall
from elit_serve.bench.simulate.arrivals import Arrivals, arrival_times, recorded_targets_ms
from elit_serve.bench.simulate.workload import draw_targets
from elit_serve.client import Model, SamplingInfo
from elit_serve.errors import InvalidInput
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import Budgets
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable

SEEDS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What targets and loads are relative to; None is not known.

    solo_ms: a full-budget request alone on the device, from arrival to answer.
    rate_per_s: full-budget requests per second when every step has the largest batch.
    """

    solo_ms: float | None
    rate_per_s: float | None

    @classmethod
    def measured(cls, table: CostTable, weak_caps: Sequence[int | None]) -> Capacity:
        """From a latency file."""
        shape, full_level = table.shapes[0], table.levels[-1]
        kinds = [StepKind.capped(shape, full_level, cap) for cap in weak_caps]
        return cls(
            solo_ms=table.alone_ms(shape, (full_level,) * len(kinds), weak_caps),
            rate_per_s=1000 * table.max_batch / sum(table.step_ms(kind, table.max_batch) for kind in kinds),
        )

    @classmethod
    def reported(cls, model: Model) -> Capacity:
        """From what the server says of itself, which is the latency alone, with the room that it adds for noise."""
        return cls(solo_ms=max(model.levels, key=lambda info: info.level).latency_ms, rate_per_s=None)

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
    return Plan(levels=(full_level,) * num_steps, guidance=guidance, time_shift=sampling.time_shift)


def budgets_of(model: Model) -> Budgets:
    """Between the model's budgets and its levels, as the server has it."""
    return Budgets.told({info.level: info.budget for info in model.levels})


def open_calls(
    source: Arrivals,
    *,
    count: int,
    rate_per_s: float,
    targets_ms: Sequence[float],
    num_classes: int,
    seed: int,
    recorded_targets: bool = False,
) -> tuple[PlannedCall, ...]:
    """`count` calls in order of arrival, at this mean rate. targets_ms: one is drawn for each; none is no target.

    recorded_targets: the source's own targets instead.
    """
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise InvalidInput("rate", rate_per_s, "requests per second, above 0")
    arrivals = arrival_times(source, count=count, rate_per_s=rate_per_s, seed=seed)
    targets: Sequence[float | None] = draw_targets(targets_ms, count, seed) if targets_ms else (None,) * count
    if recorded_targets:
        targets = recorded_targets_ms(source, count=count, seed=seed)
    return tuple(
        PlannedCall(at_s=at_s, label=label, seed=image_seed, latency_ms=target)
        for at_s, target, (label, image_seed) in zip(arrivals, targets, pictures(num_classes, seed), strict=False)
    )


def closed_calls(num_classes: int, seed: int) -> Iterator[PlannedCall]:
    """Calls without end, to be sent whenever there is room."""
    return (PlannedCall(at_s=0.0, label=label, seed=image_seed) for label, image_seed in pictures(num_classes, seed))


def pictures(num_classes: int, seed: int) -> Iterator[tuple[int, int]]:
    """(class id, noise seed) without end."""
    rng = Random(f"pictures {seed}")
    while True:
        yield rng.randrange(num_classes), rng.randrange(SEEDS)
