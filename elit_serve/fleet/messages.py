"""What ingress and replicas say to each other: values, and durations in place of times, as clocks differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from elit_serve.engine.cost import Cost
from elit_serve.engine.file_times import FileTimes
from elit_serve.engine.observer import Observer
from elit_serve.engine.open_plans import OpenPlans, PlanLimits
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import ElitError
from elit_serve.scheduler import CostTable
from elit_serve.scheduler.core import Counters
from elit_serve.scheduler.requests import Launch
from elit_serve.scheduler.routing import Digest


@dataclass(frozen=True, kw_only=True)
class SentOrder:
    """An order on its way to a replica.

    order_id: by which it can be hurried. order: without what costs there decide. limits: of the open plans of which it
    gets one; None if it has its plan. age_s: since it arrived. wants_previews, wants_steps: whether somebody watches.
    is_passed_on: whether another replica has refused it. is_last: whether all others have.
    """

    order_id: str
    order: Order
    limits: PlanLimits | None
    age_s: float
    wants_previews: bool
    wants_steps: bool
    is_passed_on: bool = False
    is_last: bool = False

    @classmethod
    def of(
        cls, order: Order, now_s: float, *, order_id: str, wants_previews: bool = False, wants_steps: bool = False
    ) -> SentOrder:
        return cls(
            order_id=order_id,
            order=replace(order, open_plans=None),
            limits=None if order.open_plans is None else order.open_plans.limits,
            age_s=now_s - order.arrived_s,
            wants_previews=wants_previews,
            wants_steps=wants_steps,
        )

    def received(self, now_s: float, open_plans: Mapping[str, OpenPlans], extra_ms: float) -> Order:
        """The order on the clock of the replica, with its own open plans and times of files."""
        offered = None if self.limits is None else open_plans[self.order.shape].limited(self.limits)
        return replace(self.order, arrived_s=now_s - self.age_s, open_plans=offered, extra_ms=extra_ms)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The replica has promised it, or taken it without a promise."""

    replica: str
    digest: Digest


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The replica has not taken it."""

    replica: str
    digest: Digest
    error: ElitError


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The replica had taken it, and will not make it."""

    error: ElitError


Reply = Taken | Refused | StepRun | Preview | Outcome | Failed  # Taken or Refused first, Outcome or Failed last


# What an `Observer` is told, each like the method of its name.


@dataclass(frozen=True)
class StepFinished:
    launch: Launch
    observed_ms: float | None
    gap_ms: float | None

    def tell_to(self, observer: Observer) -> None:
        observer.step_finished(self.launch, self.observed_ms, self.gap_ms)


@dataclass(frozen=True)
class ImagesDecoded:
    took_ms: float

    def tell_to(self, observer: Observer) -> None:
        observer.images_decoded(self.took_ms)


@dataclass(frozen=True)
class Spent:
    owners: tuple[str | None, ...]
    costs: tuple[Cost, ...]

    def tell_to(self, observer: Observer) -> None:
        observer.spent(self.owners, self.costs)


@dataclass(frozen=True)
class ImagesFailed:
    cause: str
    num_images: int

    def tell_to(self, observer: Observer) -> None:
        observer.images_failed(self.cause, self.num_images)


Event = StepFinished | ImagesDecoded | Spent | ImagesFailed


@dataclass(frozen=True, kw_only=True)
class HowAreYou:
    """What a replica is asked a few times a second. keeps_account: whether whoever asks is the one who is to be told of
    all that happens."""

    keeps_account: bool


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a replica tells of itself a few times a second.

    is_ready: whether it takes orders; one that is to go does not, and finishes those that it has.
    waiting: see `Maker.waiting_by_owner`. events: what has happened since whoever keeps account of it asked last.
    """

    replica: str
    digest: Digest
    is_ready: bool
    correction: float
    counters: Counters
    waiting: Counter[str]
    events: tuple[Event, ...]


@dataclass(frozen=True, kw_only=True)
class ReplicaFacts:
    """What never changes of a replica. device: its kind, as its digests name it. cost: with what HTTP adds."""

    replica: str
    device: str
    model: ServedModel
    cost: CostTable
    file_times: FileTimes
