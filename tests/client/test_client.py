from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from PIL import Image

from elit_serve.client import AsyncClient, Client, Generation, PartialImage, Plan, Retries, StreamOptions
from elit_serve.clock import VirtualClock
from elit_serve.errors import (
    ConnectionFailed,
    ConnectionLost,
    FieldError,
    InvalidInput,
    ServerProblem,
    ServerUnreachable,
)

ANSWER = {
    "model": "tiny",
    "label": "rose",
    "steps": 4,
    "output_format": "png",
    "total_ms": 12.5,
    "a_field_of_tomorrow": 1,
    "images": [{"b64_json": "aGVsbG8=", "seed": 7, "level": 2.5, "budget": 0.625, "levels": [2, 3], "mood": "good"}],
}
JSON = {"Content-Type": "application/json; charset=utf-8"}


def problem(status: int, **members: object) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/problem+json"}, json.dumps(members).encode()


def asked(url: str, is_async: bool, waits: list[float], **arguments: Any) -> Generation:
    """What a client answers that may try 5 times; it notes how long it would have waited."""
    of_client = {name: arguments.pop(name) for name in ("api_key", "timeout_s") if name in arguments}
    retries = Retries(backoff_s=1)

    async def note(wait_s: float) -> None:
        waits.append(wait_s)

    async def ask() -> Generation:
        async with AsyncClient(url, retries=retries, sleep=note, **of_client) as client:
            return await client.generate(**arguments)

    if is_async:
        return asyncio.run(ask())
    with Client(url, retries=retries, sleep=waits.append, **of_client) as client:
        return client.generate(**arguments)


def made(generation: Generation) -> list[object]:
    """What does not depend on how busy the machine was."""
    return [(image.data, image.seed, image.level, image.budget, image.levels) for image in generation.images]


@pytest.fixture(scope="module")
def client(tiny_server_url: str) -> Iterator[Client]:
    with Client(tiny_server_url) as connected:
        yield connected


def test_a_server_tells_what_it_serves(client: Client) -> None:
    (model,) = client.models()
    assert (model.id, model.classes) == ("tiny", ("daisy", "rose", "tulip"))
    assert [(info.level, info.budget) for info in model.levels] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert (model.sampling.steps, model.sampling.guidance.method) == (4, "ccfg")
    assert client.health().model == "tiny"


def test_a_picture_comes_with_how_it_was_made(client: Client) -> None:
    generation = client.generate(label="tulip", budget=0.5, seed=3, steps=2)
    (image,) = generation.images
    assert (generation.label, generation.steps, generation.output_format) == ("tulip", 2, "png")
    assert (image.seed, image.level, image.budget) == (3, 2, 0.5)
    assert Image.open(io.BytesIO(image.data)).size == (32, 32)


def test_sync_and_async_give_the_same_answer(client: Client, tiny_server_url: str) -> None:
    async def ask() -> Generation:
        async with AsyncClient(tiny_server_url) as other:
            assert (await other.health()).model == (await other.models())[0].id
            return await other.generate(label=1, budget=1, seed=5, n=2)

    assert made(asyncio.run(ask())) == made(client.generate(label="rose", budget=1, seed=5, n=2))


def test_a_bare_file_tells_the_same_as_json(client: Client) -> None:
    inside = client.generate(label="tulip", seed=9, budget=0.75, output_format="webp")
    bare = client.generate(label="tulip", seed=9, budget=0.75, accept="image/webp")
    assert made(bare) == made(inside)
    for fact in ("output_format", "label", "model", "model_hash", "dtype", "steps", "latency_ms", "deadline_met"):
        assert getattr(bare, fact) == getattr(inside, fact), fact
    assert bare.total_ms is not None


def test_a_smaller_file_can_be_asked_for(client: Client) -> None:
    asked = {"label": "tulip", "seed": 9, "budget": 0.5, "output_format": "webp"}
    small, usual = client.generate(**asked, output_compression=10), client.generate(**asked)
    assert len(small.images[0].data) < len(usual.images[0].data)


def test_an_impossible_target_says_what_would_be_possible(client: Client) -> None:
    with pytest.raises(ServerProblem, match="infeasible") as caught:
        client.generate(label="rose", latency_ms=0.001)
    assert caught.value.status == 422
    assert caught.value.min_latency_ms is not None
    assert caught.value.min_latency_ms > 0.001


def test_a_bad_field_is_named(client: Client) -> None:
    with pytest.raises(ServerProblem, match="tulp") as caught:
        client.generate(label="tulp")
    assert (caught.value.status, caught.value.min_latency_ms) == (422, None)


