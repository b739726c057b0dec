"""All documents of the repository, and a folder and a server in which their commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import save_kl
from PIL import Image
from published import of_classes, published_tensors, published_weights, save_published

ROOT = Path(__file__).parents[2]
Run = Callable[[str], subprocess.CompletedProcess[str]]

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

TINY_LATENT_RECIPE = """
name = "tiny-latents"
[backbone]
kind = "elit-sit"
channels = 4
height = 16
width = 16
patch = 2
dim = 32
depth = 3
num_heads = 2
interface = { window = [4, 4], head = 1, core = 1, tail = 1 }
[autoencoder]
kind = "diffusers"
[training]
steps = 4
batch = 8
precision = "float32"
compile = false
[sampling]
steps = 2
"""

# What is shorter in the tests than in the documents, so that the tests end.
SHORTER = {
    "--nproc-per-node 8": "--nproc-per-node 2 --standalone",
    "--levels 1,2,4,8,16": "--levels 1,4",
    "--steps 10,20,40,80": "--steps 1,2",
    "--write-defaults": "--write-defaults --guidance none --max-repeats 1",
    "training.steps=30000": "training.steps=6",
    "--callers 200 --seconds 60": "--callers 4 --seconds 1",
    "elit-serve evaluate models": "elit-serve evaluate --seeds 2 models",
    "--size 256x256": "--size 16x16",
    "_2000000.pt ": "_2000000.pt --heads 4 --classes classes.txt ",
    "curl -s": "curl --fail-with-body -sS",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code of a document; if its first line is `# needs ...`, it needs what no test has, and is not run."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.text.startswith("# needs ")

    @property
    def commands(self) -> list[str]:
        """Its lines, joined where they are continued; or all of it, where a variable ties the lines together."""
        if "$" in self.text:
            return [self.text]
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line and not line.startswith("#")]


class Servers:
    """Commands that serve, each on a free port in place of its own; they end with `running`."""

    def __init__(self, workspace: Path, running: ExitStack) -> None:
        self._workspace = workspace
        self._running = running
        self._addresses: dict[str, str] = {}  # by what documents call it, as localhost:8000

    def start(self, command: str) -> str:
        """Runs it; gives host:port."""
        arguments = shlex.split(command)[1:]
        place = arguments.index("--port") if "--port" in arguments else len(arguments)
        port = (arguments[place + 1 :] or ["8000"])[0]
        script = Path(sysconfig.get_path("scripts")) / "elit-serve"
        process = self._running.enter_context(
            subprocess.Popen(
                [script, *arguments[:place], "--host", "127.0.0.1", "--port", "0", *arguments[place + 2 :]],
                stdout=subprocess.PIPE, text=True, cwd=self._workspace,
            )
        )  # fmt: skip
        self._running.callback(process.terminate)
        assert process.stdout is not None
        announced = re.search(r"http://([\d.]+:\d+)", process.stdout.readline())
        assert announced, f"{command} did not say where it listens"
        self._addresses[f"localhost:{port}"] = announced[1]
        return announced[1]

    def addressed(self, command: str) -> str:
        """The command, asking those servers that run."""
        for place, address in self._addresses.items():
            command = command.replace(place, address)
        return command


def documents() -> list[Path]:
    """Every Markdown file, but for what git ignores or others wrote."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0:
        return sorted({ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()})
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(ROOT / path for path in found if not any(part.startswith(".") for part in path.parts))


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document=str(document.relative_to(ROOT)),
            line=text.count("\n", 0, found.start()) + 1,
            language=found[2],
            text=re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE),
        )
        for found in re.finditer(r"^( *)```(.*)\n((?:.*\n)*?) *```$", text, flags=re.MULTILINE)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test that asks for a `document` each, and one that asks for a `<language>_block` each of these."""
    for name in metafunc.fixturenames:
        if name == "document":
            metafunc.parametrize(name, documents(), ids=[str(path.relative_to(ROOT)) for path in documents()])
        elif name.endswith("_block"):
            blocks = [block for path in documents() for block in blocks_of(path)]
            wanted = [block for block in blocks if name in (f"{block.language}_block", "any_block")]
            metafunc.parametrize(name, wanted, ids=str)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def readme_blocks() -> list[Block]:
    return blocks_of(ROOT / "README.md")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the documents' commands name, with training shortened by a tiny recipe."""
    folder = tmp_path_factory.mktemp("documents")
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
        torch.jit.trace(_ImageMeans().eval(), torch.rand(2, 3, 16, 16)).save(str(folder / "features.ts"))
        _add_published_model(folder)
    return folder


def _add_published_model(folder: Path) -> None:
    """A checkpoint of two classes as they are published, its autoencoder, and the photographs under ImageNet's name."""
    weights = of_classes(published_weights(published_tensors()), 2)
    save_published(folder / "elit_sit_mb_imagenet_256px_1k_2000000.pt", weights)
    (folder / "classes.txt").write_text("daisy\ntulip\n")
    (folder / "imagenet256-elit-sit-xl2").write_text(TINY_LATENT_RECIPE)
    (folder / "imagenet-train.tar").symlink_to("photos.tar")
    (folder / "imagenet-val.tar").symlink_to("held-out.tar")
    save_kl(folder / "sd-vae", blocks=1)  # for pictures of 16 x 16 pixels, as the photographs


@pytest.fixture(scope="session")
def servers(workspace: Path) -> Iterator[Servers]:
    """Runs what documents serve."""
    with ExitStack() as running:
        yield Servers(workspace, running)


@pytest.fixture(scope="session")
def server(servers: Servers) -> str:
    """`elit-serve serve`, which answers as localhost:8000 in documents; gives its host:port."""
    return servers.start("elit-serve serve")


@pytest.fixture(scope="session")
def run(workspace: Path, servers: Servers, request: pytest.FixtureRequest) -> Run:
    """Runs a command of a document in the workspace, shortened, against the server that it asks."""

    def run_in_workspace(command: str) -> subprocess.CompletedProcess[str]:
        for whole, shorter in SHORTER.items():
            command = command.replace(whole, shorter)
        if "localhost:8000" in command:
            request.getfixturevalue("server")
        command = servers.addressed(command)
        scripts = sysconfig.get_path("scripts")
        environment = {
            "PATH": f"{scripts}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(workspace),
            "OMP_NUM_THREADS": "2",
        }
        environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=workspace, env=environment, capture_output=True, text=True, errors="replace", timeout=600,
        )  # fmt: skip
        assert done.returncode == 0 or "elit-serve soak" in command, (command, done.stdout, done.stderr)
        return done

    return run_in_workspace


@pytest.fixture(scope="session")
def five_commands(readme_blocks: list[Block], run: Run) -> dict[str, str]:
    """The README's way from photographs to a server, run but for the server: what each of its commands said."""
    (block,) = (block for block in readme_blocks if "elit-serve train" in block.text)
    return {command: run(command).stdout for command in block.commands if not command.startswith("elit-serve serve")}


class _ImageMeans(torch.nn.Module):
    """[B, 3, H, W] -> [B, 12]: the mean colours of the four quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, [2, 2]).flatten(1)
