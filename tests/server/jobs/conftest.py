"""Servers with jobs, and what a test does with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from elit_serve.scheduler import CostTable

ENDED = ("done", "failed", "expired", "cancelled")

CHEAP = CostTable(
    steps_ms={
        (level, weak, batch): 1.0 * level * batch
        for level in (1, 2, 3, 4)
        for weak in (None, 1, level)
        for batch in (1, 2)
    },
    overhead_ms=1.0,
)


@dataclass(frozen=True)
class Jobs:
    """What a client does with jobs."""

    client: httpx.Client

    def post(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post("/v1/jobs", json={"label": "tulip", **body}, headers=headers)

    def accepted(self, key: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.post(key, **body)
        assert answer.status_code == 202, answer.text
        job = dict(answer.json())
        assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
        return job

    def get(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, job: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        """The job, once it has ended."""
        deadline_s = time.monotonic() + timeout_s
        while (now := self.get(job))["state"] not in ENDED:
            assert time.monotonic() < deadline_s, now
            time.sleep(0.01)
        return now

    def cancel(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.delete(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def picture(self, job: dict[str, Any], index: int | str = 0) -> httpx.Response:
        return self.client.get(f"/v1/jobs/{job['id']}/images/{index}")

    def listed(self, **query: Any) -> dict[str, Any]:
        answer = self.client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def events(self, job: dict[str, Any], last_event_id: str | None = None) -> Iterator[tuple[str, str, Any]]:
        """(Id, name, data) as they come."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        with self.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields = {}


MakeJobs = Callable[[Any], Jobs]


@pytest.fixture
def jobs_of() -> MakeJobs:
    return lambda server: Jobs(server.client)


@pytest.fixture
def cheap() -> CostTable:
    """A cost table with batches of at most two."""
    return CHEAP
