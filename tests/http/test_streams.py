"""Streams may last for hours: they are bounded for each key and in all, and take no request's place."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from elit_serve.errors import InvalidInput
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings

ONE, OTHER = "token-one-1", "token-other-2"
Enter = Callable[..., httpx.Response]


def enter_into(stack: ExitStack, server: Any) -> Enter:
    def enter(path: str, token: str = "none") -> httpx.Response:
        request = server.client.build_request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = server.client.send(request, stream=True)
        stack.callback(answer.close)
        return answer

    return enter


def test_more_streams_than_requests_may_be_open_and_shut_nobody_out(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=2, max_streams=8))
    job = server.client.post("/v1/jobs", json={"label": "tulip"}).json()["id"]
    with ExitStack() as stack:
        enter = enter_into(stack, server)
        assert [enter("/v1/live").status_code for _ in range(8)] == [200] * 8
        too_many = server.client.get(f"/v1/jobs/{job}/events")
        assert (too_many.status_code, too_many.json()["reason"]) == (503, "too_many_streams")
        assert too_many.headers["retry-after"] == "5"
        openai = {"prompt": "tulip", "stream": True, "quality": "low"}
        assert server.client.post("/v1/images/generations", json=openai).status_code == 503
        for path in ("/metrics", "/health", "/v1/models"):
            assert server.client.get(path).status_code == 200
        assert server.generate({"label": "tulip", "budget": 0.25}).status_code == 200


def test_one_key_cannot_have_all_streams(start_server: Any) -> None:
    settings = Settings(response_ms=0, max_streams=4, max_streams_per_key=3, api_key=(ONE, OTHER))
    server = start_server(settings=settings)
    with ExitStack() as stack:
        enter = enter_into(stack, server)
        assert [enter("/v1/live", ONE).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert [enter("/v1/live", OTHER).status_code for _ in range(2)] == [200, 503]


def test_who_leaves_makes_room(start_server: Any, eventually: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_streams=1))
    with ExitStack() as stack:
        assert enter_into(stack, server)("/v1/live").status_code == 200
        assert server.client.get("/v1/live").status_code == 503

    def has_room() -> bool:
        with server.client.stream("GET", "/v1/live") as answer:
            return bool(answer.status_code == 200)

    eventually(has_room)


def test_a_bound_of_keys_above_that_of_all_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidInput, match="max_streams_per_key: 9 is not allowed; at most max_streams, which is 8"):
        read_settings({"max_streams": 8, "max_streams_per_key": 9})


def test_metrics_have_a_place_when_all_others_are_taken(start_server: Any, held: type[Any], eventually: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=1), executor=held)
    with ThreadPoolExecutor(1) as callers:
        taken = callers.submit(server.generate, {"label": "tulip"})
        eventually(lambda: server.health()["queue_length"] + server.health()["running"] == 1)
        statuses = [server.client.get("/metrics").status_code, server.generate({"label": "tulip"}).status_code]
        server.executor.may_run.set()
        assert taken.result().status_code == 200
    assert statuses == [200, 503]
