"""Every exception of elit-serve, in one tree.

    ElitError
    ├── InvalidInput          the caller asked for something that cannot be (HTTP 422, exit code 2)
    │   ├── Infeasible        ... within the time it allows; carries the smallest latency that works
    │   ├── TakenElsewhere    ... because another server has it
    │   └── ModelNotFound     ... from this server, which has another model (HTTP 404)
    ├── CheckpointError       a model directory cannot be loaded; lists everything that is wrong
    ├── RecipeError           a training recipe is not valid; lists everything that is wrong
    ├── DataError             a data set cannot be read, or too much of it is corrupt
    │   ├── DamagedPicture    ... one of its files is not a whole picture; counted and skipped where there are many
    │   └── DataSetGone       ... it vanished or changed while it was used
    ├── RunError              a training run directory cannot be written, resumed or exported
    ├── MissingPackage        an optional package is needed; names the extra that brings it
    ├── GenerationFailed      the engine failed on this request (HTTP 500)
    ├── DeadlineExceeded      an accepted request was not done by its deadline (HTTP 504)
    ├── Overloaded            other requests are in the way; carries when to come back (HTTP 503)
    ├── InvalidKey            no API key, or none that this server knows (HTTP 401)
    ├── MissingScope          an API key that may not do this (HTTP 403)
    ├── RateLimited           an API key has asked too often; carries when to come back (HTTP 429)
    │   └── ShareExceeded     ... or would crowd out others from the queue
    ├── EngineStopped         the engine no longer takes work (HTTP 503, exit code 1)
    ├── RequestOutstanding    another request with the same idempotency key has no answer yet (HTTP 409)
    ├── JobNotFound           no such job, or it is somebody else's (HTTP 404)
    ├── RequestNotFound       no such request waits for pictures, or it is somebody else's (HTTP 404)
    ├── NotBegun              pictures are to end early of which nothing is there yet (HTTP 409)
    ├── JobEnded              a job cannot be changed any more (HTTP 409)
    ├── PictureNotFound       a job has fewer pictures (HTTP 404)
    ├── JobNotDone            a job has no pictures, because it is not done (HTTP 409)
    ├── ResultsGone           the pictures of a job have been removed (HTTP 410)
    ├── StoreUnavailable      jobs cannot be read or written at present (HTTP 503)
    │   └── DatabaseTaken     ... because another server has their database
    ├── StorageFull           there is no room on disk for more jobs (HTTP 507)
    ├── ServerProblem         a server answered with an error; carries its status and what it says (client side)
    └── ServerUnreachable     a server did not answer, or not as an elit-serve server does (client side)
        ├── ConnectionFailed  ... it cannot have had the request
        └── ConnectionLost    ... it may have had the request

Errors are made where the fact is known and carry its values; they become HTTP statuses in one table
(`http.faults`) and exit code 2 in one place (`cli.main`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

NOTABLY_SLOW = 1.1  # from this pace on a caller is told of it


class ElitError(Exception):
    """Base of all errors that elit-serve raises on purpose. `str()` is one line for a user."""

    def __reduce__(self) -> tuple[Callable[..., ElitError], tuple[object, ...]]:
        """Another process that is told of it gets the same error, whatever the class is made from."""
        return restored, (type(self), self.args, vars(self))


def restored(kind: type[ElitError], args: tuple[object, ...], values: dict[str, object]) -> ElitError:
    """The error of this class that has these arguments and attributes."""
    error = kind.__new__(kind, *args)
    vars(error).update(values)
    return error


class InvalidInput(ElitError):
    """A value from outside that cannot be used.

    `field` names it as the caller spelled it, `value` is what was given, `allowed` says what would do.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        given = f"{field} is missing" if value is None else f"{field}: {shown(value)} is not allowed"
        super().__init__(f"{given}; {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class TakenElsewhere(InvalidInput):
    """What was named belongs to one server at a time, and another one has it."""


class Infeasible(InvalidInput):
    """A latency target that no level can meet, even alone on the device.

    pace: how many times as long as measured steps take at present.
    """

    def __init__(self, latency_ms: float, min_latency_ms: float, pace: float = 1.0) -> None:
        slow = f", while steps take {pace:.1f} times what was measured" if pace >= NOTABLY_SLOW else ""
        super().__init__("latency_ms", latency_ms, f"the smallest feasible value here is {min_latency_ms:.0f}{slow}")
        self.min_latency_ms = min_latency_ms


class ModelNotFound(InvalidInput):
    """A model that is not the one that is served."""

    def __init__(self, model: str, served: str) -> None:
        super().__init__("model", model, f"this server has {served}")


class CheckpointError(ElitError):
    """A model directory that cannot be loaded, with all of its problems."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        super().__init__(f"{path} is not a usable model: " + _one_line(problems))
        self.problems = tuple(problems)


class RecipeError(ElitError):
    """A recipe file that cannot be used, with all of its problems."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        super().__init__(f"{path} is not a valid recipe: " + _one_line(problems))
        self.problems = tuple(problems)


class DataError(ElitError):
    """A data set that cannot be read."""


class DamagedPicture(DataError):
    """A file that is not a whole picture; names it."""


class DataSetGone(DataError):
    """A data set that vanished, cannot be opened any more, or is not the one that it was."""


class RunError(ElitError):
    """A training run that cannot be started, resumed, saved or exported."""


class MissingPackage(ElitError):
    """A package that only some installations carry."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package}: pip install 'elit-serve[{extra}]'")


class GenerationFailed(ElitError):
    """The engine could not finish this request; others are not affected."""


class DeadlineExceeded(ElitError):
    """The target of an accepted request passed before its answer was there, so it was ended."""

    def __init__(self, latency_ms: float) -> None:
        super().__init__(f"it was not done within latency_ms = {latency_ms:.0f}")


class Overloaded(ElitError):
    """Other requests are in the way, so this one was not taken.

    reason: `overloaded`, when its target cannot be kept beside what is promised, `queue_full`, `too_many_requests` or
    `too_many_streams`.
    """

    WHATS: ClassVar = {
        "queue_full": "the queue is full",
        "too_many_requests": "too many others of its kind are being answered",
        "too_many_streams": "as many streams as there may be are open",
    }

    def __init__(self, reason: str, retry_after_s: float) -> None:
        what = self.WHATS.get(reason, "the target cannot be met beside what is promised")
        super().__init__(f"{what}; retry in {retry_after_s:.1f} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidKey(ElitError):
    """The caller sent no API key, or one that is not known."""

    def __init__(self, *, was_sent: bool) -> None:
        super().__init__(
            "the API key is not valid" if was_sent else "an API key is needed, as Authorization: Bearer KEY"
        )
        self.was_sent = was_sent


class MissingScope(ElitError):
    """The caller's API key may not do this; `scope` would let it."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs an API key with the scope {scope}")
        self.scope = scope


class RateLimited(ElitError):
    """The caller's API key has had what it may have for now."""

    def __init__(self, key_name: str, retry_after_s: float, what: str = "has asked too often") -> None:
        super().__init__(f"the API key {key_name} {what}; retry in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class ShareExceeded(RateLimited):
    """Others want places in the queue too, and the caller's API key has its share of them."""

    def __init__(self, key_name: str, retry_after_s: float) -> None:
        super().__init__(key_name, retry_after_s, "has its share of the queue, and others wait")


class EngineStopped(ElitError):
    """The engine is not running, so the request was not taken."""


class RequestOutstanding(ElitError):
    """The first request with this idempotency key has no answer yet."""

    def __init__(self) -> None:
        super().__init__("another request with this Idempotency-Key has no answer yet")


class JobNotFound(ElitError):
    """There is no such job for this caller."""

    def __init__(self) -> None:
        super().__init__("there is no such job, or not any more")


class RequestNotFound(ElitError):
    """Nobody waits for pictures under this id, for this caller."""

    def __init__(self) -> None:
        super().__init__("no request of this id waits for pictures, or not any more")


class NotBegun(ElitError):
    """Pictures that are to end early, and of which nothing is there yet that could be kept."""

    def __init__(self) -> None:
        super().__init__("no step of its pictures has run yet, so nothing is there to keep; it can be cancelled")


class JobEnded(ElitError):
    """A job that cannot be changed any more."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the job has ended: it is {state}")


class PictureNotFound(ElitError):
    """A picture that a job never had and never will have; they are counted from 0."""

    def __init__(self, index: int, num_images: int) -> None:
        has = "one picture, images/0" if num_images == 1 else f"{num_images} pictures, images/0 to {num_images - 1}"
        super().__init__(f"there is no images/{index}: the job has {has}")


class JobNotDone(ElitError):
    """A job without pictures: they are not made yet, or never will be."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the job has no pictures, because it is {state}")


class ResultsGone(ElitError):
    """The pictures of a job were kept for a while, and have been removed."""

    def __init__(self) -> None:
        super().__init__("the pictures of this job have been removed")


class StoreUnavailable(ElitError):
    """Jobs cannot be read or written at present: their database, or the folder of their pictures."""


class DatabaseTaken(StoreUnavailable):
    """The database of jobs belongs to one server at a time, and this is not the one."""

    def __init__(self) -> None:
        super().__init__("the jobs' database belongs to another server now")


class StorageFull(ElitError):
    """No room on disk for more jobs."""


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """A field that a server does not accept, its value, and what would do."""

    field: str
    value: object
    allowed: str


class ServerProblem(ElitError):
    """A server's refusal or failure, as its problem document (RFC 9457) tells it.

    status: the HTTP status.
    code: the last part of the problem's type, as `infeasible`; `http-STATUS` where the server names none.
    reason: a finer code where the server gives one, as `queue_full`; else the code.
    errors: the fields that are wrong.
    min_latency_ms: the smallest target that would do alone on the device, when that is the problem.
    retry_after_s: when the server asks to be tried again.
    request_id: by which the server's log names the request.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str,
        reason: str | None = None,
        errors: Sequence[FieldError] = (),
        min_latency_ms: float | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        named = f" [request {request_id}]" if request_id else ""
        super().__init__(_one_line([f"the server answered {status} ({code}): {detail}{named}"]))
        self.status = status
        self.code = code
        self.reason = reason or code
        self.detail = detail
        self.errors = tuple(errors)
        self.min_latency_ms = min_latency_ms
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class ServerUnreachable(ElitError):
    """No usable answer: nothing listens there, the connection broke, time ran out, or something else answered."""

    def __init__(self, url: str, why: object) -> None:
        super().__init__(_one_line([f"{url}: {_reason(why)}"]))
        self.url = url


class ConnectionFailed(ServerUnreachable):
    """There was no connection, so the request was not sent."""


class ConnectionLost(ServerUnreachable):
    """The connection broke before the whole answer was there; what was asked for may have been done."""


def _one_line(problems: Sequence[str]) -> str:
    """Names in foreign files may hold line breaks and terminal codes; they are shown escaped."""
    text = "; ".join(problems)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _reason(why: object) -> str:
    """In the system's words where it has some, without the numbers and tuples that libraries put around them."""
    number, words = getattr(why, "errno", None), getattr(why, "strerror", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return str(words or re.sub(r"\[Errno -?\d+\] ", "", str(why)) or type(why).__name__)


def shown(value: object, limit: int = 80) -> str:
    """A value from outside as people write it, short enough for a line."""
    text = _written(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _written(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case bytes():
            return repr(value.decode(errors="replace"))
        case int() if value.bit_length() > 1000:  # Python writes no number of more than 4300 digits
            return f"a number of about {value.bit_length() * 0.30103:.0f} digits"
        case str() | int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_written, value))}]"
        case dict():
            return f"{{{', '.join(f'{_written(name)}: {_written(part)}' for name, part in value.items())}}}"
        case _:
            return repr(str(value))
