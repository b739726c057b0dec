"""A server that takes the time of a device instead of computing: real HTTP, scheduler and worker, and no weights."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from elit_serve.client import Client, Generation, PartialImage
from elit_serve.engine.simulated.placeholder import placeholder_picture
from elit_serve.errors import InvalidInput
from elit_serve.pictures import read_facts
from elit_serve.server.run import load_and_measure
from elit_serve.server.settings import Settings
from tests.serving import RunningServer, running_models
from tests.simulating import DECODE_MS, DEVICE, ENCODE_MS, STEP_MS, latency


@pytest.fixture
def start(bare_model: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts simulating servers with these settings besides."""
    with ExitStack() as stack:

        def started(**settings: Any) -> RunningServer:
            given = {
                "model": str(bare_model),
                "simulate": str(bare_model / "cost.json"),
                "response_ms": 2000,
                **settings,
            }
            model = load_and_measure(Settings(**given))
            return stack.enter_context(running_models([model], Settings(**given)))

        yield started


def pixels_of(file: bytes) -> torch.Tensor:
    return torch.tensor(list(Image.open(io.BytesIO(file)).convert("RGB").tobytes())).reshape(32, 32, 3)


def test_an_answer_is_a_placeholder_and_says_so(start: Any) -> None:
    server = start()
    answer = server.generate({"label": "rose", "seed": 7, "budget": 1}).json()
    assert answer["simulated"] == DEVICE
    file = base64.b64decode(answer["images"][0]["b64_json"])
    facts = read_facts(file)
    assert facts is not None
    assert (facts["simulated"], facts["label"], facts["seed"]) == (DEVICE, "rose", 7)
    assert torch.equal(pixels_of(file), placeholder_picture(32, 32))
    bare = server.generate({"label": "rose"}, accept="image/webp")
    assert bare.headers["X-Elit-Simulated"] == DEVICE
    (model,) = server.client.get("/v1/models").json()["data"]
    assert (model["simulated"], model["device"]) == (DEVICE, f"simulated {DEVICE}")


def test_a_server_that_computes_says_that_it_does(server: Any) -> None:
    answer = server.generate({"label": "rose", "budget": 0.25})
    assert answer.json()["simulated"] is None
    assert "simulated" not in (read_facts(base64.b64decode(answer.json()["images"][0]["b64_json"])) or {})


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_picture_takes_the_time_of_the_file(start: Any, bias: float) -> None:
    answer = start(simulate_bias=bias).generate({"label": "rose", "levels": [4, 4, 2, 1]}).json()
    assert answer["device_ms"] == pytest.approx((1 + bias) * STEP_MS * (4 + 4 + 2 + 1) + DECODE_MS)
    assert answer["total_ms"] >= answer["device_ms"] + ENCODE_MS


def test_noise_differs_from_one_step_to_the_next(start: Any) -> None:
    server = start(simulate_noise=0.2)
    took_ms = {server.generate({"label": "rose", "levels": [4] * 4}).json()["device_ms"] for _ in range(3)}
    assert len(took_ms) == 3


def test_promises_are_kept_by_lower_levels(start: Any, bare_model: Path) -> None:
    """At the full level they would take 3.8 s of the device, and at the lowest 1."""
    (bare_model / "cost.json").write_text(latency(step_ms=12.0).model_dump_json(), encoding="utf-8")
    server = start(response_ms=0, max_images=20)
    answer = server.generate({"label": "rose", "n": 20, "latency_ms": 3200}).json()
    assert answer.get("promised"), answer
    assert min(image["level"] for image in answer["images"]) < 4
    assert server.metric('elit_generations_total{outcome="done"}') == 1


def test_what_is_impossible_is_refused_with_what_is_possible(start: Any) -> None:
    refusal = start().generate({"label": "rose", "latency_ms": 500})
    assert refusal.status_code == 422
    assert refusal.json()["min_latency_ms"] > 2000, "what the response adds"


