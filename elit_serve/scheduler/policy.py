"""Choosing a level for a latency target; reads no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from elit_serve.errors import Infeasible


def highest_level_within(latency_ms: float, candidates: Sequence[int], predict: Callable[[int], float]) -> int:
    """The highest of `candidates` whose predicted milliseconds fit into `latency_ms`.

    Raises `Infeasible` with the smallest latency that some candidate fits into, in whole milliseconds.

    >>> highest_level_within(250, [1, 2, 4, 8], lambda level: 100 + 40 * level)
    2
    """
    predicted = {level: predict(level) for level in candidates}
    fitting = [level for level, cost_ms in predicted.items() if cost_ms <= latency_ms]
    if not fitting:
        raise Infeasible(latency_ms, math.ceil(min(predicted.values())))
    return max(fitting)
