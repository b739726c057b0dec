"""Pictures that are finished in fewer, longer steps: what answers tell of them, and how they are made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from elit_serve.catalogue import read_config
from elit_serve.client import Client
from elit_serve.engine.pipeline import Pipeline
from elit_serve.pictures import read_facts

Eventually = Callable[[Callable[[], bool]], None]
Make = Callable[..., dict[str, Any]]


def with_grids(make_quality: Make, **changes: Any) -> dict[str, Any]:
    """The usual plan has four steps, and two were measured with its guidance; `long` has eight."""
    guidance = {"method": "ccfg", "scale": 2.0, "weak_level": 1, "interval": [0.0, 1.0]}
    grid = {"level": 4, "steps": 4, "guidance": guidance, "time_shift": 1.0, "strides": [[1, 2], [2, 1]], "repeats": 1}
    measured = [{**grid, "ratio": {"value": 0.9, "half_width": 0.01}, "expected": 0.9}]
    return make_quality(grids={"last": {"4": 0.5}, "error": 0.01, "noise": 0.01, "measured": measured}, **changes)


@pytest.fixture
def measured(tiny_model_dir: Path, make_quality: Make) -> Pipeline:
    content = with_grids(make_quality, model_hash=read_config(tiny_model_dir).model_hash)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    return Pipeline.load(tiny_model_dir, device="cpu")


def test_a_picture_of_longer_steps_is_made_again_from_what_is_told_of_it(start_server: Any) -> None:
    server = start_server()
    steps = {"levels": [4, 4, 1], "strides": [1, 3, 2]}
    with Client(server.url) as client:
        (image,) = client.generate(label="rose", seed=3, **steps).images
        generation = client.generate(label="rose", seed=3, accept="image/png", **steps)
    plan = server.pipeline.plan(**steps)
    offline = server.pipeline.run([server.pipeline.conditions.named("rose")], [3], plan)[0]
    assert (image.levels, image.strides) == ((4, 4, 1), (1, 3, 2))
    assert (generation.steps, generation.images[0].strides) == (6, (1, 3, 2))
    assert image.data == offline.encode() == generation.images[0].data
    facts = read_facts(image.data)
    assert (facts["steps"], facts["levels"], facts["strides"]) == (6, [4, 4, 1], [1, 3, 2])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"strides": [1, 1]}, "strides"),
        ({"levels": [4, 4], "strides": [2]}, "strides"),
        ({"levels": [4, 4], "strides": [0, 1]}, "strides"),
        ({"levels": [4, 4], "strides": [600, 600]}, "strides"),
        ({"levels": [4, 4], "strides": [2, 1], "steps": 2}, "steps"),
        ({"budget": 0.5, "strides": [2, 1]}, "strides"),
    ],
)
def test_strides_that_do_not_fit_are_refused(start_server: Any, body: dict[str, Any], field: str) -> None:
    answer = start_server().generate({"label": "rose", **body})
    assert answer.status_code == 422
    assert field in answer.text


def test_a_picture_that_is_finished_early_takes_the_longest_steps_and_says_so(
    start_server: Any, stepwise: Any, measured: Pipeline, eventually: Eventually
) -> None:
    server = start_server(measured, executor=stepwise)
    with ThreadPoolExecutor(1) as callers:
        body = {"label": "rose", "seed": 3, "latency_ms": 60_000}
        asked = callers.submit(server.client.post, "/v1/generate", json=body, headers={"X-Request-Id": "mine"})
        eventually(lambda: bool(server.executor.num_launched == 1))
        (live,) = server.client.get("/load").json()["in_flight"]
        assert (live["strides"], live["steps"]) == ([1], 8)
        assert server.client.post("/v1/requests/mine/finish").status_code == 202
        server.executor.may_run.release(20)
        answer = asked.result().json()
    (image,) = answer["images"]
    assert answer["steps"] == sum(image["strides"]) == 8
    assert image["strides"][0] == 1
    assert max(image["strides"]) == 4, "two steps were measured with this guidance"
    assert len(image["levels"]) == len(image["strides"]) < 8
    assert 0 < image["quality"] < answer["expected_quality"]
    server.executor.may_run.release(20)
    told = {name: image[name] for name in ("levels", "strides")}
    again = server.generate({"label": "rose", "seed": 3, "guidance": answer["guidance"], **told}).json()
    assert again["images"][0]["b64_json"] == image["b64_json"]
    assert again["images"][0]["quality"] == image["quality"]


@pytest.mark.parametrize("exact", [{"steps": 4}, {"budget": 1.0}, {"levels": [4, 4, 4, 4]}])
def test_who_says_how_many_steps_there_are_gets_them(
    start_server: Any, stepwise: Any, measured: Pipeline, eventually: Eventually, exact: dict[str, Any]
) -> None:
    server = start_server(measured, executor=stepwise)
    with ThreadPoolExecutor(1) as callers:
        body = {"label": "rose", "seed": 3, **exact}
        asked = callers.submit(server.client.post, "/v1/generate", json=body, headers={"X-Request-Id": "mine"})
        eventually(lambda: bool(server.executor.num_launched == 1))
        server.client.post("/v1/requests/mine/finish")
        server.executor.may_run.release(20)
        (image,) = asked.result().json()["images"]
    assert image["strides"] == [1, 1, 1, 1]


def test_a_floor_of_quality_bounds_how_long_steps_become(
    start_server: Any, stepwise: Any, measured: Pipeline, eventually: Eventually
) -> None:
    """Half the steps of the longest plan lose a ninth, and a quarter of them a half; 0.65 has it run at level 2 or
    more, where it is worth 0.79 in all of them."""
    server = start_server(measured, executor=stepwise)
    for min_quality, longest in ((0.85, 1), (0.65, 2)):
        with ThreadPoolExecutor(1) as callers:
            body = {"label": "rose", "seed": 3, "latency_ms": 60_000, "min_quality": min_quality, "priority": "batch"}
            launched = server.executor.num_launched
            asked = callers.submit(server.client.post, "/v1/generate", json=body, headers={"X-Request-Id": "mine"})
            eventually(lambda launched=launched: bool(server.executor.num_launched == launched + 1))  # type: ignore[misc]
            server.client.post("/v1/requests/mine/finish")
            server.executor.may_run.release(8)
            (image,) = asked.result().json()["images"]
        assert max(image["strides"]) == longest
        assert image["quality"] >= min_quality
        while server.executor.may_run.acquire(blocking=False):
            pass
