"""The scheduler's state: who is where, what is on the device, what was promised. Policies decide; this keeps count."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import Self

from elit_serve.plans.progress import Progress
from elit_serve.scheduler.arrivals import RecentArrivals
from elit_serve.scheduler.costs import CorrectedCosts, CostTable
from elit_serve.scheduler.menu import Crowd, Option, PlanMenu
from elit_serve.scheduler.policy.fixed import FixedPolicy
from elit_serve.scheduler.policy.view import Choice, Owed, Policy, View
from elit_serve.scheduler.requests import Demand, Launch, Refusal
from elit_serve.scheduler.state import ENDED, TRANSITIONS, State, Tracked

ARRIVALS_MEMORY = 1.0  # of the arrival rate that plans are chosen by, relative to the mean target


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What has happened since the start, for the server's metrics.

    replans: times that a request's level changed from one step to the next, pinned steps aside.
    promised: accepted requests with a hard deadline; kept and missed: those answered in time, and those that expired
        or came late. Cancelled and failed ones are neither.
    delivered: requests that were answered, whatever they had been promised.
    granted_levels, granted_steps: sum and count of the levels of all free steps.
    decision_errors: times that the policy failed, and others decided in its place.
    """

    replans: int = 0
    promised: int = 0
    kept: int = 0
    missed: int = 0
    delivered: int = 0
    granted_levels: int = 0
    granted_steps: int = 0
    decision_errors: int = 0


@dataclass(frozen=True)
class Defect:
    """An error of the policy's, and a copy of the scheduler from then."""

    error: Exception
    scheduler: RequestScheduler


