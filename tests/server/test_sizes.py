"""A server whose model makes pictures of several sizes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from elit_serve.bench.load.run import LoadOptions, run_load
from elit_serve.catalogue import ModelQuality
from elit_serve.cli import app
from elit_serve.client import Client
from elit_serve.clock import MonotonicClock
from elit_serve.engine.checkpoint import load_checkpoint, spec_of, write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ModelConfig
from elit_serve.files.quality import Quality
from elit_serve.nn import build
from elit_serve.pictures import read_facts
from elit_serve.scheduler import CostTable
from elit_serve.server.engines import num_slots
from elit_serve.server.settings import Settings
from tests.serving import COST, AsPredicted, RunningServer, running

SHAPES = {"32x32": (3, 32, 32), "16x48": (3, 16, 48), "64x64": (3, 64, 64)}  # names have the height first
WORK = {"32x32": 1.0, "16x48": 0.75, "64x64": 4.0}  # a step of each shape, in steps of the first
COSTS = CostTable(
    steps_ms={
        (kind._replace(shape=shape), batch): work * step_ms
        for shape, work in WORK.items()
        for (kind, batch), step_ms in COST.steps_ms.items()
    },
    overhead_ms=COST.overhead_ms,
)


@pytest.fixture(scope="module")
def model_dir(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "wide"
    config = tiny_config.model_copy(update={"name": "wide", "shapes": SHAPES})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec_of(config))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    write_checkpoint(path, config, model.state_dict())
    return path


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    results = str(tmp_path_factory.mktemp("results"))
    settings, pipeline = Settings(response_ms=0, results=results), Pipeline.load(model_dir, device="cpu")
    executor = AsPredicted(pipeline, num_slots=num_slots(settings))
    with running(pipeline, settings, executor, COSTS) as started:
        yield started


def picture_of(answer: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["b64_json"])))


def test_the_model_lists_its_sizes_the_default_first(server: RunningServer) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["sizes"] == ["32x32", "48x16", "64x64"]
    wide = model["size_details"][1]
    assert (wide["width"], wide["height"], wide["sample_shape"]) == (48, 16, [3, 16, 48])
    times_ms = [details["latency_ms"] - COSTS.overhead_ms for details in model["size_details"]]
    assert [took_ms / times_ms[0] for took_ms in times_ms] == [1.0, 0.75, 4.0]


def test_a_picture_has_the_size_that_was_asked_for_and_says_so(server: RunningServer) -> None:
    answer = server.generate({"label": "tulip", "size": "48x16", "seed": 7, "budget": 0.5}).json()
    picture = picture_of(answer)
    assert (answer["size"], picture.size) == ("48x16", (48, 16))
    assert read_facts(base64.b64decode(answer["images"][0]["b64_json"]))["size"] == "48x16"
    alone = server.pipeline.generate("tulip", size="48x16", seed=7, budget=0.5)
    assert picture.tobytes() == alone.image.tobytes()


@pytest.mark.parametrize("size", [None, "auto", "32x32"])
def test_no_size_and_auto_are_the_default(server: RunningServer, size: str | None) -> None:
    answer = server.generate({"label": "tulip", "size": size}).json()
    assert (answer["size"], picture_of(answer).size) == ("32x32", (32, 32))


def test_a_bare_file_tells_its_size_in_a_header(server: RunningServer) -> None:
    answer = server.generate({"label": "rose", "size": "64x64"}, accept="image/png")
    assert answer.headers["X-Elit-Size"] == "64x64"


@pytest.mark.parametrize("size", ["16x48", "1024x1024", "48x16x3", "wide", "0x16"])
def test_a_size_that_is_not_served_is_refused(server: RunningServer, size: str) -> None:
    for path in ("/v1/generate", "/v1/plan", "/v1/jobs"):
        (error,) = server.client.post(path, json={"label": "rose", "size": size}).json()["errors"]
        assert (error["field"], error["value"]) == ("size", size)


def test_what_is_refused_gets_the_list(server: RunningServer) -> None:
    refused = server.generate({"label": "rose", "size": "33x32"})
    assert refused.status_code == 422
    assert "32x32, 48x16, 64x64" in refused.json()["detail"]
    refused = server.client.post("/v1/images/generations", json={"prompt": "rose", "size": "1024x1024"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "size"
    assert "32x32, 48x16, 64x64" in refused.json()["error"]["message"]


def test_openai_clients_get_the_size_and_tokens_of_it(server: RunningServer) -> None:
    def made(size: str) -> Any:
        body = {"prompt": "daisy", "size": size, "quality": "high"}
        return server.client.post("/v1/images/generations", json=body).json()

    assert [made(size)["size"] for size in ("48x16", "auto")] == ["48x16", "32x32"]
    assert [made(size)["usage"]["output_tokens"] for size in ("32x32", "48x16", "64x64")] == [64, 48, 256]


def test_a_stream_shows_the_size_in_every_event(server: RunningServer) -> None:
    with Client(server.url) as client:
        *previews, end = client.stream(label="daisy", size="48x16", partial_images=2, seed=1)
    assert Image.open(io.BytesIO(previews[0].data)).size == (48, 16)
    assert end.size == "48x16"


def test_a_job_makes_its_size(server: RunningServer) -> None:
    with Client(server.url) as client:
        job = client.jobs.wait(client.jobs.create(label="daisy", size="48x16").id)
        assert job.result is not None
        assert job.result.size == "48x16"
        assert Image.open(io.BytesIO(client.jobs.image(job.id))).size == (48, 16)


def test_a_forecast_knows_what_a_size_costs(server: RunningServer) -> None:
    with Client(server.url) as client:
        small, large = (client.plan(label="tulip", size=size, budget=1.0) for size in ("32x32", "64x64"))
    assert small.course is not None
    assert large.course is not None
    overhead_ms = COSTS.overhead_ms
    assert large.course.latency_ms - overhead_ms == pytest.approx(4 * (small.course.latency_ms - overhead_ms), rel=0.01)
    assert large.size == "64x64"


def test_a_target_that_one_size_meets_is_infeasible_for_a_larger_one(server: RunningServer) -> None:
    asked = {"label": "tulip", "latency_ms": 2600}
    assert server.generate(asked).json()["promised"]
    refused = server.generate({**asked, "size": "64x64"}).json()
    assert refused["type"] == "urn:elit-serve:infeasible"
    assert server.generate({**asked, "size": "64x64", "latency_ms": refused["min_latency_ms"]}).json()["promised"]


def test_promises_of_two_sizes_are_kept_side_by_side(server: RunningServer) -> None:
    before = server.metric('elit_pictures_total{size="48x16"}')

    def ask(index: int) -> Any:
        size = ("32x32", "48x16")[index % 2]
        body = {"label": "tulip", "size": size, "seed": index, "latency_ms": 60_000}
        return size, server.generate(body).json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for size, answer in answers:
        assert (answer["size"], answer["promised"], answer["deadline_met"]) == (size, True, True)
    assert server.metric('elit_pictures_total{size="48x16"}') == before + 4


def test_a_load_test_mixes_sizes(server: RunningServer) -> None:
    options = LoadOptions(url=server.url, closed_loop=2, requests=6, warm_up=2, slo_scales=(), sizes=("32x32", "48x16"))
    report = run_load(options, clock=MonotonicClock())
    assert {record.size for record in report.records} == {"32x32", "48x16"}
    assert all(record.is_done for record in report.records)
    with pytest.raises(InvalidInput, match=r"size: '7x7' is not allowed; the server has 32x32, 48x16, 64x64"):
        run_load(replace(options, sizes=("7x7",)), clock=MonotonicClock())


def test_targets_of_a_load_test_are_by_what_each_size_takes_alone(server: RunningServer) -> None:
    options = LoadOptions(url=server.url, rate=50, requests=12, slo_scales=(3.0,), sizes=("48x16", "64x64"))
    report = run_load(options, clock=MonotonicClock())
    targets_ms = {call.size: call.latency_ms for call in report.calls}
    solos_ms = {size: report.target.capacity_of(size).solo_ms for size in options.sizes}
    assert targets_ms == pytest.approx({size: 3 * solo_ms for size, solo_ms in solos_ms.items() if solo_ms})
    assert targets_ms["64x64"] > 2 * targets_ms["48x16"]


def test_those_who_watch_see_the_size(
    start_server: Any, held: Any, model_dir: Path, eventually: Callable[..., None]
) -> None:
    server = start_server(pipeline=Pipeline.load(model_dir, device="cpu"), executor=held, cost=COSTS)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.generate, {"label": "rose", "size": "64x64", "steps": 1})
        eventually(lambda: server.client.get("/load").json()["server_load"] == 1)
        (picture,) = server.client.get("/load").json()["in_flight"]
        assert picture["size"] == "64x64"
        server.executor.may_run.set()
        assert asked.result().status_code == 200


def test_a_server_may_serve_some_sizes_of_a_model(model_dir: Path, start_server: Any) -> None:
    some = Pipeline.load(model_dir, device="cpu", sizes=["48x16", "32x32"])
    server = start_server(pipeline=some, cost=COSTS)
    (model,) = server.client.get("/v1/models").json()["data"]
    assert (model["sizes"], model["sample_shape"]) == (["48x16", "32x32"], [3, 16, 48])
    assert server.generate({"label": "rose", "steps": 1}).json()["size"] == "48x16"
    refused = server.generate({"label": "rose", "size": "64x64"})
    assert refused.json()["errors"][0]["allowed"] == "auto, or a size that is served: 48x16, 32x32"
    with pytest.raises(InvalidInput, match=r"sizes: '128x128' is not allowed; the model has 32x32, 48x16, 64x64"):
        Pipeline.load(model_dir, device="cpu", sizes=["128x128"])


def test_the_command_line_draws_a_size_here_and_from_a_server(
    model_dir: Path, server: RunningServer, tmp_path: Path
) -> None:
    asked = ["generate", "--label", "rose", "--size", "48x16", "--seed", "3", "--budget", "1"]
    for name, where in (("here", [str(model_dir), "--device", "cpu"]), ("there", ["--server", server.url])):
        result = CliRunner().invoke(app, [*asked, *where, "-o", str(tmp_path / f"{name}.png")])
        assert result.exit_code == 0, result.output
    here, there = (Image.open(tmp_path / f"{name}.png") for name in ("here", "there"))
    assert here.size == (48, 16)
    assert here.tobytes() == there.tobytes()


def test_sizes_are_given_with_commas_or_one_by_one() -> None:
    for given in ("64x64,96x64", ["64x64", "96x64"], ["64x64,96x64"]):
        assert Settings.model_validate({"sizes": given}).sizes == ("64x64", "96x64")
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Settings.model_validate({"sizes": "64"})


def test_quality_of_another_size_is_told_with_the_size_that_was_measured(
    model_dir: Path, make_quality: Any, start_server: Any
) -> None:
    """Also where the size has a time grid of its own."""
    checkpoint = load_checkpoint(model_dir)
    quality = Quality.model_validate(make_quality(model_hash=checkpoint.model_hash), strict=False)
    usual = checkpoint.config.sampling
    sampling = usual.model_copy(update={"shape_shifts": {"64x64": 3.0}})
    config = checkpoint.config.model_copy(update={"sampling": sampling})
    measured = replace(checkpoint, config=config, quality=ModelQuality(quality, shape_shifts=config.shifts))
    server = start_server(pipeline=Pipeline(measured, device=torch.device("cpu"), dtype=torch.float32), cost=COSTS)
    ways: list[dict[str, Any]] = [{}, {"budget": 1.0}]
    for (size, shift), way in product({"32x32": usual.time_shift, "64x64": 3.0}.items(), ways):
        answer = server.generate({"label": "rose", "size": size, "latency_ms": 60_000, **way}).json()
        assert (answer["size"], answer["quality_size"]) == (size, "32x32")
        assert answer["quality"] > 0
        facts = read_facts(base64.b64decode(answer["images"][0]["b64_json"]))
        assert facts is not None
        assert facts["time_shift"] == shift


def test_weights_at_random_may_have_several_sizes() -> None:
    pipeline = Pipeline.random("elit-dit-s/2", 64, device="cpu", sizes=["8x8", "24x16"])
    assert pipeline.sizes.names == ["8x8", "24x16"]
    with pytest.raises(InvalidInput, match=r"width: 9 is not allowed; it must be a multiple of 2 .* as 8 and 10"):
        Pipeline.random("elit-dit-s/2", 64, device="cpu", sizes=["9x8"])
