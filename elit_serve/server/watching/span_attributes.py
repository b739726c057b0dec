"""What spans say: of a request, by OpenTelemetry's conventions where there are any, and of its pictures."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from starlette.types import Scope

from elit_serve.engine.picture import Outcome
from elit_serve.errors import DeadlineExceeded
from elit_serve.http.faults import Fault
from elit_serve.plans.levels import Budgets
from elit_serve.server.generation import Taken

Attributes = dict[str, str | bool | int | float]


def route_of(scope: Scope) -> str | None:
    """As a template, if it has parameters; None if there is no such route."""
    return getattr(scope.get("route"), "path", None)


def of_request(scope: Scope, status: int) -> Attributes:
    """Nothing of its query or headers, for they may hold secrets."""
    state = scope["state"]
    fault: Fault | None = state.get("fault")
    known = {
        "http.request.method": scope["method"],
        "http.route": route_of(scope),
        "http.response.status_code": status,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "error.type": str(status) if status >= 500 else None,
        "elit.request_id": state["request_id"],
        "elit.job_id": state.get("job_id"),
        "elit.problem": fault and fault.name,
        "elit.reason": fault and fault.reason,
    }
    return {name: value for name, value in known.items() if value is not None}


def asked(taken: Taken) -> Attributes:
    """What the request says of its pictures."""
    body = taken.body
    attributes: Attributes = {
        "elit.label": str(body.prompt if body.label is None else body.label),
        "elit.images": body.n,
        "elit.priority": body.priority,
        "elit.promised": body.latency_ms is not None and not body.best_effort,
    }
    return attributes if body.latency_ms is None else {**attributes, "elit.latency_ms": body.latency_ms}


def became(taken: Taken, ended: Outcome | BaseException | None) -> Attributes:
    """The outcome, in the words of `elit_generations_total`, and whether a target was met that there was."""
    if ended is None:
        return {"elit.outcome": "cancelled"}
    if isinstance(ended, BaseException):
        is_late = isinstance(ended, DeadlineExceeded)
        return {"elit.outcome": "expired", "elit.deadline_met": False} if is_late else {"elit.outcome": "failed"}
    target_ms, took_ms = taken.body.latency_ms, ended.queue_ms + ended.compute_ms + ended.encode_ms
    return {"elit.outcome": "done"} | ({} if target_ms is None else {"elit.deadline_met": took_ms <= target_ms})


def computed(outcome: Outcome, budgets: Budgets) -> Attributes:
    """Means over the pictures; replans over all of them, as `elit_replans_total` counts."""
    level = fmean(fmean(picture.levels) for picture in outcome.pictures)
    changes = sum(one != other for picture in outcome.pictures for one, other in pairwise(picture.levels))
    return {
        "elit.steps": outcome.order.num_steps,
        "elit.level": level,
        "elit.budget": budgets.of_level(level),
        "elit.replans": changes if outcome.order.pinned is None else 0,
    }
