"""How many replicas there should be, asked by whoever runs them: what replicas count, made into readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from elit_serve.scheduler.routing.scaling import Reading, Scaling, replicas_wanted

READ_S = 1.0  # between two readings
SUMMED = ("orders", "offered_s", "refused", "granted", "steps")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a replica has counted since its start, of orders that it was the first to be asked for.

    offered_s: seconds of a device that they would take at full budget. refused: of any orders, those that it was the
    last of all to refuse. granted: sum of the budgets of the `steps` whose level was the policy's to choose.
    load_s: until it took orders, from when its process began to load.
    """

    orders: float = 0.0
    offered_s: float = 0.0
    refused: float = 0.0
    granted: float = 0.0
    steps: float = 0.0
    load_s: float = 0.0


class Scaler:
    """Remembers readings. Called as often as somebody likes."""

    def __init__(self, *, min_replicas: int, max_replicas: int) -> None:
        self._bounds = min_replicas, max_replicas
        self._seen: dict[str, Tally] = {}
        self._readings: list[Reading] = []
        self._since = dict.fromkeys(SUMMED, 0.0)
        self._read_s: float | None = None
        self._load_s = READ_S
        self._loading_since_s: float | None = None
        self._wanted: int | None = None

    def wanted(self, tallies: Mapping[str, Tally], now_s: float, *, ready: int, target: int) -> int:
        """How many replicas there should be. tallies: the newest of each replica. target: how many there are to be now,
        of which so many are `ready`."""
        for name, tally in tallies.items():
            self._add(tally, self._seen.get(name, Tally()))
            self._load_s = max(self._load_s, tally.load_s)
        self._seen = {**self._seen, **tallies}
        self._time_loading(now_s, is_loading=ready < target)
        if self._read_s is None:
            self._read_s = now_s
        if now_s - self._read_s >= READ_S:
            self._read(now_s)
            self._wanted = self._decided(ready=ready, target=target)
        return target if self._wanted is None else self._wanted

    def _time_loading(self, now_s: float, *, is_loading: bool) -> None:
        """A process has to start before a replica begins to load, which takes longer than that for a small model."""
        if is_loading:
            self._loading_since_s = now_s if self._loading_since_s is None else self._loading_since_s
        elif self._loading_since_s is not None:
            self._load_s = max(self._load_s, now_s - self._loading_since_s)
            self._loading_since_s = None

    def _add(self, now: Tally, before: Tally) -> None:
        for name in self._since:
            self._since[name] += max(0.0, getattr(now, name) - getattr(before, name))

    def _read(self, now_s: float) -> None:
        assert self._read_s is not None
        since, steps = self._since, self._since["steps"]
        reading = Reading(
            at_s=now_s,
            offered=since["offered_s"] / (now_s - self._read_s),
            granted=since["granted"] / steps if steps else None,
            refused=min(1.0, since["refused"] / since["orders"]) if since["orders"] else 0.0,
        )
        self._since, self._read_s = dict.fromkeys(SUMMED, 0.0), now_s
        oldest_s = now_s - self._scaling.memory_s - READ_S
        self._readings = [*(each for each in self._readings if each.at_s >= oldest_s), reading]

    def _decided(self, *, ready: int, target: int) -> int:
        return replicas_wanted(self._readings, self._scaling, ready=ready, loading=max(0, target - ready))

    @property
    def _scaling(self) -> Scaling:
        fewest, most = self._bounds
        return Scaling(min_replicas=fewest, max_replicas=most, load_s=self._load_s)
