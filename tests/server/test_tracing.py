"""Traces as a collector gets them over OTLP: their spans, what they never hold, and a collector that is not there."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from elit_serve.clock import MonotonicClock
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.app import create_app
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings
from elit_serve.server.watching import tracing

Eventually = Callable[[Callable[[], bool]], None]

SECRET = "a-key-of-the-caller"
CALLER = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")  # a trace, and a span in it
TULIP = {"label": "tulip", "budget": 0.25}
CHEAP = CostTable(
    steps_ms={(StepKind("32x32", level, weak), 1): 1.0 for level in (1, 2, 3, 4) for weak in (None, 1, level)},
    overhead_ms=1,
)


class Collector:
    """What a collector has been sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((path, body))
        self.may_answer.wait(60)
        return self.status, {}, b""

    @property
    def resources(self) -> list[dict[str, object]]:
        sent = [ExportTraceServiceRequest.FromString(body) for _, body in self.requests]
        return [attributes(each.resource) for request in sent for each in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        sent = [ExportTraceServiceRequest.FromString(body) for _, body in self.requests]
        scopes = [scope for request in sent for each in request.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def named(self, name: str) -> Span:
        (span,) = (span for span in self.spans if span.name == name)
        return span

    def has(self, *names: str) -> bool:
        return set(names) <= {span.name for span in self.spans}

    def children(self, parent: Span) -> list[Span]:
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(of: Any) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in of.attributes}


def ours(span: Span) -> dict[str, object]:
    return {name: value for name, value in attributes(span).items() if name.startswith("elit.")}


def took_ms(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def settings(collector: Collector, start_http: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a server whose spans are sent at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    return Settings(response_ms=0, otlp_endpoint=start_http(collector))


def spent(answer: dict[str, Any]) -> dict[str, float]:
    """What an answer says of its cost, in the words of spans."""
    return {"elit.gflops": answer["gflops"], "elit.device_ms": answer["device_ms"]}


def test_a_request_is_a_span_of_its_caller_and_has_its_stages_below(
    start_server: Any,
    settings: Settings,
    collector: Collector,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_server(settings=settings.model_copy(update={"api_key": Settings(api_key=SECRET).api_key}))
    headers = {
        "Traceparent": f"00-{CALLER[0]}-{CALLER[1]}-01",
        "X-Request-Id": "mine",
        "Authorization": f"Bearer {SECRET}",
        "Baggage": "hush",
        "Tracestate": "hush hush",
    }
    body = {"label": "tulip", "n": 2, "latency_ms": 60_000, "max_budget": 0.5}
    before_ns = time.time_ns()
    answer = server.client.post("/v1/generate?hush=hush", json=body, headers=headers).json()
    eventually(lambda: collector.has("POST /v1/generate", "generation", "queue", "compute", "encode"))
    after_ns = time.time_ns()

    request = collector.named("POST /v1/generate")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == CALLER
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/generate",
        "http.response.status_code": 200,
        "url.path": "/v1/generate",
        "url.scheme": "http",
        "elit.request_id": "mine",
    }
    (generation,) = collector.children(request)
    assert attributes(generation) == {
        "elit.label": "tulip",
        "elit.images": 2,
        "elit.priority": "interactive",
        "elit.promised": True,
        "elit.latency_ms": 60_000,
        "elit.outcome": "done",
        "elit.deadline_met": True,
    }
    queue, compute, encode = stages = collector.children(generation)
    assert [stage.name for stage in stages] == ["queue", "compute", "encode"]
    asked_ms = [answer["queue_ms"], answer["compute_ms"], answer["encode_ms"]]
    assert [took_ms(stage) for stage in stages] == pytest.approx(asked_ms, abs=0.01)
    how = {"elit.steps": 4, "elit.level": 2.0, "elit.budget": 0.5, "elit.replans": 0, **spent(answer)}
    assert attributes(compute) == {"elit.size": "32x32", **how}
    assert attributes(encode) == {"elit.format": "png"}
    times = [before_ns, request.start_time_unix_nano, generation.start_time_unix_nano, queue.start_time_unix_nano]
    times += [queue.end_time_unix_nano, compute.start_time_unix_nano, encode.start_time_unix_nano]
    times += [encode.end_time_unix_nano, generation.end_time_unix_nano, request.end_time_unix_nano, after_ns]
    assert times == sorted(times)
    assert {span.trace_id.hex() for span in collector.spans} == {CALLER[0]}
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    sent = b"".join(body for _, body in collector.requests)
    assert SECRET.encode() not in sent
    assert b"hush" not in sent
    assert "hush" not in caplog.text


def test_changes_of_level_are_counted(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually, held: type[Any]
) -> None:
    server = start_server(settings=settings, executor=held)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(server.generate, {"label": "tulip", "steps": 8, "latency_ms": 5500})
        eventually(lambda: server.health()["running"] == 1)
        second = callers.submit(server.generate, {"label": "rose", "steps": 8, "latency_ms": 5000})
        eventually(lambda: server.health()["queue_length"] == 1)
        server.executor.may_run.set()
        answers = {answer["label"]: answer for answer in (first.result().json(), second.result().json())}
    levels = answers["tulip"]["images"][0]["levels"]
    changes = sum(levels[step] != levels[step + 1] for step in range(7))
    eventually(lambda: len([span for span in collector.spans if span.name == "compute"]) == 2)
    told = [attributes(span) for span in collector.spans if span.name == "compute"]
    level = sum(levels) / 8
    how = {"elit.steps": 8, "elit.level": level, "elit.budget": level / 4, "elit.replans": changes}
    how |= spent(answers["tulip"])
    assert {"elit.size": "32x32", **how} in told
    assert changes > 0


def test_what_is_refused_says_why_and_has_nothing_below(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually
) -> None:
    server = start_server(settings=settings)
    assert server.generate({**TULIP, "latency_ms": 1}).status_code == 422
    assert server.client.post("/v1/images/generations", json={"prompt": "unknown"}).status_code == 400
    assert server.client.get("/v1/nowhere").status_code == 404
    for path in ("/health", "/metrics", "/"):
        assert server.client.get(path).status_code == 200
    eventually(lambda: len(collector.spans) >= 3)
    told = {span.name: (attributes(span)["http.response.status_code"], ours(span)) for span in collector.spans}
    for _, attributes_of_ours in told.values():
        assert attributes_of_ours.pop("elit.request_id")
    assert told == {
        "POST /v1/generate": (422, {"elit.problem": "infeasible"}),
        "POST /v1/images/generations": (400, {"elit.problem": "invalid-input"}),
        "GET": (404, {}),
    }


def test_who_leaves_and_who_comes_too_late_is_told_apart(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually, held: type[Any]
) -> None:
    server = start_server(settings=settings, executor=held, cost=CHEAP)
    server.leave(TULIP, once=lambda: server.health()["running"] == 1)
    eventually(lambda: collector.has("POST /v1/generate", "generation"))
    assert attributes(collector.named("POST /v1/generate"))["http.response.status_code"] == 499
    gone = collector.named("generation")
    assert (ours(gone)["elit.outcome"], gone.status.code) == ("cancelled", Status.STATUS_CODE_UNSET)

    collector.requests.clear()
    with ThreadPoolExecutor(1) as callers:
        late = callers.submit(server.generate, {**TULIP, "latency_ms": 60_000})
        eventually(lambda: server.health()["queue_length"] == 1)  # behind the step of him who left
        server.clock.advance(61)  # while the device stands still
        server.executor.may_run.set()
        assert late.result().status_code == 504
    eventually(lambda: collector.has("POST /v1/generate", "generation"))
    request, expired = collector.named("POST /v1/generate"), collector.named("generation")
    assert attributes(request)["error.type"] == "504"
    assert ours(request)["elit.problem"] == "deadline-exceeded"
    assert (ours(expired)["elit.outcome"], ours(expired)["elit.deadline_met"]) == ("expired", False)
    assert [span.status.code for span in (request, expired)] == [Status.STATUS_CODE_ERROR] * 2
    assert expired.status.message == "it was not done within latency_ms = 60000"
    assert collector.children(expired) == []


def test_what_its_caller_does_not_sample_is_not_sent(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually
) -> None:
    server = start_server(settings=settings)
    for flag, seed in (("00", 1), ("01", 2)):
        headers = {"traceparent": f"00-{CALLER[0]}-{CALLER[1]}-{flag}"}
        assert server.client.post("/v1/generate", json={**TULIP, "seed": seed}, headers=headers).status_code == 200
    eventually(lambda: collector.has("POST /v1/generate", "encode"))
    assert len(collector.spans) == 5


def test_a_stream_has_its_stages_too(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually
) -> None:
    server = start_server(settings=settings)
    body = {"prompt": "tulip", "stream": True, "partial_images": 1}
    assert "completed" in server.client.post("/v1/images/generations", json=body).text
    eventually(lambda: collector.has("POST /v1/images/generations", "encode"))
    (generation,) = collector.children(collector.named("POST /v1/images/generations"))
    assert ours(generation)["elit.outcome"] == "done"
    assert len(collector.children(generation)) == 3


def test_a_job_is_linked_to_the_request_that_created_it(
    start_server: Any, settings: Settings, collector: Collector, eventually: Eventually
) -> None:
    server = start_server(settings=settings)
    job_id = server.client.post("/v1/jobs", json=TULIP).json()["id"]
    eventually(lambda: collector.has("POST /v1/jobs", "generation", "encode"))
    request, generation = collector.named("POST /v1/jobs"), collector.named("generation")
    assert ours(request)["elit.job_id"] == ours(generation)["elit.job_id"] == job_id
    assert generation.parent_span_id == b""
    assert [(link.trace_id, link.span_id) for link in generation.links] == [(request.trace_id, request.span_id)]
    assert len(collector.children(generation)) == 3


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]


def test_a_collector_that_is_gone_fails_nobody_and_is_told_of_once(
    start_server: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there, so that no other server gets the port meanwhile
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        server = start_server(settings=Settings(response_ms=0, otlp_endpoint=url))
        assert server.generate(TULIP).status_code == 200
        eventually(lambda: len(told(caplog)) > 0)
        assert server.generate(TULIP).status_code == 200
        server.app.state.service.tracing.stop()  # it is trying again, or about to
        assert server.generate(TULIP).status_code == 200
        (line,) = told(caplog)
        assert "Connection refused" in line


def test_trouble_is_told_again_after_it_was_over(
    start_server: Any,
    settings: Settings,
    collector: Collector,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_server(settings=settings)
    for count, status in enumerate((401, 401, 200, 401)):
        collector.status = status
        assert server.client.get("/v1/nowhere").status_code == 404
        eventually(lambda count=count: len(collector.requests) == count + 1)
    eventually(lambda: len(told(caplog)) == 2)
    assert all("code: 401" in line for line in told(caplog))


def test_a_collector_that_never_answers_holds_nobody_up(
    start_server: Any,
    settings: Settings,
    collector: Collector,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    collector.may_answer.clear()
    server = start_server(settings=settings)
    for _ in range(3):
        assert server.generate(TULIP).status_code == 200
    eventually(lambda: len(collector.requests) == 1)
    began_s = time.monotonic()
    server.app.state.service.tracing.stop()
    assert time.monotonic() - began_s < 20  # OpenTelemetry itself would wait for 30 s
    collector.may_answer.set()


def test_variables_hold_and_what_is_left_is_sent_at_the_end(
    tiny_pipeline: Pipeline, settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    executor = Executor(tiny_pipeline, num_slots=num_slots(settings))
    app = create_app([LoadedModel(pipeline=tiny_pipeline, executor=executor, cost=CHEAP)], settings)

    async def live() -> None:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            assert (await client.post("http://server/v1/generate", json=TULIP)).status_code == 200
            assert collector.requests == []

    asyncio.run(live())
    assert collector.has("POST /v1/generate", "generation", "queue", "compute", "encode")
    (resource,) = collector.resources
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("studio", "test")


def test_without_the_extra_the_start_says_in_one_line_what_to_install() -> None:
    without = "import sys; sys.modules['opentelemetry.exporter'] = None; from elit_serve.cli import main; main()"
    command = [sys.executable, "-c", without, "serve", "--otlp-endpoint", "http://localhost:4318"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    package = "opentelemetry-exporter-otlp-proto-http"
    assert done.stderr == f"error: this needs the package {package}: pip install 'elit-serve[otel]'\n"
    assert done.returncode == 2


def test_variables_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    with pytest.raises(InvalidInput, match=r"^otlp_endpoint: .*an OTEL_ variable is wrong: max_export_batch_size"):
        tracing.Tracing("http://localhost:4318", clock=MonotonicClock())


@pytest.mark.parametrize("log_prompts", ["off", "on"])
def test_a_trace_holds_a_prompt_only_where_settings_say_so(
    start_server: Any,
    settings: Settings,
    collector: Collector,
    eventually: Eventually,
    painter: Pipeline,
    log_prompts: str,
) -> None:
    server = start_server(painter, settings=settings.model_copy(update={"log_prompts": log_prompts}))
    assert server.generate({"prompt": "a secret rose", "negative_prompt": "thorns"}).status_code == 200
    eventually(lambda: collector.has("POST /v1/generate", "generation"))
    told = attributes(collector.named("generation"))
    assert "elit.label" not in told
    assert told.get("elit.prompt") == ("a secret rose" if log_prompts == "on" else None)
    assert any(b"secret" in body for _, body in collector.requests) == (log_prompts == "on")
