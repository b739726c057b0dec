"""Whom a router asks first, by what replicas told and by what they were asked since."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.policy.view import Policy
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing import Digest, Router, digest_of
from elit_serve.scheduler.routing.digest import MAX_DUES, Due
from elit_serve.scheduler.routing.router import densest_stretches


def picture(request_id: int, *, target_s: float = 1.0, now_s: float = 0.0) -> Demand:
    """Of ten guided steps, each of which takes 2.25 ms as a share of the largest batch at the lowest level."""
    return Demand(
        request_id=request_id,
        shape="32x32",
        arrived_s=now_s,
        deadline_s=now_s + target_s,
        weak_caps=(4,) * 10,
        min_level=4,
        max_level=16,
    )


class Replica:
    """A scheduler that tells of itself."""

    def __init__(self, table: CostTable, policy: Policy) -> None:
        self.scheduler = RequestScheduler(table, policy)
        self._number = 0

    def digest(self, now_s: float) -> Digest:
        self._number += 1
        return digest_of(self.scheduler, now_s, number=self._number, device="small")

    def take(self, *demands: Demand) -> None:
        for demand in demands:
            assert self.scheduler.submit([demand], demand.arrived_s) is None


@pytest.fixture
def replicas(table: CostTable, quality: QualityTable) -> dict[str, Replica]:
    return {name: Replica(table, ElasticPolicy(quality)) for name in ("a", "b", "c")}


@pytest.fixture
def router(table: CostTable, replicas: dict[str, Replica]) -> Router:
    router = Router({"small": table})
    for name, replica in replicas.items():
        router.heard(name, replica.digest(0.0), 0.0)
    return router


def test_the_replica_with_the_least_to_do_until_then_is_asked_first(
    router: Router, replicas: dict[str, Replica]
) -> None:
    replicas["a"].take(picture(1), picture(2))
    replicas["b"].take(picture(3))
    for name in "ab":
        router.heard(name, replicas[name].digest(0.0), 0.0)
    assert [candidate.replica for candidate in router.rank([picture(9)], 0.0)] == ["c", "b", "a"]


def test_work_that_is_due_later_matters_less_to_an_urgent_order(router: Router, replicas: dict[str, Replica]) -> None:
    replicas["a"].take(picture(1, target_s=0.5), picture(2, target_s=0.5))
    replicas["b"].take(*(picture(request_id, target_s=100.0) for request_id in (3, 4, 5)))
    replicas["c"].take(picture(6, target_s=0.4), picture(7, target_s=0.4))
    for name, replica in replicas.items():
        router.heard(name, replica.digest(0.0), 0.0)
    assert router.rank([picture(9, target_s=0.3)], 0.0)[0].replica == "b"


def test_who_is_behind_is_asked_after_who_has_something_to_do_in_time(
    router: Router, replicas: dict[str, Replica]
) -> None:
    """What is overdue leaves the time until an order is due empty of work, but no time for it."""
    now_s = 10.0

    def untargeted(request_id: int, *, due_s: float) -> Demand:
        return replace(picture(request_id, target_s=due_s), is_hard=False)

    replicas["a"].take(*(untargeted(request_id, due_s=1.0) for request_id in range(100)))
    replicas["b"].take(*(untargeted(request_id, due_s=1.0) for request_id in range(50)))
    replicas["c"].take(*(untargeted(request_id, due_s=now_s + 0.5) for request_id in range(10)))
    for name, replica in replicas.items():
        router.heard(name, replica.digest(now_s), now_s)
    assert [candidate.replica for candidate in router.rank([picture(900, now_s=now_s)], now_s)] == ["c", "b", "a"]


def test_a_burst_between_two_digests_spreads(router: Router) -> None:
    asked = []
    for request_id in range(6):
        best = router.rank([picture(request_id)], 0.0)[0].replica
        router.answered(best, router.asked(best, [picture(request_id)], 0.0), is_taken=True)
        asked.append(best)
    assert sorted(asked) == ["a", "a", "b", "b", "c", "c"]


def test_what_was_refused_is_not_there(router: Router) -> None:
    before = set(router.rank([picture(9)], 0.0))
    router.answered("a", router.asked("a", [picture(1)], 0.0), is_taken=False)
    assert set(router.rank([picture(9)], 0.0)) == before


def test_an_order_is_counted_until_a_digest_tells_of_it(router: Router, replicas: dict[str, Replica]) -> None:
    unanswered = router.asked("a", [picture(1)], 0.0)
    router.heard("a", replicas["a"].digest(0.0), 0.0)
    assert router.rank([picture(9)], 0.0)[-1].replica == "a"
    replicas["a"].take(picture(1))
    router.answered("a", unanswered, is_taken=True)
    told_twice = router.rank([picture(9)], 0.0)[-1]
    router.heard("a", replicas["a"].digest(0.0), 0.0)
    assert router.rank([picture(9)], 0.0)[-1].harm == pytest.approx(told_twice.harm, rel=0.01)


def test_an_order_that_is_never_answered_is_forgotten_when_it_is_due(
    router: Router, replicas: dict[str, Replica]
) -> None:
    router.asked("a", [picture(1, target_s=1.0)], 0.0)
    for name, replica in replicas.items():
        router.heard(name, replica.digest(2.0), 2.0)
    harms = {candidate.harm for candidate in router.rank([picture(9, now_s=2.0)], 2.0)}
    assert len(harms) == 1


def test_a_digest_that_was_overtaken_is_not_believed(router: Router, replicas: dict[str, Replica]) -> None:
    early = replicas["a"].digest(0.0)
    replicas["a"].take(picture(1))
    router.heard("a", replicas["a"].digest(0.0), 0.0)
    router.heard("a", early, 0.0)
    assert router.rank([picture(9)], 0.0)[-1].replica == "a"


def test_a_lost_replica_is_not_asked(router: Router) -> None:
    router.lost("b")
    assert {candidate.replica for candidate in router.rank([picture(9)], 0.0)} == {"a", "c"}
    router.answered("b", router.asked("b", [picture(9)], 0.0), is_taken=True)


def test_a_slower_kind_of_device_is_asked_later(table: CostTable, quality: QualityTable) -> None:
    router = Router({"small": table, "slow": table.scaled(2.0)})
    for device, costs in (("small", table), ("slow", table.scaled(2.0))):
        scheduler = RequestScheduler(costs, ElasticPolicy(quality))
        router.heard(device, digest_of(scheduler, 0.0, number=1, device=device), 0.0)
    first, second = router.rank([picture(9)], 0.0)
    assert (first.replica, second.replica) == ("small", "slow")
    assert second.harm == pytest.approx(2 * first.harm, rel=0.01)


def test_a_device_of_unknown_costs_is_refused(router: Router, quality: QualityTable, table: CostTable) -> None:
    scheduler = RequestScheduler(table, ElasticPolicy(quality))
    with pytest.raises(ValueError, match="device 'large' has no cost table"):
        router.heard("d", digest_of(scheduler, 0.0, number=1, device="large"), 0.0)


@pytest.mark.parametrize("policy", ["elastic", "fixed"])
def test_a_digest_is_small_and_travels_as_json(table: CostTable, quality: QualityTable, policy: str) -> None:
    replica = Replica(table, ElasticPolicy(quality) if policy == "elastic" else FixedPolicy())
    replica.take(*(picture(request_id, target_s=2.0 + request_id) for request_id in range(40)))
    replica.scheduler.decide(0.0)
    digest = replica.digest(0.0)
    assert len(digest.dues) <= MAX_DUES
    step_s = 0.00225 if policy == "elastic" else 0.00525
    num_steps = 40 * 10 - digest.num_running
    assert sum(due.least_s for due in digest.dues) == pytest.approx(num_steps * step_s)
    assert digest.busy_s > 0
    assert Digest.from_plain(json.loads(json.dumps(digest.as_plain()))) == digest


def test_an_order_that_was_passed_on_counts_where_it_was_asked_for_first(
    table: CostTable, quality: QualityTable
) -> None:
    first, second = (RequestScheduler(table, ElasticPolicy(quality)) for _ in range(2))
    impossible = picture(1, target_s=0.001)
    assert first.submit([impossible], 0.0) is not None
    assert second.submit([impossible], 0.0, is_passed_on=True) is not None
    assert first.crowd_with(1, 0.0).images_per_s > 0
    assert second.crowd_with(1, 0.0).images_per_s == 0
    assert second.submit([picture(2)], 0.0, is_passed_on=True) is None
    assert second.num_waiting == 1


def test_work_is_spread_as_far_as_its_deadlines_let_it() -> None:
    dues = [Due(1.0, 0.2), Due(2.0, 0.6), Due(4.0, 0.2)]
    assert densest_stretches(dues, 0.0) == [(2.0, pytest.approx(0.8)), (2.0, 0.2)]
    assert densest_stretches(dues, 0.5) == [(1.5, pytest.approx(0.8)), (2.0, 0.2)]


def test_work_that_is_overdue_is_the_densest() -> None:
    first, second = densest_stretches([Due(-1.0, 0.2), Due(2.0, 0.2)], 0.5)
    assert first.work_s == 0.2
    assert first.span_s < 0.01
    assert second.span_s == pytest.approx(1.5, abs=0.01)
