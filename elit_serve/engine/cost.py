"""What was spent on a picture, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """flops: floating-point operations of the model's steps, as `nn.flops` counts them; what decodes is no part of it.

    device_ms: the share of the device's time, as measured: of each launch that of one of its members. Steps, previews
    and decoding count, and gaps between them do not.
    """

    flops: float = 0.0
    device_ms: float = 0.0

    @property
    def gflops(self) -> float:
        """As answers tell it."""
        return round(self.flops / 1e9, 3)

    def __add__(self, other: Cost) -> Cost:
        return Cost(flops=self.flops + other.flops, device_ms=self.device_ms + other.device_ms)
