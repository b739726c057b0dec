"""An error in a decision costs no more than it has to, and can be looked into afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.policy.view import Choice, View
from elit_serve.scheduler.replay import as_text, from_text
from elit_serve.scheduler.requests import Demand, Launch, Priority
from elit_serve.scheduler.state import State, Tracked


class Defective(ElasticPolicy):
    """Fails in some of its decisions, and, where it should, also when it has to begin afresh."""

    def __init__(self, quality: QualityTable, *, fails_at: Sequence[int], recovers: bool = True) -> None:
        super().__init__(quality)
        self.decisions, self.fails_at, self.recovers = 0, fails_at, recovers

    def choose(self, view: View) -> Choice | None:
        choice = super().choose(view)  # so that its books say what then is not run
        self.decisions += 1
        if self.decisions - 1 in self.fails_at:
            raise AssertionError("a defect")
        return choice

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        if not self.recovers:
            raise KeyError("another defect")
        super().resume(requests, view)


def image(request_id: int, arrived_s: float = 0.0, **fields: object) -> Demand:
    values: dict[str, object] = {"deadline_s": arrived_s + 0.5, "weak_caps": (4,) * 6, "min_level": 4, "max_level": 16}
    return Demand(shape="32x32", request_id=request_id, arrived_s=arrived_s, **(values | fields))  # type: ignore[arg-type]


def run_all(scheduler: RequestScheduler, now_s: float = 0.0) -> float:
    """Until nothing is left; when the last step ends. Pictures are out 10 ms after their last step."""
    while isinstance(launch := scheduler.decide(now_s), Launch):
        now_s += launch.predicted_ms / 1000
        for request_id in scheduler.finished(launch.launch_id, now_s):
            scheduler.delivered(request_id, now_s + 0.01)
    return now_s


@pytest.mark.parametrize("recovers", [True, False])
def test_pictures_are_made_in_time_though_decisions_fail(
    table: CostTable, quality: QualityTable, recovers: bool
) -> None:
    scheduler = RequestScheduler(table, Defective(quality, fails_at=(0, 2, 3), recovers=recovers))
    assert scheduler.submit([image(i) for i in range(4)], 0.0) is None
    assert scheduler.submit([image(5, is_hard=False)], 0.0) is None
    assert run_all(scheduler) + 0.01 <= 0.5
    assert all(scheduler.state(i) is State.DONE for i in (0, 1, 2, 3, 5))
    assert all(scheduler.progress_of(i).at == 6 for i in (0, 1, 2, 3, 5))
    assert scheduler.counters.decision_errors == (3 if recovers else 2)


def test_after_a_failed_decision_promises_are_made_and_kept_as_before(table: CostTable, quality: QualityTable) -> None:
    scheduler = RequestScheduler(table, Defective(quality, fails_at=(2,)))
    assert scheduler.submit([image(i) for i in range(6)], 0.0) is None
    now_s = 0.0
    for _ in range(4):
        launch = scheduler.decide(now_s)
        assert isinstance(launch, Launch)
        now_s += launch.predicted_ms / 1000
        scheduler.finished(launch.launch_id, now_s)
    crowd = [scheduler.submit([image(i, now_s, deadline_s=now_s + 0.2)], now_s) for i in range(10, 60)]
    assert crowd[0] is None
    assert crowd[-1] is not None
    run_all(scheduler, now_s)
    assert (scheduler.counters.kept, scheduler.counters.missed) == (6 + crowd.count(None), 0)


def test_each_defect_is_told_once_with_the_state_in_which_it_showed(table: CostTable, quality: QualityTable) -> None:
    """A plan of what is promised that is no plan."""
    policy = ElasticPolicy(quality)
    scheduler = RequestScheduler(table, policy)
    scheduler.submit([image(1)], 0.0)
    policy._promises.certificate._deciding = [None]  # type: ignore[list-item]
    assert isinstance(scheduler.decide(0.0), Launch)
    defect = scheduler.take_defect()
    assert defect is not None
    assert isinstance(defect.error, TypeError)
    assert scheduler.take_defect() is None
    state = as_text(defect.scheduler)
    elsewhere = from_text(state)
    assert elsewhere.num_waiting == 1
    assert isinstance(elsewhere.decide(0.0), Launch)
    again = elsewhere.take_defect()
    assert elsewhere.counters.decision_errors == defect.scheduler.counters.decision_errors + 1
    assert again is None, "this place in the code is known"


@pytest.mark.parametrize("seed", range(5))
def test_a_scheduler_read_from_text_decides_as_the_one_that_was_written(
    table: CostTable, quality: QualityTable, seed: int
) -> None:
    random, now_s = Random(seed), 0.0
    scheduler = RequestScheduler(table, ElasticPolicy(quality))
    for request_id in range(60):
        demand = image(
            request_id,
            now_s,
            deadline_s=now_s + random.choice([0.1, 0.3, 1.0]),
            weak_caps=(random.choice([4, 16]),) * 6,
            is_hard=random.random() < 0.7,
            priority=random.choice(list(Priority)),
        )
        scheduler.submit([demand], now_s)
        if isinstance(launch := scheduler.decide(now_s), Launch):
            now_s += launch.predicted_ms / 1000
            scheduler.finished(launch.launch_id, now_s, random.uniform(0.9, 1.2) * launch.predicted_ms)
    assert scheduler.num_running > 3
    other = from_text(as_text(scheduler))
    for _ in range(30):
        launch, same = scheduler.decide(now_s), other.decide(now_s)
        assert same == launch
        if isinstance(launch, Launch):
            now_s += launch.predicted_ms / 1000
            assert other.finished(launch.launch_id, now_s) == scheduler.finished(launch.launch_id, now_s)
    assert as_text(other) == as_text(scheduler)


@pytest.mark.parametrize("text", ["", "no base64!", "eJyrVspLzE1VslKqBQAVCgPn", "eJyLjgUAARUAuQ=="])
def test_text_that_is_no_scheduler_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="state"):
        from_text(text)
