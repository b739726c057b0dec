"""A device that exists on paper: a launch takes what the cost table says, times noise, times a constant error."""

from __future__ import annotations

from random import Random

from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.requests import Launch

NOISE_LIMIT = 3.0  # standard deviations; without it a rare draw would decide a run


class SimulatedDevice:
    """noise: standard deviation of each launch's factor, whose mean is 1. bias: 0.1 is a device 10 % slower than told.

    The table is the truth about the device, not what a policy believes.
    """

    def __init__(self, table: CostTable, *, noise: float = 0.0, bias: float = 0.0, seed: int = 0) -> None:
        assert 0 <= noise < 1 / NOISE_LIMIT, noise
        assert bias > -1, bias
        self._table, self._noise, self._bias = table, noise, bias
        self._rng = Random(f"device {seed}")

    @property
    def overhead_s(self) -> float:
        """From the end of an image's last step to its answer; overlaps with the next step."""
        return self._table.overhead_ms / 1000

    def run_ms(self, launch: Launch) -> float:
        cost_ms = self._table.step_ms(launch.kind, len(launch.request_ids))
        deviation = max(-NOISE_LIMIT, min(NOISE_LIMIT, self._rng.gauss(0.0, 1.0)))
        return cost_ms * (1 + self._bias) * (1 + self._noise * deviation)
