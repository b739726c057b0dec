"""`elit-serve serve` whose engine dies under load: everybody is told, and the process exits so that it can be started
again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

# The device is lost as soon as a file is there.
PROGRAM = """
import os, sys, torch
from elit_serve import cli
from elit_serve.engine.executor.slots import Executor
from elit_serve.server import run

class LosesItsDevice(Executor):
    def launch(self, pictures, kind):
        if os.path.exists(os.environ["LOST"]):
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return super().launch(pictures, kind)

run.open_executor = LosesItsDevice
cli.main()
"""


def in_flight(client: httpx.Client) -> int:
    health = client.get("/health").json()
    return int(health["running"] + health["queue_length"])


def test_everybody_is_told_and_the_process_exits_with_1(shared_tiny_model_dir: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    command = [sys.executable, "-c", PROGRAM, "serve", str(shared_tiny_model_dir), "--host", "127.0.0.1", "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "LOST": str(lost)}
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
        ThreadPoolExecutor(8) as callers,
    ):
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        with httpx.Client(base_url=found[0], timeout=60) as client:
            body = {"label": "tulip", "steps": 1000, "budget": 1}
            answers = [callers.submit(client.post, "/v1/generate", json=body) for _ in range(6)]
            asked = {"prompt": "tulip", "steps": 1000, "stream": True}
            stream = callers.submit(client.post, "/v1/images/generations", json=asked)
            while in_flight(client) < 7:
                time.sleep(0.01)
            lost.touch()
            told = [answer.result(60) for answer in answers]
            assert [(answer.status_code, answer.json()["reason"]) for answer in told] == [(503, "stopped")] * 6
            assert "event: error" in stream.result(60).text
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "illegal memory access" in errors
    assert errors.splitlines()[-1].startswith("error: the engine died")
