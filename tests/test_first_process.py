"""Commands as process 1, as which a container runs them: there a signal without a handler is ignored."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "models/recipes/garden64.toml"
TERM_BIT = 1 << (signal.SIGTERM - 1)


@contextmanager
def as_process_1(*command: str | Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`elit-serve COMMAND` in a PID namespace of its own; gives the process around it, and its id out here."""
    become_root = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *become_root, "--pid", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*unshare, sys.executable, "-m", "elit_serve.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, child_of(process)
        finally:
            process.kill()


def child_of(process: subprocess.Popen[str]) -> int:
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (children := file.read_text(encoding="utf-8").split()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return int(children[0])


def hears_sigterm(pid: int) -> bool:
    """Whether it has a handler, as Linux tells it."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return caught is not None and bool(int(caught[1], 16) & TERM_BIT)


@pytest.mark.parametrize("command", ["serve", "train", "generate"])
def test_a_command_ends_at_sigterm_from_its_beginning(command: str, tmp_path: Path) -> None:
    """Long before there is anything to drain or to save."""
    options: dict[str, list[str | Path]] = {
        "serve": ["--port", "0", "--host", "127.0.0.1"],
        "train": [RECIPE, "--data", tmp_path, "--out", tmp_path / "run"],
        "generate": ["--label", "tulip", "--out", tmp_path / "tulip.png"],
    }
    with as_process_1(command, *options[command]) as (process, pid):
        while not hears_sigterm(pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (128 + signal.SIGTERM, "", "")
