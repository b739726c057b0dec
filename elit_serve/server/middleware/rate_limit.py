"""How often a key may ask. Knows no HTTP and reads no clock."""

from __future__ import annotations


class TokenBucket:
    """Holds `burst` tokens at most and gets `per_minute` of them a minute; whoever finds none has to wait.

    So any minute sees at most burst + per_minute requests, and the long run per_minute.
    """

    def __init__(self, *, per_minute: float, burst: float, now_s: float) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._tokens = burst
        self._counted_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Takes a token and answers 0, or answers in how many seconds there will be one."""
        self._tokens = min(self._burst, self._tokens + self._per_s * max(0.0, now_s - self._counted_s))
        self._counted_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_s
        self._tokens -= 1
        return 0.0
