"""Server-sent events, whatever the route: they are kept nowhere, and reach their reader when they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

StartNginx = Callable[[str], str]


def streams_of(server: Any) -> set[str]:
    """The routes whose document says that they answer with events."""
    paths = server.client.get("/openapi.json").json()["paths"]
    return {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    }


def test_every_stream_of_events_tells_proxies_what_it_is(server: Any) -> None:
    job = server.client.post("/v1/jobs", json={"label": "tulip"}).json()
    asked = {
        "/v1/live": ("GET", "/v1/live", None),
        "/v1/jobs/{job_id}/events": ("GET", f"/v1/jobs/{job['id']}/events", None),
        "/v1/images/generations": ("POST", "/v1/images/generations", {"prompt": "tulip", "stream": True}),
    }
    assert streams_of(server) == set(asked)
    for method, path, body in asked.values():
        with server.client.stream(method, path, json=body) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Accel-Buffering"] == "no"


def test_a_partial_image_passes_nginx_when_it_is_made(
    start_server: Any, stepwise: Any, start_nginx: StartNginx
) -> None:
    """By default nginx keeps small parts until they are 1,460 bytes; the events of small previews are less."""
    server = start_server(executor=stepwise)
    proxy = start_nginx(f"location / {{ proxy_pass {server.url}; }}")
    body = {"prompt": "tulip", "stream": True, "partial_images": 3, "output_format": "webp"}
    try:
        with httpx.stream("POST", f"{proxy}/v1/images/generations", json=body, timeout=10) as answer:
            events = (line for line in answer.iter_lines() if line.startswith("event: "))
            for _ in range(3):
                server.executor.may_run.release()
                assert next(events) == "event: image_generation.partial_image"
            server.executor.may_run.release()
            assert next(events) == "event: image_generation.completed"
    finally:
        server.executor.may_run.release(4)  # a step that waits is let go
