"""What one step of everybody in a round takes: in which launches, and what is decoded behind them.

Fewer of them never take more, which is what lets a plan be followed in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

from elit_serve.scheduler.mixing import Mixing, Rung
from elit_serve.scheduler.policy.pace import Work

REMEMBERED = 4_096  # of those who end together


def launches_s(works: Sequence[Work]) -> float:
    """In a launch for every kind, or for several levels together where that takes less."""
    rungs = [work.rung for work in works]
    if rungs.count(rungs[0]) == len(rungs):
        return rungs[0].row_s[len(rungs)]
    seconds, keys = 0.0, dict[Mixing, int]()
    for rung in set(rungs):
        count = rungs.count(rung)
        if rung.mixing is None:
            seconds += rung.row_s[count]
        else:
            keys[rung.mixing] = keys.get(rung.mixing, 0) + count * rung.unit
    return seconds + sum([mixing.seconds(key) for mixing, key in keys.items()])


def first_launch(works: Sequence[Work]) -> list[Work]:
    """Those of them who share a launch with the first."""
    rung = works[0].rung
    if rung.mixing is None:
        return [work for work in works if work.rung is rung]
    together = [work for work in works if work.rung.mixing is rung.mixing]
    lowest, highest = rung.mixing.group_of(rung.kind.level, sum([work.rung.unit for work in together]))
    return [work for work in together if lowest <= work.lowest <= highest]


def decoded(ended: Sequence[Work]) -> tuple[float, Sequence[float]]:
    """How long those who end in one round are decoded, and how much later than alone each is then answered.

    Those whose last steps are of one kind end in one launch. In which order the launches of a round run is open; so is
    which of several levels share one, as that depends on all who run in it: what takes longest counts.
    """
    return _decoded(tuple([work.runs[-1].rung for work in ended]))


@lru_cache(maxsize=REMEMBERED)
def _decoded(last: tuple[Rung, ...]) -> tuple[float, list[float]]:
    """The same of those whose last steps are of these; plans have the same few end together again and again."""
    own = [0.0] * len(last)
    total_s = 0.0
    for together in _sharing(last):
        answering = together[0].answering
        if answering is None:
            continue
        counts = [last.count(rung) for rung in together]
        below_s, above_s = (_longest(answering.decode_s, each) for each in (counts, counts[::-1]))
        late_s = answering.late_s[sum(counts)]
        total_s += below_s[-1]
        for place, rung in enumerate(together):
            others_s = below_s[place] + above_s[len(counts) - place - 1]
            own = [others_s - below_s[-1] + late_s if of is rung else told for of, told in zip(last, own, strict=True)]
    return total_s, [total_s + own_s for own_s in own]


def _sharing(rungs: Iterable[Rung]) -> list[list[Rung]]:
    """Those that may share a launch, the lowest level first."""
    found: dict[Mixing | Rung, list[Rung]] = {}
    for rung in set(rungs):
        found.setdefault(rung.mixing or rung, []).append(rung)
    return [sorted(together, key=lambda rung: rung.unit) for together in found.values()]


def _longest(decode_s: Sequence[float], counts: Sequence[int]) -> list[float]:
    """How long the first 0, 1, ... of these levels are decoded at most, whichever neighbours end together."""
    found, before = [0.0], list(accumulate(counts, initial=0))
    for end in range(1, len(before)):
        found.append(max(found[start] + decode_s[before[end] - before[start]] for start in range(end)))
    return found
