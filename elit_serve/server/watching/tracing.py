"""OpenTelemetry traces: a span for every request to /v1/, and below it what became of its pictures, stage by stage.

Pictures' spans are made after the fact, when the answer is out, of times that are known by then. A thread of
OpenTelemetry's own sends them; where nobody takes them they are lost, and nothing waits for that. Imported only where
the setting `otlp_endpoint` is given; importing it raises `MissingPackage` without the extra `otel`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from starlette.types import Scope

import elit_serve
from elit_serve.clock import Clock
from elit_serve.engine.picture import Outcome
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import DeadlineExceeded, InvalidInput, MissingPackage
from elit_serve.http.faults import Fault
from elit_serve.server.orders import Taken

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, set_span_in_context
except ModuleNotFoundError:
    raise MissingPackage("opentelemetry-exporter-otlp-proto-http", "otel") from None

Attributes = dict[str, str | bool | int | float]

PATH = "/v1/traces"
FLUSH_S = 3.0  # for what has not been sent, at the end
NOT_READ = (b"tracestate", b"baggage")  # not needed, and OpenTelemetry logs what is in them if that is not well-formed
MAX_CREATORS = 10_000  # requests that are remembered until the job that they created has ended

exporter_log = logging.getLogger(trace_exporter.__name__)


@dataclass(frozen=True)
class Moment:
    """One moment on both clocks. Later ones are told by the first clock alone, so that no change of the time of day
    gets into a duration."""

    clock_s: float
    unix_ns: int

    @classmethod
    def now(cls, clock: Clock) -> Moment:
        return cls(clock.now(), time.time_ns())

    def unix_ns_at(self, clock_s: float) -> int:
        return self.unix_ns + round(1e9 * (clock_s - self.clock_s))


class Tracing:
    """Makes spans, and from `start` to `stop` has them sent. OTEL_ variables say whatever the setting does not.

    endpoint: of a collector, as http://localhost:4318. Raises `InvalidInput` for variables that cannot be used.
    """

    def __init__(self, endpoint: str, *, clock: Clock) -> None:
        self._clock = clock
        self._creators: OrderedDict[str, SpanContext] = OrderedDict()  # by the id of the job
        us = Resource.create({"service.name": "elit-serve", "service.version": elit_serve.__version__})
        try:
            self._exporter = Exporter(endpoint=endpoint.rstrip("/").removesuffix(PATH) + PATH)
            self._provider = TracerProvider(resource=us.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
            self._tracer = self._provider.get_tracer("elit_serve", elit_serve.__version__)
            self._processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise InvalidInput("otlp_endpoint", endpoint, f"an OTEL_ variable is wrong: {error}") from None

    def start(self) -> None:
        exporter_log.addFilter(self._exporter.is_news)
        self._provider.add_span_processor(self._processor)

    def stop(self) -> None:
        """Sends what is left, if that takes no longer than `FLUSH_S`."""
        flushing = threading.Thread(target=self._processor.shutdown, name="elit-traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
        if flushing.is_alive():
            self._exporter.give_up()
        else:
            exporter_log.removeFilter(self._exporter.is_news)

    def begin_request(self, scope: Scope) -> tuple[Span, Moment]:
        """The span of an HTTP request, below that of its caller if its headers name one, and when it began."""
        carrier: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name not in NOT_READ:
                carrier.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        begun, context = Moment.now(self._clock), extract(carrier, Context())
        return self._tracer.start_span(scope["method"], context, SpanKind.SERVER, start_time=begun.unix_ns), begun

    def end_request(self, span: Span, begun: Moment, scope: Scope, status: int) -> None:
        """Says what is known of it by now, and what has become of the pictures that it asked for."""
        if span.is_recording():
            state = scope["state"]
            span.update_name(f"{scope['method']} {route_of(scope) or ''}".strip())
            span.set_attributes(of_request(scope, status))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            if "taken" in state:
                self._generated(state["taken"], begun, parent=span)
            if "job_id" in state:
                self._note_creator(state["job_id"], span)
        span.end(begun.unix_ns_at(self._clock.now()))

    def job_ended(self, job_id: str, taken: Taken) -> None:
        """A trace of its own, for its request has long been answered, but linked to it if this process has seen it."""
        creator = self._creators.pop(job_id, None)
        links = () if creator is None else (Link(creator),)
        self._generated(taken, Moment.now(self._clock), links=links, attributes={"elit.job_id": job_id})

    def _note_creator(self, job_id: str, request: Span) -> None:
        self._creators[job_id] = request.get_span_context()
        if len(self._creators) > MAX_CREATORS:
            self._creators.popitem(last=False)

    def _generated(
        self,
        taken: Taken,
        moment: Moment,
        *,
        parent: Span | None = None,
        links: Sequence[Link] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Pictures that were asked for: what became of them and, if they were made, a child for each stage."""
        ended = _ending(taken.future)
        span = self._tracer.start_span(
            "generation",
            Context() if parent is None else set_span_in_context(parent, Context()),
            attributes={**(attributes or {}), **asked(taken), **became(taken, ended)},
            links=links,
            start_time=moment.unix_ns_at(taken.order.arrived_s),
        )
        ended_s = self._clock.now()
        if isinstance(ended, Outcome):
            ended_s = self._add_stages(span, taken, ended, moment)
        elif ended is not None:
            span.set_status(StatusCode.ERROR, str(ended))
        span.end(moment.unix_ns_at(ended_s))

    def _add_stages(self, generation: Span, taken: Taken, outcome: Outcome, moment: Moment) -> float:
        """When the last one has ended, on the clock."""
        context, at_s = set_span_in_context(generation, Context()), taken.order.arrived_s
        stages: dict[str, tuple[float, Attributes]] = {
            "queue": (outcome.queue_ms, {}),
            "compute": (outcome.compute_ms, computed(outcome, taken.engine.model)),
            "encode": (outcome.encode_ms, {"elit.format": outcome.order.output_format}),
        }
        for name, (took_ms, attributes) in stages.items():
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=moment.unix_ns_at(at_s))
            at_s += took_ms / 1000
            span.end(moment.unix_ns_at(at_s))
        return at_s


