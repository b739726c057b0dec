"""An imported folder of diffusers over real HTTP: prompts, promises, and steps that skip their cores."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from dense.conftest import Made
from dense.folders import FAMILIES, SIZE
from PIL import Image
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.time_shift import shift_table
from elit_serve.pictures import read_facts
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable

STEP_MS = 100.0  # predicted, far above what it takes
PROMPTS = ("a red tulip", "the small rose on grass", "", "photo of a daisy")


@pytest.fixture(params=FAMILIES)
def server(request: pytest.FixtureRequest, model_of: Made, start_server: Any) -> Any:
    pipeline = Pipeline.load(model_of(request.param), device="cpu")
    kinds = [
        StepKind(shape, 1, weak)._replace(is_skipped=skipped)
        for shape, weak, skipped in product(pipeline.shape_names, (None, 1), (False, True))
    ]
    cost = CostTable(steps_ms={(kind, batch): STEP_MS for kind in kinds for batch in (1, 4)}, overhead_ms=0.0)
    return start_server(pipeline, cost=cost)


def test_prompts_share_steps_and_targets_are_promised_or_refused(server: Any, assert_same_picture: Any) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": prompt, "negative_prompt": "grass", "seed": seed, "steps": 4, "latency_ms": 60_000}
        for seed, prompt in enumerate(PROMPTS)
    ]
    asked += [{**asked[0], "size": size} for size in server.pipeline.sizes.names[1:]]
    with ThreadPoolExecutor() as callers:
        answers = list(callers.map(server.generate, asked))
    for answer, of in zip(answers, asked, strict=True):
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["images"]
        file = base64.b64decode(image["b64_json"])
        facts = read_facts(file)
        assert facts is not None
        assert (facts["prompt"], facts["negative_prompt"], facts["steps"]) == (of["prompt"], "grass", 4)
        condition = server.pipeline.conditions.prompted(of["prompt"], "grass")
        size = of.get("size")
        plan = server.pipeline.plan(steps=4, size=size)
        assert facts["time_shift"] == shift_table(plan.time_shift)
        assert_same_picture(file, server.pipeline.run([condition], [of["seed"]], plan, size=size)[0].image)
    hopeless = server.generate({"prompt": "a rose", "steps": 4, "latency_ms": 2 * STEP_MS})
    assert hopeless.status_code == 422
    assert hopeless.json()["min_latency_ms"] >= 4 * STEP_MS
    assert server.generate({"label": "rose"}).status_code == 422


def test_the_command_line_makes_pictures_of_prompts(model_of: Made, tmp_path: Any) -> None:
    out = tmp_path / "rose.png"
    options = ["--prompt", "a rose", "--steps", "2", "--device", "cpu", "--output", str(out)]
    run = CliRunner().invoke(app, ["generate", str(model_of("prx")), *options])
    assert run.exit_code == 0, run.output
    with Image.open(out) as picture:
        assert picture.size == (SIZE, SIZE)
