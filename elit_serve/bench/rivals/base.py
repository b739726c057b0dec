"""What every rival keeps track of, so that each of them is only its rule; far simpler than the server's core.

Rivals serve one image at a time and level alone: no pins, no priorities, one guidance mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from elit_serve.bench.rivals.pace import Need, all_in_time
from elit_serve.bench.simulate.workload import Setting
from elit_serve.scheduler.requests import ENDED, Demand, Launch, Refusal, State, Wait


@dataclass(kw_only=True)
class Job:
    """level: for rules that choose it once for the whole image; 0 until they have."""

    demand: Demand
    steps_left: int
    state: State = State.WAITING
    level: int = 0

    @property
    def deadline_s(self) -> float:
        return self.demand.deadline_s


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What to run next."""

    jobs: Sequence[Job]
    level: int


class Rival(ABC):
    """A `Scheduler` made from one rule, `choose`; it accepts everybody and gives nobody up unless a rule says so."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._jobs: dict[int, Job] = {}
        self._launches: dict[int, tuple[int, ...]] = {}
        self._launch_ids = count()
        self._busy_until_s = float("-inf")

    @abstractmethod
    def choose(self, jobs: Sequence[Job], now_s: float) -> Cohort | None:
        """One step for some of `jobs` (never empty; in order of arrival), or None to wait for the next event."""

    def refusal(self, newcomer: Job, now_s: float) -> Refusal | None:  # noqa: ARG002
        """Whether to take a request; if so, its level may be fixed."""
        return None

    def is_hopeless(self, job: Job, now_s: float) -> bool:  # noqa: ARG002
        """Whether to give an accepted request up."""
        return False

    def submit(self, demands: Sequence[Demand], now_s: float) -> Refusal | None:
        (demand,) = demands
        newcomer = Job(demand=demand, steps_left=demand.num_steps)
        refusal = self.refusal(newcomer, now_s)
        if refusal is None:
            self._jobs[demand.request_id] = newcomer
        return refusal

    def decide(self, start_s: float) -> Launch | Wait:
        jobs = self.unfinished()
        cohort = self.choose(jobs, start_s) if jobs else None
        return Wait() if cohort is None else self._launch(cohort, start_s)

    def finished(self, launch_id: int, now_s: float, observed_ms: float | None = None) -> tuple[int, ...]:  # noqa: ARG002
        members = [self._jobs[request_id] for request_id in self._launches.pop(launch_id) if request_id in self._jobs]
        done = [job for job in members if job.state is State.RUNNING and job.steps_left == 0]
        for job in done:
            job.state = State.FINISHING
        return tuple(job.demand.request_id for job in done)

    def expire(self, now_s: float) -> tuple[int, ...]:
        hopeless = [job for job in self.unfinished() if self.is_hopeless(job, now_s)]
        for job in hopeless:
            job.state = State.EXPIRED
        return tuple(job.demand.request_id for job in hopeless)

    def cancel(self, request_id: int, now_s: float) -> bool:  # noqa: ARG002
        return self._end(request_id, State.CANCELLED)

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:  # noqa: ARG002
        for request_id in request_ids:
            self._end(request_id, State.FAILED)

    def delivered(self, request_id: int, now_s: float) -> None:  # noqa: ARG002
        self._end(request_id, State.DONE)

    def state(self, request_id: int) -> State | None:
        return self._jobs[request_id].state if request_id in self._jobs else None

    def forget(self, request_id: int) -> None:
        assert self.state(request_id) in ENDED
        del self._jobs[request_id]

    def unfinished(self) -> list[Job]:
        """Accepted requests with steps to run, in order of arrival."""
        return [job for job in self._jobs.values() if job.steps_left and job.state not in ENDED]

    def lowest_step_s(self) -> float:
        """The shortest step there is: the lowest level, alone."""
        return self._setting.step_s(self._setting.levels[0], 1)

    def can_still_make_it(self, job: Job, now_s: float) -> bool:
        """Alone, at the lowest level, from now on."""
        return now_s + job.steps_left * self.lowest_step_s() + self._setting.overhead_s <= job.deadline_s

    def need(self, job: Job, level: int = 0) -> Need:
        """What is left of a request, at its own level or at another."""
        due_s = job.deadline_s - self._setting.overhead_s
        return Need(due_s=due_s, steps_left=job.steps_left, level=level or job.level)

    def would_be_in_time(self, newcomer: Job, level: int, now_s: float, *, others_at: int = 0) -> bool:
        """Whether a newcomer and everybody accepted would be, from the end of the launch that is running."""
        needs = [self.need(job, others_at) for job in self.unfinished()]
        needs.append(self.need(newcomer, level))
        start_s = max(now_s, self._busy_until_s)
        return all_in_time(needs, start_s, self._setting.table.max_batch, self._setting.step_s)

    def _launch(self, cohort: Cohort, start_s: float) -> Launch:
        for job in cohort.jobs:
            job.steps_left -= 1
            job.state = State.RUNNING
        launch = Launch(
            launch_id=next(self._launch_ids),
            request_ids=tuple(job.demand.request_id for job in cohort.jobs),
            kind=self._setting.kind(cohort.level),
            predicted_ms=1000 * self._setting.step_s(cohort.level, len(cohort.jobs)),
        )
        self._launches[launch.launch_id] = launch.request_ids
        self._busy_until_s = start_s + launch.predicted_ms / 1000
        return launch

    def _end(self, request_id: int, state: State) -> bool:
        if self.state(request_id) is None or self.state(request_id) in ENDED:
            return False
        self._jobs[request_id].state = state
        return True


def by_deadline(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.deadline_s, job.demand.request_id))
