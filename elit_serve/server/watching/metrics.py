"""What Prometheus sees: one registry for each app."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Protocol, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from elit_serve.engine.cost import Cost
from elit_serve.engine.maker import Maker
from elit_serve.engine.observer import FATES, Observer
from elit_serve.engine.picture import Outcome
from elit_serve.engine.sizes import Sizes
from elit_serve.errors import DeadlineExceeded, ElitError, Infeasible, Overloaded, ShareExceeded
from elit_serve.plans.levels import Budgets
from elit_serve.scheduler.core import Counters
from elit_serve.scheduler.requests import Launch
from elit_serve.server.watching.replica_metrics import ReplicaMetrics

AnyMetric = TypeVar("AnyMetric", Counter, Histogram)

SECONDS_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3),
    *(0.35, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0),
)
STEP_SECONDS_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0),
)
GAP_SECONDS_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
COHORT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)
BUDGET_BUCKETS = (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
STEPS_BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 250)
QUALITY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
MAX_LEVEL_BUCKETS = 32

OUTCOMES = ("ok", "invalid", "refused", "expired", "failed", "cancelled")
ENDINGS = ("done", "refused", "expired", "failed", "cancelled")
REASONS = ("infeasible", "overloaded", "queue_full", "share", "stopped")
CAUSES = ("step", "memory", "nan", "encoding")
CHOOSERS = ("server", "caller")
SKIPPED_PARTS = ("core", "weak_pass")
STAGES = ("queue", "compute", "encode")
OTHER_ROUTE = "other"
NO_KEY = "(no key)"  # spelled as the name of no key can be: of servers without keys, and the server's own thumbnails
FORMER_KEY = "(former key)"  # of jobs that came with a key which the server has no more


class Measures(Protocol):
    """What a model's pictures are told in. A `ServedModel` is one."""

    budgets: Budgets
    sizes: Sizes