def test_a_dry_run_says_what_would_become_of_a_request(client: Client, tiny_server_url: str) -> None:
    plan = client.plan(label="rose", budget=0.5, n=2)
    assert (plan.accepted, plan.label, plan.n, plan.refusal) == (True, "rose", 2, None)
    assert plan.course is not None
    assert plan.course.levels == ((2, 2, 2, 2),) * 2
    assert [alternative.level for alternative in plan.alternatives] == [1, 2, 4]

    async def ask() -> Plan:
        async with AsyncClient(tiny_server_url) as other:
            return await other.plan(label="rose", latency_ms=0.001)

    refused = asyncio.run(ask())
    assert (refused.accepted, refused.course) == (False, None)
    assert refused.refusal is not None
    assert refused.refusal.reason == "infeasible"
    assert refused.refusal.min_latency_ms is not None


@pytest.mark.parametrize("is_async", [False, True])
def test_a_picture_can_be_watched_while_it_is_made(client: Client, tiny_server_url: str, is_async: bool) -> None:
    async def watch() -> list[PartialImage | Generation]:
        async with AsyncClient(tiny_server_url) as other:
            return [event async for event in other.stream(**asked_for)]

    asked_for: StreamOptions = {"label": 2, "seed": 3, "budget": 0.5, "partial_images": 2, "output_format": "webp"}
    *previews, generation = asyncio.run(watch()) if is_async else client.stream(**asked_for)
    assert [event.index for event in previews if isinstance(event, PartialImage)] == [0, 1]
    assert isinstance(generation, Generation)
    assert made(generation) == made(client.generate(label="tulip", seed=3, budget=0.5, output_format="webp"))
    assert generation.images[0].compute_ms is not None
    pictures = [event.data for event in previews if isinstance(event, PartialImage)] + [generation.images[0].data]
    assert [Image.open(io.BytesIO(data)).format for data in pictures] == ["WEBP"] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_refused_says_why(client: Client, tiny_server_url: str, is_async: bool) -> None:
    async def watch() -> None:
        async with (
            AsyncClient(tiny_server_url) as other,
            aclosing(other.stream(label="rose", latency_ms=0.001)) as events,
        ):
            await anext(events)

    with pytest.raises(ServerProblem) as caught:
        asyncio.run(watch()) if is_async else next(client.stream(label="rose", latency_ms=0.001))
    assert (caught.value.status, caught.value.code) == (400, "infeasible")
    assert caught.value.min_latency_ms is not None
    with pytest.raises(ServerProblem, match="tulp") as caught:
        next(client.stream(label="tulp"))
    assert [error.field for error in caught.value.errors] == ["prompt"]


@pytest.mark.parametrize(
    ("stream", "kind", "message"),
    [
        (
            'event: error\ndata: {"error": {"message": "too late", "code": "deadline_exceeded"}}\n\n',
            ServerProblem,
            r"504 \(deadline-exceeded\): too late",
        ),
        (": it is still being made\n\n", ConnectionLost, "ended before"),
        ("event: image_generation.completed\r\ndata: {}\r\n\r\n", ServerUnreachable, "image_generation.completed"),
        ('event: image_generation.partial_image\ndata: {"b64_json":\ndata: 1}\n\n', ServerUnreachable, "b64_json"),
    ],
)
def test_a_stream_that_goes_wrong_says_how(start_http: Any, stream: str, kind: type[Exception], message: str) -> None:
    url = start_http(lambda _path, _body: (200, {"Content-Type": "text/event-stream"}, stream.encode()))
    with Client(url) as client, pytest.raises(kind, match=message):
        list(client.stream(label="rose"))


def test_who_stops_watching_drops_the_request(client: Client, tiny_server_url: str) -> None:
    def cancelled() -> float:
        text = httpx.get(f"{tiny_server_url}/metrics").text
        return float(re.findall(r'^elit_generations_total\{.*outcome="cancelled".*\} (.*)$', text, re.MULTILINE)[0])

    before = cancelled()
    events = client.stream(label="rose", steps=200, partial_images=3)
    assert isinstance(next(events), PartialImage)
    events.close()
    deadline_s = time.monotonic() + 20
    while cancelled() == before:
        assert time.monotonic() < deadline_s, "the server goes on"


