"""A figure with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value; its 95 % confidence interval reaches `half_width` to both sides: infinitely far where nothing tells."""

    value: float
    half_width: float

    @classmethod
    def mean(cls, estimates: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
        """The mean of independent estimates, of all alike or by their `weights`."""
        shares = [1.0] * len(estimates) if weights is None else weights
        doubt = math.hypot(*(share * each.half_width for share, each in zip(shares, estimates, strict=True)))
        return cls(value=fmean([each.value for each in estimates], weights), half_width=doubt / sum(shares))

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width

    @property
    def has_interval(self) -> bool:
        """Whether anything is known of its uncertainty."""
        return math.isfinite(self.half_width)

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals have a value in common."""
        return abs(self.value - other.value) <= self.half_width + other.half_width

    def is_surely_above(self, other: Estimate) -> bool:
        """Whether it is larger by more than the uncertainty of the difference."""
        return self.value - other.value > math.hypot(self.half_width, other.half_width)

    def text(self, digits: int = 1) -> str:
        """For people.

        >>> Estimate(value=164.71, half_width=1.13).text()
        '164.7 ± 1.1'
        """
        spread = f" ± {self.half_width:.{digits}f}" if self.has_interval else ""
        return f"{self.value:.{digits}f}{spread}"