class RequestScheduler:
    """Implements `drive.Scheduler` with one of the policies.

    Launches are reported by `finished` in the order in which they were decided; several may be outstanding.
    """

    def __init__(self, table: CostTable, policy: Policy) -> None:
        self._costs = CorrectedCosts(table)
        self._policy = policy
        self._max_batch = table.max_batch
        self._requests: dict[int, Tracked] = {}
        self._arrivals = RecentArrivals(ARRIVALS_MEMORY)
        self._hard_deadlines: list[tuple[float, int]] = []
        self._unprepared_s: dict[int, float] = {}  # what is to be done first for promised requests that wait
        self._outstanding: deque[Launch] = deque()
        self._num_launches = 0
        self._busy_until_s = float("-inf")
        self._rested_until_s = float("-inf")
        self._num_in = dict.fromkeys(State, 0)
        self._defects: list[Defect] = []
        self._known_defects: set[str] = set()
        self._counted = dict.fromkeys(Counters.__dataclass_fields__, 0)

    # What the driver calls

    def submit(self, demands: Sequence[Demand], now_s: float, *, is_passed_on: bool = False) -> Refusal | None:
        """Takes all of these images, or none and says why.

        is_passed_on: another replica has refused them, where they count as having arrived. If they counted wherever
        they are asked for, every replica would expect the refused orders of all.
        """
        newcomers = self._newcomers(demands, now_s)
        assert not any(newcomer.demand.request_id in self._requests for newcomer in newcomers), "request ids are unique"
        if not is_passed_on:
            self._arrivals.saw(now_s, demands)
        view = self._view(now_s, max(now_s, self._busy_until_s), demands)
        try:
            refusal = self._policy.admit([newcomer.demand for newcomer in newcomers], view, is_passed_on=is_passed_on)
        except Exception as error:
            self._note(error)
            self._begin_afresh(view, otherwise=self._stand_in(view))
            raise
        if refusal is None:
            for newcomer in newcomers:
                self._take(newcomer)
        return refusal

    def would_take(self, demands: Sequence[Demand], now_s: float) -> bool:
        """Whether `submit` would take these images now; they are not counted as having arrived."""
        newcomers = self._newcomers(demands, now_s)
        view = self._view(now_s, max(now_s, self._busy_until_s), demands)
        return self._policy.would_admit([newcomer.demand for newcomer in newcomers], view)

    def choose_plan(self, menu: PlanMenu, *, latency_ms: float, num_images: int, now_s: float) -> Option:
        """What images that leave their plan open get if they are submitted now, with this target."""
        return menu.choose(latency_ms=latency_ms, crowd=self.crowd_with(num_images, now_s))

    def cancel(self, request_id: int, now_s: float) -> bool:
        """Ends a request that has not ended; False if it had, or is not known."""
        return self._end(request_id, State.CANCELLED, now_s)

    def hurry(self, request_id: int, now_s: float) -> bool:
        """From now on a request takes the fewest steps that its state allows, and asks for no level; False if it has
        ended, or is not known. A pinned one keeps its levels."""
        request = self._requests.get(request_id)
        if request is None or request.state in ENDED:
            return False
        request.is_hurried = True
        if request.steps_left:
            try:
                self._policy.hurry(request_id)
            except Exception as error:
                self._note(error)
                view = self._view(now_s, max(now_s, self._busy_until_s))
                self._begin_afresh(view, otherwise=self._stand_in(view))
        return True

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Ends the requests whose hard deadline has passed, and names them."""
        expired = []
        while self._hard_deadlines and self._hard_deadlines[0][0] < now_s:
            _, request_id = heappop(self._hard_deadlines)
            if self._end(request_id, State.EXPIRED, now_s):
                self._counted["missed"] += 1
                expired.append(request_id)
        return tuple(expired)

    def decide(self, start_s: float) -> Launch | None:
        """What the device runs next if it is free from `start_s`; None is nothing, until something is submitted."""
        view = self._view(start_s, start_s)
        try:
            choice = self._policy.choose(view)
        except Exception as error:
            return self._decide_without_policy(error, view, start_s)
        return None if choice is None else self._launch(choice, start_s)

    def finished(
        self,
        launch_id: int,
        now_s: float,
        observed_ms: float | None = None,
        *,
        gap_ms: float | None = None,
        has_decoded: bool = False,
    ) -> tuple[int, ...]:
        """A launch has run; names the requests that it finished (now FINISHING). Ended ones are not among them.

        gap_ms: for how long the device had nothing to run before it, though there was work; None tells nothing.
        has_decoded: these, too; otherwise the device does so now.
        """
        done = self._outstanding.popleft()
        assert done.launch_id == launch_id, "launches finish in the order in which they were decided"
        if observed_ms is not None:
            table_ms = self._costs.table.step_ms(done.kind, len(done.request_ids))
            self._costs.observe(table_ms, observed_ms)
            if gap_ms is not None and self._costs.observe_gap(gap_ms, table_ms):
                self._count_gap(now_s)
        decode_ms = 0.0 if has_decoded else done.decode_ms
        self._busy_until_s = now_s + (decode_ms + sum(other.device_ms for other in self._outstanding)) / 1000
        complete = tuple([request_id for request_id in done.request_ids if self._is_complete(request_id)])
        for request_id in complete:
            self._move(self._requests[request_id], State.FINISHING)
        return complete

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:
        """These could not be run (or decoded); they end as FAILED, unless they have ended already."""
        for request_id in request_ids:
            self._end(request_id, State.FAILED, now_s)

    def delivered(self, request_id: int, now_s: float) -> None:
        """The picture is out: FINISHING becomes DONE. Nothing happens if the request ended in the meantime."""
        request = self._requests.get(request_id)
        if request is None or not self._end(request_id, State.DONE, now_s):
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

    def take_defect(self) -> Defect | None:
        """A defect that was got over and not told yet; once for each place in the code."""
        return self._defects.pop() if self._defects else None

    # What metrics and answers read

    def copy(self) -> Self:
        """A scheduler in the same state; what is done to one of them is not seen by the other."""
        twin = copy(self)
        twin._costs, twin._arrivals, twin._policy = copy(self._costs), copy(self._arrivals), self._policy.copy()
        twin._requests = {request_id: request.copy() for request_id, request in self._requests.items()}
        twin._hard_deadlines, twin._outstanding = self._hard_deadlines.copy(), self._outstanding.copy()
        twin._unprepared_s = self._unprepared_s.copy()
        twin._num_in, twin._counted = self._num_in.copy(), self._counted.copy()
        twin._defects, twin._known_defects = self._defects.copy(), self._known_defects.copy()
        return twin

    def crowd_with(self, num_images: int, now_s: float) -> Crowd:
        """How busy the device would be with so many images more."""
        self._rest(now_s)
        return Crowd(
            in_flight=self.num_waiting + self.num_running + num_images,
            max_batch=self.max_batch,
            newcomers=num_images,
            correction=self._costs.correction,
            deviation=self._costs.deviation,
            images_per_s=self._arrivals.images_per_s(now_s),
            target_ms=1000 * self._arrivals.mean_target_s or inf,
        )

    @property
    def outstanding(self) -> tuple[Launch, ...]:
        """Launches that were decided and have not been reported, in order."""
        return tuple(self._outstanding)

    @property
    def num_waiting(self) -> int:
        return self._num_in[State.WAITING]

    @property
    def num_running(self) -> int:
        return self._num_in[State.RUNNING]

    @property
    def max_batch(self) -> int:
        return self._max_batch

    def correction(self, now_s: float) -> float:
        """Observed over predicted milliseconds, as applied to predictions now."""
        self._rest(now_s)
        return self._costs.correction

    @property
    def num_steps_left(self) -> int:
        """Of the grids of all accepted requests together; those on the device do not count."""
        return sum(request.steps_left for request in self._requests.values() if request.state not in ENDED)

    @property
    def busy_until_s(self) -> float:
        """The predicted end of the last decided launch."""
        return self._busy_until_s

    @property
    def counters(self) -> Counters:
        return Counters(**self._counted)

    def owed(self, now_s: float) -> Sequence[Owed]:
        """What is left to run of everybody, in any order."""
        return self._policy.owed(self._view(now_s, max(now_s, self._busy_until_s)))

    def progress_of(self, request_id: int) -> Progress:
        """The steps decided so far, those on the device included: it goes on growing while the request runs, and is
        only ever added to. Whoever wants to know how far a picture is reads it here."""
        return self._requests[request_id].executed

    # Inside

    def _newcomers(self, demands: Sequence[Demand], now_s: float) -> list[Tracked]:
        self._rest(now_s)
        return [Tracked(demand=self._riding(demand)) for demand in demands]

    def _rest(self, now_s: float) -> None:
        """Tells the costs for how long nothing has run, if nothing was there to run."""
        if self._outstanding or self.num_waiting or self.num_running:
            return
        since_s = max(self._busy_until_s, self._rested_until_s)
        if now_s > since_s:
            self._costs.rest(now_s - since_s)
            self._rested_until_s = now_s

    def _riding(self, demand: Demand) -> Demand:
        """With unguided steps among guided ones, where that is cheaper."""
        weak_caps = self._costs.table.riding(demand.shape, demand.weak_caps)
        return demand if weak_caps == demand.weak_caps else replace(demand, weak_caps=weak_caps)

    def _view(self, now_s: float, free_s: float, newcomers: Sequence[Demand] = ()) -> View:
        """free_s: from when the device is free."""
        prepare_s = sum([newcomer.prepare_s for newcomer in newcomers if newcomer.is_hard])
        return View(
            now_s=now_s,
            start_s=free_s + sum(self._unprepared_s.values()) + prepare_s,
            costs=self._costs,
            max_batch=self._max_batch,
            num_waiting=self.num_waiting,
            prepare_s=prepare_s,
        )

    def _count_gap(self, now_s: float) -> None:
        """The policy makes its plans anew, with the gap that was observed in each step."""
        self._costs = self._costs.with_gap()
        view = self._view(now_s, max(now_s, self._busy_until_s))
        self._begin_afresh(view, otherwise=self._stand_in(view))

    def _decide_without_policy(self, error: Exception, view: View, start_s: float) -> Launch | None:
        """A decision in place of one that failed; then the policy begins afresh with what is there. So a defect in it
        costs some quality, or a promise, and not everybody's pictures."""
        self._note(error)
        stand_in = self._stand_in(view)
        choice = stand_in.choose(view)
        decision = None if choice is None else self._launch(choice, start_s)
        self._begin_afresh(view, otherwise=stand_in)
        return decision

    def _stand_in(self, view: View) -> Policy:
        """A policy too plain to fail, with what is there now."""
        policy = FixedPolicy()
        policy.resume(self._unfinished(), view)
        return policy

    def _begin_afresh(self, view: View, *, otherwise: Policy) -> None:
        """Gives the policy what is there now, or its place to `otherwise`, which has that already."""
        try:
            self._policy.resume(self._unfinished(), view)
        except Exception as error:
            self._note(error)
            self._policy = otherwise

    def _note(self, error: Exception) -> None:
        self._counted["decision_errors"] += 1
        place = traceback.extract_tb(error.__traceback__)[-1]
        if (key := f"{type(error).__name__} {place.filename}:{place.lineno}") not in self._known_defects:
            self._known_defects.add(key)
            as_it_was = deepcopy(self, {id(self._defects): []})  # whatever is wrong with it: `copy` trusts it
            self._defects.append(Defect(error, as_it_was))

    def _unfinished(self) -> list[Tracked]:
        """Requests with steps to decide."""
        return [request for request in self._requests.values() if request.state not in ENDED and request.steps_left]

    def _take(self, newcomer: Tracked) -> None:
        self._requests[newcomer.demand.request_id] = newcomer
        self._num_in[State.WAITING] += 1
        if newcomer.demand.is_hard:
            if newcomer.demand.prepare_s:
                self._unprepared_s[newcomer.demand.request_id] = newcomer.demand.prepare_s
            self._counted["promised"] += 1
            heappush(self._hard_deadlines, (newcomer.demand.deadline_s, newcomer.demand.request_id))

    def _launch(self, choice: Choice, start_s: float) -> Launch:
        members = [self._requests[request_id] for request_id in choice.request_ids]
        batch = len(members)
        assert 1 <= batch <= self._max_batch, batch
        prepare_s, num_ending = self._advance(members, choice)
        costs, table = self._costs, self._costs.table
        launch = Launch(
            launch_id=self._num_launches,
            request_ids=tuple(choice.request_ids),
            kind=choice.kind,
            levels=tuple(choice.levels),
            strides=tuple(choice.strides),
            predicted_ms=costs.correction * table.step_ms(choice.kind, batch),
            decode_ms=costs.correction * table.decode_row(choice.kind.shape)[num_ending] if num_ending else 0.0,
            answer_ms=costs.correction * table.answer_row(choice.kind.shape)[num_ending] if num_ending else 0.0,
            prepare_ms=1000 * prepare_s,
        )
        self._num_launches += 1
        self._outstanding.append(launch)
        self._busy_until_s = start_s + launch.device_ms / 1000
        return launch

    def _advance(self, members: Sequence[Tracked], choice: Choice) -> tuple[float, int]:
        """Counts the step as run. How long the device works for those who begin with it, and how many end with it."""
        prepare_s, num_ending = 0.0, 0
        granted, num_free, num_changed, is_skipped = 0, 0, 0, choice.kind.is_skipped
        for member, level, stride in zip(members, choice.levels, choice.strides, strict=True):
            demand, executed = member.demand, member.executed
            if executed.at:
                before = executed.levels[-1]
                level = before if is_skipped else level
            else:
                before = level
                prepare_s += demand.prepare_s
                self._unprepared_s.pop(demand.request_id, None)
                self._move(member, State.RUNNING)
            if member.is_free:
                num_free += 1
                granted += level
                num_changed += before != level
            executed.take(level, stride)
            num_ending += executed.at == demand.num_steps
        self._counted["granted_levels"] += granted
        self._counted["granted_steps"] += num_free
        self._counted["replans"] += num_changed
        return prepare_s, num_ending

    def _is_complete(self, request_id: int) -> bool:
        """All its steps have been reported: it is in no launch that is still outstanding."""
        member = self._requests.get(request_id)
        if member is None or member.state is not State.RUNNING or member.steps_left:
            return False
        return not any(request_id in other.request_ids for other in self._outstanding)

    def _end(self, request_id: int, state: State, now_s: float) -> bool:
        request = self._requests.get(request_id)
        if request is None or request.state in ENDED:
            return False
        had_steps = request.state is not State.FINISHING and request.steps_left
        self._unprepared_s.pop(request_id, None)
        self._move(request, state)
        if had_steps:
            self._drop(request, now_s)
        return True

    def _drop(self, request: Tracked, now_s: float) -> None:
        try:
            self._policy.drop(request.demand.request_id)
        except Exception as error:
            self._note(error)
            view = self._view(now_s, max(now_s, self._busy_until_s))
            self._begin_afresh(view, otherwise=self._stand_in(view))

    def _move(self, request: Tracked, state: State) -> None:
        assert state in TRANSITIONS[request.state], f"{request.state} cannot become {state}"
        self._num_in[request.state] -= 1
        self._num_in[state] += 1
        request.state = state
