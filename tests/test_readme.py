"""Every command and code block of the README does what it says, in the order in which it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings

README = Path(__file__).parent.parent / "README.md"
INSTALL = ["pip install . && elit-serve serve", "pip install '.[test]' && pytest"]  # .ci/run and the fixture run these

TINY_RECIPE = """
name = "tiny"
[backbone]
channels = 3
height = 16
width = 16
patch = 4
dim = 32
depth = 3
num_heads = 2
interface = { window = [2, 2], head = 1, core = 1, tail = 1 }
[training]
steps = 4
batch = 8
precision = "float32"
compile = false
[every]
log = 2
[sampling]
steps = 2
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if not is_script(block)]


def is_script(block: str) -> bool:
    """Whether its lines go together."""
    return "$" in block


class ImageMeans(torch.nn.Module):
    """[B, 3, H, W] -> [B, 12]: the mean colours of the four quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, [2, 2]).flatten(1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README's commands name, with training shortened by a tiny recipe."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "garden64").write_text(TINY_RECIPE)  # a file goes before the recipe of that name
    random = np.random.default_rng(0)
    for name in ("photos", "held-out"):
        for label in ("daisy", "tulip"):
            (folder / name / label).mkdir(parents=True)
            for index in range(40):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / label / f"{index}.png")
        subprocess.run(["tar", "-cf", folder / f"{name}.tar", "-C", folder / name, "daisy", "tulip"], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch discourages TorchScript; operators still have it
        torch.jit.trace(ImageMeans().eval(), torch.rand(2, 3, 16, 16)).save(str(folder / "features.ts"))
    return folder


@pytest.fixture(scope="module")
def server(workspace: Path) -> Iterator[str]:
    """`elit-serve serve`, on a free port; gives host:port."""
    script = Path(sysconfig.get_path("scripts")) / "elit-serve"
    with subprocess.Popen(
        [script, "serve", "--host", "127.0.0.1", "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=workspace
    ) as process:
        assert process.stdout is not None
        announced = re.search(r"http://([\d.]+:\d+)", process.stdout.readline())
        assert announced, "the server did not say where it listens"
        try:
            yield announced[1]
        finally:
            process.terminate()


def run_in(workspace: Path, command: str) -> subprocess.CompletedProcess[bytes]:
    scripts = sysconfig.get_path("scripts")
    environment = {"PATH": f"{scripts}:/usr/local/bin:/usr/bin:/bin", "HOME": str(workspace), "OMP_NUM_THREADS": "2"}
    return subprocess.run(["bash", "-c", command], cwd=workspace, env=environment, capture_output=True, timeout=600)


def test_the_two_commands_stand_there() -> None:
    assert [command for command in commands() if command.startswith("pip install")] == INSTALL


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("curl")])
def test_curl_gets_an_answer(command: str, server: str, workspace: Path) -> None:
    done = run_in(workspace, command.replace("localhost:8000", server).replace("curl -s", "curl --fail-with-body -sS"))
    assert done.returncode == 0, done.stdout + done.stderr
    if "-o" in command:
        with Image.open(workspace / shlex.split(command)[-1]) as picture:
            assert picture.size == (64, 64)
    else:
        assert (b"alternatives" if "/v1/plan" in command else b"b64_json") in done.stdout


@pytest.mark.parametrize("script", [block for block in blocks("sh") if is_script(block)])
def test_lines_that_go_together_work_together(script: str, server: str, workspace: Path) -> None:
    script = script.replace("localhost:8000", server).replace("curl -s", "curl --fail-with-body -sS")
    done = run_in(workspace, f"set -eo pipefail\n{script}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"event: done" in done.stdout
    assert b'"state":"done"' in done.stdout.splitlines()[-1]
    with Image.open(workspace / "rose.png") as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("command", "said"), [("elit-serve bench", b"slo_attainment_rate"), ("elit-serve generate --server", b"tulip.png")]
)
def test_commands_reach_the_server(command: str, said: bytes, server: str, workspace: Path) -> None:
    (whole,) = (each for each in commands() if each.startswith(command))
    done = run_in(workspace, whole.replace("localhost:8000", server))
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout


def test_the_soak_says_what_holds(server: str, workspace: Path) -> None:
    (whole,) = (command for command in commands() if command.startswith("elit-serve soak"))
    shortened = whole.replace("localhost:8000", server).replace("--callers 200 --seconds 60", "--callers 4 --seconds 1")
    done = run_in(workspace, shortened)
    assert b"What must hold" in done.stdout, done.stdout + done.stderr


def test_commands_work_in_the_order_in_which_they_stand(workspace: Path) -> None:
    ran = [command for command in commands() if command.startswith(("elit-serve", "torchrun"))]
    for command in ran:
        if "localhost:8000" in command:
            continue  # needs the server, see above
        if command == "elit-serve serve models/mine":
            continue  # never ends; `describe` has just read the same model, and the fixture above serves one
        shortened = command.replace("--nproc-per-node 8", "--nproc-per-node 2 --standalone")
        if command.startswith("elit-serve evaluate"):
            shortened += " --seeds 2"
        shortened = shortened.replace("--levels 1,2,4,8,16", "--levels 1,2,4")
        shortened = shortened.replace("--steps 10,20,40,80", "--steps 1,2")
        done = run_in(workspace, shortened)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    for made in ("tulip.png", "runs/mine/run.json", "runs/parallel/run.json", "models/mine/config.json"):
        assert (workspace / made).is_file()
    assert (workspace / "report" / "evaluation.json").is_file()
    assert (workspace / "policies.png").is_file()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str, server: str, workspace: Path) -> None:
    program = block.replace("localhost:8000", server)
    done = subprocess.run([sys.executable, "-c", program], cwd=workspace, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_files_can_be_read(block: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(block)
    assert read_settings({}, config=str(file)) != Settings()


def test_the_table_of_settings_says_what_they_say_of_themselves() -> None:
    table = README.read_text().partition("| flag | default | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = []
    for setting, field in Settings.model_fields.items():
        flag = "MODEL" if setting == "model" else f"--{setting.replace('_', '-')}"
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        rows.append(f"| `{flag}` | {default} | {field.description} |")
    assert table.splitlines() == rows
