"""From what replicas have counted to how many there should be."""

from __future__ import annotations

from dataclasses import replace

from elit_serve.fleet.scaling import Scaler, Tally

LOADED = Tally(load_s=4.0)


def busy(tally: Tally, granted: float) -> Tally:
    """A second later, in which a replica was asked for all that it can do and granted so much of the budget."""
    return replace(
        tally,
        orders=tally.orders + 10,
        offered_s=tally.offered_s + 1,
        granted=tally.granted + 100 * granted,
        steps=tally.steps + 100,
    )


def test_a_fleet_that_grants_too_little_grows_and_one_with_nothing_to_do_shrinks() -> None:
    scaler, tally, wanted = Scaler(min_replicas=1, max_replicas=3), LOADED, 1
    for second in range(4):
        tally = busy(tally, granted=0.3)
        wanted = scaler.wanted({"first": tally}, float(second), ready=1, target=wanted)
    assert wanted > 1
    for second in range(4, 30):
        wanted = scaler.wanted({"first": tally, "second": LOADED}, float(second), ready=wanted, target=wanted)
    assert wanted == 1


def test_a_fleet_that_grants_everything_stays() -> None:
    scaler, tally = Scaler(min_replicas=1, max_replicas=3), LOADED
    for second in range(8):
        tally = replace(busy(tally, granted=1.0), offered_s=tally.offered_s + 0.5)
        assert scaler.wanted({"first": tally}, float(second), ready=1, target=1) == 1


def test_refusals_of_all_replicas_are_a_reason_to_grow() -> None:
    scaler, tally = Scaler(min_replicas=1, max_replicas=3), LOADED
    wanted = [
        scaler.wanted({"first": replace(tally, orders=10.0 * second, refused=1.0 * second)}, second, ready=1, target=1)
        for second in range(4)
    ]
    assert max(wanted) > 1


def test_how_long_a_replica_takes_to_load_is_seen() -> None:
    scaler, tally = Scaler(min_replicas=1, max_replicas=2), LOADED
    for second in range(30):  # the second one takes orders after 20 s
        ready = 1 if second < 20 else 2
        scaler.wanted({"first": tally}, float(second), ready=ready, target=2)
    kept = [scaler.wanted({"first": tally}, float(second), ready=2, target=2) for second in range(30, 80)]
    assert kept[0] == 2
    assert kept[-1] == 1


def test_a_replica_that_starts_anew_takes_nothing_away() -> None:
    scaler = Scaler(min_replicas=1, max_replicas=3)
    tally = replace(LOADED, orders=1000, refused=0, granted=1e4, steps=1e4)
    assert scaler.wanted({"first": tally}, 0.0, ready=1, target=1) == 1
    assert scaler.wanted({"first": LOADED}, 2.0, ready=1, target=1) == 1
