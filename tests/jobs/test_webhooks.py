"""The end of a job is told to who asked for it: signed, again until it is taken, and to allowed hosts only."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from standardwebhooks import Webhook

from elit_serve.errors import InvalidInput
from elit_serve.jobs import webhooks
from elit_serve.jobs.database import Database
from elit_serve.jobs.states import JobState, StoredJob, new_id
from elit_serve.jobs.store import JobStore
from elit_serve.jobs.webhook_policy import WebhookPolicy
from elit_serve.jobs.webhooks import PER_HOST
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
        "ftp://127.0.0.1:9000/",
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
        policy.receiver(allowed)
    with pytest.raises(InvalidInput, match="allowed hosts"):
        policy.receiver(url)


def test_hosts_without_a_good_secret_stop_the_start(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("whsec_" + base64.b64encode(b"short").decode())
    plain = tmp_path / "plain"
    plain.write_text("a secret without its prefix, which is long enough")
    for file in (None, str(tmp_path / "missing"), str(short), str(plain)):
        with pytest.raises(InvalidInput, match="webhook_secret_file"):
            WebhookPolicy(("hooks.example.org",), file)


class SlowReceiver:
    """Answers with the head's first line and then with a piece of it at a time, for as long as anybody listens."""

    def __init__(self, start: bytes, piece: bytes, pause_s: float) -> None:
        self._start, self._piece, self._pause_s = start, piece, pause_s
        self.num_connected = 0
        self.num_sent = 0
        self.has_ended = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[str]:
        receiver = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                receiver.num_connected += 1
                with suppress(OSError):  # it was left
                    receiver.answer(self.request)

        with ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.server_address[1]}"
            finally:
                self.has_ended.set()
                listener.shutdown()
                thread.join()

    def answer(self, connection: socket.socket) -> None:
        connection.sendall(self._start)
        while not self.has_ended.wait(self._pause_s):
            connection.sendall(self._piece)
            self.num_sent += len(self._piece)


@pytest.fixture
def endless() -> Iterator[SlowReceiver]:
    """A line of the head now and then."""
    receiver = SlowReceiver(b"HTTP/1.1 200 OK\r\n", b"X-More: to come\r\n", 0.05)
    yield receiver
    receiver.has_ended.set()


def test_a_slow_receiver_keeps_nobody_else_waiting(
    start_server: Any,
    start_receiver: Any,
    jobs_of: Any,
    eventually: Any,
    secret_file: str,
    endless: SlowReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 600.0)  # nobody is given up while a busy machine makes the pictures
    told: list[bytes] = []
    with endless.listening() as slow_url:
        url = start_receiver(lambda _, body: told.append(body) or (204, {}))
        hosts = tuple(urlsplit(each).netloc for each in (slow_url, url))
        server = start_server(settings=Settings(response_ms=0, webhook_host=hosts, webhook_secret_file=secret_file))
        jobs = jobs_of(server)
        for _ in range(3 * PER_HOST):
            jobs.ended(jobs.accepted(webhook={"url": slow_url}))
        eventually(lambda: endless.num_connected == PER_HOST)
        jobs.ended(jobs.accepted(webhook={"url": url}))
        eventually(lambda: len(told) == 1)
        assert endless.num_connected == PER_HOST


def test_the_server_ends_whatever_a_receiver_does(
    start_server: Any, jobs_of: Any, eventually: Any, settings_for: Any, endless: SlowReceiver
) -> None:
    with endless.listening() as url:
        server = start_server(settings=settings_for(url))
        jobs = jobs_of(server)
        job = jobs.ended(jobs.accepted(webhook={"url": url}))
        eventually(lambda: endless.num_connected == 1)
        with ThreadPoolExecutor(1) as stopping:
            try:
                stopping.submit(server.app.state.jobs.stop).result(30)
            finally:
                endless.has_ended.set()
        assert jobs.get(job)["state"] == "done"


def test_an_attempt_takes_no_longer_than_it_may_in_all(
    start_server: Any,
    jobs_of: Any,
    eventually: Any,
    settings_for: Any,
    endless: SlowReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.5)
    with endless.listening() as url:
        server = start_server(settings=settings_for(url))
        jobs_of(server).accepted(webhook={"url": url})
        eventually(lambda: server.metric('elit_webhooks_total{outcome="failed"}') >= 1)


@pytest.mark.parametrize(
    "piece", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"X-More: to come\r\n", b"x" * 64], ids=["answers", "lines", "bytes"]
)
def test_no_more_than_the_head_of_an_answer_is_read(
    start_server: Any, jobs_of: Any, eventually: Any, settings_for: Any, piece: bytes
) -> None:
    """Fed as fast as it reads; what is sent beyond what is read lies in the buffers of the two sockets."""
    start = b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX-Long: "
    receiver = SlowReceiver(start, 1000 * piece, 0)
    with receiver.listening() as url:
        server = start_server(settings=settings_for(url))
        jobs_of(server).accepted(webhook={"url": url})
        eventually(lambda: server.metric('elit_webhooks_total{outcome="failed"}') >= 1)
    assert receiver.num_sent / receiver.num_connected < 16 << 20


def test_what_was_told_is_not_told_again_while_that_cannot_be_stored(
    start_server: Any, start_receiver: Any, jobs_of: Any, eventually: Any, settings_for: Any, tmp_path: Path
) -> None:
    told: list[bytes] = []
    with closing(sqlite3.connect(tmp_path / "jobs", isolation_level=None, check_same_thread=False)) as other:

        def receive(_: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
            other.execute("BEGIN IMMEDIATE")  # from now on the database can be read, and nothing written
            told.append(body)
            return 204, {}

        url = start_receiver(receive)
        settings = settings_for(url).model_copy(update={"database": f"sqlite:///{tmp_path}/jobs"})
        server = start_server(settings=settings)
        jobs = jobs_of(server)
        jobs.accepted(webhook={"url": url})
        eventually(lambda: len(told) == 1)
        for _ in range(2):  # each of them waits for the database for as long as anybody does
            assert jobs.post().status_code == 503
        other.execute("ROLLBACK")
        eventually(lambda: server.metric('elit_webhooks_total{outcome="delivered"}') == 1)
    assert len(told) == 1


def test_webhooks_of_an_earlier_version_are_told_of(
    start_server: Any, start_receiver: Any, eventually: Any, settings_for: Any, tmp_path: Path
) -> None:
    """Their table does not say which host is to be told."""
    told: list[bytes] = []
    url = start_receiver(lambda _, body: told.append(body) or (204, {}))
    with closing(Database.open(None, tmp_path)) as database:
        job = StoredJob(
            id=new_id(),
            owner="",
            idempotency_key=None,
            fingerprint="",
            state=JobState.CANCELLED,
            request=json.dumps({"label": "tulip", "webhook": {"url": url}}),
            num_images=1,
            created_s=1.0,
            ended_s=time.time(),
            webhook_due_s=1.0,
        )
        JobStore(database).add(job)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as earlier:
        earlier.execute("ALTER TABLE elit_jobs DROP webhook_host")
    start_server(settings=settings_for(url).model_copy(update={"results": str(tmp_path)}))
    eventually(lambda: len(told) == 1)
    assert json.loads(told[0])["type"] == "job.cancelled"
