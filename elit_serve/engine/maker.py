"""Who makes the pictures of orders, as those see it who ask for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.scheduler.core import Counters


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """One of several engines that make the pictures of a `Maker`; its fields are as there."""

    is_ready: bool
    num_waiting: int
    num_running: int
    correction: float
    counters: Counters


class Maker(Protocol):
    """A `Worker` is one, on a device of this process. Another may have devices elsewhere: whoever asks need not know.

    All of it may be used by any thread.
    """

    @property
    def is_alive(self) -> bool:
        """Whether pictures are being made."""

    @property
    def is_ready(self) -> bool:
        """Whether new orders are taken and run without delay: warm, not draining, alive."""

    @property
    def is_draining(self) -> bool:
        """Whether no more orders are taken."""

    @property
    def has_died(self) -> bool:
        """Whether it ended by an error. So it says when orders that were not done fail with `EngineStopped`."""

    @property
    def ended(self) -> Future[None]:
        """Done once it has ended, for whatever reason, and everybody was told."""

    @property
    def num_devices(self) -> int:
        """On which pictures are made at the same time."""

    @property
    def replicas(self) -> Mapping[str, ReplicaState]:
        """Those that there are now, by name; none where it makes the pictures itself. Waits for nothing."""

    @property
    def num_submitters(self) -> int:
        """How many threads may submit at a time; more would only wait for each other."""

    @property
    def num_waiting(self) -> int:
        """Accepted pictures of which no step has run. Waits for nothing."""

    @property
    def num_running(self) -> int:
        """Pictures between their first and their last step. Waits for nothing."""

    @property
    def counters(self) -> Counters:
        """What was counted since the start."""

    @property
    def correction(self) -> float:
        """Observed over predicted step times, lately."""

    def waiting_by_owner(self) -> Counter[str]:
        """How many accepted pictures of which no step has run each owner has; those of nobody do not count."""

    def start(self) -> None: ...

    def wait_until_ready(self) -> None:
        """Returns once it is warm, or dead."""

    def submit(
        self,
        order: Order,
        on_preview: Callable[[Preview], None] | None = None,
        on_step: Callable[[StepRun], None] | None = None,
    ) -> Future[Outcome]:
        """Takes an order; cancelling its future gives it up.

        `on_preview` is given the previews that it asks for, each picture's in order and before its outcome; `on_step`
        is told of every step that has run. Neither may wait or raise. Raises `Infeasible` or `Overloaded` if it is
        refused, and `EngineStopped` once no more is taken.
        """

    def hurry(self, future: Future[Outcome]) -> bool:
        """Has the pictures of an order that was taken end with the fewest steps that their state allows. False if no
        step of them has run, or they have ended."""

    def forecast(self, order: Order) -> Forecast:
        """What `submit` would do with this order now, and how it would go on; takes nothing and changes nothing.

        Raises `EngineStopped` once no more is taken.
        """

    def in_flight(self, max_pictures: int) -> InFlight:
        """What is being made now, and what was counted."""

    def drain(self, timeout_s: float) -> None:
        """Takes no more orders, finishes the accepted ones if they are done within `timeout_s`, and stops."""

    def stop(self) -> None:
        """Ends; orders that are not done fail with `EngineStopped`."""
