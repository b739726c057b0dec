"""Requests that are pinned to different levels share launches over HTTP, and each is told its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from PIL import Image, ImageChops
from serving import Watched

from elit_serve.nn.flops import step_flops
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable

LEVELS, BATCHES = (1, 2, 4), (1, 2, 4)
# A launch costs 40 ms whoever is in it, and a mixed one 41: whoever comes along costs next to nothing.
COST = CostTable(
    steps_ms={
        (StepKind.capped("32x32", level, cap), batch): 40.0 + 0.1 * level * batch
        for level, cap, batch in product(LEVELS, (None, 1, 4), BATCHES)
    }
    | {
        (StepKind.capped("32x32", level, cap, is_mixed=True), batch): 41.0 + 0.1 * level * batch
        for level, cap, batch in product(LEVELS[1:], (None, 1), BATCHES[1:])
    },
    overhead_ms=1.0,
)


def test_pinned_requests_share_launches_and_are_told_their_own_levels_and_costs(
    start_server: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    server = start_server(executor=Watched, cost=COST)
    levels = {1: 4, 2: 2, 3: 1, 4: 4}  # by seed
    bodies = [{"label": "rose", "seed": seed, "steps": 4, "budget": level / 4} for seed, level in levels.items()]
    with ThreadPoolExecutor(len(bodies)) as callers:
        asked = [callers.submit(server.generate, body) for body in bodies]
        eventually(lambda: len(server.client.get("/load").json()["in_flight"]) == len(bodies))
        server.executor.may_run.set()
        answers = {answer["images"][0]["seed"]: answer for answer in (each.result().json() for each in asked)}
    assert any(kind.is_mixed and set(members) == {1, 2, 4} for kind, members in server.executor.launched)
    assert len(server.executor.launched) <= 5, "whoever began alone is a step ahead"
    guided = {level: step_flops(server.pipeline.spec, StepKind("32x32", level, 1)) for level in (1, 2, 4)}
    for seed, level in levels.items():
        (image,) = answers[seed]["images"]
        assert image["levels"] == [level] * 4
        assert image["gflops"] == pytest.approx(4 * guided[level] / 1e9, abs=1e-3)
        told = {name: image[name] for name in ("levels", "strides")}
        again = server.generate(
            {"label": "rose", "seed": seed, "guidance": answers[seed]["guidance"], **told}, accept="image/png"
        )
        assert_alike(base64.b64decode(image["b64_json"]), again.content)


def assert_alike(one: bytes, other: bytes) -> None:
    """As pictures are that were made in other batches: 1 of 255 apart at most."""
    apart = ImageChops.difference(*(Image.open(io.BytesIO(file)).convert("RGB") for file in (one, other)))
    assert max(int(high) for _, high in apart.getextrema()) <= 1
