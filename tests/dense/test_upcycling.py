"""Dense models of diffusers become elastic by training: recipes begin with their folders, and learn from them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense.conftest import Made
from dense.folders import IMPORTED, SIZE
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import DataError, RunError
from elit_serve.files.config import ModelConfig
from elit_serve.importing.diffusers_folder import import_folder
from elit_serve.importing.sit import Split
from elit_serve.nn import Backbone, build
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.trainer.encode import EncodeOptions, encode_data
from elit_serve.trainer.export import export
from elit_serve.trainer.loop import train
from elit_serve.trainer.recipe import Recipe, read_recipe
from elit_serve.trainer.texts import StoredTexts, encode_texts
from tests.trainer.conftest import as_toml

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "models" / "recipes"
FAMILIES = ("prx", "qwen-image")
PT = {"format": "pt"}  # what transformers wants to read of a file
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40)}


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of each of two captions."""
    folder = tmp_path_factory.mktemp("captioned") / "photographs"
    folder.mkdir()
    for colour, number in product(COLOURS, range(8)):
        shade = tuple(max(0, each - 9 * number) for each in COLOURS[colour])
        Image.new("RGB", (SIZE, SIZE), shade).save(folder / f"{colour}-{number}.png")
        (folder / f"{colour}-{number}.txt").write_text(f"a {colour} rose", encoding="utf-8")
    return folder


def upcycled(folder: Path, **sections: Any) -> Recipe:
    """The recipe of an elastic model that begins with a folder and learns from it; a keyword per section changes it."""
    config = ModelConfig.model_validate_json((folder / "config.json").read_bytes())
    fields = config.backbone.model_dump()
    kind, told = fields.pop("kind"), ("text_dim", "max_tokens")
    table: dict[str, dict[str, Any]] = {
        "backbone": {name: value for name, value in fields.items() if name not in told}
        | {"kind": f"elit-{kind}", "interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1}},
        "text": {**config.conditions.model_dump(), "examples": ["a green rose"]},
        "autoencoder": {"kind": "diffusers"},
        "data": {"flip": False, "holdout": 0.25},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "ema": 0.8},
        "training": {"steps": 12, "batch": 8, "precision": "float32", "compile": False, "recompute": True},
        "upcycle": {"model": str(folder), "new_only_steps": 2},
        "distillation": {"precision": "float32"},
        "every": {"log": 8, "validation": 1, "samples": 1000, "checkpoint": 1000},
        "sampling": {"steps": 2, "time_shift": 2.0, "guidance": {"method": "ccfg", "scale": 2.0, "weak_level": 1}},
    }
    changed = {name: {**table.get(name, {}), **values} for name, values in sections.items()}
    return Recipe.model_validate({"name": f"turned-{kind}", **table, **changed})


def at_vae(folder: Path) -> dict[str, Any]:
    """Training behind its autoencoder, here and in silence."""
    return {"autoencoder": folder / "vae", "device": CPU, "console": Console(file=io.StringIO())}


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def held_out_loss(run: Path, which: int) -> float:
    """Of the first validation of a run or of another, at level 1; it is at the same noise and times each time."""
    found: float = [line["validation"]["1"] for line in logged(run) if "validation" in line][which]
    return found


def fresh(recipe: Recipe, dense: Backbone) -> Backbone:
    """The recipe's model before its first step."""
    model = build(recipe.backbone.spec(recipe.conditions(()))).requires_grad_(False)
    model.load_state_dict(model.from_plain(dense.state_dict()), strict=False)
    return model


