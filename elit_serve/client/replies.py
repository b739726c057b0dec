"""Answers as HTTP carries them, turned into what they mean, or into the error that they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import unquote

from pydantic import ValidationError

from elit_serve.client.answers import Answer, Generation, PartialImage
from elit_serve.client.event_stream import Event
from elit_serve.errors import ConnectionLost, FieldError, ServerProblem, ServerUnreachable

JSON = "application/json"
PROBLEM = "application/problem+json"
REQUEST_ID = "X-Request-Id"
NOT_OURS = "it did not answer as an elit-serve server does"
OWN_FACTS = ("quality", "queue_ms", "compute_ms", "encode_ms", "gflops", "device_ms")  # of a picture, in its `elit`
LATE_STATUSES = {"deadline_exceeded": 504, "stopped": 503}  # of what goes wrong in a stream, whose status was 200


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end unless it is a stream. headers: their names in any case."""

    url: str
    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def media_type(self) -> str:
        return str(self.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


Parsed = TypeVar("Parsed", bound=Answer)


def checked(reply: Reply) -> Reply:
    """A successful answer, or `ServerProblem`."""
    if 200 <= reply.status < 300:
        return reply
    raise _problem(reply, reply.status, _members(reply))


def parsed(kind: type[Parsed], reply: Reply) -> Parsed:
    try:
        return kind.model_validate_json(reply.content)
    except ValidationError as error:
        raise not_ours(reply, error) from None


def generation(reply: Reply) -> Generation:
    if reply.media_type == JSON:
        return parsed(Generation, reply)
    return _bare_generation(reply)


def streamed(reply: Reply, event: Event) -> PartialImage | Generation:
    """An event of OpenAI's image stream, or the error that it tells."""
    try:
        members = json.loads(event.data)
        if event.name == "error":
            status = LATE_STATUSES.get(members["error"].get("code"), 500)
            raise _problem(reply, status, _of_openai(members["error"]))
        if event.name == "image_generation.partial_image":
            return PartialImage.model_validate(members)
        return _completed(members)
    except ValidationError as error:
        raise not_ours(reply, error) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ServerUnreachable(reply.url, f"{NOT_OURS}: it streamed an event {event.name}") from None


def cut_off(url: str) -> ConnectionLost:
    """What a stream is that ends before its last event."""
    return ConnectionLost(url, "the stream ended before its last event")


def _completed(members: dict[str, Any]) -> Generation:
    """What the picture is, from the event, where `quality` is a preset; what was done for it, from its `elit`."""
    facts = members["elit"]
    own = {name: facts.get(name) for name in OWN_FACTS}
    return Generation.model_validate({**facts, "images": [{**members, **own}]})


def _bare_generation(reply: Reply) -> Generation:
    """A file without JSON around it tells the same facts in `X-Elit-` headers."""
    facts: dict[str, Any] = {
        name[7:].lower().replace("-", "_"): value
        for name, value in reply.headers.items()
        if name.lower().startswith("x-elit-")
    }
    if "label" in facts:
        facts["label"] = unquote(facts["label"])
    facts["guidance"] = _guidance(facts.get("guidance", "{}"))
    by_step = {name: facts[name].split(",") for name in ("levels", "strides") if facts.get(name)}
    image = {**facts, "b64_json": reply.content, **by_step}
    output_format = reply.media_type.rpartition("/")[2].removeprefix("x-")
    try:
        return Generation.model_validate({**facts, "output_format": output_format, "images": (image,)})
    except ValidationError as error:
        raise not_ours(reply, error) from None


def _guidance(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _members(reply: Reply) -> Mapping[str, Any]:
    """Of the problem document; of OpenAI's error the same in its words."""
    try:
        members = json.loads(reply.content) if reply.media_type in (PROBLEM, JSON) else {}
    except ValueError:
        members = {}
    if not isinstance(members, dict):
        return {}
    error = members.get("error")
    return _of_openai(error) if isinstance(error, dict) else members


def _of_openai(error: Mapping[str, Any]) -> dict[str, Any]:
    """Its `code` is the finer one of ours, with underscores; `param` is the first of the wrong fields."""
    code, param = error.get("code"), error.get("param")
    members = {name: error.get(name) for name in ("min_latency_ms", "retry_after_ms")} | {
        "detail": error.get("message")
    }
    if code:
        members |= {"type": str(code).replace("_", "-"), "reason": code}
    if param:
        members["errors"] = [{"field": param, "allowed": error.get("message")}]
    return members


def _problem(reply: Reply, status: int, members: Mapping[str, Any]) -> ServerProblem:
    code = str(members.get("type", "about:blank")).rpartition(":")[2]
    code = f"http-{status}" if code == "blank" else code
    return ServerProblem(
        status=status,
        code=code,
        reason=str(members.get("reason", code)),
        detail=str(members.get("detail") or reply.reason),
        errors=_field_errors(members.get("errors")),
        min_latency_ms=_number(members.get("min_latency_ms")),
        retry_after_s=_retry_after_s(members.get("retry_after_ms"), reply.headers.get("Retry-After")),
        request_id=reply.headers.get(REQUEST_ID),
    )


def _field_errors(errors: object) -> tuple[FieldError, ...]:
    parts = [part for part in errors if isinstance(part, dict)] if isinstance(errors, list) else []
    return tuple(
        FieldError(
            field=str(part.get("field", "")),
            value=part.get("value"),
            allowed=str(part.get("allowed", "")),
        )
        for part in parts
    )


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _retry_after_s(exact_ms: Any, text: str | None) -> float | None:
    """The body of our servers' answers is exact, and their header has whole seconds; what stands between may send a
    date."""
    if (milliseconds := _number(exact_ms)) is not None:
        return max(0.0, milliseconds / 1000)
    if text is None:
        return None
    seconds = _number(text)
    try:
        return _seconds_until(parsedate_to_datetime(text)) if seconds is None else max(0.0, seconds)
    except (ValueError, OverflowError):  # the latter for a year that no machine can hold
        return None


def _seconds_until(moment: datetime) -> float:
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def not_ours(reply: Reply, error: ValidationError) -> ServerUnreachable:
    first = error.errors(include_input=False)[0]
    field = ".".join(map(str, first["loc"])) or "body"
    return ServerUnreachable(reply.url, f"{NOT_OURS}: {field}: {first['msg']}")
