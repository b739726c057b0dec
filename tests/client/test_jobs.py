"""Jobs through the client: stored once, followed to their end, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from elit_serve.client import (
    AsyncClient,
    Client,
    Job,
    JobEvent,
    JobOptions,
    JobPreview,
    JobStarted,
    JobStep,
    Retries,
)
from elit_serve.errors import ConnectionLost, ServerProblem, ServerUnreachable

ID = "0" * 32
QUEUED = {"id": ID, "state": "queued", "created_at": "2026-11-27T12:00:00Z", "request": {"label": "rose"}}
DONE = {**QUEUED, "state": "done", "ended_at": "2026-11-27T12:00:01Z", "files": "kept"}
OPTIONS: JobOptions = {"label": "tulip", "seed": 3, "budget": 0.5, "n": 2, "previews": 1}


@pytest.fixture(scope="module")
def client(tiny_server_url: str) -> Iterator[Client]:
    with Client(tiny_server_url) as connected:
        yield connected


def event(number: int | str, name: str, **data: object) -> str:
    return f"id: a-{number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def streamed(*events: str) -> bytes:
    """An answer that ends with its connection, as when a server goes away."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return (head + "".join(events)).encode()


def followed(url: str, is_async: bool, **arguments: Any) -> list[JobEvent]:
    """What a client is told of the job; it does not wait between its tries."""

    async def no_wait(_: float) -> None:
        pass

    async def follow() -> list[JobEvent]:
        async with AsyncClient(url, sleep=no_wait, **arguments) as other:
            return [told async for told in other.jobs.events(ID)]

    if is_async:
        return asyncio.run(follow())
    with Client(url, sleep=lambda _: None, **arguments) as other:
        return list(other.jobs.events(ID))


def test_a_job_is_followed_to_its_end_and_its_pictures_are_those_of_a_request(client: Client) -> None:
    job = client.jobs.create(**OPTIONS)
    assert (job.result, job.has_ended) == (None, False)
    assert job.request["seed"] == 3
    *events, last = client.jobs.events(job.id)
    assert isinstance(last, Job)
    assert last == client.jobs.get(job.id) == client.jobs.wait(job.id)
    assert (last.state, last.error, last.files) == ("done", None, "kept")
    assert last.created_at <= datetime.now(UTC)
    assert last.result is not None
    made = client.generate(label="tulip", seed=3, budget=0.5, n=2)
    assert [image.levels for image in last.result.images] == [image.levels for image in made.images]
    assert [client.jobs.image(job.id, index) for index in range(2)] == [image.data for image in made.images]
    assert {told.seed for told in events if isinstance(told, JobStep)} <= {3, 4}


def test_asyncio_can_do_the_same(client: Client, tiny_server_url: str) -> None:
    async def use() -> Job:
        async with AsyncClient(tiny_server_url) as other:
            job = await other.jobs.create(label="rose", n=1, idempotency_key="of asyncio")
            assert (await other.jobs.create(label="rose", n=1, idempotency_key="of asyncio")).id == job.id
            ended = await other.jobs.wait(job.id)
            assert job.id in [listed.id async for listed in other.jobs.list(state="done")]
            assert await other.jobs.image(job.id) == client.jobs.image(job.id)
            assert await other.jobs.get(job.id) == await other.jobs.cancel(job.id)  # it has ended
            return ended

    assert asyncio.run(use()).state == "done"


def test_a_key_makes_one_job_of_many_requests(client: Client) -> None:
    first = client.jobs.create(label="rose", idempotency_key="of this test")
    assert client.jobs.create(label="rose", idempotency_key="of this test").id == first.id
    assert client.jobs.create(label="rose").id != first.id
    with pytest.raises(ServerProblem, match="Idempotency-Key") as caught:
        client.jobs.create(label="tulip", idempotency_key="of this test")
    assert caught.value.status == 422


def test_a_job_can_be_cancelled(client: Client) -> None:
    job = client.jobs.create(label="rose", steps=250, n=4)
    assert client.jobs.cancel(job.id).state == "cancelled"
    assert client.jobs.wait(job.id).state == "cancelled"
    with pytest.raises(ServerProblem, match="409"):
        client.jobs.image(job.id)


def test_a_job_that_nobody_has_heard_of_is_a_problem(client: Client) -> None:
    for ask in (client.jobs.get, client.jobs.cancel, client.jobs.image, client.jobs.wait):
        with pytest.raises(ServerProblem) as caught:
            ask("../models")
        assert caught.value.status == 404


