"""The scheduler's state: who is where, what is on the device, what was promised. Policies decide; this keeps count."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import NamedTuple, Self

from elit_serve.scheduler.arrivals import Arrivals
from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.cost import CostTable
from elit_serve.scheduler.menu import Crowd, Option, PlanMenu
from elit_serve.scheduler.policy_view import Choice, Policy, Tracked, View
from elit_serve.scheduler.requests import ENDED, TRANSITIONS, Demand, Launch, Refusal, State, Wait

ARRIVALS_MEMORY = 1.0  # of the arrival rate that plans are chosen by, relative to the mean target


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What has happened since the start, for the server's metrics.

    replans: times that a request's level changed from one step to the next, pinned steps aside.
    promised: accepted requests with a hard deadline; kept and missed: those answered in time, and those that expired
        or came late. Cancelled and failed ones are neither.
    delivered: requests that were answered, whatever they had been promised.
    granted_levels, granted_steps: sum and count of the levels of all free steps.
    """

    replans: int = 0
    promised: int = 0
    kept: int = 0
    missed: int = 0
    delivered: int = 0
    granted_levels: int = 0
    granted_steps: int = 0


class _Outstanding(NamedTuple):
    """A launch that was decided and has not been reported. table_ms: uncorrected, to compare with what is observed."""

    launch: Launch
    members: tuple[Tracked, ...]
    table_ms: float


