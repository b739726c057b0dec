"""What the Dockerfile says and can be seen without building it; its form is checked by a linter."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


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
def test_an_image_has_the_torch_that_the_package_needs_and_no_sources(
    root: Path, stages: dict[str, str], target: str
) -> None:
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = (dependency for dependency in dependencies if dependency.startswith("torch"))
    assert f"'{torch}'" in stages[target]
    assert "COPY" not in stages["base"] + stages[target]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_ends_as_a_user_that_kubernetes_sees_is_not_root(stages: dict[str, str], target: str) -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages[target].rstrip().splitlines()[-1])


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
