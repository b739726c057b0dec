"""What a policy is told and what it answers: all that `elastic`, `fixed` and the core share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.requests import Demand, Refusal, State


@dataclass(eq=False, slots=True, kw_only=True)
class Tracked:
    """A request and how far it is. executed: the level of each step decided so far; those count as run.

    is_free: whether its levels are the policy's to choose.
    """

    demand: Demand
    state: State = State.WAITING
    executed: list[int] = field(default_factory=list)
    request_id: int = field(init=False)
    is_free: bool = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.demand.request_id
        self.is_free = self.demand.pinned is None

    def __deepcopy__(self, memo: object) -> Tracked:
        return Tracked(demand=self.demand, state=self.state, executed=self.executed.copy())

    @property
    def next_step(self) -> int:
        return len(self.executed)

    @property
    def steps_left(self) -> int:
        return self.demand.num_steps - len(self.executed)


class View(NamedTuple):
    """What is known when a decision is made.

    now_s: the moment of the call; start_s: from when the device is free.
    max_batch: the largest batch that may run, which may lie below the table's.
    num_waiting: requests that were taken and have not started.
    """

    now_s: float
    start_s: float
    costs: CorrectedCosts
    max_batch: int
    num_waiting: int


class Choice(NamedTuple):
    """One step of this kind for these requests."""

    members: Sequence[Tracked]
    kind: StepKind


class Policy(Protocol):
    """Whom to take, and who runs next. Pure: no clock, no device."""

    def admit(self, newcomers: Sequence[Tracked], view: View) -> Refusal | None:
        """Takes all of these from now on, or none."""

    def would_admit(self, newcomers: Sequence[Tracked], view: View) -> bool:
        """Whether `admit` would take these; changes nothing."""

    def choose(self, view: View) -> Choice | None:
        """What runs next, which counts as run for every later call; None if nothing is left to run."""

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        """Forgets everything and goes on with these, whatever of them has run. All have steps left."""

    def drop(self, request: Tracked) -> None:
        """A request that was taken has ended early; it must not be chosen again."""