class Exporter(trace_exporter.OTLPSpanExporter):
    """Sends spans. The log gets the first trouble with that, and the next only when it has worked in between."""

    _is_in_trouble = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            self._is_in_trouble = False
        return result

    def is_news(self, _: logging.LogRecord) -> bool:
        """Whether a line of the exporter's should be logged."""
        was_in_trouble, self._is_in_trouble = self._is_in_trouble, True
        return not was_in_trouble

    def give_up(self) -> None:
        """Ends an export that is under way, and says no more."""
        self._is_in_trouble = True
        self.shutdown()  # type: ignore[no-untyped-call]


def _ending(future: Future[Outcome]) -> Outcome | BaseException | None:
    """None if it was given up."""
    if not future.done() or future.cancelled():
        return None
    return future.exception() or future.result()


# What spans say: of a request, by OpenTelemetry's conventions where there are any, and of its pictures


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
    body, condition = taken.body, taken.order.condition
    is_secret = condition.is_personal and taken.engine.settings.log_prompts == "off"
    subject = {} if is_secret else {"elit.prompt" if condition.is_personal else "elit.label": condition.words}
    attributes: Attributes = {
        **subject,
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


def computed(outcome: Outcome, model: ServedModel) -> Attributes:
    """Means over the pictures; replans over all of them, as `elit_replans_total` counts."""
    plans = [outcome.order.plan(picture.progress) for picture in outcome.pictures]
    level = fmean(plan.mean_level for plan in plans)
    changes = sum(one != other for picture in outcome.pictures for one, other in pairwise(picture.levels))
    return {
        "elit.size": str(model.sizes.size_of(outcome.order.shape)),
        "elit.steps": fmean(plan.num_steps for plan in plans),
        "elit.level": level,
        "elit.budget": model.budgets.of_level(level),
        "elit.gflops": outcome.cost.gflops,
        "elit.device_ms": round(outcome.cost.device_ms, 3),
        "elit.replans": changes if outcome.order.pinned is None else 0,
    }
