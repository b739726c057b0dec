"""One load run against a server, from its options to its report."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from elit_serve.bench.load.plan import Capacity, budgets_of, closed_calls, full_plan, open_calls, share_of_new_prompts
from elit_serve.bench.load.report import Summary, closed_summary, open_summary
from elit_serve.bench.load.sender import PlannedCall, replay, saturate
from elit_serve.bench.load.subjects import Subject, subjects_of
from elit_serve.bench.simulate.arrivals import open_arrivals
from elit_serve.catalogue import cost_table
from elit_serve.client import AsyncClient, Client, GenerateOptions, Model
from elit_serve.clock import Clock
from elit_serve.errors import InvalidInput, ServerProblem
from elit_serve.files.latency import read_latency
from elit_serve.files.records import RequestRecord
from elit_serve.plans.plan import Plan
from elit_serve.scheduler.costs import CostTable

WARM_UP_ROUNDS = 2  # requests per caller before a closed loop is measured, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is asked of a server.

    trace: arrivals, as `bench.arrivals` spells them.
    load: a multiple of the saturated full-budget throughput; `rate` is requests per second instead.
    slo_scales: targets as multiples of the full-budget latency alone, drawn per request; empty for no targets.
    recorded_targets: the targets of the trace instead.
    cost: a latency file, which says both; without it targets come from what the server reports.
    bias: how much slower than `cost` a simulated device is, where one is compared; None is what the server observed.
    quality: the `quality.json` of the model, where a simulation is compared; None is a stated curve, and no plans.
    closed_loop: callers that each ask again once answered, without targets and at a pinned budget; None is open loop.
    warm_up: requests of a closed loop that are not counted.
    budget: pinned for every request. steps: of every request; None is the model's.
    prompts: one is drawn for each request; empty for the classes of the model, or the prompts that it shows.
    sizes: one is drawn for each request, whose target is by what that size takes alone; empty for the model's default.
    accept: the media type to ask for.
    api_key: never written into a report.
    """

    url: str
    trace: str = "poisson"
    load: float = 1.0
    rate: float | None = None
    slo_scales: tuple[float, ...] = (2.0, 3.0, 5.0)
    recorded_targets: bool = False
    requests: int = 500
    cost: Path | None = None
    bias: float | None = None
    quality: Path | None = None
    seed: int = 0
    closed_loop: int | None = None
    warm_up: int | None = None
    budget: float | None = None
    steps: int | None = None
    prompts: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    best_effort: bool = False
    accept: str | None = None
    output_format: str | None = None
    timeout_s: float = 600.0
    api_key: str | None = field(default=None, repr=False)

    @property
    def common(self) -> GenerateOptions:
        """What all requests share."""
        return {
            "budget": self.budget,
            "steps": self.steps,
            "best_effort": self.best_effort or None,
            "accept": self.accept,
            "output_format": self.output_format,
        }


