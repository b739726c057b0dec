"""A cost table as a device shows it: each step with noise, and all of them with a constant error."""

from __future__ import annotations

from random import Random

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable

NOISE_LIMIT = 3.0  # standard deviations; without it a rare draw would decide a run


class NoisyCosts:
    """noise: standard deviation of each step's factor, whose mean is 1. bias: 0.1 is a device 10 % slower than told.

    The table is the truth about the device, not what a policy believes.
    """

    def __init__(self, table: CostTable, *, noise: float = 0.0, bias: float = 0.0, rng: Random) -> None:
        assert 0 <= noise < 1 / NOISE_LIMIT, noise
        assert bias > -1, bias
        self.table = table
        self._noise, self._bias, self._rng = noise, bias, rng

    def step_ms(self, kind: StepKind, batch: int) -> float:
        """One step of this kind for `batch` images; every call draws anew."""
        deviation = max(-NOISE_LIMIT, min(NOISE_LIMIT, self._rng.gauss(0.0, 1.0)))
        return self.table.step_ms(kind, batch) * (1 + self._bias) * (1 + self._noise * deviation)
