"""Places in the queue between keys: nobody is crowded out, and nobody waits for places that no one wants."""

from __future__ import annotations

import random

from elit_serve.server.fairness import GRACE_S, FairShares


def test_alone_a_key_may_fill_the_queue() -> None:
    shares = FairShares({"a": 1, "b": 1}, places=8)
    assert shares.excess("a", 4, {"a": 4}, 0) == 0


def test_while_others_wait_a_key_has_its_weighted_share() -> None:
    shares = FairShares({"a": 1, "b": 3, "idle": 4}, places=8)
    assert shares.excess("a", 1, {"a": 1, "b": 1}, 0) == 0
    assert shares.excess("a", 2, {"a": 1, "b": 1}, 0) == 1
    assert shares.excess("b", 5, {"a": 1, "b": 1}, 0) == 0
    assert shares.excess("b", 6, {"a": 1, "b": 1}, 0) == 1


def test_who_has_nothing_waiting_is_never_refused_here_even_above_its_share() -> None:
    shares = FairShares({"a": 1, "b": 99}, places=8)
    assert shares.excess("a", 4, {"b": 7}, 0) == 0


def test_who_was_turned_away_competes_until_it_has_had_time_to_come_back() -> None:
    shares = FairShares({"a": 1, "b": 1}, places=8)
    shares.turned_away("b", retry_after_s=5, now_s=100)
    assert shares.excess("a", 1, {"a": 7}, 101) == 4
    assert shares.excess("a", 1, {"a": 7}, 105 + GRACE_S) == 0


def test_a_key_that_is_not_in_the_file_any_more_has_a_share_of_1() -> None:
    shares = FairShares({"a": 1}, places=8)
    assert shares.excess("gone", 4, {"gone": 1, "a": 1}, 0) == 1


def test_a_late_and_modest_key_gets_its_share_from_one_that_never_stops_asking() -> None:
    """A queue of 8 that loses a picture a second; `greedy` asks twenty times a second, `modest` as it is told to."""
    places, waiting = 8, {"greedy": 0, "modest": 0}
    shares = FairShares({"greedy": 1, "modest": 1}, places=places)
    order: list[str] = []
    served = {"greedy": 0, "modest": 0}
    draw = random.Random(0)
    for tick in range(20 * 200):
        now_s = tick / 20
        asking = ["greedy"] + (["modest"] if now_s >= 20 and tick % 10 == 0 else [])
        for key in draw.sample(asking, len(asking)):
            if shares.excess(key, 1, waiting, now_s):
                continue
            if len(order) == places:
                shares.turned_away(key, 1.0, now_s)
                continue
            order.append(key)
            waiting[key] += 1
        if tick % 20 == 19:
            done = order.pop(0)
            waiting[done] -= 1
            served[done] += now_s >= 40
    assert abs(served["greedy"] - served["modest"]) <= 4
    assert sum(served.values()) == 160
