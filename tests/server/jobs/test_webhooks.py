"""The end of a job is told to who asked for it: signed, again until it is taken, and to allowed hosts only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from standardwebhooks import Webhook

from elit_serve.errors import InvalidInput
from elit_serve.server.jobs.webhooks import WebhookPolicy
from elit_serve.server.settings import Settings

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return str(file)


@pytest.fixture
def settings_for(secret_file: str) -> Callable[[str], Settings]:
    def make(url: str) -> Settings:
        return Settings(response_ms=0, webhook_host=(urlsplit(url).netloc,), webhook_secret_file=secret_file)

    return make


def test_the_end_is_told_signed_and_again_until_it_is_taken(
    start_server: Any, start_receiver: Any, jobs_of: Any, eventually: Any, settings_for: Any
) -> None:
    told: list[tuple[dict[str, str], bytes]] = []

    def receive(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        told.append((headers, body))
        return (500 if len(told) == 1 else 204), {}

    url = start_receiver(receive)
    server = start_server(settings=settings_for(url))
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted(webhook={"url": f"{url}/pictures?for=me"}))
    eventually(lambda: server.metric('elit_webhooks_total{outcome="delivered"}') == 1)
    assert server.metric('elit_webhooks_total{outcome="failed"}') == 1
    assert len(told) == 2
    ids = set()
    for headers, body in told:
        message = Webhook(SECRET).verify(body, headers)
        assert message["type"] == "job.done"
        assert message["data"] == job
        ids.add(headers["webhook-id"])
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(SECRET).verify(body + b" ", headers)
    assert ids == {job["id"]}


def test_a_redirect_is_not_followed(
    start_server: Any, start_receiver: Any, jobs_of: Any, eventually: Any, settings_for: Any
) -> None:
    elsewhere: list[bytes] = []
    other_url = start_receiver(lambda _, body: elsewhere.append(body) or (204, {}))
    url = start_receiver(lambda *_: (307, {"Location": other_url}))
    server = start_server(settings=settings_for(url))
    jobs = jobs_of(server)
    jobs.accepted(webhook={"url": url})
    eventually(lambda: server.metric('elit_webhooks_total{outcome="failed"}') >= 1)
    assert elsewhere == []


def test_a_cancelled_job_is_told_of_too(
    start_server: Any, start_receiver: Any, jobs_of: Any, eventually: Any, settings_for: Any, held: Any
) -> None:
    told: list[Any] = []
    url = start_receiver(lambda _, body: told.append(json.loads(body)) or (200, {}))
    server = start_server(settings=settings_for(url), executor=held)
    jobs = jobs_of(server)
    jobs.cancel(jobs.accepted(webhook={"url": url}))
    eventually(lambda: len(told) == 1)
    assert told[0]["type"] == "job.cancelled"
    server.executor.may_run.set()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "https://hooks.example.org.evil.org/",
        "https://hooks.example.org:8443/",
        "https://user@hooks.example.org/",
        "https://evil.org#@hooks.example.org",
        "https://evil.org\\@hooks.example.org/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "hooks.example.org",
        "https://hooks.example.org:99999/",
        "https://[::1",
        "https://hooks.example.org/\r\nHost: evil.org",
        "http://127.0.0.1/",
        "",
    ],
)
def test_only_hosts_that_are_allowed_are_spoken_to(secret_file: str, url: str) -> None:
    policy = WebhookPolicy(("hooks.example.org", "127.0.0.1:9000"), secret_file)
    for allowed in ("https://hooks.example.org/a", "http://HOOKS.example.org:80", "http://127.0.0.1:9000/b?c=d"):
        policy.check(allowed)
    with pytest.raises(InvalidInput, match="allowed hosts"):
        policy.check(url)


def test_hosts_without_a_good_secret_stop_the_start(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("whsec_" + base64.b64encode(b"short").decode())
    plain = tmp_path / "plain"
    plain.write_text("a secret without its prefix, which is long enough")
    for file in (None, str(tmp_path / "missing"), str(short), str(plain)):
        with pytest.raises(InvalidInput, match="webhook_secret_file"):
            WebhookPolicy(("hooks.example.org",), file)
