"""HEAD is answered wherever GET is, and 405 says what is."""

from __future__ import annotations

import http.client
from contextlib import closing
from typing import Any

import pytest

OTHERS = ["/", "/docs", "/openapi.json", "/static/main.js", "/static-offline-docs/swagger-ui.css", "/v2/health/live"]


@pytest.fixture(scope="module")
def paths(server: Any) -> list[str]:
    """What can be got of this server: by its document, and what the document leaves out."""
    job = server.client.post("/v1/jobs", json={"label": "tulip", "steps": 1}).json()
    assert "event: done" in server.client.get(f"/v1/jobs/{job['id']}/events").text
    documented = server.client.get("/openapi.json").json()["paths"].items()
    readable = [path for path, operations in documented if "get" in operations]
    return [path.format(job_id=job["id"], index=0, name="tiny", class_id=2) for path in readable + OTHERS]


def test_every_path_has_the_head_of_its_get(server: Any, paths: list[str]) -> None:
    """On one connection: a body that should not be there would be read as the next answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.client.base_url.port, timeout=20)
    with closing(connection):
        for path in paths:
            connection.request("HEAD", path)
            head = connection.getresponse()
            assert head.read() == b""
            with server.client.stream("GET", path) as got:
                assert (path, head.status) == (path, got.status_code)
                assert head.status == 200
                assert head.headers["Content-Type"] == got.headers["Content-Type"]
                is_stream = got.headers["Content-Type"].startswith("text/event-stream")
                assert (head.headers["Content-Length"] is None) == is_stream
                if path not in ("/metrics", "/load"):  # which are never the same twice
                    assert head.headers["Content-Length"] == got.headers.get("Content-Length")


def test_nobody_follows_a_job_by_head(start_server: Any, stepwise: Any) -> None:
    server = start_server(executor=stepwise)
    job = server.client.post("/v1/jobs", json={"label": "tulip"}).json()
    answer = server.client.head(f"/v1/jobs/{job['id']}/events")  # it does not wait for the job
    server.executor.may_run.release(4)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert server.client.head("/v1/jobs/0/images/0").status_code == 404


def test_405_names_every_method_of_a_path(server: Any) -> None:
    def allowed(method: str, path: str) -> tuple[int, str | None]:
        answer = server.client.request(method, path)
        return answer.status_code, answer.headers.get("Allow")

    assert allowed("HEAD", "/v1/generate") == (405, "POST")
    assert allowed("DELETE", "/v1/jobs") == (405, "GET, HEAD, POST")
    assert allowed("POST", f"/v1/jobs/{0:032x}") == (405, "DELETE, GET, HEAD")
    for path in ("/", "/v1/models", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert allowed("POST", path) == (405, "GET, HEAD")
    assert server.client.head("/nowhere").status_code == 404
