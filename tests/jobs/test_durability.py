"""What was accepted outlives the server: killed under load again and again, it loses nothing and ends nothing twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from elit_serve.engine.pipeline import Pipeline

ROUNDS = 20
CALLERS = 3
STEPS = 20


@pytest.fixture(scope="session")
def profiled_model_dir(shared_tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its latency beside it, so that a server starts at once."""
    path = Path(shutil.copytree(shared_tiny_model_dir, tmp_path_factory.mktemp("profiled") / "tiny"))
    command = [sys.executable, "-m", "elit_serve.cli", "profile", str(path), "--device", "cpu", "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return path


@contextmanager
def serving(model_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server of its own process, which is killed at the end unless it has gone."""
    serve = [sys.executable, "-m", "elit_serve.cli", "serve", str(model_dir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [*serve, "--device", "cpu", "--threads", "1", *options], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
            assert found, "the server did not start"
            with httpx.Client(base_url=found[0], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


class Load:
    """Callers who send jobs, and keep what they were told. A job without an answer is sent again with its key."""

    def __init__(self) -> None:
        self.accepted: dict[str, dict[str, Any]] = {}  # by key, as first told
        self.ended: dict[str, dict[str, Any]] = {}  # by id, as first told
        self.unanswered: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._count = 0

    def send_until_it_dies(self, client: httpx.Client) -> None:
        while True:
            with self._lock:
                self._count += 1
                key, body = self.unanswered.pop() if self.unanswered else (f"key-{self._count}", self._body())
            try:
                answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
                assert answer.status_code == 202, answer.text
                with self._lock:
                    self.accepted[key] = answer.json()
                if self._count % 7 == 0:
                    client.delete(f"/v1/jobs/{answer.json()['id']}")
                time.sleep(0.1)
            except httpx.TransportError:
                with self._lock:
                    if key not in self.accepted:
                        self.unanswered.append((key, body))
                return

    def look(self, client: httpx.Client) -> bool:
        """Whether all have ended. None that was told to have ended may ever say anything else."""
        with self._lock:
            stored = {job["id"] for job in self.accepted.values()} | self.ended.keys()
        jobs = everything(client)
        assert jobs.keys() >= stored, "a job was lost"
        for job in jobs.values():
            if job["state"] in ("done", "failed", "expired", "cancelled"):
                assert self.ended.setdefault(job["id"], job) == job
        return len(self.ended) == len(jobs)

    def _body(self) -> dict[str, Any]:
        body = {"label": "tulip", "seed": self._count, "steps": STEPS, "budget": 0.5}
        return body | ({"latency_ms": 3_600_000} if self._count % 5 == 0 else {})


def everything(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """All jobs, by id."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/v1/jobs", params={"limit": "100", **cursor}).json()
        found += page["data"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len({job["id"] for job in found}) == len(found)
    return {job["id"]: job for job in found}


def outlives(rounds: int, model_dir: Path, assert_same_picture: Any, *options: str) -> None:
    random, load = Random(0), Load()
    for _ in range(rounds):
        with ThreadPoolExecutor(CALLERS) as callers, serving(model_dir, *options) as (process, client):
            sending = [callers.submit(load.send_until_it_dies, client) for _ in range(CALLERS)]
            load.look(client)
            time.sleep(random.uniform(0.1, 0.5))
            process.send_signal(signal.SIGKILL)
            for sent in sending:
                sent.result(60)
    with serving(model_dir, *options) as (process, client):
        deadline_s = time.monotonic() + 120
        while not load.look(client):
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        jobs = everything(client)
        check_states(load, jobs)
        check_pictures(client, jobs, Pipeline.load(model_dir, device="cpu"), assert_same_picture)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def check_states(load: Load, jobs: dict[str, dict[str, Any]]) -> None:
    states = [job["state"] for job in jobs.values()]
    assert len(jobs) >= len(load.accepted)
    assert states.count("done") > len(states) // 2
    assert set(states) <= {"done", "cancelled"}
    seeds = [job["request"]["seed"] for job in jobs.values()]
    assert len(set(seeds)) == len(seeds), "a key made two jobs"


def check_pictures(
    client: httpx.Client, jobs: dict[str, dict[str, Any]], pipeline: Pipeline, assert_same_picture: Any
) -> None:
    done = [job for job in jobs.values() if job["state"] == "done"]
    for job in Random(1).sample(done, 5):
        (image,) = job["result"]["images"]
        alone = pipeline.generate("tulip", budget=0.5, steps=STEPS, seed=job["request"]["seed"]).image
        assert_same_picture(client.get(image["url"]).content, alone)


@pytest.mark.slow
def test_sqlite_and_twenty_kills(profiled_model_dir: Path, assert_same_picture: Any, tmp_path: Path) -> None:
    outlives(ROUNDS, profiled_model_dir, assert_same_picture, "--results", str(tmp_path / "results"))


@pytest.mark.slow
def test_postgresql_and_a_kill(
    profiled_model_dir: Path, assert_same_picture: Any, tmp_path: Path, postgres_url: str
) -> None:
    outlives(
        1, profiled_model_dir, assert_same_picture, "--results", str(tmp_path / "results"), "--database", postgres_url
    )
