"""Where a request is, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from elit_serve.plans.progress import Progress
from elit_serve.scheduler.requests import Demand


class State(StrEnum):
    """Where a request is; `TRANSITIONS` says where it may go from there."""

    WAITING = "waiting"  # accepted, no step run yet
    RUNNING = "running"  # at least one step launched
    FINISHING = "finishing"  # all steps run; it is being decoded and encoded
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


ENDED = frozenset({State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED})

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.FAILED, State.EXPIRED, State.CANCELLED}),
    State.RUNNING: frozenset({State.FINISHING, State.FAILED, State.EXPIRED, State.CANCELLED}),
    State.FINISHING: frozenset({State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED}),
    **dict.fromkeys(ENDED, frozenset()),
}


@dataclass(slots=True, kw_only=True)
class Tracked:
    """A request and how far it is. executed: the steps decided so far; those count as run.

    is_free: whether its levels are the policy's to choose.
    is_hurried: whether it is to end as soon as that allows, however good it is then.
    """

    demand: Demand
    state: State = State.WAITING
    executed: Progress = field(default_factory=Progress)
    is_hurried: bool = False
    is_free: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_free = self.demand.pinned is None

    @property
    def steps_left(self) -> int:
        """Of its time grid, which may be covered by fewer, longer ones."""
        return self.demand.num_steps - self.executed.at

    def copy(self) -> Tracked:
        executed = self.executed.copy()
        return Tracked(demand=self.demand, state=self.state, executed=executed, is_hurried=self.is_hurried)
