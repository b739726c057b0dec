"""Every block of code in every document does what it says, in the order in which it stands there.

A block whose first line is `# needs ...` (a GPU, a cluster, hours) is not run; its commands must still have the options
that it gives them. A new document needs nothing here.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from typer.main import get_command

from elit_serve.cli import app
from elit_serve.files.config import ModelConfig
from elit_serve.server.keys import read_keys
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings
from elit_serve.trainer.recipe import read_recipe

if TYPE_CHECKING:
    from tests.documents.conftest import Block, Servers

Run = Callable[[str], subprocess.CompletedProcess[str]]

INSTALL = ["pip install . && elit-serve serve", "pip install '.[test]' && pytest"]  # .ci/run and the fixture run these
LANGUAGES = {"sh", "python", "toml", "json", "text", ""}  # the last two are for people
ELSEWHERE = ("docker", "kubectl", "promtool")  # programs that no test has; their blocks say what they need

# What commands say when they did what they are for.
SAID = {
    "/v1/plan": "alternatives",
    "/v1/images/generations": "b64_json",
    "/v1/jobs/$job/events": "event: done",
    "elit-serve bench": "slo_attainment_rate",
    "elit-serve soak": "What must hold",
    "elit-serve generate --server": "tulip.png",
}


def test_the_readme_begins_with_two_commands_and_ends_with_the_tests(readme_blocks: list[Block]) -> None:
    commands = [command for block in readme_blocks if block.language == "sh" for command in block.commands]
    assert [command for command in commands if command.startswith("pip install")] == INSTALL


def test_the_readme_leads_from_photographs_to_a_server(five_commands: dict[str, str], workspace: Path) -> None:
    assert [shlex.split(command)[1] for command in five_commands] == ["train", "export", "sweep", "profile"]
    assert (workspace / "runs/mine/run.json").is_file()
    assert {"config.json", "model.safetensors", "quality.json", "latency"} <= {
        path.name for path in (workspace / "models/mine").iterdir()
    }


def test_shell_blocks_run(
    sh_block: Block, run: Run, servers: Servers, workspace: Path, request: pytest.FixtureRequest
) -> None:
    ran = request.getfixturevalue("five_commands") if sh_block.is_run else {}
    assert subprocess.run(["bash", "-n", "-c", sh_block.text], capture_output=True).returncode == 0, sh_block.text
    for command in sh_block.commands:
        if not sh_block.is_run or command.startswith("elit-serve serve"):  # without a port: the `server` fixture's
            for arguments in command_lines(command):
                has_its_options(arguments)
            if sh_block.is_run and "--port" in command:
                servers.start(command)
        elif command not in ran and command not in INSTALL:
            assert not command.startswith(ELSEWHERE), f"{sh_block}: say with `# needs ...` what {command} needs"
            does_what_it_is_for(command, run(command).stdout, workspace)


@pytest.mark.usefixtures("five_commands")
def test_python_blocks_run(python_block: Block, request: pytest.FixtureRequest, workspace: Path) -> None:
    ast.parse(python_block.text)
    if not python_block.is_run:
        return  # it needs what no test has
    program = python_block.text
    if "localhost:8000" in program:
        program = program.replace("localhost:8000", request.getfixturevalue("server"))
    done = subprocess.run([sys.executable, "-c", program], cwd=workspace, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_toml_blocks_are_settings_keys_or_recipes(toml_block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.toml"
    file.write_text(toml_block.text)
    content = tomllib.loads(toml_block.text)
    if "backbone" in content:
        read_recipe(file)
    elif all(isinstance(value, dict) for value in content.values()):
        assert read_keys(file)
    else:
        assert read_settings({}, config=str(file)) != Settings()


def test_json_blocks_are_json(json_block: Block) -> None:
    if "weights" in json.loads(json_block.text):
        ModelConfig.read(json_block.text.encode())


def test_blocks_say_what_they_are_in(any_block: Block) -> None:
    assert any_block.language in LANGUAGES, f"{any_block}: one of {', '.join(sorted(LANGUAGES))}"
    is_for_people = any_block.language in ("text", "")
    assert not (is_for_people and command_lines(any_block.text)), f"{any_block}: say ```sh, so that it is tested"


def does_what_it_is_for(command: str, said: str, workspace: Path) -> None:
    for part, answer in SAID.items():
        assert part not in command or answer in said, (command, said)
    for made in re.findall(r"(?:-o|--plot|--out) (\S+\.(?:png|webp|jpg))", command):
        Image.open(workspace / made).load()


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every elit-serve command in a script, with what stands for a variable or a file as it is."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\||>|;", line):
            words = command.strip()
            if " -m elit_serve.cli " in words:
                found.append(shlex.split(words.partition(" -m elit_serve.cli ")[2]))
            elif words.startswith("elit-serve "):
                found.append(shlex.split(words)[1:])
    return found


def has_its_options(arguments: list[str]) -> None:
    """Raises what the command line would say of wrong options; runs nothing."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    commands[arguments[0]].make_context(arguments[0], arguments[1:])
