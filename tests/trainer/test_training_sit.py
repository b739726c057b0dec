"""ELIT-SiT, whose published weights are imported, trains from a recipe too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elit_serve.engine.pipeline import Pipeline
from elit_serve.nn import preset
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe, find_recipe, read_recipe
from elit_serve.trainer.run import RunDirectory


@pytest.mark.parametrize("drawing", ["uniform", "random-drop"])
def test_a_tiny_one_trains_and_is_exported_and_draws(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], tmp_path: Path, drawing: str
) -> None:
    sections: dict[str, Any] = {"backbone": {"kind": "elit-sit"}, "budget": {"drawing": drawing}}
    run = train_here(make_recipe(**sections, training={"steps": 2}, every={"validation": 2, "samples": 2}))
    assert (run.path / "samples" / "step-00000002.png").is_file()
    config = export(run.path, tmp_path / "flowers")
    assert (config.backbone.kind, config.levels) == ("elit-sit", (1, 2, 3, 4))
    picture = Pipeline.load(tmp_path / "flowers", device="cpu").generate("rose", budget=0.5, seed=3)
    assert picture.image.size == (16, 16)
    assert picture.facts["levels"] == [2, 2]


def test_the_imagenet_recipe_is_the_published_model() -> None:
    sketch = read_recipe(find_recipe("imagenet256-elit-sit-xl2")).backbone.sketch
    assert sketch == preset(
        "elit-sit-xl/2", 256, conditions={"num_classes": sketch.config_fields()["backbone"]["num_classes"]}
    )
