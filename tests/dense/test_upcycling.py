"""Dense models of diffusers become elastic by training: recipes begin with their folders, and learn from them."""

from __future__ import annotations

import io
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from dense.conftest import Made
from dense.folders import SIZE
from PIL import Image
from rich.console import Console

from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import ModelConfig
from elit_serve.nn import Backbone, build
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.trainer.export import export
from elit_serve.trainer.loop import train
from elit_serve.trainer.recipe import Recipe

CPU = torch.device("cpu")
FAMILIES = ("prx", "qwen-image")
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


def held_out_loss(run: Path, which: int) -> float:
    """Of the first validation of a run or of another, at level 1; it is at the same noise and times each time."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    found: float = [line["validation"]["1"] for line in lines if "validation" in line][which]
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
    train(recipe, captioned, tmp_path / "run", autoencoder=vae, device=CPU, console=Console(file=io.StringIO()))
    assert held_out_loss(tmp_path / "run", -1) < 0.98 * held_out_loss(tmp_path / "run", 0)
    export(tmp_path / "run", tmp_path / "turned", dtype="float32", autoencoder=vae)
    turned = Pipeline.load(tmp_path / "turned", device="cpu")

    taught, before = velocity(dense, dense.model, 1), fresh(recipe, dense.model)
    torch.testing.assert_close(velocity(dense, before, 4), taught, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(velocity(dense, before, 1), taught, atol=1e-3)

    asked = {"prompt": "a red rose", "negative_prompt": "grass", "seed": 3}
    kind = StepKind(turned.shapes[0].name, 1)
    cost = CostTable(steps_ms={(kind, batch): 100.0 for batch in (1, 4)}, overhead_ms=0.0)
    answer = start_server(turned, cost=cost).generate(asked, accept="image/png")
    assert answer.status_code == 200, answer.text
    condition = turned.conditions.prompted("a red rose", "grass")
    assert_same_picture(answer.content, turned.run([condition], [3], turned.plan())[0].image)
