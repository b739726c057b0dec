"""A server that a proxy shows under a path, which the proxy takes off or leaves, and tells or does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError

from elit_serve.client import Client
from elit_serve.server.settings import Settings

StartNginx = Callable[[str], str]
SECRET = "token-abc123"
WITH_KEY = {"Authorization": f"Bearer {SECRET}"}

# What proxies do: (the server's setting, what nginx is told).
PROXIES = {
    "takes it off, and the server was told": ("/elit", "location /elit/ {{ proxy_pass {url}/; }}"),
    "leaves it, and the server was told": ("/elit", "location /elit {{ proxy_pass {url}; }}"),
    "takes it off, and tells": (
        "",
        "location /elit/ {{ proxy_pass {url}/; proxy_set_header X-Forwarded-Prefix /elit; }}",
    ),
    "leaves it, and tells": ("", "location /elit {{ proxy_pass {url}; proxy_set_header X-Forwarded-Prefix /elit/; }}"),
}


@pytest.mark.parametrize("proxy", PROXIES)
def test_everything_works_behind_nginx_that(
    start_server: Any, start_nginx: StartNginx, eventually: Any, proxy: str
) -> None:
    root_path, locations = PROXIES[proxy]
    server = start_server(settings=Settings(response_ms=0, root_path=root_path, api_key=(SECRET,)))
    shown = f"{start_nginx(locations.format(url=server.url))}/elit"
    with httpx.Client(headers=WITH_KEY, timeout=20) as client:
        assert linked(client, f"{shown}/") >= {f"{shown}/static/main.js", f"{shown}/docs"}
        document = f"{shown}/openapi.json"
        assert linked(client, f"{shown}/docs") >= {document, f"{shown}/static-offline-docs/swagger-ui-bundle.js"}
        assert client.get(document).json()["servers"] == [{"url": "/elit"}]
        assert redirected(client, f"{shown}/v1/models/?a=b") == f"{shown}/v1/models?a=b"
        assert redirected(client, shown) == f"{shown}/"
        job = client.post(f"{shown}/v1/jobs", json={"label": "tulip", "steps": 1})
        stored = urljoin(shown, job.headers["Location"])
        assert stored == f"{shown}/v1/jobs/{job.json()['id']}"
        eventually(lambda: client.get(stored).json()["state"] == "done")
        assert_pictures_are_where_they_are_said_to_be(client, shown, stored)
        unknown = client.get(f"{shown}/v1/images/edits").json()
        assert "error" in unknown, "OpenAI's shape on OpenAI's routes"
    with Client(shown, api_key=SECRET) as ours:
        assert ours.generate(label="tulip").images[0].data.startswith(b"\x89PNG")


def assert_pictures_are_where_they_are_said_to_be(client: httpx.Client, shown: str, job: str) -> None:
    """However a job is looked at."""
    told = [client.get(job).json(), client.delete(job).json(), client.get(f"{shown}/v1/jobs").json()["data"][0]]
    events = [line for line in client.get(f"{job}/events").text.splitlines() if line.startswith("data: ")]
    for info in (*told, json.loads(events[-1].removeprefix("data: "))):
        file = client.get(urljoin(shown, info["result"]["images"][0]["url"]))
        assert file.headers["Content-Type"] == "image/png", info


def linked(client: httpx.Client, url: str) -> set[str]:
    """What a page needs and leads to, all of which is there."""
    page = client.get(url)
    assert page.status_code == 200, page.text
    links = {urljoin(url, link) for link in re.findall(r"""(?:src|href|url)(?:=|: )["']([^"'#]+)["']""", page.text)}
    for link in links:
        assert client.get(link).status_code == 200, link
    return links


def redirected(client: httpx.Client, url: str) -> str:
    answer = client.get(url)
    assert answer.is_redirect, answer.status_code
    return urljoin(url, answer.headers["Location"])


@pytest.mark.parametrize("root_path", ["", "/elit"])
def test_keys_limits_and_headers_go_by_the_route_whatever_the_prefix(start_server: Any, root_path: str) -> None:
    settings = Settings(response_ms=0, root_path=root_path, api_key=(SECRET,), max_body_bytes=1024)
    server = start_server(settings=settings)
    told = {"X-Forwarded-Prefix": "/elit"}
    for path in ("/elit", "/elit/", "/elit/health", "/elit/static/main.js", "/health"):
        assert server.client.get(path, headers=told, follow_redirects=True).status_code == 200, path
    for path in ("/elit/v1/models", "/elit/docs", "/elit/metrics", "/elit//health", "/elit/elit/health", "/elithealth"):
        assert server.client.get(path, headers=told).status_code == 401, path
    docs = server.client.get("/elit/docs", headers=told | WITH_KEY)
    assert "script-src 'self' 'unsafe-inline'" in docs.headers["content-security-policy"]
    refused = server.client.post("/elit/v1/images/generations", content=b"x" * 2000, headers=told | WITH_KEY)
    assert (refused.status_code, "error" in refused.json()) == (413, True)
    invalid = server.client.post("/elit/v1/images/generations", json={"size": 1}, headers=told | WITH_KEY)
    assert (invalid.status_code, "error" in invalid.json()) == (400, True)
    allowed = server.client.post("/elit/v1/models", headers=told | WITH_KEY)
    assert (allowed.status_code, allowed.headers["Allow"]) == (405, "GET, HEAD")
    metrics = server.client.get("/elit/metrics", headers=told | WITH_KEY).text
    assert 'elit_requests_total{outcome="ok",route="/health"} 2.0' in metrics


def test_a_prefix_counts_only_if_a_trusted_proxy_tells_it_and_it_is_one(start_server: Any) -> None:
    def prefix(server: Any, *told: str) -> str:
        """What links begin with."""
        headers = [(b"X-Forwarded-Prefix", text.encode()) for text in told]
        return str(server.client.get("/docs", headers=headers).text.partition("url: '")[2].partition("/openapi")[0])

    trusting = start_server(settings=Settings(response_ms=0))
    wary = start_server(settings=Settings(response_ms=0, trusted_proxy=("10.0.0.0/8", "::1")))
    told = start_server(settings=Settings(response_ms=0, root_path="/told", trusted_proxy=("*",)))
    assert prefix(trusting, "/a/b-c_d.e~1") == "/a/b-c_d.e~1"
    assert prefix(trusting, "/elit/") == "/elit"
    assert prefix(wary, "/elit") == ""
    assert (prefix(told), prefix(told, "/other")) == ("/told", "/other")
    for hostile in ("//evil.example", "https://evil.example", "elit", "/a/../b", "/.", "/a//b", "/a b", "/a?b", "/a#b"):
        assert prefix(trusting, hostile) == "", hostile
    for hostile in ("/<script>", "/a'b", '/a"b', "/a\\b", "/a%2f", "/é", "/" + 300 * "a"):
        assert prefix(trusting, hostile) == "", hostile
    assert prefix(trusting, "/a", "/b") == "", "two proxies that do not agree"
    assert prefix(told, "//evil.example") == "/told"


def test_who_the_caller_is_is_believed_of_the_same_proxies(
    start_server: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "elit_serve.access")
    for trusted in ("127.0.0.1", "10.0.0.0/8"):
        server = start_server(settings=Settings(response_ms=0, trusted_proxy=(trusted,)))
        server.client.get("/version", headers={"X-Forwarded-For": "203.0.113.7"})
    eventually(lambda: len(caplog.records) == 2)
    assert {vars(record)["client"] for record in caplog.records} == {"203.0.113.7", "127.0.0.1"}


def test_a_redirect_does_not_go_where_a_caller_says(server: Any) -> None:
    answer = server.client.get("/v1/models/", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "/v1/models")


@pytest.mark.parametrize("setting", [{"root_path": "elit"}, {"root_path": "//a"}, {"trusted_proxy": ("10.0.0.1/8",)}])
def test_what_is_no_prefix_and_no_proxy_stops_the_start(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**setting)
