"""What every answer has, whatever it is; what is logged of a request; and who may ask from a browser, and how many."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from elit_serve.errors import InvalidInput
from elit_serve.server.keys import digest_of, make_key
from elit_serve.server.settings import Settings
from elit_serve.server.watching import logs
from elit_serve.server.watching.logs import JsonFormatter, TextFormatter

TULIP = {"label": "tulip", "budget": 0.25}
SECRET = "token-abc123"


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that the server's loggers have written in JSON since."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("elit_serve")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel("NOTSET")


def test_every_answer_has_an_id_and_the_headers_for_browsers(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_body_bytes=1024))
    answers = [
        server.client.get("/health"),
        server.generate(TULIP),
        server.generate({"label": "nothing"}),
        server.client.get("/nowhere"),
        server.client.post("/v1/generate", content=b"x" * 2000),
        server.client.post("/v1/images/generations", json={"prompt": "tulip", "stream": True, "quality": "low"}),
    ]
    del server.app.state.service
    answers.append(server.client.get("/health"))
    assert [answer.status_code for answer in answers] == [200, 200, 422, 404, 413, 200, 500]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        if answer.headers["content-type"] == "application/problem+json":
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_sane_id_is_kept_and_another_replaced(server: Any) -> None:
    def id_for(sent: str) -> str:
        return str(server.client.get("/health", headers={"X-Request-Id": sent}).headers["x-request-id"])

    for sane in ("7", "3f2a-9.b_C", "a" * 128):
        assert id_for(sane) == sane
    for other in ("a b", 'a"', "a" * 129, "{}", "a;b"):
        assert re.fullmatch(r"[0-9a-f]{16}", id_for(other))


def test_only_the_docs_page_may_run_what_stands_in_it(server: Any) -> None:
    assert "script-src 'self' 'unsafe-inline'" in server.client.get("/docs").headers["content-security-policy"]


def test_the_version_is_told(server: Any) -> None:
    version = server.client.get("/version").json()["version"]
    assert version == server.client.get("/openapi.json").json()["info"]["version"]


def test_a_request_is_one_line_of_the_log(start_server: Any, logged: Callable[[], list[dict[str, Any]]]) -> None:
    server = start_server(settings=Settings(response_ms=0, api_key=(SECRET,)))
    headers = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": "mine"}
    server.client.get(f"/v1/models?api_key={SECRET}", headers=headers)
    server.client.get("/v1/models")
    first, second = logged()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    duration_ms = first.pop("duration_ms")
    assert first.pop("message") == f"GET /v1/models 200 {duration_ms:.1f} ms"
    assert first == {
        "level": "info",
        "logger": "elit_serve.access",
        "request_id": "mine",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "client": "127.0.0.1",
        "key": "api-key-1",
    }
    assert (second["status"], "key" in second) == (401, False)


def test_a_refused_request_is_logged_with_its_key(
    start_server: Any, logged: Callable[[], list[dict[str, Any]]], eventually: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    entry = {"sha256": digest_of(SECRET), "scopes": ["generate"], "requests_per_minute": 1, "burst": 1}
    keys.write_text(make_key("studio", entry).line(), encoding="utf-8")
    server = start_server(settings=Settings(response_ms=0, keys_file=str(keys)))
    headers = {"Authorization": f"Bearer {SECRET}"}
    answers = [server.client.post("/v1/plan", json=TULIP, headers=headers) for _ in range(2)]
    answers.append(server.client.get("/metrics", headers=headers))
    assert [answer.status_code for answer in answers] == [200, 429, 403]
    eventually(lambda: len(logged()) == 3)
    assert [(line["status"], line["key"]) for line in logged()] == [(200, "studio"), (429, "studio"), (403, "studio")]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("log_level", ["debug", "info"])
def test_no_line_of_the_log_has_the_query_of_an_address(
    start_http: Callable[..., str], log_level: Any, log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """httpx logs every address that it asks at info, and our own errors quote the addresses that they are about."""
    url = start_http(lambda _path, _body: (200, {}, b""))
    before = logging.getLogger().handlers, logging.getLogger().level
    logs.configure(Settings(log_level=log_level, log_format=log_format))
    try:
        with httpx.Client() as client:
            client.get(f"{url}/told?token={SECRET}")
        logger = logging.getLogger("elit_serve.jobs.webhooks")
        logger.info("no webhook for job 7: %s", InvalidInput("webhook.url", f"{url}/a?token={SECRET}", "a host"))
        try:
            raise ValueError(f"{url}/b?token={SECRET}#part")
        except ValueError:
            logger.exception("it failed")
    finally:
        logging.basicConfig(handlers=before[0], level=before[1], force=True)
        logging.getLogger("elit_serve").setLevel("NOTSET")
        logging.captureWarnings(False)
    written = capsys.readouterr().err
    assert f"{url}/a?" in written
    assert f"{url}/b?" in written
    assert SECRET not in written


def test_a_failure_is_one_line_too_and_answered(start_server: Any, logged: Callable[[], list[dict[str, Any]]]) -> None:
    server = start_server()
    del server.app.state.service
    answer = server.client.get("/health", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "mine")
    failure, access = logged()
    assert (failure["level"], failure["request_id"], access["status"]) == ("error", "mine", 500)
    assert failure["error"].startswith("Traceback")
    assert failure["error"].endswith("'service'")


def test_a_caller_cannot_write_lines_into_the_log(server: Any, eventually: Any) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("elit_serve.access")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        server.client.get("/a%0AERROR%20elit_serve:%20all%20is%20lost%1b[2J", headers={"X-Request-Id": "mine"})
        eventually(lambda: written.getvalue().endswith("\n"))  # an answer may be there before its line
    finally:
        logger.removeHandler(handler)
        logger.setLevel("NOTSET")
    (line,) = written.getvalue().splitlines()
    assert re.fullmatch(
        r"INFO elit_serve\.access: GET /a\\nERROR elit_serve: all is lost\\x1b\[2J 404 \d\.\d ms \[mine\]", line
    )


def test_the_log_of_a_process_is_json_to_the_last_line_and_holds_no_secret(
    shared_tiny_model_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "serve", str(shared_tiny_model_dir), "--host", "127.0.0.1"]
    variables = {"ELIT_SERVE_API_KEY": SECRET, "ELIT_SERVE_LOG_FORMAT": "json", "ELIT_SERVE_LOG_LEVEL": "debug"}
    variables |= {"ELIT_SERVE_PORT": "0", "ELIT_SERVE_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    ) as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        url = re.findall(r"http://[\d.]+:\d+", announced["message"])[0]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=60) as client:
            assert client.post(f"/v1/generate?api_key={SECRET}", json=TULIP).status_code == 200
            assert client.post("/v1/generate", json={**TULIP, "user": SECRET}).status_code == 422
            assert client.get("/v1/models", headers={"Authorization": f"Bearer x{SECRET}"}).status_code == 401
            assert client.get("/metrics", headers={"X-Api-Key": SECRET, "Cookie": SECRET}).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["status"] for line in lines if line["logger"] == "elit_serve.access"] == [200, 422, 401, 200]
    assert any(line["logger"] == "uvicorn.error" for line in lines)
    assert SECRET not in errors


def test_pages_of_other_origins_may_not_ask_unless_they_are_named(start_server: Any) -> None:
    origin = "https://a.example"
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization,content-type"
    closed = start_server(settings=Settings(response_ms=0))
    assert closed.client.options("/v1/generate", headers=preflight).status_code == 405
    assert "access-control-allow-origin" not in closed.client.get("/version", headers={"Origin": origin}).headers

    named = start_server(settings=Settings(response_ms=0, cors_origin=(origin,), api_key=(SECRET,)))
    answer = named.client.options("/v1/generate", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "authorization" in answer.headers["access-control-allow-headers"]
    other = named.client.options("/v1/generate", headers={**preflight, "Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = named.client.post("/v1/generate", json=TULIP, headers={"Origin": origin})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin  # or the page could not read why


def test_more_requests_at_a_time_than_allowed_are_refused_and_health_never(
    start_server: Any, held: type[Any], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=2), executor=held)
    with ThreadPoolExecutor(2) as callers:
        taken = [callers.submit(server.generate, TULIP) for _ in range(2)]
        eventually(lambda: server.health()["queue_length"] + server.health()["running"] == 2)
        others = server.client.get("/v1/models")
        refused = server.generate(TULIP)
        openai = server.client.post("/v1/images/generations", json={"prompt": "tulip"})
        server.executor.may_run.set()
        assert [done.result().status_code for done in taken] == [200, 200]
    assert others.status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (refused.json()["type"], refused.json()["reason"]) == ("urn:elit-serve:overloaded", "too_many_requests")
    assert openai.json()["error"]["code"] == "too_many_requests"
    assert server.client.get("/v1/models").status_code == 200


def test_a_caller_who_leaves_gives_its_place_back(
    start_server: Any, held: type[Any], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=1), executor=held)
    server.leave(TULIP, once=lambda: server.health()["running"] == 1)
    eventually(lambda: server.generate({"label": "nothing"}).status_code == 422)
    server.executor.may_run.set()


def test_who_never_sends_a_body_holds_no_place(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=1))
    with ExitStack() as stack:
        for _ in range(3):
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", server.client.base_url.port)))
            caller.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
        for _ in range(3):
            assert server.generate(TULIP).status_code == 200


def test_the_document_has_every_status_that_a_limit_may_cause(server: Any) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert "/version" in paths
    assert all("503" in operation["responses"] for path in paths.values() for operation in path.values())