class Metrics:
    """The metrics of one app: its HTTP requests, and for each of its engines what `of` that engine is told.

    Every series is there from the start, at 0: Prometheus sees no increase in the first value of a series that appears.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, models: Mapping[str, Measures], routes: Sequence[str], keys: Sequence[str] = ()) -> None:
        """models: those that are served, by name, which is their label. keys: names of those that are known."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labelled_routes = (*routes, OTHER_ROUTE)
        self.requests = self._counter(
            "elit_requests_total", "HTTP requests by route and outcome.", route=labelled_routes, outcome=OUTCOMES
        )
        self.seconds = self._histogram(
            "elit_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            SECONDS_BUCKETS,
            route=labelled_routes,
        )
        self.loop_lag = self._histogram(
            "elit_event_loop_lag_seconds", "Seconds that what becomes ready waits for the event loop.", LAG_BUCKETS
        )
        self._add_families_of_requests(tuple(models))
        self._add_families_of_costs(tuple(models), (*keys, NO_KEY, FORMER_KEY))
        self.pictures = Counter(
            "elit_pictures_total", "Finished pictures, by size.", ["model", "size"], registry=self.registry
        )
        for model, measures in models.items():
            for size in measures.sizes.names:
                self.pictures.labels(model, size)
        self._add_families_of_steps(models)
        self._measures = dict(models)
        self._of = {model: EngineMetrics(self, model, measures) for model, measures in models.items()}

    def of(self, model: str) -> EngineMetrics:
        """The metrics of the engine that has this model."""
        return self._of[model]

    def _add_families_of_requests(self, models: Sequence[str]) -> None:
        self.generations = self._counter(
            "elit_generations_total",
            "Valid requests for pictures by what became of them.",
            model=models,
            outcome=ENDINGS,
        )
        self.refusals = self._counter(
            "elit_refusals_total",
            "Valid requests for pictures that were not taken, by reason.",
            model=models,
            reason=REASONS,
        )
        self.budget = self._histogram(
            "elit_granted_budget",
            "Mean share of the latents of each finished picture, by who chose it.",
            BUDGET_BUCKETS,
            model=models,
            chosen_by=CHOOSERS,
        )
        self.quality = self._histogram(
            "elit_granted_quality",
            "Measured quality of what was done for each finished picture, by who chose its budget.",
            QUALITY_BUCKETS,
            model=models,
            chosen_by=CHOOSERS,
        )
        self.granted_steps = self._histogram(
            "elit_granted_steps",
            "Steps in which each finished picture was made, by who chose its budget.",
            STEPS_BUCKETS,
            model=models,
            chosen_by=CHOOSERS,
        )
        self.skipped = self._counter(
            "elit_skipped_steps_total",
            "Steps of finished pictures that used again what an earlier step computed, by what they ran without.",
            model=models,
            part=SKIPPED_PARTS,
        )
        self.image_seconds = self._histogram(
            "elit_image_seconds",
            "Seconds of each finished picture before its first step, in its steps, and in encoding.",
            SECONDS_BUCKETS,
            model=models,
            stage=STAGES,
        )
        self.failures = self._counter(
            "elit_image_failures_total", "Pictures that failed, by cause.", model=models, cause=CAUSES
        )
        self.lost_orders = self._counter(
            "elit_lost_orders_total",
            "Requests whose replica was lost while it made them, by what became of them.",
            model=models,
            fate=FATES,
        )

    def _add_families_of_costs(self, models: Sequence[str], keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.flops = self._counter(
            "elit_flops_total",
            "Floating-point operations of the model's steps, by the name of the key that they were for.",
            model=models,
            key=keys,
        )
        self.device_seconds = self._counter(
            "elit_device_seconds_total",
            "Seconds of the device, of each launch and decoding a share for every picture in it, by key.",
            model=models,
            key=keys,
        )

    def _add_families_of_steps(self, models: Mapping[str, Measures]) -> None:
        names = tuple(models)
        levels = sorted({level for measures in models.values() for level in measures.budgets.levels})
        self.step_level = self._histogram(
            "elit_step_level", "Level of each step of a cohort.", _thinned(levels), model=names
        )
        self.cohort = self._histogram("elit_cohort_size", "Pictures in each step.", COHORT_BUCKETS, model=names)
        self.step_seconds = self._histogram(
            "elit_step_seconds", "Seconds that each step took on the device.", STEP_SECONDS_BUCKETS, model=names
        )
        self.decode_seconds = self._histogram(
            "elit_decode_seconds",
            "Seconds that the device took to decode the pictures that ended with each step.",
            STEP_SECONDS_BUCKETS,
            model=names,
        )
        self.gap_seconds = self._histogram(
            "elit_gap_seconds",
            "Seconds that the device had nothing to run before each step, though there was work.",
            GAP_SECONDS_BUCKETS,
            model=names,
        )
        self.cost_ratio = self._histogram(
            "elit_cost_ratio",
            "Observed time of each step over what was predicted for it.",
            RATIO_BUCKETS,
            model=names,
        )

    def watch(
        self,
        workers: Mapping[str, Maker],
        *,
        queue_limit: int,
        replica_range: tuple[int, int],
        facts: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Adds what is read off the workers whenever it is asked for, and what never changes; both by model.

        queue_limit: pictures that may wait for each device. replica_range: the fewest and the most engines that there
        are to be of each. facts: what is served, as labels.
        """
        gauges: dict[str, tuple[str, Callable[[Maker], float]]] = {
            "elit_ready": ("1 while new requests are taken: warm, not draining, alive.", lambda of: of.is_ready),
            "elit_queue_length": ("Pictures that wait for their first step.", lambda of: of.num_waiting),
            "elit_queue_limit": ("Pictures that may wait; more are refused.", lambda of: queue_limit * of.num_devices),
            "elit_running": ("Pictures between their first and their last step.", lambda of: of.num_running),
            "elit_cost_correction": ("Observed over measured step times, smoothed.", lambda of: of.correction),
        }
        for name, (text, read) in gauges.items():
            gauge = Gauge(name, text, ["model"], registry=self.registry)
            for model, worker in workers.items():
                gauge.labels(model).set_function(partial(read, worker))
        served = Info("elit_model", "What is served.", ["model"], registry=self.registry)
        for model, labels in facts.items():
            served.labels(model).info(dict(labels))
        self.registry.register(_SchedulerCounters(workers))
        budgets = {model: measures.budgets for model, measures in self._measures.items()}
        self.registry.register(ReplicaMetrics(workers, budgets, replica_range))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, **values: Sequence[str]) -> Counter:
        return _with_series(Counter(name, text, list(values), registry=self.registry), values)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], **values: Sequence[str]) -> Histogram:
        return _with_series(Histogram(name, text, list(values), buckets=buckets, registry=self.registry), values)


class EngineMetrics(Observer):
    """What is counted of one engine, and of the requests for its pictures."""

    def __init__(self, metrics: Metrics, model: str, measures: Measures) -> None:
        self._model = model
        self._measures = measures
        self._all = metrics
        self._step_level = metrics.step_level.labels(model)  # those of steps found once, for the engine's thread
        self._cohort = metrics.cohort.labels(model)
        self._step_seconds = metrics.step_seconds.labels(model)
        self._decode_seconds = metrics.decode_seconds.labels(model)
        self._gap_seconds = metrics.gap_seconds.labels(model)
        self._cost_ratio = metrics.cost_ratio.labels(model)
        self._spent = {
            key: (metrics.flops.labels(model, key), metrics.device_seconds.labels(model, key)) for key in metrics.keys
        }

    def step_finished(self, launch: Launch, observed_ms: float | None, gap_ms: float | None) -> None:
        self._cohort.observe(len(launch.request_ids))
        self._step_level.observe(launch.kind.level)
        if observed_ms is not None:
            self._step_seconds.observe(observed_ms / 1000)
            self._cost_ratio.observe(observed_ms / launch.predicted_ms)
        if gap_ms is not None:
            self._gap_seconds.observe(max(gap_ms, 0.0) / 1000)

    def images_decoded(self, took_ms: float) -> None:
        self._decode_seconds.observe(took_ms / 1000)

    def spent(self, owners: Sequence[str | None], costs: Sequence[Cost]) -> None:
        by_key: defaultdict[str, Cost] = defaultdict(Cost)
        for owner, cost in zip(owners, costs, strict=True):
            by_key[self._key_of(owner)] += cost
        for key, cost in by_key.items():
            flops, device_seconds = self._spent[key]
            flops.inc(cost.flops)
            device_seconds.inc(cost.device_ms / 1000)

    def _key_of(self, owner: str | None) -> str:
        """Its label."""
        if owner is None:
            return NO_KEY
        return owner if owner in self._spent else FORMER_KEY

    def images_failed(self, cause: str, num_images: int) -> None:
        self._all.failures.labels(self._model, cause).inc(num_images)

    def order_lost(self, fate: str) -> None:
        self._all.lost_orders.labels(self._model, fate).inc()

    def done(self, outcome: Outcome, qualities: Sequence[float | None]) -> None:
        """A request that got its pictures, each with its measured quality; None is not known."""
        self._ended_as("done")
        chooser = "server" if outcome.order.pinned is None else "caller"
        size = str(self._measures.sizes.size_of(outcome.order.shape))
        self._all.pictures.labels(self._model, size).inc(len(outcome.pictures))
        skips = outcome.order.skips
        for part, steps in zip(SKIPPED_PARTS, (skips.core, skips.weak), strict=True):
            self._all.skipped.labels(self._model, part).inc(len(steps) * len(outcome.pictures))
        for picture, quality in zip(outcome.pictures, qualities, strict=True):
            level = outcome.order.plan(picture.progress).mean_level
            self._all.budget.labels(self._model, chooser).observe(self._measures.budgets.of_level(level))
            self._all.granted_steps.labels(self._model, chooser).observe(len(picture.levels))
            if quality is not None:
                self._all.quality.labels(self._model, chooser).observe(quality)
            for stage, took_ms in zip(STAGES, (picture.queue_ms, picture.compute_ms, picture.encode_ms), strict=True):
                self._all.image_seconds.labels(self._model, stage).observe(took_ms / 1000)

    def refused(self, error: ElitError) -> None:
        self._ended_as("refused")
        self._all.refusals.labels(self._model, _reason(error)).inc()

    def ended(self, error: ElitError) -> None:
        """A request that was taken and got no pictures."""
        self._ended_as("expired" if isinstance(error, DeadlineExceeded) else "failed")

    def cancelled(self) -> None:
        """A request whose caller has left, or given it up."""
        self._ended_as("cancelled")

    def _ended_as(self, ending: str) -> None:
        self._all.generations.labels(self._model, ending).inc()

    @property
    def device_s(self) -> float:
        """Seconds that the device ran steps, or decoded what they ended."""
        return _sum_of(self._step_seconds) + _sum_of(self._decode_seconds)

    @property
    def spent_by_key(self) -> dict[str, Cost]:
        """What was spent for whom, where it was anything."""
        costs = {
            key: Cost(flops=_value_of(flops), device_ms=1000 * _value_of(device_seconds))
            for key, (flops, device_seconds) in self._spent.items()
        }
        return {key: cost for key, cost in costs.items() if cost != Cost()}

    @property
    def refusals(self) -> dict[str, int]:
        """Requests that were not taken, by reason."""
        return {reason: int(_value_of(self._all.refusals.labels(self._model, reason))) for reason in REASONS}


def _sum_of(histogram: Histogram) -> float:
    samples = [sample for family in histogram.collect() for sample in family.samples]
    return next(sample.value for sample in samples if sample.name.endswith("_sum"))


def _value_of(counter: Counter) -> float:
    samples = [sample for family in counter.collect() for sample in family.samples]
    return next(sample.value for sample in samples if sample.name.endswith("_total"))


def _with_series(metric: AnyMetric, values: Mapping[str, Sequence[str]]) -> AnyMetric:
    """The metric with all its series, which are the combinations of its labels' values."""
    if values:
        for combination in product(*values.values()):
            metric.labels(*combination)
    return metric


class _SchedulerCounters(Collector):
    """What the schedulers count themselves."""

    def __init__(self, workers: Mapping[str, Maker]) -> None:
        self._workers = dict(workers)

    def collect(self) -> Iterator[CounterMetricFamily]:
        counters = {model: worker.counters for model, worker in self._workers.items()}
        for name, (text, read) in _SCHEDULER_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=["model"])
            for model, of_one in counters.items():
                family.add_metric([model], read(of_one))
            yield family


_SCHEDULER_COUNTERS: dict[str, tuple[str, Callable[[Counters], float]]] = {
    "elit_replans": ("Times that a picture's level changed from one step to the next.", attrgetter("replans")),
    "elit_promised": ("Pictures accepted with a promised deadline.", attrgetter("promised")),
    "elit_promises_kept": ("Promised pictures that were made in time.", attrgetter("kept")),
    "elit_promises_missed": ("Promised pictures that were not.", attrgetter("missed")),
    "elit_decision_errors": (
        "Decisions that failed and were made by the fixed policy.",
        attrgetter("decision_errors"),
    ),
}


def _reason(error: ElitError) -> str:
    if isinstance(error, Infeasible):
        return "infeasible"
    if isinstance(error, ShareExceeded):
        return "share"
    return error.reason if isinstance(error, Overloaded) else "stopped"


def _thinned(levels: Sequence[int]) -> list[float]:
    """At most `MAX_LEVEL_BUCKETS` bucket edges, the largest level among them."""
    stride = -(-len(levels) // MAX_LEVEL_BUCKETS)
    return [float(level) for level in sorted(levels, reverse=True)[::stride]][::-1]
