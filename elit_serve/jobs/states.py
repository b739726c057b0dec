"""Where a job is, and a job as it is stored."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from enum import StrEnum

ID_LENGTH = 32


class JobState(StrEnum):
    """A job is queued, then running, and ends exactly once."""

    QUEUED = "queued"
    RUNNING = "running"  # its first step has run
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"  # its promised time passed
    CANCELLED = "cancelled"


UNFINISHED = (JobState.QUEUED, JobState.RUNNING)
ENDED = (JobState.DONE, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """A row of the database. Times are Unix times in seconds.

    owner: the name of the key that it came with; empty without keys.
    fingerprint: of what was sent, to tell a repeated request from another with the same `idempotency_key`.
    request: a `JobRequest` in JSON, with the seed that was drawn if it had none.
    due_s: when it was promised; None was not.
    attempts: how often the engine got it, but for those times when it was given back in good order.
    result: a `JobResult` in JSON, of a job that is done; error: a `Problem`, of one that failed or expired.
    result_bytes: of its pictures on disk; 0 before there are any, and when they have been removed.
    webhook_due_s: when its end is to be told next; None is never. webhook_attempts: how often that was tried.
    webhook_host: who is told, as HOST:PORT; None is nobody, or stored by a version that did not say.
    """

    id: str
    owner: str
    idempotency_key: str | None
    fingerprint: str
    state: JobState
    request: str
    num_images: int
    created_s: float
    due_s: float | None = None
    attempts: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    result: str | None = None
    error: str | None = None
    result_bytes: int = 0
    webhook_due_s: float | None = None
    webhook_attempts: int = 0
    webhook_host: str | None = None


def new_id(now_s: float | None = None) -> str:
    """A name that cannot be guessed; names that were made later sort later."""
    milliseconds = int(1000 * (time.time() if now_s is None else now_s))
    return f"{milliseconds:012x}{secrets.token_hex(ID_LENGTH // 2 - 6)}"


def is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef")
