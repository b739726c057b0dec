"""The same request sent twice is one job: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from elit_serve.errors import InvalidInput, RequestOutstanding
from elit_serve.jobs.schemas import JobRequest
from elit_serve.jobs.states import StoredJob

MAX_KEY_LENGTH = 255


def fingerprint_of(body: JobRequest) -> str:
    """Tells requests apart by what they say, whatever the order in which they say it."""
    return hashlib.sha256(body.model_dump_json(exclude_unset=True).encode()).hexdigest()


class OutstandingKeys:
    """Idempotency keys whose first request has no answer yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[tuple[str, str]] = set()

    @contextmanager
    def held(self, owner: str, idempotency_key: str | None) -> Iterator[None]:
        if idempotency_key is None:
            yield
            return
        if not (0 < len(idempotency_key) <= MAX_KEY_LENGTH and idempotency_key.isascii()):
            raise InvalidInput("Idempotency-Key", idempotency_key, f"1 to {MAX_KEY_LENGTH} ASCII characters")
        key = (owner, idempotency_key)
        with self._lock:
            if key in self._keys:
                raise RequestOutstanding
            self._keys.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._keys.remove(key)


def same_request(earlier: StoredJob, fingerprint: str) -> StoredJob:
    if earlier.fingerprint != fingerprint:
        raise InvalidInput("Idempotency-Key", earlier.idempotency_key, "one of its own; another request has used it")
    return earlier
