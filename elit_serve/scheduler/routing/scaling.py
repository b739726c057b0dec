"""How many replicas a fleet should have, from what it lately granted, refused and was asked for; a pure function.

Quality is the buffer while a replica loads: levels fall at once and nothing promised is late. So a fleet grows when it
grants too little or refuses, and not before; and it shrinks when one replica fewer would have granted everything for
long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.policy.fixed import highest_kinds
from elit_serve.scheduler.requests import Demand


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a fleet was like since the reading before.

    at_s: when it ends.
    offered: what was asked for, in replicas that it would have kept busy at full budget, see `full_s`.
    granted: the mean budget, 0 to 1, of the steps whose level was the policy's to choose; None if there were none.
    refused: the share of orders that every replica refused.
    """

    at_s: float
    offered: float
    granted: float | None
    refused: float


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """load_s: from the wish for a replica until it takes orders.

    fill: how much of a replica's throughput at full budget is asked of it where everything can be granted: batches are
        seldom full, and arrivals come in bursts.
    least_granted, most_refused: beyond these a fleet is too small.
    notice: over how much of the load time that is judged; patience: for how many load times fewer must have sufficed.
    """

    min_replicas: int
    max_replicas: int
    load_s: float
    fill: float = 0.7
    least_granted: float = 0.8
    most_refused: float = 0.01
    notice: float = 0.25
    patience: float = 2.0

    def __post_init__(self) -> None:
        assert 1 <= self.min_replicas <= self.max_replicas, (self.min_replicas, self.max_replicas)
        assert self.load_s > 0, self.load_s

    @property
    def memory_s(self) -> float:
        """For how long readings are looked at."""
        return self.patience * self.load_s


def replicas_wanted(readings: Sequence[Reading], scaling: Scaling, *, ready: int, loading: int) -> int:
    """How many there should be, those that load included. readings: in order of time, since at least `memory_s`.

    Nothing is added to a fleet that is too small while the replicas that it lacks are loading; nothing is removed
    before they are there.
    """
    wanted = present = ready + loading
    lately = _lately(readings, scaling)
    if lately and _is_short(lately, scaling):
        wanted = max(present, ready + 1, _needed(lately, scaling))
    elif lately and not loading and readings[-1].at_s - readings[0].at_s >= scaling.memory_s:
        wanted = min(present, _most_needed(readings, scaling))
    return min(max(wanted, scaling.min_replicas), scaling.max_replicas)


def full_s(demand: Demand, costs: CorrectedCosts) -> float:
    """Seconds of a device that a picture takes at its highest levels, as its share of the largest batch."""
    rows = map(costs.row_s, highest_kinds(demand, costs))
    return sum(row[-1] / (len(row) - 1) for row in rows)


def _lately(readings: Sequence[Reading], scaling: Scaling) -> list[Reading]:
    """The last of them, by which a fleet is judged."""
    since_s = readings[-1].at_s - scaling.notice * scaling.load_s if readings else 0.0
    return [reading for reading in readings if reading.at_s > since_s]


def _is_short(lately: Sequence[Reading], scaling: Scaling) -> bool:
    granted = [reading.granted for reading in lately if reading.granted is not None]
    is_low = bool(granted) and fmean(granted) < scaling.least_granted
    return is_low or fmean(reading.refused for reading in lately) > scaling.most_refused


def _needed(lately: Sequence[Reading], scaling: Scaling) -> int:
    """So many that each would be asked what it can grant."""
    return ceil(fmean(reading.offered for reading in lately) / scaling.fill)


def _most_needed(readings: Sequence[Reading], scaling: Scaling) -> int:
    """At any time that is remembered."""
    since_s = readings[-1].at_s - scaling.memory_s
    ends = (end for end, reading in enumerate(readings, 1) if reading.at_s > since_s)
    return max(_needed(_lately(readings[:end], scaling), scaling) for end in ends)
