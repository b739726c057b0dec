"""A model without an autoencoder answers with its latent, as safetensors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import AutoencoderConfig, ModelConfig

SAFETENSORS = "application/x-safetensors"


@pytest.fixture(scope="module")
def latent_pipeline(
    shared_tiny_model_dir: Path, tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Pipeline:
    path = tmp_path_factory.mktemp("models") / "latent"
    config = tiny_config.model_copy(update={"autoencoder": AutoencoderConfig(kind="none")})
    write_checkpoint(path, config, load_file(shared_tiny_model_dir / "model.safetensors"))
    return Pipeline.load(path, device="cpu")


@pytest.fixture
def server(start_server: Any, latent_pipeline: Pipeline) -> Any:
    return start_server(latent_pipeline)


def facts_of(file: bytes) -> dict[str, Any]:
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return dict(json.loads(header["__metadata__"]["elit-serve"]))


def test_the_bare_file_holds_the_latent_and_the_facts(server: Any) -> None:
    answer = server.generate({"label": "tulip", "seed": 7, "budget": 0.5}, accept=SAFETENSORS)
    assert answer.headers["Content-Type"] == SAFETENSORS
    assert answer.headers["X-Elit-Levels"] == "2,2,2,2"
    latent = load(answer.content)["latent"]
    assert latent.shape == server.pipeline.config.default_shape.size
    assert latent.dtype == torch.float32
    facts = facts_of(answer.content)
    pipeline = server.pipeline
    plan, shape = pipeline.plan(budget=0.5), pipeline.config.default_shape.name
    assert facts == pipeline.facts(pipeline.conditions.named(2), 7, plan, shape)
    again = server.generate({"label": "tulip", "seed": 7, "levels": facts["levels"]}, accept=SAFETENSORS)
    assert again.content == answer.content


def test_json_holds_the_same_file(server: Any) -> None:
    body = {"label": "tulip", "seed": 7, "budget": 0.5}
    answer = server.generate(body).json()
    assert answer["output_format"] == "safetensors"
    file = base64.b64decode(answer["images"][0]["b64_json"])
    assert file == server.generate(body, accept=SAFETENSORS).content


def test_pictures_of_it_are_refused_with_the_reason(server: Any) -> None:
    (error,) = server.generate({"label": "tulip", "output_format": "png"}).json()["errors"]
    assert error["field"] == "output_format"
    assert "no autoencoder" in error["allowed"]
    for accept in ("image/png", "image/*"):
        refusal = server.generate({"label": "tulip"}, accept=accept)
        assert refusal.status_code == 406
        assert "no autoencoder" in refusal.json()["detail"]
        assert SAFETENSORS in refusal.json()["detail"]


def test_a_model_with_pixels_has_no_latent_to_give(start_server: Any) -> None:
    refusal = start_server().generate({"label": "tulip"}, accept=SAFETENSORS)
    assert refusal.status_code == 406
    assert "image/png" in refusal.json()["detail"]