def test_a_share_of_steps_fails_and_the_server_lives_on(start: Any) -> None:
    server = start(simulate_failures=1)
    failure = server.generate({"label": "rose"})
    assert (failure.status_code, failure.json()["type"]) == (500, "urn:elit-serve:generation-failed")
    assert "simulated failure" in failure.json()["detail"]
    assert server.health()["status"] == "ok"
    assert server.metric('elit_image_failures_total{cause="step"}') == 1


def test_streams_have_previews(start: Any) -> None:
    with Client(start().url) as client:
        *previews, last = client.stream(label="rose", partial_images=2)
    assert [type(each) for each in previews] == [PartialImage, PartialImage]
    assert isinstance(last, Generation)


def test_a_job_is_done_and_another_is_cancelled(start: Any, bare_model: Path) -> None:
    server = start()
    with Client(server.url) as client:
        done = client.jobs.wait(client.jobs.create(label="rose", n=2, seed=3).id)
        facts = read_facts(client.jobs.image(done.id, 1))
        assert facts is not None
        assert (facts["simulated"], facts["seed"]) == (DEVICE, 4)
    (bare_model / "cost.json").write_text(latency(step_ms=250.0).model_dump_json(), encoding="utf-8")
    with Client(start(drain_seconds=0).url) as client:
        assert client.jobs.cancel(client.jobs.create(label="rose", budget=1).id).state == "cancelled"


def test_a_preset_needs_no_weights_and_answers_empty_latents(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(latency((4, 16, 64)).model_dump_json(), encoding="utf-8")
    settings = Settings(random_weights="elit-dit-xl/2", resolution=512, simulate=str(tmp_path / "cost.json"))
    with running_models([load_and_measure(settings)], settings) as server:
        answer = server.generate({"label": "1", "steps": 2}, accept="application/x-safetensors")
        assert answer.status_code == 200, answer.text
        latent = load(answer.content)["latent"]
    assert latent.shape == (16, 64, 64)
    assert not latent.any()


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"simulate": "cost.json", "device": "cpu"}, "device", "nothing is computed"),
        ({"simulate": "cost.json", "dtype": "float32"}, "dtype", "nothing is computed"),
        ({"simulate": "cost.json", "threads": 2}, "threads", "nothing is computed"),
        ({"simulate": "nowhere.json"}, "cost", "latency/<device>.json"),
        ({"simulate": "paper-200"}, "simulate", "the name of a device: paper-100"),
        ({"simulate": "levels.json"}, "simulate", "levels of the model (1, 2, 3, 4), not 16"),
        ({"simulate": "shapes.json"}, "simulate", "samples of 32x32"),
        ({"simulate_noise": 0.1}, "simulate_noise", "it goes with simulate"),
        ({"simulate_bias": 0.1}, "simulate_bias", "it goes with simulate"),
        ({"simulate_failures": 0.1}, "simulate_failures", "it goes with simulate"),
    ],
)
def test_settings_that_do_not_fit_are_named(bare_model: Path, settings: dict[str, Any], field: str, said: str) -> None:
    (bare_model / "levels.json").write_text(latency((1, 16)).model_dump_json(), encoding="utf-8")
    other = latency()
    shaped = {
        "steps": tuple(step.model_copy(update={"shape": "64x64"}) for step in other.steps),
        "answers": tuple(answer.model_copy(update={"shape": "64x64"}) for answer in other.answers),
    }
    (bare_model / "shapes.json").write_text(other.model_copy(update=shaped).model_dump_json(), encoding="utf-8")
    if settings.get("simulate", "").endswith(".json"):
        settings = {**settings, "simulate": str(bare_model / settings["simulate"])}
    with pytest.raises(InvalidInput) as refusal:
        load_and_measure(Settings(model=str(bare_model), **settings))
    assert refusal.value.field == field
    assert said in str(refusal.value)


def test_the_command_says_that_it_simulates(bare_model: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "elit_serve.cli",
        "serve",
        str(bare_model),
        "--simulate",
        "paper-100",
    ]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"tiny on {DEVICE}, float32, simulated" in line
            found = re.search(r"http://[\d.]+:\d+", line)
            assert found
            with Client(found[0]) as client:
                assert client.generate(label="tulip").images
        finally:
            process.terminate()
