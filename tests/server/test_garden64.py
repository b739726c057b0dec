"""The bundled model over real HTTP, from many callers at once: each gets what he asked for, and the books agree."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.settings import Settings

LEVELS = (1, 4, 16)

# Slower than any machine, so that no promise is broken. A picture of 3 steps costs 0.8 s at level 1.
COST = CostTable(
    steps_ms={
        (StepKind("64x64", level, weak), batch): (100.0 + 25 * level) * (1 + batch)
        for level in LEVELS
        for weak in (None, 1, level)
        for batch in (1, 4)
    },
    overhead_ms=1000.0,
)

# In proportion as the other, for targets that the busiest machine meets.
SLOW_COST = CostTable(
    steps_ms={step: 20 * milliseconds for step, milliseconds in COST.steps_ms.items()},
    overhead_ms=20 * COST.overhead_ms,
)

# As on a CPU: pictures that share a launch take nearly as long as one after another.
LITTLE_SHARED_COST = CostTable(
    steps_ms={
        (StepKind("64x64", level, weak), batch): 10
        + (20 + 6.0 * level + (0 if weak is None else 20 + 6 * weak)) * batch
        for level in LEVELS
        for weak in (None, 1, level)
        for batch in (1, 4, 16)
    },
    overhead_ms=10.0,
)

LEAVING = {"label": "carrot", "steps": 60}  # its caller will not wait for it


@pytest.fixture(scope="module")
def garden() -> Pipeline:
    return Pipeline.load("garden64", device="cpu")


@pytest.fixture
def server(start_server: Any, garden: Pipeline) -> Any:
    return start_server(garden, Settings(max_queue=64), cost=COST)


def bodies() -> Iterator[dict[str, object]]:
    """Fifty requests of every kind."""
    for seed in range(10):
        body: dict[str, object] = {"label": seed, "seed": seed, "steps": 2}
        yield {**body, "latency_ms": 3000 + 6000 * seed}
        yield {**body, "budget": (1 / 16, 0.25, 1)[seed % 3], "latency_ms": 60_000}
        yield {**body, "levels": [1, 4 if seed % 2 else 16]} | {"steps": None}
        yield {**body, "priority": ("interactive", "batch")[seed % 2], "n": 1 + seed % 3, "max_budget": 0.3}
        yield LEAVING if seed < 3 else {**body, "latency_ms": 500, "best_effort": seed % 2 == 0}


def ask(server: Any, body: dict[str, object]) -> httpx.Response | None:
    try:
        sent = {name: value for name, value in body.items() if value is not None}
        return httpx.post(f"{server.url}/v1/generate", json=sent, timeout=0.5 if body is LEAVING else 120)
    except httpx.ReadTimeout:
        assert body is LEAVING
        return None


def outcome_of(answer: httpx.Response | None) -> str:
    if answer is None:
        return "cancelled"
    outcomes = {200: "done", 422: "refused", 503: "refused", 504: "expired"}
    return outcomes[answer.status_code]


def check(body: dict[str, object], answer: dict[str, Any]) -> None:
    """What was done is what was asked for."""
    assert answer["class_id"] == body["label"]
    assert [image["seed"] for image in answer["images"]] == [int(str(body["seed"])) + i for i in range(answer["n"])]
    for image in answer["images"]:
        assert len(image["levels"]) == answer["steps"] == 2
        assert image["level"] == sum(image["levels"]) / 2
        if "levels" in body:
            assert image["levels"] == body["levels"]
        if "budget" in body:
            assert image["levels"] == [16 * float(str(body["budget"]))] * 2
        if "max_budget" in body:
            assert max(image["levels"]) <= 5
    assert answer["promised"] == ("latency_ms" in body and "best_effort" not in body)
    assert answer["queue_ms"] + answer["compute_ms"] + answer["encode_ms"] <= answer["total_ms"] + 0.01


def test_fifty_requests_of_every_kind_are_all_accounted_for(server: Any) -> None:
    offered = list(bodies())
    assert len(offered) == 50
    with ThreadPoolExecutor(50) as callers:
        answers = list(callers.map(lambda body: ask(server, body), offered))
    counted = Counter(map(outcome_of, answers))
    for body, answer in zip(offered, answers, strict=True):
        if answer is not None and answer.status_code == 200:
            check(body, {**answer.json(), "n": body.get("n", 1)})
    assert counted["cancelled"] == 3
    assert counted["done"] >= 25
    for outcome in ("done", "refused", "expired", "failed", "cancelled"):
        assert server.metric(f'elit_generations_total{{outcome="{outcome}"}}') == counted[outcome], outcome
    reasons = ("infeasible", "overloaded", "queue_full", "stopped")
    assert sum(server.metric(f'elit_refusals_total{{reason="{reason}"}}') for reason in reasons) == counted["refused"]
    promised = sum(answer is not None and answer.status_code == 200 and answer.json()["promised"] for answer in answers)
    assert server.metric("elit_promises_kept_total") == promised
    assert server.metric("elit_promised_total") == promised + server.metric("elit_promises_missed_total")
    assert server.health() == {"status": "ok", "model": "garden64", "queue_length": 0, "running": 0}
    assert server.executor.num_free == server.executor.num_slots


def pixels(answer: httpx.Response) -> np.ndarray[Any, np.dtype[np.float64]]:
    file = base64.b64decode(answer.json()["images"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.float64)


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    mean_square = float(((a - b) ** 2).mean())
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def test_a_replayed_picture_equals_its_original(start_server: Any, garden: Pipeline) -> None:
    """The originals were made in company, some at levels chosen step by step, one by a plan of the front if the model
    is measured; the replays are made alone."""
    server = start_server(garden, Settings(max_queue=64), cost=SLOW_COST)
    originals: list[dict[str, object]] = [
        {"latency_ms": 124_000, "steps": 4},
        {"levels": [1, 16, 4, 1]},
        {"latency_ms": 600_000},
    ]
    with ThreadPoolExecutor(3) as callers:
        answers = list(callers.map(lambda body: ask(server, {"label": "tulip", "seed": 3, **body}), originals))
    for answer in answers:
        assert answer is not None
        steps = {name: answer.json()["images"][0][name] for name in ("levels", "strides")}
        replay = {"label": "tulip", "seed": 3, **steps, "guidance": answer.json()["guidance"]}
        replays = [server.generate(replay) for _ in range(2)]
        assert psnr(pixels(replays[0]), pixels(answer)) >= 40
        assert replays[0].json()["images"][0]["b64_json"] == replays[1].json()["images"][0]["b64_json"]


@pytest.mark.parametrize("n", [1, 4, 16])
def test_a_request_of_several_pictures_gets_a_plan_that_leaves_time_for_all_of_them(
    start_server: Any, garden: Pipeline, n: int
) -> None:
    """The model's plans have from 10 steps to 40, which may be made in fewer."""
    server = start_server(garden, Settings(), cost=LITTLE_SHARED_COST)

    def planned(latency_ms: float) -> Any:
        return server.client.post("/v1/plan", json={"label": "tulip", "n": n, "latency_ms": latency_ms}).json()

    refused = planned(1)
    smallest, fastest = refused["refusal"]["min_latency_ms"], refused["alternatives"][0]["min_latency_ms"]
    assert smallest <= 1.1 * fastest
    for factor in (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3):
        assert planned(factor * smallest)["accepted"], factor
