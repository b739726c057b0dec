"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from elit_serve.client.requests import HttpRequest
from elit_serve.clock import Clock
from elit_serve.errors import ConnectionFailed, ConnectionLost, ServerProblem, ServerUnreachable

NOT_TAKEN = frozenset({429, 503})  # the request was not taken, and may be later
OUTSTANDING = "request-outstanding"  # the same job was sent a moment ago, and the server is about to answer that


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Sends again what a server did not take (429, 503, no connection), after the time that it asks for.

    What it may have taken before the connection broke is sent again only if that does no harm: questions, generations
    with a seed, jobs. An answer that does not come in time is never asked for twice.

    max_tries: the first one included; 1 is never again.
    max_total_s: no try begins later than this after the first; a server that asks for more is not waited for.
    backoff_s: the longest wait after the first try where the server does not say; doubled with each further one, and
        drawn between half of it and all, so that callers do not come back together.
    """

    max_tries: int = 5
    max_total_s: float = 60.0
    backoff_s: float = 0.5


NO_RETRIES = Retries(max_tries=1)


@dataclass(kw_only=True)
class Attempts:
    """The tries of one request so far."""

    request: HttpRequest
    retries: Retries
    clock: Clock
    failed: int = 0
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock.now()

    def wait_s(self, error: ServerProblem | ServerUnreachable) -> float | None:
        """How long to wait after this failure, or None to give up."""
        self.failed += 1
        if self.failed >= self.retries.max_tries or not self._may_repeat(error):
            return None
        wait_s = error.retry_after_s if isinstance(error, ServerProblem) else None
        if wait_s is None:
            wait_s = self.retries.backoff_s * 2 ** (self.failed - 1) * random.uniform(0.5, 1)
        elapsed_s = self.clock.now() - self.started_s
        return wait_s if elapsed_s + wait_s <= self.retries.max_total_s else None

    def _may_repeat(self, error: ServerProblem | ServerUnreachable) -> bool:
        if not self.request.waits:
            return False
        if isinstance(error, ServerProblem):
            return error.status in NOT_TAKEN or error.code == OUTSTANDING
        return isinstance(error, ConnectionFailed) or (isinstance(error, ConnectionLost) and self.request.is_repeatable)