def burstiness_trace(burstiness: float) -> str:
    """Gamma arrivals as vLLM's benchmark spells them: 1 is Poisson, less is burstier.

    >>> burstiness_trace(0.25)
    'gamma:cv=2.0'
    """
    if not (math.isfinite(burstiness) and burstiness > 0):
        raise InvalidInput("burstiness", burstiness, "above 0; 1 is Poisson")
    return f"gamma:cv={burstiness**-0.5}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server's model, as far as a run must know it, with the cost table if one is given.

    plan: at full budget. subjects, sizes: that are asked for; None is the model's default size.
    new_prompts: the share of an open loop's requests whose prompt is not known yet.
    """

    model: Model
    table: CostTable | None
    plan: Plan
    subjects: tuple[Subject, ...]
    sizes: tuple[str | None, ...] = (None,)
    new_prompts: float = 0.0

    @property
    def weak_caps(self) -> tuple[int | None, ...]:
        return self.plan.weak_caps(self.plan.levels[0])

    @property
    def capacity(self) -> Capacity:
        """Of all sizes alike."""
        return Capacity.mixed([self.capacity_of(size) for size in self.sizes])

    def capacity_of(self, size: str | None) -> Capacity:
        if self.table is None:
            return Capacity.reported(self.model, size)
        return Capacity.measured(self.table, self.weak_caps, self.shape_of(size), new_prompts=self.new_prompts)

    def shape_of(self, size: str | None) -> str:
        """What the cost table calls a size."""
        assert self.table is not None
        told = {details.size: details.shape for details in self.model.size_details}
        shape = self.table.shapes[0] if size is None or len(self.table.shapes) == 1 else told.get(size)
        if shape not in self.table.shapes:
            raise InvalidInput("size", size, f"the cost table knows the shapes {', '.join(self.table.shapes)}")
        return shape

    @property
    def stretches(self) -> dict[str | None, float]:
        """How many times as long as the mean of all the targets of each size are."""
        mean_ms = self.capacity.solo_ms
        solos_ms = {size: self.capacity_of(size).solo_ms for size in self.sizes}
        return {size: 1.0 if not (solo_ms and mean_ms) else solo_ms / mean_ms for size, solo_ms in solos_ms.items()}


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """facts: the whole configuration. calls: what was planned; empty for a closed loop.

    correction: observed over measured step times, as the server told at the end of an open loop; None if it did not.
    """

    facts: Mapping[str, object]
    target: Target
    calls: tuple[PlannedCall, ...]
    records: tuple[RequestRecord, ...]
    summary: Summary
    correction: float | None = None

    def as_dict(self) -> dict[str, object]:
        return {**self.summary.as_dict(), "config": dict(self.facts)}


def run_load(options: LoadOptions, *, clock: Clock) -> LoadReport:
    """Runs as long as the requests take. Raises `InvalidInput` before the first, if the options do not fit."""
    target = _target(options)
    return _closed_run(options, target, clock) if options.closed_loop is not None else _open_run(options, target, clock)


def _target(options: LoadOptions) -> Target:
    table = cost_table(read_latency(options.cost)) if options.cost else None
    with Client(options.url, api_key=options.api_key, timeout_s=options.timeout_s) as client:
        model = client.models()[0]
    full_level = budgets_of(model).full_level
    num_steps = options.steps or model.sampling.steps
    if table is None and options.slo_scales and num_steps != model.sampling.steps:
        raise InvalidInput("steps", num_steps, "without --cost, targets are known for the model's own steps only")
    for size in options.sizes:
        if size not in model.sizes:
            raise InvalidInput("size", size, f"the server has {', '.join(model.sizes)}")
    plan = full_plan(model.sampling, num_steps, full_level)
    subjects = subjects_of(model, options.prompts)
    return Target(
        model=model,
        table=table,
        plan=plan,
        subjects=subjects,
        sizes=options.sizes or (None,),
        new_prompts=share_of_new_prompts(subjects, options.seed, options.requests),
    )


def _open_run(options: LoadOptions, target: Target, clock: Clock) -> LoadReport:
    capacity = target.capacity
    rate_per_s = capacity.rate_at(options.load) if options.rate is None else options.rate
    calls = open_calls(
        open_arrivals(options.trace),
        count=options.requests,
        rate_per_s=rate_per_s,
        targets_ms=[capacity.target_ms(scale) for scale in options.slo_scales],
        subjects=target.subjects,
        seed=options.seed,
        recorded_targets=options.recorded_targets,
        sizes=target.stretches,
    )

    async def drive() -> tuple[tuple[RequestRecord, ...], float | None]:
        async with AsyncClient(options.url, api_key=options.api_key, timeout_s=options.timeout_s) as client:
            records = await replay(client, calls, options.common, clock=clock)
            return records, await _correction(client, target.model.id)

    records, correction = asyncio.run(drive())
    facts = {
        **_facts(options, target),
        "load": rate_per_s / capacity.rate_per_s if capacity.rate_per_s else None,
        "rate_per_s": rate_per_s,
        "solo_ms": capacity.solo_ms,
        "new_prompts": target.new_prompts,
        "correction": correction,
    }
    summary = open_summary(records)
    return LoadReport(facts=facts, target=target, calls=calls, records=records, summary=summary, correction=correction)


async def _correction(client: AsyncClient, model: str) -> float | None:
    """Observed over measured step times; None where the key may not read metrics."""
    try:
        told = await client.metrics()
    except ServerProblem:
        return None
    found = re.search(rf'^elit_cost_correction{{[^}}]*model="{re.escape(model)}"[^}}]*}} (\S+)$', told, re.MULTILINE)
    return None if found is None else float(found[1])


def _closed_run(options: LoadOptions, target: Target, clock: Clock) -> LoadReport:
    """Counts whole rounds: callers tend to be answered together, and part of a round would be too fast or too slow."""
    callers = options.closed_loop or 0
    if callers < 1:
        raise InvalidInput("closed-loop", callers, "at least one caller")
    warm_up = _rounded_up(WARM_UP_ROUNDS * callers if options.warm_up is None else max(1, options.warm_up), callers)
    counted = _rounded_up(options.requests, callers)
    common: GenerateOptions = {**options.common, "budget": 1.0 if options.budget is None else options.budget}

    async def drive() -> tuple[RequestRecord, ...]:
        calls = closed_calls(target.subjects, options.seed, target.sizes)
        async with AsyncClient(options.url, api_key=options.api_key, timeout_s=options.timeout_s) as client:
            return await saturate(client, calls, common, callers=callers, total=warm_up + counted, clock=clock)

    records = asyncio.run(drive())
    facts = {**_facts(options, target), "budget": common["budget"], "warm_up": warm_up, "requests": counted}
    summary = closed_summary(records, warm_up=warm_up)
    return LoadReport(facts=facts, target=target, calls=(), records=records[warm_up:], summary=summary)


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _digest(prompts: tuple[str, ...]) -> str | None:
    """By which the prompts of two runs can be told apart; they themselves may be nobody's business."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest() if prompts else None


def _facts(options: LoadOptions, target: Target) -> dict[str, object]:
    model = target.model
    asked = {name: value for name, value in asdict(options).items() if name not in ("api_key", "prompts")}
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in asked.items()},
        "steps": target.plan.num_steps,
        "num_subjects": len(target.subjects),
        "prompts_sha256": _digest(options.prompts),
        "model": model.id,
        "model_hash": model.hash,
        "device": model.device,
        "dtype": model.dtype,
        "sampling": model.sampling.model_dump(mode="json"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