def test_a_latent_arrives_as_it_is(start_http: Any) -> None:
    headers = {"Content-Type": "application/x-safetensors", "X-Elit-Label": "caf%C3%A9", "X-Elit-Model": "xl"}
    headers |= {"X-Elit-Seed": "7", "X-Elit-Level": "4", "X-Elit-Budget": "0.0625", "X-Elit-Levels": "4,4"}
    headers |= {"X-Elit-Steps": "2", "X-Elit-Total-Ms": "148.5", "X-Elit-Deadline-Met": "true"}
    headers |= {"X-Elit-Guidance": '{"method": "ccfg", "weak_budget": 0.25}'}
    url = start_http(lambda _path, _body: (200, headers, b"\x00latent"))
    with Client(url) as client:
        generation = client.generate(label=0)
    (image,) = generation.images
    assert (image.data, image.seed, image.levels) == (b"\x00latent", 7, (4, 4))
    assert (generation.output_format, generation.label, generation.total_ms) == ("safetensors", "café", 148.5)
    assert generation.deadline_met is True
    assert generation.guidance["weak_budget"] == 0.25


def test_fields_that_are_not_given_are_not_sent_and_new_ones_in_the_answer_do_no_harm(start_http: Any) -> None:
    bodies = []

    def answer(_path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        bodies.append(json.loads(body))
        return 200, JSON, json.dumps(ANSWER).encode()

    with Client(start_http(answer)) as client:
        generation = client.generate(label="rose", latency_ms=300, budget=None, guidance={"scale": 2.0})
    assert bodies == [{"label": "rose", "latency_ms": 300, "guidance": {"scale": 2.0}}]
    assert (generation.images[0].data, generation.images[0].level) == (b"hello", 2.5)
    assert generation.queue_ms is None


@pytest.mark.parametrize("is_async", [False, True])
def test_a_busy_server_is_tried_again_when_it_asks_to_be(start_http: Any, is_async: bool) -> None:
    replies = iter(
        [
            (503, {"Retry-After": "2"}, b""),
            (503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=30))}, b""),
            (429, {}, b""),
            (503, {}, b""),
            (200, JSON, json.dumps(ANSWER).encode()),
        ]
    )
    waits: list[float] = []
    generation = asked(start_http(lambda _path, _body: next(replies)), is_async, waits, label="rose")
    assert generation.label == "rose"
    assert waits[0] == 2
    assert 25 < waits[1] <= 30
    assert 2 <= waits[2] <= 4
    assert 4 <= waits[3] <= 8


@pytest.mark.parametrize(
    ("status", "retry_after", "num_asked"),
    [
        (503, "1", 3),  # tries are used up
        (503, "20", 2),  # time is, after one wait
        (503, "31", 1),  # too long a wait
        (422, "1", 1),  # would be refused again
        (504, "1", 1),  # was taken, and ran out of time
    ],
)
def test_giving_up_raises_the_problem(start_http: Any, status: int, retry_after: str, num_asked: int) -> None:
    requests = []

    def answer(path: str, _body: bytes) -> tuple[int, dict[str, str], bytes]:
        requests.append(path)
        status_, headers, content = problem(status, type="urn:elit-serve:overloaded", detail="no room")
        return status_, {**headers, "Retry-After": retry_after}, content

    clock = VirtualClock()
    retries = Retries(max_tries=3, max_total_s=30)
    with (
        Client(start_http(answer), retries=retries, sleep=clock.advance, clock=clock) as client,
        pytest.raises(ServerProblem, match="no room") as caught,
    ):
        client.generate(label="rose")
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", float(retry_after))
    assert len(requests) == num_asked


def test_nothing_is_tried_again_unless_asked_for(start_http: Any) -> None:
    replies = iter([(503, {"Retry-After": "0"}, b""), (200, JSON, json.dumps(ANSWER).encode())])
    with Client(start_http(lambda _path, _body: next(replies))) as client, pytest.raises(ServerProblem, match="503"):
        client.generate(label="rose")


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + json.dumps(ANSWER).encode()
BROKEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("broken", [b"", BROKEN], ids=["no answer", "half an answer"])
def test_a_lost_answer_is_asked_for_again_if_it_would_be_the_same(
    start_raw: Any, is_async: bool, broken: bytes
) -> None:
    url, requests = start_raw(broken, OK)
    assert asked(url, is_async, [], label="rose", seed=7).label == "rose"
    assert requests[0].partition(b"\r\n\r\n")[2] == requests[1].partition(b"\r\n\r\n")[2]
    url, requests = start_raw(broken, OK)
    with pytest.raises(ConnectionLost, match=url):
        asked(url, is_async, [], label="rose")
    assert len(requests) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_server_that_is_not_there_yet_is_waited_for(is_async: bool) -> None:
    waits: list[float] = []
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailed):
            asked(f"http://127.0.0.1:{taken.getsockname()[1]}", is_async, waits, label="rose")
    assert len(waits) == 4


