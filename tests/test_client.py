from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from elit_serve.client import AsyncClient, Client, Generation, Retries
from elit_serve.errors import InvalidInput, ServerProblem, ServerUnreachable

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
            (429, {}, b""),
            (200, JSON, json.dumps(ANSWER).encode()),
        ]
    )
    url = start_http(lambda _path, _body: next(replies))
    waits: list[float] = []

    async def note(wait_s: float) -> None:
        waits.append(wait_s)

    async def ask() -> Generation:
        async with AsyncClient(url, retries=Retries(max_tries=3, default_wait_s=5.0), sleep=note) as client:
            return await client.generate(label="rose")

    if is_async:
        generation = asyncio.run(ask())
    else:
        with Client(url, retries=Retries(max_tries=3, default_wait_s=5.0), sleep=waits.append) as client:
            generation = client.generate(label="rose")
    assert generation.label == "rose"
    assert waits == [2.0, 5.0]


@pytest.mark.parametrize(
    ("status", "retry_after", "num_asked"),
    [
        (503, "1", 3),  # tries are used up
        (503, "61", 1),  # too long a wait
        (422, "1", 1),  # would be refused again
        (504, "1", 1),  # was taken, and ran out of time
    ],
)
def test_giving_up_raises_the_problem(start_http: Any, status: int, retry_after: str, num_asked: int) -> None:
    asked = []

    def answer(path: str, _body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.append(path)
        status_, headers, content = problem(status, type="urn:elit-serve:overloaded", detail="no room")
        return status_, {**headers, "Retry-After": retry_after}, content

    with (
        Client(start_http(answer), retries=Retries(max_tries=3), sleep=lambda _: None) as client,
        pytest.raises(ServerProblem, match="no room") as caught,
    ):
        client.generate(label="rose")
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", float(retry_after))
    assert len(asked) == num_asked


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
        (502, {"Content-Type": "text/html"}, b"<h1>proxy</h1>"),
        (502, {"Content-Type": "application/problem+json"}, b"{"),
        (502, {"Content-Type": "application/json", "Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b"[]"),
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