@torch.no_grad()
def velocity(pipeline: Pipeline, model: Backbone, level: int) -> torch.Tensor:
    """At samples that are mostly noise, under a caption that was trained with."""
    x = torch.randn(8, *model.spec.sample_shape, generator=torch.Generator().manual_seed(1))
    words = pipeline.conditions.encoder.encode(["a red rose"]).expand(8, -1, -1)  # type: ignore[union-attr]
    return model(x, torch.linspace(0.02, 0.3, 8), words, level)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_teaches_the_model_that_begins_with_it_which_is_served(
    family: str, model_of: Made, captioned: Path, tmp_path: Path, start_server: Any, assert_same_picture: Any
) -> None:
    folder = model_of(family)
    recipe = upcycled(folder, budget={"drawing": "fixed", "max_level": 1}, sampling={"guidance": {"method": "none"}})
    dense, vae = Pipeline.load(folder, device="cpu"), folder / "vae"
    train(recipe, captioned, tmp_path / "run", **at_vae(folder))
    assert held_out_loss(tmp_path / "run", -1) < 0.98 * held_out_loss(tmp_path / "run", 0)
    export(tmp_path / "run", tmp_path / "turned", dtype="float32", autoencoder=vae)
    turned = Pipeline.load(tmp_path / "turned", device="cpu")

    taught, before = velocity(dense, dense.model, 1), fresh(recipe, dense.model)
    torch.testing.assert_close(velocity(dense, before, 4), taught, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(velocity(dense, before, 1), taught, atol=1e-3)

    asked = {"prompt": "a red rose", "seed": 3}
    kind = StepKind(turned.shapes[0].name, 1)
    cost = CostTable(steps_ms={(kind, batch): 100.0 for batch in (1, 4)}, overhead_ms=0.0)
    answer = start_server(turned, cost=cost).generate(asked, accept="image/png")
    assert answer.status_code == 200, answer.text
    condition = turned.conditions.prompted("a red rose")
    assert_same_picture(answer.content, turned.run([condition], [3], turned.plan())[0].image)


def test_below_the_full_level_a_model_comes_nearer_to_its_teacher(
    model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    """Here the teacher is random, and so all but alone: what the data teaches leads away from it."""
    folder = model_of("qwen-image")
    dense = Pipeline.load(folder, device="cpu")
    recipe = upcycled(
        folder,
        budget={"drawing": "fixed", "max_level": 1},
        training={"steps": 24, "recompute": False},
        optimizer={"learning_rate": 3e-4, "ema": 0.5},
        distillation={"scale": 1000.0},
        every={"validation": 1000},
    )
    train(recipe, captioned, tmp_path / "run", **at_vae(folder))
    export(tmp_path / "run", tmp_path / "turned", dtype="float32", autoencoder=folder / "vae")
    after, taught = Pipeline.load(tmp_path / "turned", device="cpu").model, velocity(dense, dense.model, 1)
    far, near = (F.mse_loss(velocity(dense, model, 1), taught) for model in (fresh(recipe, dense.model), after))
    assert near < 0.6 * far


def test_a_run_from_latents_in_stages_finds_its_captions_encoded_and_needs_no_encoder(
    model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    """Smaller pictures come first."""
    folder, latents = model_of("qwen-image"), tmp_path / "latents"
    without = shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("text_encoder"))
    for size, text_model in ((16, folder), (8, None)):
        options = EncodeOptions(height=size, width=size, captioned=True, mirrored=False, dtype="float32")
        encode_data(captioned, latents / str(size), folder / "vae", options, device=CPU, text_model=text_model)
    grows = {"sizes": ["4x4"], "stages": [{"sizes": ["4x4"], "steps": 2}]}
    losses = []
    for model, data in ((folder, captioned), (without, latents)):
        sections = {"data": grows, "upcycle": {"model": str(model)}, "text": {"examples": ["a red rose"]}}
        recipe = upcycled(folder, **sections, training={"steps": 3}, every={"log": 1, "validation": 3})
        train(recipe, data, tmp_path / data.name, **at_vae(folder))
        losses.append([line["loss"] for line in logged(tmp_path / data.name) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 3

    unknown = upcycled(without, data=grows, text={"examples": ["a blue rose"]}, training={"steps": 3})
    with pytest.raises(DataError, match=r"'a blue rose' is not among the encoded prompts; encode them again with --te"):
        train(unknown, latents, tmp_path / "unknown", **at_vae(folder))


def test_texts_beside_latents_are_those_of_the_models_encoder_and_damage_is_told(
    model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    folder, latents = model_of("qwen-image"), tmp_path / "latents"
    given = [str(captioned), str(latents), "--autoencoder", str(folder / "vae"), "--size", "16x16", "--device", "cpu"]
    refused = CliRunner().invoke(app, ["encode", *given, "--text", str(folder)])
    assert "--text" in str(refused.exception)
    assert "nothing without --captions" in str(refused.exception)
    encode = ["encode", *given, "--captions", "--text", str(folder)]
    assert CliRunner().invoke(app, encode).exit_code == 0
    pipeline, text = Pipeline.load(folder, device="cpu"), upcycled(folder).text
    assert text is not None
    prompts = ["a red rose", "", *pipeline.config.conditions.examples]
    stored, encoder = StoredTexts.found_in([latents], text), pipeline.conditions.encoder
    assert stored is not None
    torch.testing.assert_close(stored.encode(prompts), encoder.encode(prompts))

    with pytest.raises(DataError, match=r"of another encoder than \[text\] names: max_tokens differ"):
        StoredTexts.found_in([latents], text.model_copy(update={"max_tokens": 9}))
    (file,) = latents.glob("text-*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"text-00000\.safetensors cannot be read"):
        StoredTexts.found_in([latents], text)
    assert CliRunner().invoke(app, encode).exit_code == 0
    assert file.read_bytes() == whole


def test_texts_of_several_encoders_are_told_apart_where_everything_else_is_alike(
    model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    folder, latents = model_of("qwen-image"), tmp_path / "latents"
    other = shutil.copytree(folder, tmp_path / folder.name)
    weights = load_file(other / "text_encoder" / "model.safetensors")
    save_file({name: 2 * each for name, each in weights.items()}, other / "text_encoder" / "model.safetensors", PT)

    def encode(out: Path, model: Path) -> None:
        options = EncodeOptions(height=16, width=16, captioned=True, mirrored=False, dtype="float32")
        encode_data(captioned, out, folder / "vae", options, device=CPU, text_model=model)

    def train_on(steps: int, *, resume: bool) -> None:
        recipe = upcycled(folder, training={"steps": steps}, text={"examples": ["a red rose"]})
        train(recipe, latents, tmp_path / "run", resume=resume, **at_vae(folder))

    encode(latents, folder)
    shutil.copyfile(latents / "text-00000.safetensors", latents / "text-00001.safetensors")
    encode(latents, folder)
    assert [file.name for file in latents.glob("text-*")] == ["text-00000.safetensors"]
    train_on(1, resume=False)
    shutil.copyfile(latents / "text-00000.safetensors", latents / "text-00001.safetensors")
    (latents / "text-00000.safetensors").unlink()
    encode_texts(tmp_path, ["a red rose"], other, CPU)
    shutil.move(tmp_path / "text-00000.safetensors", latents / "text-00000.safetensors")
    with pytest.raises(DataError, match="their texts are of several encoders; encode them again with --text"):
        train_on(2, resume=True)
    encode(latents, other)
    with pytest.raises(RunError, match="the encoder of texts is another: "):
        train_on(2, resume=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_stopped_goes_on_as_one_that_did_not(
    family: str, model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    folder = model_of(family)
    for out, steps, resume in (("whole", 3, False), ("stopped", 2, False), ("stopped", 3, True)):
        recipe = upcycled(folder, training={"steps": steps}, every={"log": 1})
        train(recipe, captioned, tmp_path / out, resume=resume, **at_vae(folder))
    losses = [[line["loss"] for line in logged(tmp_path / out) if "loss" in line] for out in ("whole", "stopped")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def shrunk(name: str, folder: Path, elastic: Path) -> Recipe:
    """A shipped recipe for tiny models: of sizes and numbers nothing is left, and all else is as it is."""
    recipe = read_recipe(RECIPES / f"{name}.toml")
    table, tiny = recipe.model_dump(), upcycled(folder).model_dump()
    assert (table["backbone"]["kind"], table["text"]["encoder"]) == (tiny["backbone"]["kind"], tiny["text"]["encoder"])
    table["backbone"] = tiny["backbone"]
    table["text"] |= {name: tiny["text"][name] for name in ("dim", "max_tokens")}
    began_plain = table["distillation"]["model"] is None
    table["upcycle"] |= {"model": str(folder if began_plain else elastic), "new_only_steps": int(began_plain)}
    table["distillation"] |= {} if began_plain else {"model": str(folder)}
    table["data"] |= {"sizes": ["4x4"], "stages": [{"sizes": ["4x4"], "steps": 1}]} if recipe.data.stages else {}
    table["data"] |= {"holdout": 0.25}
    table["budget"] |= {"min_level": min(2, recipe.budget.min_level)}
    table["training"] |= {"steps": 2, "batch": 4, "accumulation": 2}
    table["sampling"] |= {"steps": 2, "guidance": {**table["sampling"]["guidance"], "weak_level": 2}}
    table["every"] |= {"log": 1}
    return Recipe.model_validate(table)


@pytest.mark.parametrize(
    ("name", "family"), [("prx-512", "prx"), ("qwen-image-512", "qwen-image"), ("qwen-image-1024", "qwen-image")]
)
def test_shipped_recipes_run_with_tiny_folders_and_stored_latents(
    name: str, family: str, model_of: Made, captioned: Path, tmp_path: Path
) -> None:
    folder, latents = model_of(family), tmp_path / "latents"
    elastic = shutil.copytree(folder, tmp_path / "elastic")
    import_folder(elastic, split=Split(window=(2, 2), head=1, tail=1), replace_ours=True, **IMPORTED[family])
    recipe = shrunk(name, folder, elastic)
    for size in (16, 8)[: len(recipe.shapes)]:
        options = EncodeOptions(height=size, width=size, captioned=True, mirrored=recipe.data.flip)
        texts = folder if size == 16 else None
        encode_data(captioned, latents / str(size), folder / "vae", options, device=CPU, text_model=texts)
    train(recipe, latents, tmp_path / "run", **at_vae(folder))
    lines = [line for line in logged(tmp_path / "run") if "distillation" in line]
    assert [line["loss"] for line in lines] == pytest.approx(
        [line["rectified_flow"] + 20 * line["distillation"] for line in lines]
    )
    assert len(lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [True, False], ids=["half of the weights and of the teacher each", "all of both"])
def test_two_ranks_equal_one(sharded: bool, model_of: Made, captioned: Path, tmp_path: Path) -> None:
    folder = model_of("qwen-image")
    recipe = upcycled(folder, training={"steps": 3, "sharded": sharded}, data={"flip": False, "shift": 0})
    train(recipe, captioned, tmp_path / "one", **at_vae(folder))
    file = tmp_path / "two.toml"
    file.write_text(as_toml(recipe.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "elit_serve.cli", "train"]
    places = ["--data", captioned, "--out", tmp_path / "two", "--autoencoder", folder / "vae", "--device", "cpu"]
    command = [sys.executable, *launcher, *map(str, (file, *places))]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(command, env=surroundings, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    losses = [[line["loss"] for line in logged(tmp_path / out) if "loss" in line] for out in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    export(tmp_path / "two", tmp_path / "turned", dtype="float32", autoencoder=folder / "vae")
