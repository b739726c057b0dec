"""Plans that use again what earlier steps computed, as a server offers them: chosen, told, and made again."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import COST, RunningServer, running

from elit_serve.catalogue import read_config
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.pictures import read_facts
from elit_serve.plans.skips import Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.run import num_slots
from elit_serve.server.settings import Settings

SKIPS = {"core": [2, 5], "weak": [3, 5]}
SKIPPED = [(StepKind("32x32", 1, weak, is_skipped=True), batch) for weak in (None, 1) for batch in COST.batches]
# No step without a weak pass rides with others that have one. Far above what the tiny model takes, so that a request's
# wish, three times what it takes alone, leaves time for its best plan whatever the machine does before it is seen.
CHEAP = CostTable(
    steps_ms={(kind, batch): (100.0 if kind.weak_level is None else 200.0) * batch for kind, batch in COST.steps_ms}
    | {(kind, batch): 50.0 * batch for kind, batch in SKIPPED},
    overhead_ms=100.0,
)


@pytest.fixture
def skipping(tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]) -> Pipeline:
    """The tiny model, whose best plan skips two cores and two weak passes."""
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    (usual,) = (plan for plan in content["plans"] if plan["name"] == "usual")
    best = {"value": 0.95, "half_width": 0.01}
    skips = {**usual, "name": "skipping", "levels": [[4, 7]], "skips": SKIPS, "quality": best, "gflops": 9.0}
    (tiny_model_dir / "quality.json").write_text(json.dumps({**content, "plans": [*content["plans"], skips]}))
    return Pipeline.load(tiny_model_dir, device="cpu")


@pytest.fixture
def server(skipping: Pipeline) -> Iterator[RunningServer]:
    settings = Settings(response_ms=0)
    executor = Executor(skipping, num_slots=num_slots(settings), keeps=True)
    with running(skipping, settings, executor, CHEAP) as started:
        yield started


def test_a_server_prepares_what_its_plans_skip(skipping: Pipeline) -> None:
    served = served_steps(skipping.config, ["32x32"], skipping.device, skipping.quality)
    assert served.keeps
    skipped = {kind for kind in served.captured if kind.is_skipped}
    assert skipped == {StepKind("32x32", 1, None, is_skipped=True), StepKind("32x32", 1, 1, is_skipped=True)}
    assert skipped < set(served.kinds)


def test_an_open_request_gets_the_best_plan_and_its_answer_makes_the_picture_again(server: RunningServer) -> None:
    first = server.generate({"label": "rose", "seed": 5}).json()
    assert (first["skips"], first["steps"], first["quality"]) == (SKIPS, 7, pytest.approx(0.95))
    levels = first["images"][0]["levels"]
    wishes = {"label": "rose", "seed": 5, "levels": levels, "guidance": first["guidance"]}
    again = server.generate({**wishes, "skips": first["skips"]}).json()
    assert again["images"][0]["b64_json"] == first["images"][0]["b64_json"]
    computed = server.generate(wishes).json()
    assert computed["skips"] is None
    assert computed["images"][0]["b64_json"] != first["images"][0]["b64_json"]
    assert computed["gflops"] > first["gflops"]
    skipped = [server.metric(f'elit_skipped_steps_total{{part="{part}"}}') for part in ("core", "weak_pass")]
    assert skipped == [2 * len(SKIPS["core"]), 2 * len(SKIPS["weak"])], "of the two pictures that skip"


def test_its_file_makes_it_again_offline(server: RunningServer, skipping: Pipeline) -> None:
    answer = server.generate({"label": "rose", "seed": 5}, accept="image/png")
    assert json.loads(answer.headers["X-Elit-Skips"]) == SKIPS
    levels = [int(level) for level in answer.headers["X-Elit-Levels"].split(",")]
    offline = skipping.generate("rose", seed=5, levels=levels, skips=Skips(core=(2, 5), weak=(3, 5)))
    assert read_facts(answer.content) == offline.facts | {"skips": SKIPS}
    assert Image.open(io.BytesIO(answer.content)).convert("RGB").tobytes() == offline.image.tobytes()


def test_pictures_that_are_made_together_are_those_that_are_made_alone(
    server: RunningServer, skipping: Pipeline, assert_same_picture: Callable[[bytes, Image.Image], None]
) -> None:
    """Some are by plans that skip, some fix their levels, and steps that skip are shared by all."""

    def body(seed: int) -> dict[str, Any]:
        pinned = {"budget": 0.5, "steps": 7, "skips": SKIPS}
        free = {"latency_ms": 50_000 + 5_000 * seed, "best_effort": True}
        return {"label": "rose", "seed": seed, **(pinned if seed % 3 == 0 else free)}

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda seed: server.generate(body(seed)).json(), range(8)))
    assert all(answer["skips"] == SKIPS for answer in answers[::3])
    for answer in answers:
        (image,) = answer["images"]
        skips = answer["skips"] or {"core": [], "weak": []}
        plan = skipping.plan(
            levels=image["levels"],
            guidance=skipping.guidance(
                method=answer["guidance"]["method"], scale=answer["guidance"]["scale"], weak_budget=0.25
            ),
            skips=Skips(core=tuple(skips["core"]), weak=tuple(skips["weak"])),
        )
        alone = skipping.run([skipping.conditions.named("rose")], [image["seed"]], plan)[0]
        assert_same_picture(base64.b64decode(image["b64_json"]), alone.image)


def test_a_forecast_tells_what_is_skipped(server: RunningServer) -> None:
    plan = server.client.post("/v1/plan", json={"label": "rose"}).json()
    assert plan["course"]["skips"] == SKIPS
    assert [other["skips"] for other in plan["alternatives"]][-1] == SKIPS
    assert None in [other["skips"] for other in plan["alternatives"]]


@pytest.mark.parametrize(
    ("skips", "problem"),
    [({"core": [7]}, "below 7"), ({"core": [2, 2]}, "rising"), ({"weak": [0]}, "skips"), ({"tail": [1]}, "skips")],
)
def test_what_cannot_be_skipped_is_refused(server: RunningServer, skips: dict[str, list[int]], problem: str) -> None:
    answer = server.generate({"label": "rose", "steps": 7, "skips": skips})
    assert answer.status_code == 422
    assert problem in answer.text


def test_a_server_that_keeps_nothing_says_so(start_server: Any) -> None:
    answer = start_server().generate({"label": "rose", "steps": 4, "skips": {"core": [1]}})
    assert answer.status_code == 422
    assert "no plan of the model" in answer.text
