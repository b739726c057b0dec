"""The command of the server's pod, run as KubeRay runs it, beside a real head of Ray: two nodes on this machine. Only
the GPU is a simulated one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = pytest.mark.slow  # two nodes of Ray, and two replicas

PATIENCE_S = 180.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, as Ray has sockets in it."""
    made = Path(tempfile.mkdtemp(prefix="ray-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """Of both pods; whoever joins needs the token."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "RAY_raylet_start_wait_time_s": "150",  # the machine may be busy with other tests
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
    }


def started_as(group: dict[str, Any], **instead: str) -> str:
    """Ray's command, as KubeRay makes it of the parameters of a group."""
    parameters = {**group["rayStartParams"], **instead, "dashboard-agent-listen-port": str(free_port())}
    return " ".join(["ray start --block", *(f"--{name}={value}" for name, value in parameters.items())])


@contextmanager
def pod(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """All of its processes end with the block, as those of a container do."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            subprocess.run(["pkill", "--signal", "KILL", "--session", str(process.pid)], check=False)


def wait_until(is_so: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline_s, log.read_text(encoding="utf-8")
        time.sleep(0.2)


def is_listening(host: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def own_address(log: Path) -> str | None:
    """Where Ray says that it is, which is this machine's address in its network if it has one."""
    found = re.search(r"Local node IP.*?(\d+\.\d+\.\d+\.\d+)", log.read_text(encoding="utf-8"))
    return found and found[1]


def test_the_server_joins_the_cluster_answers_and_drains(
    deploy_dir: Path, folder: Path, environment: dict[str, str]
) -> None:
    content = (deploy_dir / "kubernetes" / "ray" / "cluster.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(content)["spec"]
    (ingress,) = [group for group in spec["workerGroupSpecs"] if group["groupName"] == "ingress"]
    (container,) = ingress["template"]["spec"]["containers"]
    (script,) = container["args"]
    assert "--device cuda" in script
    command = [*container["command"], script.replace("--device cuda", "--simulate nvidia-h200")]
    head_port, http_port = free_port(), free_port()
    head = started_as(spec["headGroupSpec"], **{"num-cpus": "2", "port": str(head_port), "temp-dir": str(folder / "r")})
    head_log, server_log = folder / "head.log", folder / "server.log"
    with pod(["/bin/bash", "-c", f"exec {head} --head"], environment, head_log) as process:
        wait_until(lambda: own_address(head_log), process, head_log)
        host = str(own_address(head_log))
        wait_until(lambda: is_listening(host, head_port), process, head_log)
        of_server = {
            "RAY_ADDRESS": f"{host}:{head_port}",
            "KUBERAY_GEN_RAY_START_CMD": started_as(ingress, address=f"{host}:{head_port}"),
            "ELIT_SERVE_HOST": "127.0.0.1",
            "ELIT_SERVE_PORT": str(http_port),
        }
        with pod(command, environment | of_server, server_log) as server:
            wait_until(lambda: is_listening("127.0.0.1", http_port), server, server_log)
            url = f"http://127.0.0.1:{http_port}"
            assert httpx.get(url + container["readinessProbe"]["httpGet"]["path"]).status_code == 200
            made = httpx.post(f"{url}/v1/generate", json={"label": "daisy", "latency_ms": 30_000}, timeout=60)
            assert made.status_code == 200, made.text
            assert made.json()["promised"]
            assert 'elit_replicas_max{model="garden64"} 8.0' in httpx.get(f"{url}/metrics").text
            server.terminate()
            assert server.wait(60) == 0
