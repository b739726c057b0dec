"""What the Dockerfile says and can be seen without building it; its form is checked by a linter."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from elit_serve.client import Client
from elit_serve.server.setting_sources import read_settings

# Notes all that Python opens for writing, and all folders that it makes.
NOTEBOOK = """
import os, sys
notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes and isinstance(arguments[0], str)) or event in ("os.mkdir", "sqlite3.connect"):
        os.write(notes, f"{arguments[0]}\\n".encode())
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def root(deploy_dir: Path) -> Path:
    return deploy_dir.parent


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\w+)\n", (root / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_what_is_copied_is_there_and_sent_to_the_builder(root: Path, stages: dict[str, str]) -> None:
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", stages["wheel"], re.MULTILINE) for name in line.split()}
    sent = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert all((root / name).exists() for name in copied)


def test_the_wheel_finds_all_that_its_description_names(root: Path, stages: dict[str, str]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    named = [*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"], "pyproject.toml"]
    named.append(project["project"]["readme"])
    for name in named:
        assert re.search(rf"^COPY .*\b{re.escape(name.split('/')[0])}\b", stages["wheel"], re.MULTILINE), name


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_has_the_torch_and_the_database_driver_that_the_package_needs_and_no_sources(
    root: Path, stages: dict[str, str], target: str
) -> None:
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = (dependency for dependency in dependencies if dependency.startswith("torch"))
    assert f"'{torch}'" in stages[target]
    assert "ARG EXTRAS=postgres\n" in stages[target]  # jobs may be kept in PostgreSQL
    assert '*.whl)[$EXTRAS]"' in stages[target]
    assert "COPY" not in stages["base"] + stages[target]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_ends_as_a_user_that_kubernetes_sees_is_not_root(stages: dict[str, str], target: str) -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages[target].rstrip().splitlines()[-1])


def test_only_a_container_listens_on_every_address_unasked(stages: dict[str, str]) -> None:
    (variable,) = re.findall(r"^ENV (ELIT_SERVE_HOST)=(\S+)$", stages["base"], re.MULTILINE)
    assert read_settings({}).host == "127.0.0.1"
    assert read_settings({}, dict([variable])).host == "0.0.0.0"


def test_the_health_check_asks_a_server_as_it_is_meant_to(stages: dict[str, str], tiny_server_url: str) -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", stages["base"], re.MULTILINE)
    python, flag, program = json.loads(command)
    assert (python, flag) == ("python", "-c")

    def status(url: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", program.replace("http://127.0.0.1:8000", url)], check=False
        ).returncode

    assert "http://127.0.0.1:8000/health" in program
    assert status(tiny_server_url) == 0
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert status(f"http://127.0.0.1:{nobody.getsockname()[1]}") == 1


def test_a_server_writes_into_the_folders_that_are_mounted_and_nowhere_else(
    shared_tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTEBOOK)
    mounted = {"XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state", "TMPDIR": "tmp"}
    for name in mounted.values():
        (tmp_path / name).mkdir()
    environment = {
        **os.environ,
        "NOTES": str(tmp_path / "notes"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path / "home"),
    }
    environment |= {variable: str(tmp_path / name) for variable, name in mounted.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "elit_serve.cli", "serve", shared_tiny_model_dir, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd="/") as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("elit-serve:")
            with Client(f"http://127.0.0.1:{port}") as client:
                client.generate(label="rose")
                assert client.jobs.wait(client.jobs.create(label="rose").id).state == "done"
        finally:
            process.terminate()
    written = [line for line in (tmp_path / "notes").read_text().splitlines() if line != os.devnull]
    folders = [str(tmp_path / name) for name in mounted.values()]
    assert [line for line in written if not line.startswith(tuple(folders))] == []
    assert all(any(line.startswith(folder) for line in written) for folder in folders[:2]), written
