"""What a policy is told and what it answers: all that policies and the core share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.requests import Demand, Refusal
from elit_serve.scheduler.state import Tracked


class View(NamedTuple):
    """What is known when a decision is made.

    now_s: the moment of the call; start_s: from when the device is free for steps, if all that is to be done before the
        first steps of what is promised, or is to be, is done at once.
    prepare_s: what of that is done for those who ask to be taken.
    max_batch: the largest batch that may run, which may lie below the table's.
    num_waiting: requests that were taken and have not started.
    """

    now_s: float
    start_s: float
    costs: CorrectedCosts
    max_batch: int
    num_waiting: int
    prepare_s: float = 0.0


class Choice(NamedTuple):
    """One step of this kind for these requests, each of its own level and stride."""

    request_ids: Sequence[int]
    kind: StepKind
    levels: Sequence[int]
    strides: Sequence[int]


class Owed(NamedTuple):
    """What is left of a request.

    due_s: until when its last step is planned to have run. least_s: what its steps take as shares of the largest batch
    if they are as cheap and as few as they may be, in seconds of the table.
    """

    due_s: float
    least_s: float


class Policy(Protocol):
    """Whom to take, and who runs next. Pure: no clock, no device."""

    def admit(self, newcomers: Sequence[Demand], view: View, *, is_passed_on: bool = False) -> Refusal | None:
        """Takes all of these from now on, or none. is_passed_on: they have arrived elsewhere, and do not count here."""

    def would_admit(self, newcomers: Sequence[Demand], view: View) -> bool:
        """Whether `admit` would take these; changes nothing."""

    def choose(self, view: View) -> Choice | None:
        """What runs next, which counts as run for every later call; None if nothing is left to run."""

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        """Forgets all plans and all others, and goes on with these, whatever of them has run. All have steps left."""

    def drop(self, request_id: int) -> None:
        """A request that was taken and has steps left ends early; it must not be chosen again."""

    def hurry(self, request_id: int) -> None:
        """A request that was taken and has steps left is to end with the fewest, whatever it is worth then; those who
        share launches with it get what they would have without it."""

    def owed(self, view: View) -> Sequence[Owed]:
        """Of everybody who has steps left, in any order."""

    def copy(self) -> Self:
        """A policy in the same state; what is done to one of them is not seen by the other."""
