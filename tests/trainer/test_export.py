"""A run becomes a model directory that generates."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elit_serve.catalogue import read_config
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import CheckpointError, InvalidInput, RunError
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory


def test_the_model_holds_the_averaged_weights_rounded_to_bfloat16_and_generates(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    export(finished_run.path, tmp_path / "flowers")
    weights = load_file(tmp_path / "flowers" / "model.safetensors")
    averaged = finished_run.load().ema
    assert weights.keys() == averaged.keys()
    assert all(torch.equal(weights[name], tensor.bfloat16()) for name, tensor in averaged.items())

    pipeline = Pipeline.load(tmp_path / "flowers", device="cpu")
    picture = pipeline.generate("rose", budget=0.5, seed=3)
    assert picture.image.size == (16, 16)
    assert picture.facts["levels"] == [2, 2]
    assert picture.facts["guidance"] == {"method": "ccfg", "scale": 1.5, "weak_level": 1, "interval": [0.0, 1.0]}


def test_float32_weights_are_the_averaged_ones_themselves(finished_run: RunDirectory, tmp_path: Path) -> None:
    export(finished_run.path, tmp_path / "exact", dtype="float32", max_shard_bytes=100_000)
    config = read_config(tmp_path / "exact")
    assert len(config.weights.files) > 1
    averaged = finished_run.load().ema
    loaded = load_checkpoint(tmp_path / "exact").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in averaged.items())


def test_the_provenance_says_how_to_make_it_again(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    recipe = make_recipe(training={"steps": 2}, provenance={"attribution": ["an author, CC BY 2.0"]})
    config = export(train_here(recipe).path, tmp_path / "model")
    assert config.name == "model"
    assert config.classes == ("daisy", "rose", "tulip")
    assert config.levels == (1, 2, 3, 4)
    provenance = config.provenance
    assert provenance["attribution"] == ["an author, CC BY 2.0"]
    assert provenance["steps"] == 2
    digests = [provenance["data"].pop(name) for name in ("sha256", "held_out_sha256")]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert provenance["data"] == {"source": "photographs", "training_pictures": 18, "classes": 3}
    assert provenance["versions"]["torch"] == torch.__version__
    again = Recipe.model_validate({**provenance["recipe"], "provenance": recipe.provenance})
    assert again == recipe


def test_an_earlier_step_can_be_taken(finished_run: RunDirectory, tmp_path: Path) -> None:
    config = export(finished_run.path, tmp_path / "early", step=50, dtype="float32")
    assert config.provenance["steps"] == 50
    weights = load_file(tmp_path / "early" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in finished_run.load(50).ema.items())
    with pytest.raises(RunError, match="has no checkpoint of step 55; there are 50, 60"):
        export(finished_run.path, tmp_path / "none", step=55)


def test_a_model_is_replaced_only_when_asked_and_keeps_its_other_files(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    export(finished_run.path, model, step=50)
    (model / "README.md").write_text("a model card")
    (model / "latency").mkdir()
    (model / "latency" / "cpu.json").write_text("{}")

    with pytest.raises(InvalidInput, match="it exists already"):
        export(finished_run.path, model)
    assert read_config(model).provenance["steps"] == 50

    export(finished_run.path, model, replace=True)
    assert load_checkpoint(model).config.provenance["steps"] == 60
    assert (model / "README.md").read_text() == "a model card"
    assert (model / "latency" / "cpu.json").read_text() == "{}"


def test_a_run_at_one_level_only_becomes_a_model_of_that_level(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    recipe = make_recipe(
        budget={"drawing": "fixed"}, training={"steps": 1}, sampling={"guidance": {"method": "cfg", "scale": 2.0}}
    )
    assert export(train_here(recipe).path, tmp_path / "model").levels == (4,)
    assert Pipeline.load(tmp_path / "model", device="cpu").generate("rose", steps=1).facts["levels"] == [4]


def test_what_cannot_be_exported_is_one_clear_error(finished_run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: run\.json"):
        export(tmp_path / "nothing", tmp_path / "model")
    with pytest.raises(InvalidInput, match=r"destination: .* is not allowed; its last part names the model"):
        export(finished_run.path, tmp_path / "a model")
    with pytest.raises(InvalidInput, match=r"--autoencoder: .* this recipe's autoencoder is pixels"):
        export(finished_run.path, tmp_path / "model", autoencoder=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="it cannot be written"):
        export(finished_run.path, tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