def test_all_pages_are_listed(start_http: Any) -> None:
    paths = []

    def answer(path: str, _body: bytes) -> tuple[int, dict[str, str], bytes]:
        paths.append(path)
        page = {"data": [QUEUED], "next_cursor": None if "cursor" in path else ID}
        return 200, {"Content-Type": "application/json"}, json.dumps(page).encode()

    with Client(start_http(answer)) as client:
        listed = iter(client.jobs.list(state="queued"))
        assert next(listed).id == ID
        assert len(paths) == 1
        assert len(list(listed)) == 1
    assert paths == ["/v1/jobs?state=queued&limit=100", f"/v1/jobs?state=queued&cursor={ID}&limit=100"]


def test_a_list_has_pages_of_the_size_that_is_asked_for(client: Client) -> None:
    """As OpenAI's clients have it: a page has its own jobs, and iterating goes on over all pages."""
    made = [client.jobs.create(label="rose").id for _ in range(5)][::-1]
    first = client.jobs.list(limit=2)
    assert [job.id for job in first.data] == made[:2]
    assert first.has_next_page()
    second = first.get_next_page()
    assert [job.id for job in second.data] == made[2:4]
    assert client.jobs.list(limit=2, cursor=first.next_cursor).data[0].id == made[2]
    everything = [job.id for job in first]
    assert everything[:5] == made
    *_, last = first.iter_pages()
    assert (last.has_next_page(), last.next_cursor) == (False, None)
    with pytest.raises(ValueError, match="last page"):
        last.get_next_page()
    with pytest.raises(ServerProblem, match="limit"):
        client.jobs.list(limit=101)


def test_asyncio_lists_likewise(client: Client, tiny_server_url: str) -> None:
    made = [client.jobs.create(label="rose").id for _ in range(3)][::-1]

    async def use() -> None:
        async with AsyncClient(tiny_server_url) as other:
            first = await other.jobs.list(limit=2)
            assert [job.id for job in first.data] == made[:2]
            second = await first.get_next_page()
            assert second.data[0].id == made[2]
            assert [job.id async for job in other.jobs.list(limit=2)][:3] == made
            assert [job.id async for job in first][:3] == made
            *_, last = [page async for page in first.iter_pages()]
            assert not last.has_next_page()
            with pytest.raises(ValueError, match="last page"):
                await last.get_next_page()

    asyncio.run(use())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_lost_connection_is_taken_up_where_it_broke(start_raw: Any, is_async: bool) -> None:
    preview = {"seed": 0, "index": 0, "step": 2, "output_format": "png", "b64_json": "aGVsbG8="}
    url, requests = start_raw(
        streamed(event(0, "queued", **QUEUED), event(1, "started", id=ID)),
        b"",
        streamed(event(2, "step", seed=0, step=1, steps=4, level=2), event(3, "preview", **preview)),
        streamed(event("end", "done", **DONE)),
    )
    queued, started, step, shown, done = followed(url, is_async, retries=Retries(max_tries=3))
    assert isinstance(queued, Job)
    assert isinstance(started, JobStarted)
    assert isinstance(step, JobStep)
    assert (step.step, step.steps, step.level) == (1, 4, 2)
    assert isinstance(shown, JobPreview)
    assert shown.data == b"hello"
    assert isinstance(done, Job)
    assert done.has_ended
    sent = [request.lower().partition(b"last-event-id: ")[2].partition(b"\r\n")[0] for request in requests]
    assert sent == [b"", b"a-1", b"a-1", b"a-3"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_always_ends_too_soon_is_given_up(start_raw: Any, is_async: bool) -> None:
    url, requests = start_raw(*[streamed()] * 4)
    with pytest.raises(ConnectionLost, match="before its last event"):
        followed(url, is_async, retries=Retries(max_tries=3))
    assert len(requests) == 3
    with pytest.raises(ConnectionLost, match="before its last event"):
        followed(url, is_async)


def test_a_lost_answer_to_a_new_job_is_asked_for_again_under_the_same_key(start_raw: Any) -> None:
    answer = b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n" + json.dumps(QUEUED).encode()
    outstanding = json.dumps({"type": "urn:elit-serve:request-outstanding"}).encode()
    head = b"HTTP/1.1 409 Conflict\r\nContent-Type: application/problem+json\r\nConnection: close\r\n\r\n"
    url, requests = start_raw(b"", head + outstanding, answer)
    with Client(url, retries=Retries(), sleep=lambda _: None) as client:
        assert client.jobs.create(label="rose").id == ID
    (key,) = {request.lower().partition(b"idempotency-key: ")[2].partition(b"\r\n")[0] for request in requests}
    assert len(key) == 32


def test_an_event_that_is_not_ours_is_one_line(start_raw: Any) -> None:
    url, _ = start_raw(streamed("event: step\ndata: {\n\n"))
    with Client(url) as client, pytest.raises(ServerUnreachable, match="JSON") as caught:
        list(client.jobs.events(ID))
    assert "\n" not in str(caught.value)
