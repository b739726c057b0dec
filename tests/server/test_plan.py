"""A dry run says what would become of a request, and nothing comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import SLOW_COST

from elit_serve.catalogue import read_config
from elit_serve.engine.pipeline import Pipeline
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")


def planned(server: Any, **body: object) -> dict[str, Any]:
    answer = server.client.post("/v1/plan", json={"label": "rose", **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_it_says_what_would_be_done_and_when_it_would_be_there(server: Any) -> None:
    """A picture of 4 steps costs 3 s at level 4, one of them overhead."""
    answer = planned(server, latency_ms=60_000)
    course = answer.pop("course")
    assert len(answer.pop("alternatives")) == 4
    assert answer == {
        "model": "tiny",
        "label": "rose",
        "class_id": 1,
        "prompt": None,
        "negative_prompt": None,
        "size": "32x32",
        "quality_size": None,
        "n": 1,
        "latency_ms": 60_000,
        "promised": True,
        "accepted": True,
        "refusal": None,
    }
    assert 0 <= course.pop("queue_ms") < 1000
    assert 3000 <= course.pop("latency_ms") < 4000
    assert course.pop("answer_ms") == 1000
    assert course == {
        "steps": 4,
        "guidance": {"method": "ccfg", "scale": 2.0, "weak_budget": 0.25, "interval": [0.0, 1.0]},
        "skips": None,
        "level": 4,
        "budget": 1.0,
        "levels": [[4, 4, 4, 4]],
        "strides": [[1, 1, 1, 1]],
        "deadline_met": True,
        "quality": None,
        "expected_quality": None,
    }


def test_a_tighter_target_means_a_lower_level_that_is_still_in_time(server: Any) -> None:
    levels = []
    for target_ms in (2700, 3200, 60_000):
        course = planned(server, latency_ms=target_ms)["course"]
        assert course["latency_ms"] <= target_ms
        levels.append(course["level"])
    assert 1 <= levels[0] < levels[1] < levels[2] == 4


def test_what_is_pinned_is_planned_as_it_is(server: Any) -> None:
    assert planned(server, budget=0.5)["course"]["levels"] == [[2, 2, 2, 2]]
    assert planned(server, levels=[4, 1, 2])["course"]["levels"] == [[4, 1, 2]]
    several = planned(server, budget=1, n=2)
    assert several["n"] == len(several["course"]["levels"]) == 2
    assert several["promised"] is False
    assert several["course"]["deadline_met"] is None


def test_a_refusal_is_an_answer_and_the_one_that_would_be_given(server: Any) -> None:
    answer = planned(server, latency_ms=100)
    assert (answer["accepted"], answer["promised"], answer["course"]) == (False, False, None)
    refused = server.generate({"label": "rose", "latency_ms": 100}).json()
    assert answer["refusal"] == {
        "reason": "infeasible",
        "detail": refused["detail"],
        "min_latency_ms": refused["min_latency_ms"],
        "retry_after_ms": None,
    }
    assert [other["fits"] for other in answer["alternatives"]] == [False] * 4


def test_the_alternatives_are_the_levels_that_the_request_allows(server: Any) -> None:
    """A step costs 125 ms for each level, and a promise of four has 300 ms to spare."""
    (model,) = server.client.get("/v1/models").json()["data"]
    answer = planned(server, latency_ms=2900)
    others = answer["alternatives"]
    assert [(other["level"], other["budget"], other["alone_ms"]) for other in others] == [
        (level["level"], level["budget"], level["latency_ms"]) for level in model["levels"]
    ]
    assert [other["fits"] for other in others] == [True, True, True, False]
    bounded = planned(server, min_budget=0.5, max_budget=0.75)["alternatives"]
    assert [(other["level"], other["fits"]) for other in bounded] == [(2, None), (3, None)]


def test_a_model_says_what_its_predictions_count_for_http(start_server: Any) -> None:
    ((without,), (with_five,)) = (
        start_server(settings=Settings(response_ms=response_ms)).client.get("/v1/models").json()["data"]
        for response_ms in (0, 5)
    )
    assert (without["response_ms"], with_five["response_ms"]) == (0, 5)
    for before, after in zip(without["levels"], with_five["levels"], strict=True):
        assert after["latency_ms"] == before["latency_ms"] + 5


def test_the_smallest_target_of_a_refusal_is_where_the_alternatives_begin(
    start_server: Any, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """Whether the plan is left open or not; and no alternative says that it fits no target from its smallest on."""
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    server = start_server(Pipeline.load(tiny_model_dir, device="cpu"))
    for wishes in ({}, {"steps": 4}, {"min_budget": 0.5}):
        refused = planned(server, latency_ms=100, **wishes)
        smallest = [other["min_latency_ms"] for other in refused["alternatives"]]
        assert refused["refusal"]["min_latency_ms"] == pytest.approx(min(smallest), abs=1)
        assert planned(server, latency_ms=1.1 * min(smallest), **wishes)["accepted"]  # a slow test takes time to ask
        for target_ms in smallest:
            at_target = planned(server, latency_ms=target_ms, **wishes)
            fits = {other["min_latency_ms"]: other["fits"] for other in at_target["alternatives"]}
            assert all(fits[ms] for ms in fits if ms <= target_ms)
            assert not any(fits[ms] for ms in fits if ms > 1.02 * target_ms + 10)


def test_others_leave_less(start_server: Any, held: Any, eventually: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_queue=8), executor=held, cost=SLOW_COST)
    alone = planned(server, latency_ms=180_000)
    with ThreadPoolExecutor(4) as callers:
        try:
            callers.submit(server.generate, {"label": "rose", "latency_ms": 200_000})
            eventually(lambda: server.health()["running"] == 1)
            for _ in range(3):
                callers.submit(server.generate, {"label": "rose", "latency_ms": 200_000})
            eventually(lambda: server.health()["running"] + server.health()["queue_length"] == 4)
            crowded = planned(server, latency_ms=180_000)
            refused = planned(server, latency_ms=40_000)  # a step at level 4 is on the device
        finally:
            server.executor.may_run.set()
    assert crowded["course"]["level"] < alone["course"]["level"] == 4
    assert crowded["course"]["latency_ms"] > alone["course"]["latency_ms"]
    for before, after in zip(alone["alternatives"], crowded["alternatives"], strict=True):
        assert before["alone_ms"] == after["alone_ms"] == before["latency_ms"] < after["latency_ms"]
    assert refused["refusal"]["reason"] == "overloaded"
    assert refused["refusal"]["retry_after_ms"] > 0


def test_nothing_is_taken_and_nothing_is_promised(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, max_queue=1))
    for _ in range(5):
        assert planned(server, latency_ms=60_000)["accepted"] is True
    assert planned(server, latency_ms=1)["accepted"] is False
    assert server.health()["queue_length"] == server.health()["running"] == 0
    assert server.metric("elit_promised_total") == 0
    assert server.metric('elit_generations_total{outcome="refused"}') == 0
    assert server.metric('elit_requests_total{outcome="ok",route="/v1/plan"}') == 6


def test_what_leaves_its_plan_open_sees_the_front(
    start_server: Any, tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    server = start_server(Pipeline.load(tiny_model_dir, device="cpu"))
    answer = planned(server, latency_ms=60_000)
    assert (answer["course"]["steps"], answer["course"]["quality"]) == (8, 0.9)
    assert answer["course"]["expected_quality"] == 0.9
    others = answer["alternatives"]
    assert {other["steps"] for other in others} == {2, 4, 8}
    for name in ("alone_ms", "quality"):
        assert [other[name] for other in others] == sorted(other[name] for other in others)
    hurried = planned(server, latency_ms=3_200)
    best = [other for other in hurried["alternatives"] if other["fits"]][-1]
    assert hurried["course"]["steps"] == best["steps"] == 4
    assert hurried["course"]["expected_quality"] == best["quality"]
    fixed = planned(server, steps=4)["alternatives"]
    assert {other["steps"] for other in fixed} == {4}


def test_a_bad_request_is_refused_like_any(server: Any) -> None:
    answer = server.client.post("/v1/plan", json={"label": "rose", "budget": 2})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "budget"


def test_a_draining_server_plans_nothing(start_server: Any) -> None:
    server = start_server()
    server.worker.drain(0)
    answer = server.client.post("/v1/plan", json={"label": "rose"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:elit-serve:engine-stopped")


@pytest.mark.parametrize("policy", ["elastic", "fixed"])
def test_each_policy_foretells_itself(start_server: Any, policy: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, policy=policy))
    course = planned(server, seed=1)["course"]
    (image,) = server.generate({"label": "rose", "seed": 1}).json()["images"]
    assert course["levels"] == [image["levels"]]
