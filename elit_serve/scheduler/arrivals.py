"""What has lately arrived, refused requests too: how many images, for when, how urgent. Reads no clock."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf
from typing import NamedTuple

from elit_serve.scheduler.requests import Demand


class Urgent(NamedTuple):
    """Work that cannot wait for its turn, as it lately has come: seconds of it per second, and in what time it must be
    done, in the mean over such work."""

    rate: float
    target_s: float


class RecentArrivals:
    """memory: how long arrivals count, relative to the mean target: older ones by exp(-age / that time)."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._urgent_s = self._urgent_targets_s = self._targets_s = self._count = 0.0
        self._last_s = -inf

    @property
    def mean_target_s(self) -> float:
        return self._targets_s / self._count if self._count else 0.0

    def saw(self, now_s: float, demands: Sequence[Demand], urgent_s: Sequence[float] | None = None) -> None:
        """These images have arrived. urgent_s: of each, how many seconds of its work cannot wait for their turn."""
        kept = self._kept(now_s)
        targets_s = [demand.deadline_s - demand.arrived_s for demand in demands]
        urgent_s = urgent_s or [0.0] * len(demands)
        weighted_s = sum([each_s * target_s for each_s, target_s in zip(urgent_s, targets_s, strict=True)])
        self._urgent_s = kept * self._urgent_s + sum(urgent_s)
        self._urgent_targets_s = kept * self._urgent_targets_s + weighted_s
        self._targets_s = kept * self._targets_s + sum(targets_s)
        self._count = kept * self._count + len(demands)
        self._last_s = now_s

    def images_per_s(self, now_s: float) -> float:
        """Images that arrive per second."""
        return self._per_s(self._count, now_s)

    def urgent(self, now_s: float) -> Urgent:
        """Urgent work that is expected to come, in seconds of the table."""
        target_s = self._urgent_targets_s / self._urgent_s if self._urgent_s else inf
        return Urgent(self._per_s(self._urgent_s, now_s), target_s)

    def _per_s(self, total: float, now_s: float) -> float:
        memory_s = self._memory * self.mean_target_s
        return self._kept(now_s) * total / memory_s if memory_s > 0 else 0.0

    def _kept(self, now_s: float) -> float:
        memory_s = self._memory * self.mean_target_s
        return exp(-max(now_s - self._last_s, 0.0) / memory_s) if memory_s > 0 else 0.0
