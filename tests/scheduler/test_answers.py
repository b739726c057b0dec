"""What follows an image's last step: the device decodes it, and then it is encoded. Promises count both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.costs import AnswerCost
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.forecast import Course, course_of
from elit_serve.scheduler.menu import Crowd, Duration
from elit_serve.scheduler.requests import Demand

SHAPE = "64x64"
# A step takes 10 ms, decoding 6 ms for each image, and encoding 4 ms, however many there are; the response takes 1 ms.
TABLE = CostTable(
    steps_ms={(StepKind(SHAPE, 4), batch): 10.0 for batch in (1, 2, 4)},
    overhead_ms=1.0,
    answers_ms={(SHAPE, batch): AnswerCost(6.0 * batch, 4.0) for batch in (1, 4)},
)


def scheduler() -> RequestScheduler:
    """Without a margin."""
    quality = QualityTable(levels={4: 1.0})
    return RequestScheduler(TABLE, ElasticPolicy(quality, ElasticSettings(margin=0.0)))


def image(request_id: int, latency_ms: float, *, arrived_s: float = 0.0, steps: int = 2) -> Demand:
    return Demand(
        request_id=request_id,
        shape=SHAPE,
        arrived_s=arrived_s,
        deadline_s=arrived_s + latency_ms / 1000,
        weak_caps=(None,) * steps,
        min_level=4,
        max_level=4,
    )


def test_the_table_tells_what_answers_take_between_the_batches_that_were_measured() -> None:
    assert TABLE.decode_row(SHAPE) == pytest.approx((0, 6, 12, 18, 24))
    assert TABLE.answer_row(SHAPE) == pytest.approx((0, 10, 16, 22, 28))
    assert TABLE.after_ms(SHAPE) == 11
    assert TABLE.alone_ms(SHAPE, [4, 4], [None, None], num_images=2) == 20 + 16 + 1
    padded = replace(TABLE, pads_batches=True)
    assert padded.decode_row(SHAPE) == (0, 6, 24, 24, 24)
    plain = TABLE.with_answers_alone()
    assert (plain.after_ms(SHAPE, 4), plain.decode_row(SHAPE)) == (11, (0, 0, 0, 0, 0))


@pytest.mark.parametrize(("count", "needed_ms"), [(1, 31), (2, 37), (4, 49)])
def test_a_target_must_leave_time_for_the_answers_of_all_that_end_together(count: int, needed_ms: int) -> None:
    short, enough = ([image(i, target, steps=2) for i in range(count)] for target in (needed_ms - 0.5, needed_ms + 0.5))
    refusal = scheduler().submit(short, 0.0)
    assert refusal is not None
    assert refusal.min_latency_ms == pytest.approx(needed_ms, abs=1)
    assert scheduler().submit(enough, 0.0) is None


def test_the_device_is_not_free_before_it_has_decoded() -> None:
    engine = scheduler()
    engine.submit([image(0, 1000, steps=1), image(1, 1000, steps=2)], 0.0)
    launch = engine.decide(0.0)
    assert launch is not None
    assert (launch.predicted_ms, launch.decode_ms, launch.answer_ms) == (10, 6, 10)
    assert engine.busy_until_s == pytest.approx(0.016)
    engine.finished(launch.launch_id, 0.010, 10.0)
    assert engine.busy_until_s == pytest.approx(0.016)
    on_a_cpu = scheduler()
    on_a_cpu.submit([image(0, 1000, steps=1)], 0.0)
    launch = on_a_cpu.decide(0.0)
    assert launch is not None
    on_a_cpu.finished(launch.launch_id, 0.016, 10.0, has_decoded=True)
    assert on_a_cpu.busy_until_s == pytest.approx(0.016)


def test_a_promise_counts_the_decoding_of_those_before_it() -> None:
    """The first ends at 10 and is decoded until 16; the other, taken at 5, takes a step until 26, and 11 ms more."""
    for target_ms, is_taken in ((31, False), (33, True)):
        driver = Driver(scheduler(), SimulatedDevice(TABLE))
        assert driver.submit([image(0, 22, steps=1)]) is None
        driver.advance_to(0.005)
        assert (driver.submit([image(1, target_ms, arrived_s=0.005, steps=1)]) is None) == is_taken
        driver.advance_to(float("inf"))
        assert driver.endings[0].at_s == pytest.approx(0.021)
        if is_taken:
            assert driver.endings[1].at_s == pytest.approx(0.037)


def test_a_forecast_and_the_menu_count_it_too() -> None:
    course = course_of(scheduler(), [image(0, 1000), image(1, 1000)], 0.0)
    assert isinstance(course, Course)
    assert (course.ended_s, course.encoded_s) == (pytest.approx(0.020), pytest.approx(0.036))
    duration = Duration.of(SHAPE, [4, 4], [None, None], TABLE)
    assert duration.latency_ms(Crowd(in_flight=1, max_batch=4)) == 31
