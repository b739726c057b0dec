"""Adding a backbone takes one file and one line in the table: then it trains, exports, is profiled and serves."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from elit_serve.catalogue import cost_table, read_config
from elit_serve.cli import app
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import profile_to_file
from elit_serve.errors import CheckpointError, RecipeError
from elit_serve.files.latency import read_latency
from elit_serve.nn.backbones.table import KINDS
from elit_serve.plans.step_kind import StepKind
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe, read_recipe
from elit_serve.trainer.run import RunDirectory

RECIPE = """
name = "toy"
[backbone]
kind = "toy"
side = 16
units = 8
[data]
holdout = 0.25
[optimizer]
learning_rate = 1e-3
warmup_steps = 1
[training]
steps = 20
batch = 8
precision = "float32"
compile = false
[every]
samples = 20
[sampling]
steps = 3
guidance = { method = "ccfg", scale = 1.5, weak_level = 1 }
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The one file, and the one line that registers it."""
    spec = importlib.util.spec_from_file_location("toy_backbone", Path(__file__).with_name("toy_backbone.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(KINDS, module.ToySpec.kind, module.KIND)
    return module


def recipe(folder: Path, text: str = RECIPE) -> Recipe:
    (folder / "toy.toml").write_text(text, encoding="utf-8")
    return read_recipe(folder / "toy.toml")


@pytest.fixture
def model_dir(toy: ModuleType, train_here: Callable[..., RunDirectory], tmp_path: Path) -> Path:  # noqa: ARG001 (it must be registered)
    """Trained for a few steps and exported."""
    run = train_here(recipe(tmp_path))
    assert (run.path / "samples" / "step-00000020.png").is_file()
    export(run.path, tmp_path / "toy", dtype="float32")
    return tmp_path / "toy"


def test_it_is_profiled_and_serves_pictures(model_dir: Path, start_server: Any) -> None:
    pipeline = Pipeline.load(model_dir, device="cpu")
    file = profile_to_file(pipeline, None, repeats=1, command="test", console=Console(file=io.StringIO()))
    costs = cost_table(read_latency(file, model=model_dir), pipeline.shapes[0].name)
    assert costs.levels == (1, 2, 4)
    assert costs.step_ms(StepKind("16x16", 4, 1), 1) > 0

    server = start_server(pipeline, executor=Executor, cost=costs)
    answer = server.generate({"label": "rose", "seed": 3, "budget": 0.5}, accept="image/png")
    assert answer.status_code == 200, answer.text
    served = Image.open(io.BytesIO(answer.content)).convert("RGB")
    offline = pipeline.generate("rose", seed=3, budget=0.5).image
    assert (served.size, served.tobytes()) == ((16, 16), offline.tobytes())
    assert pipeline.generate("rose", seed=3, budget=0.25).image.tobytes() != offline.tobytes()


def test_its_directory_tells_what_it_is_without_its_code(
    model_dir: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(model_dir)
    assert config.backbone.kind == "toy"
    assert config.shapes == {"16x16": (3, 16, 16)}
    assert config.budgets.level_of(1.0) == toy.NUM_LEVELS
    described = CliRunner().invoke(app, ["describe", str(model_dir), "--json"])
    assert json.loads(described.stdout)["levels"][3]["gflops_forward"]["prefix"] == pytest.approx(
        4 * 3 * 256 * 32 / 1e9
    )
    monkeypatch.delitem(KINDS, "toy")
    assert read_config(model_dir) == config
    with pytest.raises(CheckpointError, match=r"backbone\.kind: 'toy' is not allowed; one of dit, elit-dit"):
        load_checkpoint(model_dir)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("units = 8", "units = 0", "backbone.units: 0 is not allowed; a whole number from 1 to 1024"),
        ("units = 8", "depth = 8", "backbone.units: Field required"),
        ("units = 8", "units = 8\nnum_classes = 3", "backbone.num_classes: the data decides it; leave it out"),
        ('kind = "toy"', 'kind = "toys"', f"backbone.kind: 'toys' is not allowed; one of {', '.join(KINDS)}, toy"),
        ("[optimizer]", '[budget]\ndrawing = "random-drop"\n[optimizer]', "has no latents to drop"),
    ],
)
def test_what_is_wrong_in_its_recipe_is_told_as_of_any_other(tmp_path: Path, good: str, bad: str, problem: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe(tmp_path, RECIPE.replace(good, bad))
    assert problem in str(refused.value)


def test_weights_of_one_kind_are_not_loaded_into_another(model_dir: Path) -> None:
    content = json.loads((model_dir / "config.json").read_text())
    content["backbone"]["units"] = 16
    (model_dir / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tensor up\.weight has shape \(32, 769\), expected \(64, 769\)"):
        load_checkpoint(model_dir, dtype=torch.float32)
