"""`elit-serve serve --replicas` as a process, and the processes of its replicas."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True, kw_only=True)
class Served:
    """line: what it has announced."""

    process: subprocess.Popen[str]
    line: str
    client: httpx.Client
    log: Path

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def replicas(self) -> list[int]:
        """Their process ids."""
        return [pid for pid in descendants(self.process.pid) if b"ray::ServeReplica" in command_of(pid)]

    def picture(self, body: dict[str, Any]) -> bytes:
        answer = self.client.post("/v1/generate", json=body, headers={"Accept": "image/png"})
        assert answer.status_code == 200, answer.text
        return answer.content


def descendants(pid: int) -> list[int]:
    """Of all generations."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in read(task / "children").split()]
    return children + [each for child in children for each in descendants(child)]


def read(file: Path) -> bytes:
    """Nothing of a process that has ended."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def command_of(pid: int) -> bytes:
    return read(Path(f"/proc/{pid}/cmdline"))


@contextmanager
def serving_fleet(folder: Path, *arguments: str | Path) -> Iterator[Served]:
    """With its log, cache and state in this folder, until the block ends."""
    command = [sys.executable, "-m", "elit_serve.cli", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    with (
        (folder / "log").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if "http://" in line)
            url = re.search(r"http://[\d.:]+", line)
            assert url
            with httpx.Client(base_url=url[0], timeout=60) as client:
                yield Served(process=process, line=line, client=client, log=folder / "log")
        finally:
            process.terminate()
