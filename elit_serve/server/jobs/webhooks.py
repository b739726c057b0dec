"""Tells callers of the end of their jobs, signed as https://www.standardwebhooks.com has it.

Only hosts that a setting names are ever spoken to, and redirects are not followed: nobody can have the server fetch
what is not theirs. What is still to be told stands in the database, so a restart loses nothing; a receiver may get a
message twice, with the same `webhook-id`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx

from elit_serve.errors import InvalidInput, StorageFull, StoreUnavailable
from elit_serve.files import read_text
from elit_serve.server.jobs.metrics import JobMetrics
from elit_serve.server.jobs.schemas import JobRequest, job_info
from elit_serve.server.jobs.states import StoredJob
from elit_serve.server.jobs.store import JobStore

logger = logging.getLogger(__name__)

PAUSES_S = (1, 5, 60, 300, 1800, 7200, 18_000, 36_000)  # before each further attempt
TIMEOUT_S = 10.0
AT_ONCE = 8
POLL_S = 1.0
PREFIX = "whsec_"
MAX_KEY_BYTES = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}


class WebhookPolicy:
    """Where webhooks may go, and what they are signed with.

    hosts: as HOST, for the default port of the scheme, or HOST:PORT. secret_file: see `Settings`.
    """

    def __init__(self, hosts: Collection[str], secret_file: str | None) -> None:
        if hosts and secret_file is None:
            raise InvalidInput("webhook_secret_file", None, "a file with the secret that webhooks are signed with")
        self._hosts = frozenset(host.lower() for host in hosts)
        self._key = b"" if secret_file is None else _read_key(Path(secret_file))

    def check(self, url: str) -> None:
        """Raises `InvalidInput` for an address that webhooks may not go to."""
        if not self._allows(url):
            hosts = ", ".join(sorted(self._hosts)) or "none: this server sends no webhooks"
            raise InvalidInput("webhook.url", url, f"an http or https URL on one of the allowed hosts ({hosts})")

    def _allows(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORTS[parts.scheme]
        except (ValueError, KeyError):
            return False
        if not (url.isascii() and url.isprintable()) or parts.hostname is None or _has_user(parts):
            return False
        is_default = port == DEFAULT_PORTS[parts.scheme]
        return f"{parts.hostname}:{port}" in self._hosts or (is_default and parts.hostname in self._hosts)

    def headers(self, message_id: str, body: bytes) -> dict[str, str]:
        """The signature is over id, time and body, so that none of them can be exchanged."""
        timestamp = str(int(time.time()))
        signed = hmac.new(self._key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        return {
            "Content-Type": "application/json",
            "User-Agent": "elit-serve",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }


class Webhooks:
    """A thread that looks for what is to be told, and a few that tell it."""

    def __init__(self, store: JobStore, policy: WebhookPolicy, metrics: JobMetrics, *, results_seconds: float) -> None:
        self._store = store
        self._policy = policy
        self._metrics = metrics
        self._results_seconds = results_seconds
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="elit-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        with client, ThreadPoolExecutor(AT_ONCE, thread_name_prefix="elit-webhook") as pool:
            while not self._is_stopping:
                try:
                    due = self._store.due_webhooks(time.time(), limit=AT_ONCE)
                    for job, is_told in zip(due, pool.map(lambda job: self._tell(client, job), due), strict=True):
                        self._note(job, is_told)
                except (StoreUnavailable, StorageFull):
                    due = []  # told again later
                except Exception:
                    logger.exception("webhooks: something went wrong that should not")
                    due = []
                if not due:
                    self._wake.wait(POLL_S)
                    self._wake.clear()

    def _tell(self, client: httpx.Client, job: StoredJob) -> bool:
        webhook = JobRequest.model_validate_json(job.request).webhook
        assert webhook is not None, job.id
        try:
            self._policy.check(webhook.url)  # settings may have changed since
            body = self._body(job)
            headers = self._policy.headers(job.id, body)
            with client.stream("POST", webhook.url, content=body, headers=headers) as answer:
                return answer.is_success  # whatever else it says is not read
        except (httpx.HTTPError, InvalidInput, ValueError) as error:
            logger.info("no webhook for job %s: %s", job.id, error)
            return False

    def _note(self, job: StoredJob, is_told: bool) -> None:
        is_last = job.webhook_attempts == len(PAUSES_S)
        next_s = None if is_told or is_last else time.time() + PAUSES_S[job.webhook_attempts]
        self._store.webhook_tried(job.id, next_s=next_s)
        self._metrics.webhooks.labels("delivered" if is_told else "given_up" if is_last else "failed").inc()
        if is_last and not is_told:
            logger.warning("the webhook of job %s was not taken in %d attempts", job.id, len(PAUSES_S) + 1)

    def _body(self, job: StoredJob) -> bytes:
        info = job_info(job, results_seconds=self._results_seconds)
        message = {
            "type": f"job.{job.state}",
            "timestamp": datetime.fromtimestamp(job.ended_s or job.created_s, UTC).isoformat(),
            "data": info.model_dump(mode="json"),
        }
        return json.dumps(message).encode()


def _has_user(parts: SplitResult) -> bool:
    return "@" in parts.netloc


def _read_key(file: Path) -> bytes:
    try:
        text = read_text(file, MAX_KEY_BYTES).strip()
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except (OSError, UnicodeError, binascii.Error):
        key = b""
    if len(key) < 24:
        raise InvalidInput("webhook_secret_file", str(file), "a file that holds whsec_ and base64 of 24 bytes or more")
    return key
