"""What every rival keeps track of, so that each of them is only its rule; far simpler than the server's core.

Rivals serve one image at a time and level alone: no pins, no priorities, one guidance mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from elit_serve.bench.rivals.pace import Need, all_in_time
from elit_serve.bench.simulate.workload import Setting
from elit_serve.plans.progress import Progress
from elit_serve.scheduler.requests import Demand, Launch, Refusal
from elit_serve.scheduler.state import ENDED, State


@dataclass(kw_only=True)
class Ticket:
    """A request that a rival has taken. executed: the steps decided so far, which no rival makes longer.

    level: for rules that choose it once for the whole image; 0 until they have.
    """

    demand: Demand
    state: State = State.WAITING
    executed: Progress = field(default_factory=Progress)
    level: int = 0

    @property
    def steps_left(self) -> int:
        return self.demand.num_steps - self.executed.at

    @property
    def deadline_s(self) -> float:
        return self.demand.deadline_s


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What to run next."""

    tickets: Sequence[Ticket]
    level: int


class Rival(ABC):
    """A `Scheduler` made from one rule, `choose`; it accepts everybody and gives nobody up unless a rule says so."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._tickets: dict[int, Ticket] = {}
        self._launches: dict[int, tuple[int, ...]] = {}
        self._launch_ids = count()
        self._busy_until_s = float("-inf")

    @abstractmethod
    def choose(self, tickets: Sequence[Ticket], now_s: float) -> Cohort | None:
        """One step for some of `tickets` (never empty; in order of arrival), or None to wait for the next event."""

    def refusal(self, newcomer: Ticket, now_s: float) -> Refusal | None:  # noqa: ARG002
        """Whether to take a request; if so, its level may be fixed."""
        return None

    def is_hopeless(self, ticket: Ticket, now_s: float) -> bool:  # noqa: ARG002
        """Whether to give an accepted request up."""
        return False

    def submit(self, demands: Sequence[Demand], now_s: float) -> Refusal | None:
        (demand,) = demands
        newcomer = Ticket(demand=demand)
        refusal = self.refusal(newcomer, now_s)
        if refusal is None:
            self._tickets[demand.request_id] = newcomer
        return refusal

    def decide(self, start_s: float) -> Launch | None:
        tickets = self.unfinished()
        cohort = self.choose(tickets, start_s) if tickets else None
        return None if cohort is None else self._launch(cohort, start_s)

    def finished(
        self,
        launch_id: int,
        now_s: float,  # noqa: ARG002
        observed_ms: float | None = None,  # noqa: ARG002
        *,
        gap_ms: float | None = None,  # noqa: ARG002
    ) -> tuple[int, ...]:
        members = [
            self._tickets[request_id] for request_id in self._launches.pop(launch_id) if request_id in self._tickets
        ]
        done = [ticket for ticket in members if ticket.state is State.RUNNING and ticket.steps_left == 0]
        for ticket in done:
            ticket.state = State.FINISHING
        return tuple(ticket.demand.request_id for ticket in done)

    def expire(self, now_s: float) -> tuple[int, ...]:
        hopeless = [ticket for ticket in self.unfinished() if self.is_hopeless(ticket, now_s)]
        for ticket in hopeless:
            ticket.state = State.EXPIRED
        return tuple(ticket.demand.request_id for ticket in hopeless)

    def cancel(self, request_id: int, now_s: float) -> bool:  # noqa: ARG002
        return self._end(request_id, State.CANCELLED)

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:  # noqa: ARG002
        for request_id in request_ids:
            self._end(request_id, State.FAILED)

    def delivered(self, request_id: int, now_s: float) -> None:  # noqa: ARG002
        self._end(request_id, State.DONE)

    def progress_of(self, request_id: int) -> Progress:
        return self._tickets[request_id].executed

    def state(self, request_id: int) -> State | None:
        return self._tickets[request_id].state if request_id in self._tickets else None

    def forget(self, request_id: int) -> None:
        assert self.state(request_id) in ENDED
        del self._tickets[request_id]

    def unfinished(self) -> list[Ticket]:
        """Accepted requests with steps to run, in order of arrival."""
        return [ticket for ticket in self._tickets.values() if ticket.steps_left and ticket.state not in ENDED]

    def lowest_step_s(self) -> float:
        """The shortest step there is: the lowest level, alone."""
        return self._setting.step_s(self._setting.levels[0], 1)

    def can_still_make_it(self, ticket: Ticket, now_s: float) -> bool:
        """Alone, at the lowest level, from now on."""
        return now_s + ticket.steps_left * self.lowest_step_s() + self._setting.overhead_s <= ticket.deadline_s

    def need(self, ticket: Ticket, level: int = 0) -> Need:
        """What is left of a request, at its own level or at another."""
        due_s = ticket.deadline_s - self._setting.overhead_s
        return Need(due_s=due_s, steps_left=ticket.steps_left, level=level or ticket.level)

    def would_be_in_time(self, newcomer: Ticket, level: int, now_s: float, *, others_at: int = 0) -> bool:
        """Whether a newcomer and everybody accepted would be, from the end of the launch that is running."""
        needs = [self.need(ticket, others_at) for ticket in self.unfinished()]
        needs.append(self.need(newcomer, level))
        start_s = max(now_s, self._busy_until_s)
        return all_in_time(needs, start_s, self._setting.table.max_batch, self._setting.step_s)

    def _launch(self, cohort: Cohort, start_s: float) -> Launch:
        for ticket in cohort.tickets:
            ticket.executed.take(cohort.level)
            ticket.state = State.RUNNING
        num_ending = sum(not ticket.steps_left for ticket in cohort.tickets)
        launch = Launch(
            launch_id=next(self._launch_ids),
            request_ids=tuple(ticket.demand.request_id for ticket in cohort.tickets),
            kind=self._setting.kind(cohort.level),
            levels=(cohort.level,) * len(cohort.tickets),
            strides=(1,) * len(cohort.tickets),
            predicted_ms=1000 * self._setting.step_s(cohort.level, len(cohort.tickets)),
            decode_ms=self._setting.table.decode_row(self._setting.shape)[num_ending],
            answer_ms=self._setting.table.answer_row(self._setting.shape)[num_ending],
        )
        self._launches[launch.launch_id] = launch.request_ids
        self._busy_until_s = start_s + launch.device_ms / 1000
        return launch

    def _end(self, request_id: int, state: State) -> bool:
        if self.state(request_id) is None or self.state(request_id) in ENDED:
            return False
        self._tickets[request_id].state = state
        return True


def by_deadline(tickets: Sequence[Ticket]) -> list[Ticket]:
    return sorted(tickets, key=lambda ticket: (ticket.deadline_s, ticket.demand.request_id))
