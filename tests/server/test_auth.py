"""With keys, nobody without the right one gets anything but health and the page; what keys may have is limited."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI, RateLimitError
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from elit_serve.server.keys import digest_of, make_key
from elit_serve.server.settings import Settings

STREAMS = {"/v1/live", "/v1/jobs/{job_id}/events"}
HEALTH = {"/health", "/liveness", "/readiness", "/v2/health/live", "/v2/health/ready"}
KEYS: dict[str, dict[str, object]] = {
    "maker": {"scopes": ["generate"], "share": 3},
    "rival": {"scopes": ["generate"]},
    "scraper": {"scopes": ["metrics"]},
    "slow": {"scopes": ["generate"], "requests_per_minute": 6, "burst": 2},
}
TULIP = {"label": "tulip", "budget": 0.25}
PROMPT = {"prompt": "tulip", "quality": "low"}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    lines = [make_key(name, {"sha256": digest_of(f"key-of-{name}"), **entry}).line() for name, entry in KEYS.items()]
    file.write_text("\n".join(lines))
    return str(file)


@pytest.fixture
def settings(keys_file: str) -> Settings:
    return Settings(response_ms=0, max_queue=8, keys_file=keys_file, api_key=("key-of-boss",))


@pytest.fixture
def guarded(start_server: Any, settings: Settings) -> Any:
    return start_server(settings=settings)


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """(method, path) of everything that the app has, and of something that it has not."""
    yield from (("GET", "/nothing"), ("POST", "/v1/nothing"), ("GET", "/v1/images/"), ("OPTIONS", "/v1/generate"))
    yield from (("GET", "/healthy"), ("GET", "/health/"))
    yield from (("GET", "/static"), ("GET", "/statics/a"), ("GET", "/%6detrics"), ("GET", "/health%2f../metrics"))

    def walk(routes: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if isinstance(route, Mount):
                yield "GET", f"{prefix}{route.path}/anything"
                yield from walk(route.routes, prefix + route.path)
            elif hasattr(route, "effective_candidates"):  # an included router
                yield from walk(route.effective_candidates(), prefix)
            else:
                path = re.sub(r"\{.*?\}", "1", prefix + route.path)
                yield from ((method, path) for method in route.methods or ())

    yield from walk(app.routes, "")


def test_without_a_key_every_route_but_health_and_the_page_is_closed(guarded: Any) -> None:
    routes = list(routes_of(guarded.app))
    assert {path for _, path in routes} >= {*HEALTH, "/v1/generate", "/v1/models", "/metrics", "/version", "/docs"}
    for method, path in routes:
        is_open = path in HEALTH | {"/"} or path.startswith("/static/")
        status = guarded.client.request(method, path).status_code
        assert status != 401 if is_open else status == 401, (method, path, status)
    assert guarded.client.get("/static/%2e%2e/v1/models").status_code == 404


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "Basic a2V5LW9mLW1ha2Vy"}, "Bearer"),
        ({"Authorization": "Bearer"}, "Bearer"),
        ({"Authorization": "Bearer key-of-make"}, 'Bearer error="invalid_token"'),
        ({"Authorization": "Bearer " + digest_of("key-of-maker")}, 'Bearer error="invalid_token"'),
        ({"Authorization": "Bearer k\u00e9y"}, 'Bearer error="invalid_token"'),
    ],
)
def test_without_a_valid_key_the_answer_is_401_and_says_how(
    headers: dict[str, str], challenge: str, guarded: Any
) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = guarded.client.post("/v1/generate", json=TULIP, headers=encoded)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == challenge
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:elit-serve:invalid-api-key"
    error = guarded.client.post("/v1/images/generations", json=PROMPT, headers=encoded).json()["error"]
    assert error["code"] == "invalid_api_key"


def test_a_key_opens_what_its_scopes_say(guarded: Any) -> None:
    def status(path: str, name: str) -> int:
        return int(guarded.client.get(path, headers=bearer(name)).status_code)

    for path in ("/docs", "/openapi.json", "/version", "/static-offline-docs/swagger-ui.css"):
        assert status(path, "maker") == status(path, "scraper") == status(path, "boss") == 200
    assert (status("/v1/models", "maker"), status("/v1/models", "scraper"), status("/v1/models", "boss")) == (
        200,
        403,
        200,
    )
    assert (status("/metrics", "maker"), status("/metrics", "scraper"), status("/metrics", "boss")) == (403, 200, 200)
    assert (status("/load", "maker"), status("/load", "scraper"), status("/load", "boss")) == (403, 200, 200)
    assert (status("/nothing", "maker"), status("/nothing", "boss")) == (403, 404)
    assert guarded.client.post("/v1/generate", json=TULIP, headers=bearer("maker")).status_code == 200
    refused = guarded.client.post("/v1/generate", json=TULIP, headers=bearer("scraper"))
    assert refused.json()["type"] == "urn:elit-serve:permission-denied"
    assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="generate"'


def test_the_scheme_is_spelled_as_one_likes(guarded: Any) -> None:
    for header in ("bearer key-of-maker", "BEARER  key-of-maker"):
        assert guarded.client.get("/v1/models", headers={"Authorization": header}).status_code == 200


def test_a_websocket_is_closed(guarded: Any) -> None:
    with pytest.raises(WebSocketDisconnect) as closing, TestClient(guarded.app).websocket_connect("/health"):
        pass
    assert closing.value.code == 1008


def test_a_refused_body_is_not_read(guarded: Any) -> None:
    """Nobody without a key makes the server hold a megabyte."""
    answer = guarded.client.post("/v1/generate", content=b"x" * (2 << 20))
    assert answer.status_code == 401


def test_a_key_has_its_rate_and_looking_is_free(guarded: Any) -> None:
    def post(name: str) -> httpx.Response:
        answer = guarded.client.post("/v1/plan", json=TULIP, headers=bearer(name))
        assert isinstance(answer, httpx.Response)
        return answer

    assert [post("slow").status_code for _ in range(3)] == [200, 200, 429]
    refused = post("slow")
    assert refused.json()["type"] == "urn:elit-serve:rate-limit-exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert post("maker").status_code == 200
    assert guarded.client.get("/v1/models", headers=bearer("slow")).status_code == 200
    for sparing in ("/v1/requests/none/finish", f"/v1/jobs/{'0' * 32}/finish"):
        assert guarded.client.post(sparing, headers=bearer("slow")).status_code == 404


def test_openai_s_client_knows_these_errors(guarded: Any) -> None:
    def ask(key: str) -> None:
        client = OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        client.images.generate(prompt="tulip", quality="low")

    ask("key-of-slow")
    ask("key-of-slow")
    with pytest.raises(RateLimitError) as limited:
        ask("key-of-slow")
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(AuthenticationError) as unknown:
        ask("key-of-nobody")
    assert unknown.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "--closed-loop", "1", "--requests", "2", "--warm-up", "1"],
        ["soak", "--callers", "2", "--seconds", "1"],
    ],
)
def test_the_load_generators_have_a_key_and_keep_it_to_themselves(guarded: Any, command: list[str]) -> None:
    def run(*options: str, key: str = "") -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "elit_serve.cli", *command, guarded.url, "--json", *options]
        environment = os.environ | ({"ELIT_SERVE_API_KEY": key} if key else {})
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment, check=False)

    refused = run()
    assert refused.returncode != 0
    assert "API key" in refused.stderr
    for done in (run(key="key-of-boss"), run("--api-key", "key-of-boss")):
        report = json.loads(done.stdout)  # `soak` ends with 1 where a limit is missed, as in so short a run it may be
        assert report["command"].startswith(f"elit-serve {command[0]}")
        assert "key-of-boss" not in done.stdout + done.stderr


@pytest.fixture
def crowded(start_server: Any, settings: Settings, held: type[Any]) -> Any:
    return start_server(settings=settings, executor=held)


Ask = Callable[[str, int], httpx.Response]


@pytest.fixture
def ask(crowded: Any) -> Ask:
    def ask(name: str, n: int) -> httpx.Response:
        answer = crowded.client.post("/v1/generate", json={**TULIP, "n": n}, headers=bearer(name))
        assert isinstance(answer, httpx.Response)
        return answer

    return ask


def test_who_found_the_queue_full_is_waited_for(
    crowded: Any, ask: Ask, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with ThreadPoolExecutor(2) as callers:
        running = callers.submit(ask, "rival", 4)
        eventually(lambda: crowded.worker.num_running == 4)
        waiting = callers.submit(ask, "rival", 8)  # alone it may fill the queue
        eventually(lambda: crowded.worker.waiting_by_owner() == {"rival": 8})
        before, other, after = ask("rival", 1), ask("maker", 1), ask("rival", 1)
        crowded.executor.may_run.set()
        assert [done.result().status_code for done in (running, waiting)] == [200, 200]
    assert [answer.status_code for answer in (before, other, after)] == [503, 503, 429]
    assert before.json()["reason"] == other.json()["reason"] == "queue_full"


def test_one_key_cannot_crowd_out_another(
    crowded: Any, ask: Ask, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    server = crowded
    with ThreadPoolExecutor(4) as callers:
        running = callers.submit(ask, "rival", 4)  # fills a step, and the executor holds it
        eventually(lambda: server.worker.num_running == 4)
        alone = callers.submit(ask, "rival", 3)
        eventually(lambda: server.worker.waiting_by_owner() == {"rival": 3})
        other = callers.submit(ask, "maker", 1)
        eventually(lambda: server.worker.waiting_by_owner() == {"rival": 3, "maker": 1})
        refused = ask("rival", 1)  # its share is 2 of 8
        weighty = callers.submit(ask, "maker", 4)  # and that of the other 6
        eventually(lambda: server.worker.waiting_by_owner() == {"rival": 3, "maker": 5})
        full = ask("maker", 1)
        server.executor.may_run.set()
        assert [done.result().status_code for done in (running, alone, other, weighty)] == [200] * 4
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:elit-serve:share-exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    assert (full.status_code, full.json()["reason"]) == (503, "queue_full")
    assert server.app.state.service.metrics.of(server.pipeline.config.name).refusals["share"] == 1


def test_the_document_tells_of_keys_where_there_are_keys(guarded: Any, server: Any) -> None:
    document = guarded.client.get("/openapi.json", headers=bearer("maker")).json()
    assert document["components"]["securitySchemes"] == {"apiKey": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == (path not in HEALTH | {"/"})
            assert ("401" in operation["responses"]) == ("security" in operation)
            assert ("429" in operation["responses"]) == (method == "post" or path in STREAMS)
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert answers["401"]["content"]["application/json"]["schema"]["$ref"].endswith("/OpenAIError")
    assert "403" in document["paths"]["/metrics"]["get"]["responses"]
    plain = server.client.get("/openapi.json").json()
    assert "securitySchemes" not in plain["components"]
    assert not any("security" in operation for path in plain["paths"].values() for operation in path.values())


def test_without_keys_everything_is_open(server: Any) -> None:
    for method, path in routes_of(server.app):
        with server.client.stream(method, path) as answer:  # the live view has no end
            assert answer.status_code not in (401, 403)


def test_a_keys_file_that_is_wrong_stops_the_start(start_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("")
    with pytest.raises(Exception, match="at least one key"):
        start_server(settings=Settings(keys_file=str(file)))
