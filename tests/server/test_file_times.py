"""A file that takes longer than a PNG leaves less time for steps: promises, refusals and forecasts know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from elit_serve.clock import MonotonicClock
from elit_serve.engine.encoders import EncoderOptions
from elit_serve.engine.file_times import FileTimes
from elit_serve.http.schemas import GenerateRequest
from elit_serve.plans.size import Size
from elit_serve.server.forecast import plan_answer
from elit_serve.server.schemas import PlanResponse
from elit_serve.server.service import order_for

A_SECOND_FOR_WEBP = FileTimes(extra_s={"webp": 1 / (32 * 32)}, num_threads=2)


@pytest.fixture
def planned(server: Any) -> Callable[..., PlanResponse]:
    """What would become of a request on a machine that takes a second for each WebP."""
    engine = replace(server.app.state.service.engines.default, file_times=A_SECOND_FOR_WEBP)

    def plan(**body: Any) -> PlanResponse:
        request = GenerateRequest(label="rose", **body)
        order = order_for(engine, request, arrived_s=server.app.state.service.clock.now())
        return plan_answer(request, engine.worker.forecast(order), order.open_plans, engine.model, engine.cost)

    return plan


def test_as_many_as_there_are_threads_are_encoded_at_a_time() -> None:
    times = [A_SECOND_FOR_WEBP.extra_ms(Size(32, 32), "webp", number) for number in (1, 2, 3)]
    assert times == pytest.approx([1000, 1000, 2000])
    assert A_SECOND_FOR_WEBP.extra_ms(Size(64, 32), "webp", 1) == pytest.approx(2000)
    assert A_SECOND_FOR_WEBP.extra_ms(Size(32, 32), "png", 3) == 0


def test_it_gets_lower_levels_for_the_same_target(planned: Callable[..., PlanResponse]) -> None:
    png, webp = (planned(latency_ms=4000, output_format=name).course for name in ("png", "webp"))
    assert png is not None
    assert webp is not None
    assert max(png.latency_ms, webp.latency_ms) <= 4000
    assert webp.level < png.level


def test_it_is_there_later_and_its_smallest_target_is_larger(planned: Callable[..., PlanResponse]) -> None:
    png, webp = (planned(budget=0.5, output_format=name) for name in ("png", "webp"))
    assert png.course is not None
    assert webp.course is not None
    assert webp.course.latency_ms - png.course.latency_ms == pytest.approx(1000, abs=200)
    for one, other in zip(png.alternatives, webp.alternatives, strict=True):
        assert other.alone_ms - one.alone_ms == pytest.approx(1000)
    refused = [planned(latency_ms=1, output_format=name).refusal for name in ("png", "webp")]
    targets = [refusal.min_latency_ms for refusal in refused if refusal is not None and refusal.min_latency_ms]
    assert targets[1] - targets[0] == pytest.approx(1010, abs=2)


def test_formats_are_measured_that_take_longer_than_the_usual_one(tiny_pipeline: Any) -> None:
    usual, small = (
        FileTimes.measured(tiny_pipeline, EncoderOptions(num_threads=3, compression=way), MonotonicClock())
        for way in ("fast", "small")
    )
    assert (set(usual.extra_s), set(small.extra_s)) == ({"jpeg", "webp"}, {"png", "jpeg", "webp"})
    assert min((*usual.extra_s.values(), *small.extra_s.values())) >= 0
    assert usual.num_threads == 3
