"""How much one may ask, so that others get their part: how often, and for how many places of the queue.

Knows no HTTP and reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

GRACE_S = 10.0  # a key that was turned away still competes for so long after the time at which it may come back


class FairShares:
    """Who may have how many of the queue's places, a place being that of a picture that waits for its first step.

    A key *competes* while pictures of it wait, and, once it was turned away because the queue was full, until it has
    had time to come back. While others compete, a key may have `places` times its share of the competitors' shares:
    more is refused. Alone it may fill the queue; the first that competes then gets the places that become free, since
    the other gets none until it is down to its share. A key that has nothing waiting is never refused here, so that
    everybody gets on, even with a request that is larger than its share. What runs or is promised is not touched.
    """

    def __init__(self, shares: Mapping[str, float], *, places: int) -> None:
        """shares: by key, 1 for others; only their ratios matter."""
        self._shares = dict(shares)
        self._places = places
        self._competes_until_s: dict[str, float] = {}

    def excess(self, key: str, num_images: int, waiting: Mapping[str, int], now_s: float) -> int:
        """How many pictures too many the key would have with these; 0 is none, and they may join.

        waiting: pictures that wait, by key.
        """
        held = waiting.get(key, 0)
        turned_away = {other for other, until_s in self._competes_until_s.items() if now_s < until_s}
        competitors = {other for other, number in waiting.items() if number > 0} | turned_away | {key}
        if not held or competitors == {key}:
            return 0
        all_shares = sum(self._share(other) for other in competitors)
        return max(0, held + num_images - int(self._places * self._share(key) / all_shares))

    def turned_away(self, key: str, retry_after_s: float, now_s: float) -> None:
        """The key found the queue full, and was told to come back later."""
        self._competes_until_s[key] = now_s + retry_after_s + GRACE_S

    def _share(self, key: str) -> float:
        return self._shares.get(key, 1.0)


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