@pytest.mark.parametrize("is_async", [False, True])
def test_a_slow_answer_is_not_asked_for_twice(is_async: bool) -> None:
    waits: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerUnreachable) as caught:
        asked(f"http://127.0.0.1:{silent.getsockname()[1]}", is_async, waits, timeout_s=0.1, label="rose", seed=7)
    assert not isinstance(caught.value, ConnectionFailed | ConnectionLost)
    assert waits == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_key_goes_with_every_request(start_raw: Any, is_async: bool) -> None:
    url, requests = start_raw(OK)
    asked(url, is_async, [], api_key="sk-tulip", label="rose")
    assert b"\r\nauthorization: bearer sk-tulip\r\n" in requests[0].lower()


@pytest.mark.parametrize("api_key", ["", " sk", "sk\n", "sk\r\nX-Other: 1", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(api_key: str) -> None:
    with pytest.raises(InvalidInput, match="api_key") as caught:
        Client("http://127.0.0.1:1", api_key=api_key)
    assert not api_key or api_key not in str(caught.value)


def test_an_error_names_the_request_and_its_wrong_fields(start_http: Any) -> None:
    wrong = {"field": "budget", "value": 2, "allowed": "at most 1"}
    status, headers, content = problem(422, type="urn:elit-serve:invalid-input", detail="budget", errors=[wrong, 1])
    url = start_http(lambda _path, _body: (status, {**headers, "X-Request-Id": "0b5e"}, content))
    with Client(url) as client, pytest.raises(ServerProblem, match=r"\[request 0b5e\]") as caught:
        client.generate(label="rose", budget=2)
    assert caught.value.request_id == "0b5e"
    assert caught.value.errors == (FieldError(field="budget", value=2, allowed="at most 1"),)


def test_a_server_that_is_not_ready_is_not_waited_for(start_http: Any) -> None:
    replies = iter([(200, JSON, b"{}"), (503, {"Retry-After": "1"}, b""), (200, JSON, b"{}"), (503, {}, b"")])
    url = start_http(lambda _path, _body: next(replies))

    async def ask() -> list[bool]:
        async with AsyncClient(url) as client:
            return [await client.ready(), await client.ready()]

    with Client(url, retries=Retries(max_tries=3)) as client:
        assert [client.ready(), client.ready()] == [True, False]
    assert asyncio.run(ask()) == [True, False]


@pytest.mark.parametrize(
    "reply",
    [
        (502, {"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}, b""),
        (502, {"Retry-After": "Mon, 99 Jan 2026 00:00:00 GMT"}, b""),
        (502, {"Content-Type": "text/html"}, b"<h1>proxy</h1>"),
        (502, {"Content-Type": "application/problem+json"}, b"{"),
        (502, {"Content-Type": "application/json", "Retry-After": "soon"}, b"[]"),
    ],
)
def test_an_error_that_is_no_problem_document_keeps_its_status(start_http: Any, reply: Any) -> None:
    with Client(start_http(lambda _path, _body: reply)) as client, pytest.raises(ServerProblem) as caught:
        client.health()
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (502, "http-502", None)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"{}"),
        ("application/json", json.dumps({**ANSWER, "images": [{"seed": 1}]}).encode()),
        ("text/html", b"<h1>another server</h1>"),
    ],
)
def test_an_answer_of_something_else_is_one_line(start_http: Any, content_type: str, body: bytes) -> None:
    url = start_http(lambda _path, _body: (200, {"Content-Type": content_type}, body))
    with Client(url) as client, pytest.raises(ServerUnreachable, match="/v1/generate") as caught:
        client.generate(label="rose")
    assert "\n" not in str(caught.value)


def test_nobody_there_is_said_so() -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServerUnreachable, match=url):
            client.models()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://a:b", ""])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(InvalidInput, match="url"):
        Client(url)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_proxy_of_the_environment_is_used(start_http: Any, monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    asked = []

    def answer(path: str, _body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.append(path)
        return 200, JSON, b"{}"

    monkeypatch.setenv("http_proxy", start_http(answer))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def ask() -> bool:
        async with AsyncClient("http://far.invalid") as client:
            return await client.ready()

    if is_async:
        assert asyncio.run(ask())
    else:
        with Client("http://far.invalid") as client:
            assert client.ready()
    assert asked == ["http://far.invalid/readiness"]
