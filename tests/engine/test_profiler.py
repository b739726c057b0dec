from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elit_serve.clock import MonotonicClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.predict import Predictor
from elit_serve.engine.profiler import Latency, device_name, device_slug, latency_of, measure
from elit_serve.errors import CheckpointError
from elit_serve.sampling import Guidance
from elit_serve.scheduler import CostTable

CLOCK = MonotonicClock()


@pytest.fixture
def pipeline(tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(tiny_model_dir, device="cpu")


def here(pipeline: Pipeline, **changes: object) -> Latency:
    """A measurement of this device that was never made: 1 s a step, which no tiny model takes."""
    steps = [{"level": level, "weak_level": weak, "step_ms": 1000.0} for level in (1, 4) for weak in (None, 1, level)]
    fields = {
        "model": "tiny",
        "model_hash": pipeline.model_hash,
        "device": device_name(pipeline.device),
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "elit_serve_version": "0",
        "date": "2026-01-01T00:00:00Z",
        "repeats": 1,
        "overhead_ms": 0.0,
        "steps": steps,
    }
    return Latency.model_validate(fields | changes)


def put_beside_the_model(pipeline: Pipeline, text: str) -> None:
    file = pipeline.path / "latency" / f"{device_slug(device_name(pipeline.device))}.json"
    file.parent.mkdir()
    file.write_text(text)


def test_powers_of_two_are_measured_unguided_at_the_models_weak_level_and_at_the_level(pipeline: Pipeline) -> None:
    latency = measure(pipeline, clock=CLOCK, repeats=1)
    assert [(step.level, step.weak_level) for step in latency.steps] == [
        *((1, None), (1, 1)),
        *((2, None), (2, 1), (2, 2)),
        *((4, None), (4, 1), (4, 4)),
    ]
    assert latency.overhead_ms >= 0
    assert latency.cost_table.predict_ms([4] * 3, [1] * 3) > latency.cost_table.overhead_ms


def test_a_measurement_carries_what_it_was_made_with(pipeline: Pipeline) -> None:
    latency = measure(pipeline, clock=CLOCK, repeats=1)
    assert latency.device == device_name(torch.device("cpu"))
    assert latency.dtype == "float32"
    assert latency.threads == torch.get_num_threads()
    assert latency.torch_version == torch.__version__
    assert latency.date.tzinfo is not None


def test_a_measurement_is_made_once_and_then_read_from_the_cache(pipeline: Pipeline, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = latency_of(pipeline, clock=CLOCK, cache_folder=cache)
    (file,) = cache.iterdir()
    assert file.name.startswith("tiny-")
    file.write_text(here(pipeline).model_dump_json())
    assert latency_of(pipeline, clock=CLOCK, cache_folder=cache) == here(pipeline) != first


@pytest.mark.parametrize("damage", ["", "{", "null", '{"format_version": 1}', "\x00\xff"])
def test_a_damaged_cache_is_measured_again_and_replaced(pipeline: Pipeline, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    latency_of(pipeline, clock=CLOCK, cache_folder=cache)
    (file,) = cache.iterdir()
    file.write_text(damage)
    again = latency_of(pipeline, clock=CLOCK, cache_folder=cache)
    assert Latency.model_validate_json(file.read_text()) == again


def test_a_cache_that_cannot_be_written_does_not_stop_anything(pipeline: Pipeline, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert latency_of(pipeline, clock=CLOCK, cache_folder=blocked / "cache").steps


def test_a_measurement_in_the_model_directory_is_preferred(pipeline: Pipeline, tmp_path: Path) -> None:
    put_beside_the_model(pipeline, here(pipeline).model_dump_json())
    assert latency_of(pipeline, clock=CLOCK, cache_folder=tmp_path / "cache") == here(pipeline)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change", [{"model_hash": "0" * 12}, {"dtype": "bfloat16"}, {"threads": 999}, {"device": "another"}]
)
def test_a_measurement_of_something_else_is_not_used(
    pipeline: Pipeline, tmp_path: Path, change: dict[str, object]
) -> None:
    other = here(pipeline, **change)
    put_beside_the_model(pipeline, other.model_dump_json())
    assert latency_of(pipeline, clock=CLOCK, cache_folder=tmp_path / "cache") != other


def test_a_damaged_measurement_in_the_model_directory_is_an_error_that_names_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    put_beside_the_model(pipeline, here(pipeline).model_dump_json().replace('"overhead_ms":0.0', '"overhead_ms":-1'))
    with pytest.raises(CheckpointError, match=r"latency/.*overhead_ms"):
        latency_of(pipeline, clock=CLOCK, cache_folder=tmp_path / "cache")


def test_device_names_become_file_names() -> None:
    assert device_slug("NVIDIA H200") == "nvidia-h200"
    assert device_slug("AMD EPYC (tm) 9B14 @ 2.6GHz") == "amd-epyc-tm-9b14-2-6ghz"


def test_only_the_steps_inside_the_guidance_interval_pay_for_a_weak_pass(pipeline: Pipeline) -> None:
    table = CostTable(step_costs_ms={(1, None): 1.0, (4, None): 10.0, (1, 1): 2.0, (4, 1): 15.0}, overhead_ms=7.0)
    half = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    plan = pipeline.plan(steps=4, guidance=half)  # steps start at t = 0, 0.25, 0.5, 0.75
    assert Predictor(cost=table).plan_ms(plan) == pytest.approx(7 + 2 * 10 + 2 * 15)
    assert Predictor(cost=table, headroom=0.5).plan_ms(plan, 2) == pytest.approx(2 * 1.5 * 57)
