"""A server with two models: who is asked for by name answers, and the first answers who names none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from elit_serve.engine.checkpoint import spec_of, write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ClassesConfig, ModelConfig
from elit_serve.nn import build
from elit_serve.server.app import create_app
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings
from tests.serving import COST, AsPredicted, RunningServer, running_models

FRUITS = ("apple", "pear", "plum")


def loaded(pipeline: Pipeline, settings: Settings) -> LoadedModel:
    executor = AsPredicted(pipeline, num_slots=num_slots(settings))
    executor.cost = COST
    return LoadedModel(pipeline=pipeline, executor=executor, cost=COST)


@pytest.fixture(scope="module")
def orchard(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Another tiny model, of fruits."""
    path = tmp_path_factory.mktemp("models") / "orchard"
    config = tiny_config.model_copy(update={"name": "orchard", "conditions": ClassesConfig(names=FRUITS)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        write_checkpoint(path, config, build(spec_of(config)).state_dict())
    return Pipeline.load(path, device="cpu")


@pytest.fixture
def server(tiny_pipeline: Pipeline, orchard: Pipeline, tmp_path: Path) -> Iterator[RunningServer]:
    settings = Settings(response_ms=0, results=str(tmp_path / "jobs"))
    with running_models([loaded(tiny_pipeline, settings), loaded(orchard, settings)], settings) as started:
        yield started


def test_a_request_is_answered_by_the_model_that_it_names_and_else_by_the_first(server: RunningServer) -> None:
    fruit = server.generate({"model": "orchard", "label": "plum", "seed": 7}).json()
    flower = server.generate({"label": "tulip", "seed": 7}).json()
    assert (fruit["model"], fruit["label"]) == ("orchard", "plum")
    assert (flower["model"], flower["label"]) == ("tiny", "tulip")
    assert fruit["model_hash"] != flower["model_hash"]
    assert fruit["images"][0]["b64_json"] != flower["images"][0]["b64_json"]
    assert (
        server.generate({"model": "tiny", "label": "tulip", "seed": 7}).json()["images"][0]["b64_json"]
        == (flower["images"][0]["b64_json"])
    )


def test_each_model_has_its_own_classes(server: RunningServer) -> None:
    refused = server.generate({"model": "orchard", "label": "tulip"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "label")


def test_openai_clients_choose_by_name_too(server: RunningServer) -> None:
    body = {"model": "orchard", "prompt": "pear"}
    assert server.client.post("/v1/images/generations", json=body).json()["elit"]["model"] == "orchard"


def test_plans_are_of_the_model_that_is_named(server: RunningServer) -> None:
    plan = server.client.post("/v1/plan", json={"model": "orchard", "label": "pear"}).json()
    assert (plan["model"], plan["accepted"]) == ("orchard", True)


def test_a_model_that_is_not_served_is_refused_with_those_that_are(server: RunningServer) -> None:
    refused = server.generate({"model": "desert", "label": "tulip"})
    assert (refused.status_code, refused.json()["type"]) == (404, "urn:elit-serve:model-not-found")
    assert "tiny, orchard" in refused.json()["detail"]
    openai = server.client.post("/v1/images/generations", json={"model": "desert", "prompt": "tulip"})
    assert (openai.status_code, openai.json()["error"]["param"]) == (404, "model")
    assert server.client.get("/load", params={"model": "desert"}).status_code == 404


def test_all_models_are_listed_and_each_is_found_by_its_name(server: RunningServer) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "orchard"]
    assert server.client.get("/v1/models/orchard").json() == listed[1]
    assert listed[1]["classes"] == list(FRUITS)


def test_what_is_counted_of_an_engine_has_its_name(server: RunningServer) -> None:
    for _ in range(2):
        server.generate({"model": "orchard", "label": "plum"})
    server.generate({"label": "tulip"})
    text = server.client.get("/metrics").text
    assert 'elit_generations_total{model="orchard",outcome="done"} 2.0' in text
    assert 'elit_generations_total{model="tiny",outcome="done"} 1.0' in text
    for model in ("tiny", "orchard"):
        assert f'elit_ready{{model="{model}"}} 1.0' in text
        assert f'elit_model_info{{device="cpu",dtype="float32",hash="{_hash(server, model)}",model="{model}"' in text
    loads = {model: server.client.get("/load", params={"model": model}).json() for model in ("tiny", "orchard")}
    assert {model: load["totals"]["pictures"] for model, load in loads.items()} == {"tiny": 1, "orchard": 2}


def _hash(server: RunningServer, model: str) -> str:
    return str(server.client.get(f"/v1/models/{model}").json()["hash"])


def test_a_job_is_made_by_the_model_that_it_names(server: RunningServer) -> None:
    for latency_ms in (None, 30_000):
        wish = {} if latency_ms is None else {"latency_ms": latency_ms}
        job = server.client.post("/v1/jobs", json={"model": "orchard", "label": "plum", **wish}).json()
        deadline_s = time.monotonic() + 30
        while job["state"] not in ("done", "failed"):
            assert time.monotonic() < deadline_s
            job = server.client.get(f"/v1/jobs/{job['id']}").json()
        assert (job["state"], job["result"]["model"]) == ("done", "orchard")
    assert server.client.post("/v1/jobs", json={"model": "desert", "label": "plum"}).status_code == 404


def test_a_server_is_well_when_all_its_engines_are(server: RunningServer, orchard: Pipeline) -> None:
    assert server.health() == {"status": "ok", "model": "tiny", "queue_length": 0, "running": 0}
    assert server.client.get("/readiness").status_code == 200
    engines: Any = server.app.state.service.engines
    engines[orchard.config.name].worker.stop()
    assert server.client.get("/readiness").status_code == 503
    assert server.client.get("/liveness").status_code == 503


def test_models_of_one_name_cannot_be_told_apart(tiny_pipeline: Pipeline) -> None:
    settings = Settings()
    with pytest.raises(InvalidInput, match=r"^model: 'tiny' is not allowed; models of different names"):
        create_app([loaded(tiny_pipeline, settings)] * 2, settings)
