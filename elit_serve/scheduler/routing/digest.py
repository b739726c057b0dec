"""What a replica tells of itself a few times a second and with every answer to an order.

It is little enough to be made under the worker's lock (0.1 ms with ten pictures), and to travel.

Times are seconds since the digest was taken, because the clocks of two machines do not agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.policy.view import Owed

MAX_DUES = 8  # so many numbers tell when what is due; requests with neighbouring deadlines are added up


class Due(NamedTuple):
    """Some work, and until when it has to be done.

    due_s: until when its last steps are planned to have run; of several requests, the first.
    least_s: what the fewest steps take at the lowest levels, as shares of the largest batch, by the cost table.
    """

    due_s: float
    least_s: float


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A replica at one moment.

    number: rises with every digest of a replica, so that one which was overtaken on its way is known.
    device: the kind of device, by which a router finds its cost table.
    busy_s: for how long the device is still busy with what was decided.
    correction: observed over predicted milliseconds of its steps.
    max_batch: of its launches. num_waiting, num_running: pictures that have not begun, and those that have.
    dues: the work of all these, the first due first.
    granted_levels, granted_steps: as in `Counters`, since the replica's start.
    """

    number: int
    device: str
    busy_s: float
    correction: float
    max_batch: int
    num_waiting: int
    num_running: int
    dues: tuple[Due, ...]
    granted_levels: int
    granted_steps: int

    @property
    def num_pictures(self) -> int:
        return self.num_waiting + self.num_running

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "dues": [list(due) for due in self.dues]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Digest:
        """What `as_plain` gave, read back from JSON."""
        return cls(**{**plain, "dues": tuple(Due(*due) for due in plain["dues"])})


def digest_of(scheduler: RequestScheduler, now_s: float, *, number: int, device: str) -> Digest:
    """What a replica's scheduler has to tell now."""
    counters = scheduler.counters
    return Digest(
        number=number,
        device=device,
        busy_s=max(0.0, scheduler.busy_until_s - now_s),
        correction=scheduler.correction(now_s),
        max_batch=scheduler.max_batch,
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        dues=_added_up(scheduler.owed(now_s), now_s),
        granted_levels=counters.granted_levels,
        granted_steps=counters.granted_steps,
    )


def _added_up(owed: Sequence[Owed], now_s: float) -> tuple[Due, ...]:
    """At most `MAX_DUES`, each of as much work as the others, or of one request."""
    share_s = sum(one.least_s for one in owed) / MAX_DUES
    done_s, placed = 0.0, list[tuple[int, Due]]()
    for due_s, least_s in sorted(owed):
        place = int((done_s + least_s / 2) / share_s) if share_s > 0 else 0
        placed.append((place, Due(due_s - now_s, least_s)))
        done_s += least_s
    groups = [[due for _, due in group] for _, group in groupby(placed, key=lambda pair: pair[0])]
    return tuple(Due(group[0].due_s, sum(due.least_s for due in group)) for group in groups)