class RequestScheduler:
    """Implements `interface.Scheduler` with one of the policies.

    Launches are reported by `finished` in the order in which they were decided; several may be outstanding.
    """

    def __init__(self, table: CostTable, policy: Policy) -> None:
        self._costs = CorrectedCosts(table)
        self._policy = policy
        self._max_batch = table.max_batch
        self._requests: dict[int, Tracked] = {}
        self._arrivals = Arrivals(ARRIVALS_MEMORY)
        self._hard_deadlines: list[tuple[float, int]] = []
        self._outstanding: deque[_Outstanding] = deque()
        self._num_launches = 0
        self._busy_until_s = float("-inf")
        self._num_in = dict.fromkeys(State, 0)
        self._counted = dict.fromkeys(Counters.__dataclass_fields__, 0)

    # What the driver calls

    def submit(self, demands: Sequence[Demand], now_s: float) -> Refusal | None:
        """Takes all of these images, or none and says why."""
        newcomers = [Tracked(demand=self._riding(demand)) for demand in demands]
        assert not any(newcomer.request_id in self._requests for newcomer in newcomers), "request ids are unique"
        self._arrivals.saw(now_s, demands)
        refusal = self._policy.admit(newcomers, self._view(now_s, max(now_s, self._busy_until_s)))
        if refusal is None:
            for newcomer in newcomers:
                self._take(newcomer)
        return refusal

    def choose_plan(self, menu: PlanMenu, *, latency_ms: float, num_images: int, now_s: float) -> Option:
        """What images that leave their plan open get if they are submitted now, with this target."""
        return menu.choose(latency_ms=latency_ms, crowd=self.crowd_with(num_images, now_s))

    def cancel(self, request_id: int, now_s: float) -> bool:  # noqa: ARG002
        """Ends a request that has not ended; False if it had, or is not known."""
        return self._end(request_id, State.CANCELLED)

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Ends the requests whose hard deadline has passed, and names them."""
        expired = []
        while self._hard_deadlines and self._hard_deadlines[0][0] < now_s:
            _, request_id = heappop(self._hard_deadlines)
            if self._end(request_id, State.EXPIRED):
                self._counted["missed"] += 1
                expired.append(request_id)
        return tuple(expired)

    def decide(self, start_s: float) -> Launch | Wait:
        """What the device runs next if it is free from `start_s`."""
        choice = self._policy.choose(self._view(start_s, start_s))
        return Wait() if choice is None else self._launch(choice, start_s)

    def finished(self, launch_id: int, now_s: float, observed_ms: float | None = None) -> tuple[int, ...]:
        """A launch has run; names the requests that it finished (now FINISHING). Ended ones are not among them."""
        done = self._outstanding.popleft()
        assert done.launch.launch_id == launch_id, "launches finish in the order in which they were decided"
        if observed_ms is not None:
            self._costs.observe(done.table_ms, observed_ms)
        self._busy_until_s = now_s + sum(other.launch.predicted_ms for other in self._outstanding) / 1000
        complete = [member for member in done.members if self._is_complete(member)]
        for member in complete:
            self._move(member, State.FINISHING)
        return tuple(member.request_id for member in complete)

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:  # noqa: ARG002
        """These could not be run (or decoded); they end as FAILED, unless they have ended already."""
        for request_id in request_ids:
            self._end(request_id, State.FAILED)

    def delivered(self, request_id: int, now_s: float) -> None:
        """The picture is out: FINISHING becomes DONE. Nothing happens if the request ended in the meantime."""
        request = self._requests.get(request_id)
        if request is None or not self._end(request_id, State.DONE):
            return
        self._counted["delivered"] += 1
        if request.demand.is_hard:
            self._counted["kept" if now_s <= request.demand.deadline_s else "missed"] += 1

    def state(self, request_id: int) -> State | None:
        """Where a request is; None when it is not known, or ended and forgotten."""
        request = self._requests.get(request_id)
        return None if request is None else request.state

    def forget(self, request_id: int) -> None:
        """Drops an ended request from memory, once its caller has been told."""
        assert self._requests[request_id].state in ENDED, self._requests[request_id].state
        self._num_in[self._requests.pop(request_id).state] -= 1

    def limit_batch(self, max_batch: int) -> None:
        """From now on launches have at most so many members: the device has no memory for more."""
        assert max_batch >= 1
        self._max_batch = min(self._max_batch, max_batch)

    # What metrics and answers read

    def copy(self) -> Self:
        """A scheduler in the same state; what is done to one of them is not seen by the other."""
        return deepcopy(self)

    def crowd_with(self, num_images: int, now_s: float) -> Crowd:
        """How busy the device would be with so many images more."""
        return Crowd(
            in_flight=self.num_waiting + self.num_running + num_images,
            max_batch=self.max_batch,
            correction=self.correction,
            images_per_s=self._arrivals.images_per_s(now_s),
        )

    @property
    def outstanding(self) -> tuple[Launch, ...]:
        """Launches that were decided and have not been reported, in order."""
        return tuple(other.launch for other in self._outstanding)

    @property
    def num_waiting(self) -> int:
        return self._num_in[State.WAITING]

    @property
    def num_running(self) -> int:
        return self._num_in[State.RUNNING]

    @property
    def max_batch(self) -> int:
        return self._max_batch

    @property
    def correction(self) -> float:
        """Observed over predicted milliseconds, as applied to predictions now."""
        return self._costs.correction

    @property
    def busy_until_s(self) -> float:
        """The predicted end of the last decided launch."""
        return self._busy_until_s

    @property
    def counters(self) -> Counters:
        return Counters(**self._counted)

    @property
    def mean_granted_level(self) -> float | None:
        """Over all free steps so far; None before the first."""
        steps = self._counted["granted_steps"]
        return self._counted["granted_levels"] / steps if steps else None

    def levels_of(self, request_id: int) -> tuple[int, ...]:
        """The level of each step so far, those on the device included."""
        return tuple(self._requests[request_id].executed)

    # Inside

    def _riding(self, demand: Demand) -> Demand:
        """With unguided steps among guided ones, where that is cheaper."""
        weak_caps = self._costs.table.riding(demand.weak_caps)
        return demand if weak_caps == demand.weak_caps else replace(demand, weak_caps=weak_caps)

    def _view(self, now_s: float, start_s: float) -> View:
        return View(
            now_s=now_s,
            start_s=start_s,
            costs=self._costs,
            max_batch=self._max_batch,
            num_waiting=self.num_waiting,
        )

    def _take(self, newcomer: Tracked) -> None:
        self._requests[newcomer.request_id] = newcomer
        self._num_in[State.WAITING] += 1
        if newcomer.demand.is_hard:
            self._counted["promised"] += 1
            heappush(self._hard_deadlines, (newcomer.demand.deadline_s, newcomer.request_id))

    def _launch(self, choice: Choice, start_s: float) -> Launch:
        self._advance(choice)
        batch = len(choice.members)
        assert 1 <= batch <= self._max_batch, batch
        table_ms = self._costs.table.step_ms(choice.level, choice.weak_cap, batch)
        launch = Launch(
            launch_id=self._num_launches,
            request_ids=tuple([member.request_id for member in choice.members]),
            level=choice.level,
            weak_cap=choice.weak_cap,
            predicted_ms=self._costs.correction * table_ms,
        )
        self._num_launches += 1
        self._outstanding.append(_Outstanding(launch=launch, members=tuple(choice.members), table_ms=table_ms))
        self._busy_until_s = start_s + launch.predicted_ms / 1000
        return launch

    def _advance(self, choice: Choice) -> None:
        level = choice.level
        free = [member.executed for member in choice.members if member.is_free]
        self._counted["granted_levels"] += level * len(free)
        self._counted["granted_steps"] += len(free)
        self._counted["replans"] += len([executed for executed in free if executed and executed[-1] != level])
        for member in choice.members:
            if not member.executed:
                self._move(member, State.RUNNING)
            member.executed.append(level)

    def _is_complete(self, member: Tracked) -> bool:
        """All its steps have been reported: it is in no launch that is still outstanding."""
        if member.state is not State.RUNNING or member.steps_left:
            return False
        return not any(member in other.members for other in self._outstanding)

    def _end(self, request_id: int, state: State) -> bool:
        request = self._requests.get(request_id)
        if request is None or request.state in ENDED:
            return False
        if request.state is not State.FINISHING and request.steps_left:
            self._policy.drop(request)
        self._move(request, state)
        return True

    def _move(self, request: Tracked, state: State) -> None:
        assert state in TRANSITIONS[request.state], f"{request.state} cannot become {state}"
        self._num_in[request.state] -= 1
        self._num_in[state] += 1
        request.state = state
