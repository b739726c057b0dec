"""What is asked of a server in one run: who arrives when, with which target; relative to what the device can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count as counted
from random import Random
from statistics import fmean

from elit_serve.bench.simulate.arrivals import Arrivals, arrival_times, recorded_targets_ms
from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_BATCH
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.requests import Demand, Priority

TARGETS: Mapping[str, tuple[float, ...]] = {  # as multiples of the solo latency, by name
    "tight": (1.2, 1.5),
    "short": (1.5, 2.0),
    "usual": (2.0, 3.0, 5.0),
    "loose": (10.0, 20.0, 50.0),
    "bimodal": (1.5, 20.0),
}
SOFT_SCALE = 3.0  # a server wishes to answer a request without a target in so many times what it takes alone


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How requests differ; all drawn independently, and the same for all pictures of a request.

    pins, unguided, batch_class, other_sizes: shares of requests that are pinned to a random level, unguided, of the
        batch class, and of another shape than the first, each of the others with the same chance.
    images: how many pictures a request asks for, each of these with the same chance.
    """

    pins: float = 0.0
    unguided: float = 0.0
    batch_class: float = 0.0
    other_sizes: float = 0.0
    images: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("pins", "unguided", "batch_class", "other_sizes"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InvalidInput(_flag(name), share, "a share of requests, from 0 to 1")
        if not (self.images and 1 <= min(self.images) <= max(self.images) <= MAX_BATCH):
            raise InvalidInput("images", list(self.images), f"numbers of pictures from 1 to {MAX_BATCH}")

    @property
    def mean_images(self) -> float:
        """Pictures of a request."""
        return fmean(self.images)

    @property
    def differences(self) -> Mapping[str, object]:
        """What is not as in `PLAIN`, by the names of the command line."""
        return {_flag(name): value for name, value in asdict(self).items() if value != getattr(PLAIN, name)}


def _flag(name: str) -> str:
    return name.replace("_", "-")


PLAIN = Mix()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every request and every policy of a comparison shares.

    table: what steps cost, as the policies know it.
    num_steps, weak_cap: of every request; see `Demand.weak_caps`.
    """

    table: CostTable
    num_steps: int
    weak_cap: int | None

    @property
    def levels(self) -> tuple[int, ...]:
        return self.table.levels

    @property
    def full_level(self) -> int:
        return self.table.levels[-1]

    @property
    def overhead_s(self) -> float:
        """From the last step of an image that ends alone to its answer."""
        return self.table.after_ms(self.shape) / 1000

    @property
    def shape(self) -> str:
        """The first that was measured."""
        return self.table.shapes[0]

    def kind(self, level: int) -> StepKind:
        """A step at this level."""
        return StepKind.capped(self.shape, level, self.weak_cap)

    def row_ms(self, level: int) -> tuple[float, ...]:
        """Milliseconds of a step at every batch from 0."""
        return self.table.row(self.kind(level))

    def step_s(self, level: int, batch: int) -> float:
        return self.table.step_ms(self.kind(level), batch) / 1000

    @property
    def solo_s(self) -> float:
        """Seconds of one full-budget request alone on the device."""
        return self.solo_s_of(self.shape)

    def solo_s_of(self, shape: str) -> float:
        """The same of a request of this shape."""
        step_ms = self.table.step_ms(StepKind.capped(shape, self.full_level, self.weak_cap), 1)
        return self.num_steps * (step_ms / 1000) + self.table.after_ms(shape) / 1000

    @property
    def saturated_rate_per_s(self) -> float:
        """Full-budget requests per second in steps of the largest batch: load 1."""
        batch = self.table.max_batch
        return batch / (self.num_steps * self.step_s(self.full_level, batch))


def scales_of(text: str) -> tuple[float, ...]:
    """The multiples that a name of `TARGETS` stands for, or numbers with commas between them."""
    try:
        return TARGETS.get(text) or tuple(float(part) for part in text.split(","))
    except ValueError:
        allowed = f"numbers with commas between them, or one of {', '.join(TARGETS)}"
        raise InvalidInput("slo-scale", text, allowed) from None


def draw_targets(slo_scales: Sequence[float], count: int, seed: int) -> tuple[float, ...]:
    """A multiple of the solo latency for each request."""
    if not slo_scales or min(slo_scales) <= 0:
        raise InvalidInput("slo-scale", list(slo_scales), "multiples of the solo latency, above 0")
    rng = Random(f"targets {seed}")
    return tuple(rng.choice(slo_scales) for _ in range(count))


def draw_workload(
    setting: Setting,
    source: Arrivals,
    *,
    load: float,
    slo_scales: Sequence[float],
    count: int,
    seed: int,
    recorded_targets: bool = False,
) -> tuple[Demand, ...]:
    """Requests of one kind, for a picture each, in order of arrival; the same seed draws the same pattern and targets
    at every load.

    recorded_targets: the source's own targets instead of `slo_scales`; a request without one gets a soft deadline.
    """
    if load <= 0:
        raise InvalidInput("load", load, "above 0")
    arrivals = arrival_times(source, count=count, rate_per_s=load * setting.saturated_rate_per_s, seed=seed)
    targets_s: Sequence[float | None]
    if recorded_targets:
        recorded_ms = recorded_targets_ms(source, count=count, seed=seed)
        targets_s = [None if target_ms is None else target_ms / 1000 for target_ms in recorded_ms]
    else:
        targets_s = [scale * setting.solo_s for scale in draw_targets(slo_scales, count, seed)]
    return tuple(
        Demand(
            request_id=index,
            shape=setting.shape,
            arrived_s=arrived_s,
            deadline_s=arrived_s + (SOFT_SCALE * setting.solo_s if target_s is None else target_s),
            weak_caps=(setting.weak_cap,) * setting.num_steps,
            min_level=setting.levels[0],
            max_level=setting.full_level,
            is_hard=target_s is not None,
        )
        for index, (arrived_s, target_s) in enumerate(zip(arrivals, targets_s, strict=True))
    )


def mixed(demands: Iterable[Demand], mix: Mix, setting: Setting, seed: int) -> tuple[tuple[Demand, ...], ...]:
    """The pictures of each of these requests, some of which become of other kinds.

    Whoever is pinned at a share is so at every larger one; likewise for the other shares. A target is the same multiple
    of what a picture takes alone, whatever its size. Pictures are numbered in order.
    """
    rng, sizes, numbers, ids = Random(f"mix {seed}"), Random(f"sizes {seed}"), Random(f"images {seed}"), counted()
    orders = []
    for demand in demands:
        pins, unguided, batch, level = rng.random(), rng.random(), rng.random(), rng.choice(setting.levels)
        other, shape = sizes.random(), sizes.choice(setting.table.shapes[1:] or setting.table.shapes)
        changed = replace(
            demand,
            pinned=(level,) * setting.num_steps if pins < mix.pins else None,
            weak_caps=(None,) * setting.num_steps if unguided < mix.unguided else demand.weak_caps,
            priority=Priority.BATCH if batch < mix.batch_class else demand.priority,
        )
        if other < mix.other_sizes:
            changed = _of_shape(changed, shape, setting)
        num_images = numbers.choice(mix.images)
        orders.append(tuple(replace(changed, request_id=next(ids)) for _ in range(num_images)))
    return tuple(orders)


def _of_shape(demand: Demand, shape: str, setting: Setting) -> Demand:
    """With as many times what this shape takes alone for a target as it has of its own."""
    stretch = setting.solo_s_of(shape) / setting.solo_s_of(demand.shape)
    target_s = stretch * (demand.deadline_s - demand.arrived_s)
    return replace(demand, shape=shape, deadline_s=demand.arrived_s + target_s)
