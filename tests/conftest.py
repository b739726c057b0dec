"""What every test may use: a tiny elastic model on disk, with random weights."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and busy machines lose much
os.environ.setdefault("TRITON_INTERPRET", "1")  # GPU kernels are tested without a GPU; read when triton is imported
import torch

from elit_serve.catalogue import read_config
from elit_serve.engine.checkpoint import spec_of, write_checkpoint
from elit_serve.files.config import (
    ClassesConfig,
    ModelConfig,
    SamplingConfig,
    WeightsConfig,
)
from elit_serve.nn import ElitDiTSpec, InterfaceSpec, build
from elit_serve.plans.guidance import Guidance

pytest_plugins = ("serving", "simulating", "text_models")  # servers on loopback ports, and models, for whoever asks


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forgets compiled code and counts before and after.

    It does not keep what operations make of shapes either: that is compared with what they make of them again, which
    is a quarter of the time to trace a model once.
    """
    settings = torch._dynamo.config
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with settings.patch(recompile_limit=settings.recompile_limit, fake_tensor_cache_enabled=False):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """32x32 pixels, 4 levels, 3 classes, 4 steps of CCFG."""
    spec = ElitDiTSpec(
        channels=3,
        height=32,
        width=32,
        patch=4,
        dim=64,
        depth=4,
        num_heads=2,
        num_classes=3,
        interface=InterfaceSpec(window=(2, 2), head=1, core=2, tail=1),
    )
    return ModelConfig(
        name="tiny",
        **spec.config_fields(),
        levels=(1, 2, 3, 4),
        conditions=ClassesConfig(names=("daisy", "rose", "tulip")),
        sampling=SamplingConfig(steps=4, guidance=Guidance(method="ccfg", scale=2.0, weak_level=1)),
        weights=WeightsConfig(dtype="float32", files={"model.safetensors": "0" * 64}),
    )


@pytest.fixture(scope="session")
def assert_same_picture() -> Callable[[bytes, Image.Image], None]:
    """Of a file and a picture: up to what the size of a batch changes."""

    def assert_same_picture(file: bytes, picture: Image.Image) -> None:
        made = Image.open(io.BytesIO(file)).convert("RGB").tobytes()
        assert max(abs(a - b) for a, b in zip(made, picture.tobytes(), strict=True)) <= 1

    return assert_same_picture


@pytest.fixture(scope="session")
def shared_tiny_model_dir(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk, once for the whole run; no test may change it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec_of(tiny_config))
        for parameter in model.parameters():  # also those that start at zero: every level must matter
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    write_checkpoint(path, tiny_config, model.state_dict())
    return path


@pytest.fixture
def tiny_model_dir(shared_tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may damage."""
    return Path(shutil.copytree(shared_tiny_model_dir, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def serve_model() -> Callable[[Path, Path], AbstractContextManager[str]]:
    """For servers of one's own, as processes: see `served`."""
    return served


@pytest.fixture(scope="session")
def tiny_server_url(shared_tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`elit-serve serve` around the tiny model, as a process of its own."""
    with served(shared_tiny_model_dir, tmp_path_factory.mktemp("cache")) as url:
        yield url


@contextmanager
def served(model_dir: Path, cache_dir: Path) -> Iterator[str]:
    """`elit-serve serve` around a model, until the block ends; gives its address."""
    command = [sys.executable, "-m", "elit_serve.cli", "serve", model_dir, "--host", "127.0.0.1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache_dir)}
    with subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu", "--threads", "1"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            announced = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
            assert announced, "the server did not say where it listens"
            yield announced[0]
        finally:
            process.terminate()


MakeQuality = Callable[..., dict[str, object]]


@pytest.fixture(scope="session")
def measured_model_dir(
    shared_tiny_model_dir: Path, make_quality: MakeQuality, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model with measured quality; no test may change it."""
    model_dir = Path(shutil.copytree(shared_tiny_model_dir, tmp_path_factory.mktemp("measured") / "tiny"))
    content = make_quality(model_hash=read_config(model_dir).model_hash)
    (model_dir / "quality.json").write_text(json.dumps(content))
    return model_dir


@pytest.fixture(scope="session")
def measured_server_url(measured_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`elit-serve serve` around it."""
    with served(measured_model_dir, tmp_path_factory.mktemp("cache")) as url:
        yield url


@pytest.fixture(scope="session")
def make_quality() -> MakeQuality:
    """The content of a small valid `quality.json` for the tiny model; fields can be replaced."""
    ccfg = {"method": "ccfg", "scale": 2.0, "weak_level": 1, "interval": [0.0, 1.0]}

    def plan(name: str, levels: list[list[int]], quality: float, gflops: float, **changes: object) -> dict[str, object]:
        facts = {
            "distance": {"value": 50 / quality, "half_width": 1.0},
            "quality": {"value": quality, "half_width": 0.01},
        }
        fixed = {"guidance": ccfg, "time_shift": 1.0, "repeats": 2, "gflops": gflops, "on_front": True}
        return {"name": name, "levels": levels, **facts, **fixed, **changes}

    def make(**changes: object) -> dict[str, object]:
        plans = [
            plan("two low steps", [[1, 2]], 0.3, 1.0),
            plan("two steps", [[4, 2]], 0.45, 2.0),
            plan("rising", [[1, 2], [4, 2]], 0.7, 3.0),
            plan("usual", [[4, 4]], 0.8, 4.0),
            plan("unguided", [[4, 6]], 0.5, 5.0, guidance={**ccfg, "method": "none"}, on_front=False),
            plan("long", [[4, 8]], 0.9, 8.0),
        ]
        return {
            "model": "tiny",
            "model_hash": "0" * 12,
            "metric": "Pooled-FD",
            "features_sha256": "0" * 64,
            "reference": "60 made photographs",
            "num_samples": 18,
            "floor": {"value": 50.0, "half_width": 2.0},
            "levels": {"1": 0.4, "2": 0.7, "4": 0.8},
            "default": "usual",
            "plans": plans,
            "provenance": {"device": "none", "date": "2026-11-25"},
            **changes,
        }

    return make


Reply = tuple[int, dict[str, str], bytes]  # status, headers, body
StartHttp = Callable[[Callable[[str, bytes], Reply]], str]


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128
    block_on_close = False  # a test may leave callers without an answer


@contextmanager
def _answering(answer: Callable[[str, bytes], Reply]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = answer(self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with _Listener(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def start_http() -> Iterator[StartHttp]:
    """Starts real HTTP servers that answer as a test says, with a function of (path, body); each call has a thread."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(_answering(answer))
