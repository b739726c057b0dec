"""A model with measured quality: what requests get that leave their plan open, and what answers say of quality."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elit_serve.catalogue import read_config
from elit_serve.engine.checkpoint import write_sampling
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import SamplingConfig
from elit_serve.plans.guidance import Guidance
from elit_serve.server.settings import Settings

PRESETS = ("low", "medium", "high")


@pytest.fixture
def measured(tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]) -> Pipeline:
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    return Pipeline.load(tiny_model_dir, device="cpu")


def asked(server: Any, **body: object) -> dict[str, Any]:
    answer = server.generate({"label": "rose", "seed": 3, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_time_buys_steps(start_server: Any, measured: Pipeline) -> None:
    """Overhead takes 1 s, a step 0.125 s for each level, and n steps have √n times 0.15 s to spare: two low ones fit,
    then four at level 2."""
    steps = [asked(start_server(measured), latency_ms=ms)["steps"] for ms in (1_500, 2_400, 60_000)]
    assert steps == [2, 4, 8]


def test_the_answer_says_what_was_expected_and_what_was_done(start_server: Any, measured: Pipeline) -> None:
    answer = asked(start_server(measured), latency_ms=60_000)
    assert answer["expected_quality"] == answer["images"][0]["quality"] == 0.9
    hurried = asked(start_server(measured), latency_ms=4_200)
    assert 0.3 < hurried["expected_quality"] < 0.9
    assert 0.3 < hurried["images"][0]["quality"] < 0.9
    several = asked(start_server(measured, Settings(response_ms=0, max_images=3)), latency_ms=60_000, n=3)
    assert several["quality"] == 0.9


def test_a_forecast_of_the_same_levels_says_what_the_answer_says(start_server: Any, measured: Pipeline) -> None:
    """A plan that was chosen for a low level runs at a higher one where there is time."""
    server = start_server(measured)
    done = []
    for latency_ms in (2_300, 2_900, 3_200, 3_800, 4_200, 60_000):
        answer = asked(server, latency_ms=latency_ms)
        (image,) = answer["images"]
        again = {"label": "rose", "levels": image["levels"], "guidance": answer["guidance"]}
        course = server.client.post("/v1/plan", json=again).json()["course"]
        assert course["quality"] == image["quality"] == answer["quality"]
        done.append(answer)
    assert any(answer["quality"] > answer["expected_quality"] for answer in done)


def test_a_server_in_another_precision_tells_what_that_makes_of_quality(
    start_server: Any, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """Measured in bfloat16, and this server runs in float32: by measurement at 0.9 of it, or nobody knows."""
    ratio = {"value": 0.9, "half_width": 0.02}
    entry = {"factor": ratio, "plans": {"usual": ratio, "long": ratio}}
    own = {"model_hash": read_config(tiny_model_dir).model_hash, "provenance": {"dtype": "bfloat16"}}
    told = []
    for precisions in ({}, {"float32": entry}):
        (tiny_model_dir / "quality.json").write_text(json.dumps(make_quality(**own, precisions=precisions)))
        server = start_server(Pipeline.load(tiny_model_dir, device="cpu"))
        answer = asked(server, latency_ms=60_000)
        course = server.client.post("/v1/plan", json={"label": "rose", "latency_ms": 60_000}).json()["course"]
        assert course["expected_quality"] == answer["expected_quality"] == answer["quality"]
        told.append((answer["expected_quality"], server.client.get("/v1/models/tiny").json()["quality"]))
    common = {"measured_in": "bfloat16", "full_plan": None}
    nothing = {**common, "factor": None, "factor_half_width": None, "num_plans": None}
    measured = {**common, "factor": 0.9, "factor_half_width": 0.02, "num_plans": 2}
    assert told == [(0.9, nothing), (0.81, measured)]


def test_openai_s_answers_say_it_too(start_server: Any, measured: Pipeline) -> None:
    body = {"prompt": "rose", "seed": 3, "latency_ms": 60_000}
    answer = start_server(measured).client.post("/v1/images/generations", json=body).json()
    assert answer["elit"]["quality"] == answer["data"][0]["quality"] == 0.9


def test_no_picture_is_worth_less_than_it_is_asked_to_be(start_server: Any, measured: Pipeline) -> None:
    """The fastest that is good enough is four steps at the full level; with what is to spare they need 3.3 s."""
    server = start_server(measured)
    assert asked(server, latency_ms=3_100)["quality"] < 0.78
    refused = server.generate({"label": "rose", "latency_ms": 3_100, "min_quality": 0.78})
    assert refused.json()["type"] == "urn:elit-serve:infeasible"
    answer = asked(server, latency_ms=3_400, min_quality=0.78)
    assert 0.78 <= answer["expected_quality"] <= answer["quality"]
    course = server.client.post("/v1/plan", json={"label": "rose", "min_quality": 0.78}).json()
    assert course["alternatives"][0]["quality"] == 0.8


def test_who_says_steps_too_gets_levels_that_are_good_enough(start_server: Any, measured: Pipeline) -> None:
    server = start_server(measured)
    course = {"label": "rose", "steps": 4, "guidance": {"scale": 2.0}, "min_quality": 0.7}
    offered = server.client.post("/v1/plan", json=course).json()["alternatives"]
    assert {option["level"] for option in offered} < {1, 2, 3, 4}
    assert min(option["quality"] for option in offered) >= 0.7


@pytest.mark.parametrize(
    ("wish", "allowed"),
    [
        ({"min_quality": 0.95}, "at most 0.9"),
        ({"min_quality": 0.85, "steps": 4}, "at most 0.8 with what else is asked for"),
        ({"min_quality": 0.5, "steps": 5}, "nothing was measured of these steps"),
        ({"min_quality": 0.5, "budget": 0.5}, "leave it out"),
        ({"min_quality": 0}, "greater than 0"),
    ],
)
def test_a_quality_that_cannot_be_promised_is_refused(
    start_server: Any, measured: Pipeline, wish: dict[str, object], allowed: str
) -> None:
    answer = start_server(measured).generate({"label": "rose", **wish})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "min_quality"
    assert allowed in error["allowed"]


@pytest.mark.parametrize("quality", PRESETS)
def test_a_preset_is_worth_at_least_what_its_budget_is(start_server: Any, measured: Pipeline, quality: str) -> None:
    server = start_server(measured)
    budget = {"low": 0.25, "medium": 0.5, "high": 1.0}[quality]
    floor = asked(server, budget=budget)["quality"]
    ask = {"prompt": "rose", "quality": quality}
    at_ease = server.client.post("/v1/images/generations", json=ask).json()
    refused = server.client.post("/v1/images/generations", json={**ask, "latency_ms": 10}).json()["error"]
    tight = server.client.post("/v1/images/generations", json={**ask, "latency_ms": refused["min_latency_ms"]}).json()
    assert floor <= tight["data"][0]["quality"] <= at_ease["data"][0]["quality"]
    assert at_ease["quality"] == "high"
    assert PRESETS.index(tight["quality"]) >= PRESETS.index(quality)


def test_ceilings_of_a_plan_hold_and_the_picture_can_be_made_again(start_server: Any, measured: Pipeline) -> None:
    server = start_server(measured)
    answers = [asked(server, latency_ms=ms) for ms in (3_800, 4_200, 60_000)]
    for answer in answers:
        levels = answer["images"][0]["levels"]
        again = asked(server, levels=levels, guidance={"scale": answer["guidance"]["scale"]})
        assert again["images"][0]["b64_json"] == answer["images"][0]["b64_json"]
        assert again["images"][0]["quality"] == answer["images"][0]["quality"]


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        ({"steps": 4}, 4),
        ({"budget": 0.5}, 4),
        ({"max_budget": 0.5}, 4),
        ({"levels": [4, 1, 4]}, 3),
        ({"guidance": {"scale": 3.0}}, 4),
    ],
)
def test_who_says_how_gets_the_model_s_own_plan(
    start_server: Any, measured: Pipeline, body: dict[str, object], steps: int
) -> None:
    answer = asked(start_server(measured), latency_ms=60_000, **body)
    assert answer["steps"] == steps


def test_quality_that_was_not_measured_is_null(start_server: Any, measured: Pipeline) -> None:
    answer = asked(start_server(measured), guidance={"scale": 3.0})
    assert answer["expected_quality"] is answer["images"][0]["quality"] is None


def test_long_plans_are_left_out_where_a_request_may_not_have_so_many_steps(
    start_server: Any, measured: Pipeline
) -> None:
    server = start_server(measured, Settings(response_ms=0, max_image_steps=10))
    assert asked(server, latency_ms=60_000)["steps"] == 8
    assert asked(server, latency_ms=60_000, n=2)["steps"] == 4


def test_the_fixed_policy_uses_the_model_s_own_plan(start_server: Any, measured: Pipeline) -> None:
    answer = asked(start_server(measured, Settings(response_ms=0, policy="fixed")), latency_ms=60_000)
    assert (answer["steps"], answer["expected_quality"]) == (4, 0.8)


def test_the_model_s_levels_have_their_quality(start_server: Any, measured: Pipeline) -> None:
    server = start_server(measured)
    (model,) = server.client.get("/v1/models").json()["data"]
    assert [level["quality"] for level in model["levels"]] == pytest.approx(
        [0.4 / 0.75 * 0.7, 0.7, 0.75, 0.8], abs=0.06
    )


def test_the_bare_picture_has_quality_in_its_headers(start_server: Any, measured: Pipeline) -> None:
    answer = start_server(measured).generate({"label": "rose", "latency_ms": 60_000}, "image/png")
    assert (answer.headers["X-Elit-Quality"], answer.headers["X-Elit-Expected-Quality"]) == ("0.9", "0.9")


def test_what_was_granted_is_counted_and_quality_where_it_is_known(start_server: Any, measured: Pipeline) -> None:
    server, unmeasured = start_server(measured), start_server()
    answers = {"server": asked(server, latency_ms=60_000), "caller": asked(server, budget=0.25)}
    asked(unmeasured, budget=0.25)
    for chooser, answer in answers.items():
        counted = server.metric(f'elit_granted_quality_sum{{chosen_by="{chooser}"}}')
        assert counted == pytest.approx(answer["images"][0]["quality"], abs=1e-4)
        steps = server.metric(f'elit_granted_steps_sum{{chosen_by="{chooser}"}}')
        assert steps == len(answer["images"][0]["levels"])
    assert unmeasured.metric('elit_granted_quality_count{chosen_by="caller"}') == 0
    assert unmeasured.metric('elit_granted_budget_count{chosen_by="caller"}') == 1


def test_a_model_that_recommends_autoguidance_lists_levels_that_have_no_quality_with_it(
    start_server: Any, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    guidance = Guidance(method="ag", scale=1.5, weak_level=1)
    write_sampling(tiny_model_dir, SamplingConfig(steps=4, guidance=guidance))
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    server = start_server(Pipeline.load(tiny_model_dir, device="cpu"))
    (model,) = server.client.get("/v1/models").raise_for_status().json()["data"]
    assert [level["level"] for level in model["levels"]] == [1, 2, 3, 4]
    assert (model["levels"][0]["latency_ms"], model["levels"][0]["quality"]) == (None, None)
    assert model["levels"][3]["latency_ms"] > 0


def test_more_pictures_than_may_ever_wait_are_no_matter_of_time(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_queue=2, max_images=4))
    for path in ("/v1/generate", "/v1/plan"):
        refusal = server.client.post(path, json={"label": "rose", "n": 3})
        assert refusal.status_code == 422
        assert "at most 2, which may wait" in refusal.text


def test_a_low_budget_is_guided_as_was_best_there(
    start_server: Any, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """Pictures of few latents bear a larger scale; who says anything of guidance gets the rest of it from the model."""
    config = read_config(tiny_model_dir)
    usual = config.sampling
    content = make_quality(model_hash=config.model_hash)

    def measured_at(level: int, scale: float, quality: float) -> dict[str, Any]:
        guidance = {"method": "ccfg", "scale": scale, "weak_level": 1, "interval": [0.0, 1.0]}
        made: dict[str, Any] = {**content["plans"][0], "name": f"{scale} at {level}", "guidance": guidance}
        estimate = {"value": quality, "half_width": 0.01}
        return made | {"levels": [[level, usual.steps]], "quality": estimate, "on_front": False}

    content["plans"] += [measured_at(1, 2.0, 0.3), measured_at(1, 3.0, 0.4), measured_at(4, 2.5, 0.85)]
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    server = start_server(Pipeline.load(tiny_model_dir, device="cpu"))
    assert asked(server, budget=0.25)["guidance"]["scale"] == 3.0
    assert asked(server, budget=1)["guidance"]["scale"] == 2.5
    assert asked(server, levels=[1, 4])["guidance"]["scale"] == 2.5  # as its highest level
    assert asked(server, budget=0.25, guidance={"method": "ccfg"})["guidance"]["scale"] == usual.guidance.scale
    foreseen = server.client.post("/v1/plan", json={"label": "rose", "steps": usual.steps}).json()["alternatives"]
    scales = {each["level"]: each["guidance"]["scale"] for each in foreseen}
    assert (scales[1], scales[4]) == (3.0, 2.5)
    (model,) = server.client.get("/v1/models").json()["data"]
    told = {each["level"]: each["quality"] for each in model["levels"]}
    assert (told[1], told[4]) == (0.4, 0.85)
    low = asked(server, budget=0.25)
    again = asked(server, levels=low["images"][0]["levels"], guidance=low["guidance"])
    assert again["images"][0]["b64_json"] == low["images"][0]["b64_json"]
