"""A device that exists on paper: a launch takes what the cost table says, times noise, times a constant error.

What a server adds to that is charged if it is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.noisy_costs import NoisyCosts
from elit_serve.scheduler.requests import Launch


@dataclass(frozen=True, kw_only=True)
class Charges:
    """What a server adds to what the cost table tells, in milliseconds.

    gap_ms: between launches that follow each other. rested_ms: before a launch on a device that has rested: from the
    first bytes of its request until it begins. response_ms: from a picture's file until it is out.
    """

    gap_ms: float = 0.0
    rested_ms: float = 0.0
    response_ms: float = 0.0


NOTHING = Charges()
# The device rests for 1.6 % of the time in a replay at load 1.5, whose launches take 12 ms (models/recipes/devices.md).
# 0.46 ms to the handler and 1.5 to the first step; 0.16, 0.25 and 0.24 ms after the file (models/recipes/server.md).
AS_SERVED = Charges(gap_ms=0.2, rested_ms=1.96, response_ms=0.65)


class SimulatedDevice:
    """noise, bias: see `NoisyCosts`."""

    def __init__(
        self, table: CostTable, *, noise: float = 0.0, bias: float = 0.0, charges: Charges = NOTHING, seed: object = 0
    ) -> None:
        self._costs = NoisyCosts(table, noise=noise, bias=bias, rng=Random(f"device {seed}"))
        self._charges = charges

    @property
    def overhead_s(self) -> float:
        """From the end of an image's last step to its answer, without what its launch tells; overlaps with the next
        step."""
        return (self._costs.table.overhead_ms + self._charges.response_ms) / 1000

    def gap_s(self, *, has_rested: bool) -> float:
        return (self._charges.rested_ms if has_rested else self._charges.gap_ms) / 1000

    def run_ms(self, launch: Launch) -> float:
        return self._costs.step_ms(launch.kind, len(launch.request_ids))
