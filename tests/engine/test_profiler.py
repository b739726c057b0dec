from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from elit_serve.catalogue import cost_table, read_config
from elit_serve.clock import MonotonicClock
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import (
    _as_table,
    device_name,
    device_slug,
    known_latency,
    measure,
    prepared_steps,
    profile_to_file,
)
from elit_serve.engine.profile.profiler import latency_of as latency_of_steps
from elit_serve.engine.profile.step_set import StepSet, served_steps
from elit_serve.errors import CheckpointError
from elit_serve.files.latency import Latency, read_latency
from elit_serve.plans.step_kind import StepKind

CLOCK = MonotonicClock()


@pytest.fixture
def pipeline(tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(tiny_model_dir, device="cpu")


def served(pipeline: Pipeline) -> StepSet:
    return served_steps(pipeline.config, pipeline.shape_names, pipeline.device)


def latency_of(pipeline: Pipeline, cache_folder: Path) -> Latency:
    executor = Executor(pipeline, num_slots=4)
    return latency_of_steps(pipeline, executor, served(pipeline), clock=CLOCK, cache_folder=cache_folder)


def here(pipeline: Pipeline, step_ms: float = 1000.0, **changes: object) -> Latency:
    """A measurement of this device that was never made: 1 s a step, which no tiny model takes."""
    steps = [
        {"level": kind.level, "weak_level": kind.weak_level, "batch": batch, "step_ms": step_ms}
        for kind, batch in served(pipeline).costs
    ]
    fields = {
        "model": "tiny",
        "backbone_hash": pipeline.config.backbone_hash,
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


def measured(pipeline: Pipeline) -> Latency:
    return measure(pipeline, Executor(pipeline, num_slots=4), served(pipeline), clock=CLOCK, repeats=1)


def put_beside_the_model(pipeline: Pipeline, text: str) -> None:
    file = pipeline.path / "latency" / f"{device_slug(device_name(pipeline.device))}.json"
    file.parent.mkdir()
    file.write_text(text)


def test_halvings_are_measured_unguided_at_the_models_weak_level_and_at_the_level(pipeline: Pipeline) -> None:
    latency = measured(pipeline)
    expected = [
        *((1, None), (1, 1)),
        *((2, None), (2, 1), (2, 2)),
        *((4, None), (4, 1), (4, 4)),
    ]
    for batch in (1, 4):
        assert [(step.level, step.weak_level) for step in latency.steps if step.batch == batch] == expected
    assert latency.overhead_ms >= 0
    assert cost_table(latency).levels == (1, 2, 4)
    assert cost_table(latency).max_batch == 4


def test_a_measurement_carries_what_it_was_made_with(pipeline: Pipeline) -> None:
    latency = measured(pipeline)
    assert latency.device == device_name(torch.device("cpu"))
    assert latency.dtype == "float32"
    assert latency.threads == torch.get_num_threads()
    assert latency.torch_version == torch.__version__
    assert latency.date.tzinfo is not None


def test_a_first_start_on_a_cpu_measures_few_steps_and_knows_the_cost_of_all(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    latency = latency_of(pipeline, tmp_path)
    points = {(step.level, step.weak_level, step.batch) for step in latency.steps}
    assert points == {(kind.level, kind.weak_level, batch) for kind, batch in served(pipeline).costs}
    for batch in (1, 4):
        timed = [step for step in latency.steps if step.batch == batch and not step.is_interpolated]
        assert {(step.level, step.weak_level) for step in timed} == {(1, None), (1, 1), (2, 1), (4, 1)}
    assert not any(step.is_interpolated for step in measured(pipeline).steps)


def test_a_measurement_is_made_once_and_then_read_from_the_cache(pipeline: Pipeline, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = latency_of(pipeline, cache)
    (file,) = cache.iterdir()
    assert file.name.startswith("tiny-")
    quick = here(pipeline, step_ms=0.001)  # the device may be busy now
    file.write_text(quick.model_dump_json())
    assert latency_of(pipeline, cache) == quick != first


def test_a_first_start_says_that_it_measures_and_about_how_long_and_later_ones_say_nothing(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latency_of(pipeline, tmp_path / "cache")
    first, forecast = caplog.messages  # at the level at which a server logs by default, and above
    assert first == f"measuring what steps of tiny cost on {device_name(pipeline.device)}, to be kept for later starts"
    assert re.fullmatch(r"measuring takes about [1-9]\d* s", forecast)

    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(here(pipeline, step_ms=0.001).model_dump_json())  # the device may be busy now
    caplog.clear()
    latency_of(pipeline, tmp_path / "cache")
    assert not caplog.messages


def test_a_measurement_of_a_busy_device_is_made_again(pipeline: Pipeline, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    latency_of(pipeline, cache)
    (file,) = cache.iterdir()
    file.write_text(here(pipeline).model_dump_json())
    again = latency_of(pipeline, cache)
    assert max(step.step_ms for step in again.steps) < 1000
    assert Latency.model_validate_json(file.read_text()) == again


@pytest.mark.parametrize("damage", ["", "{", "null", '{"format_version": 2}', "\x00\xff"])
def test_a_damaged_cache_is_measured_again_and_replaced(pipeline: Pipeline, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    latency_of(pipeline, cache)
    (file,) = cache.iterdir()
    file.write_text(damage)
    again = latency_of(pipeline, cache)
    assert Latency.model_validate_json(file.read_text()) == again


def test_a_cache_that_cannot_be_written_does_not_stop_anything(pipeline: Pipeline, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert latency_of(pipeline, blocked / "cache").steps


def test_a_measurement_in_the_model_directory_is_preferred(pipeline: Pipeline, tmp_path: Path) -> None:
    put_beside_the_model(pipeline, here(pipeline).model_dump_json())
    known = latency_of(pipeline, tmp_path / "cache")
    assert known.steps == here(pipeline).steps
    assert not (tmp_path / "cache").exists()


def test_answers_are_measured_by_how_many_end_together(pipeline: Pipeline) -> None:
    latency = measured(pipeline)
    assert [(answer.batch, answer.is_interpolated) for answer in latency.answers] == [(1, False), (4, False)]
    assert latency.overhead_ms == latency.answers[0].decode_ms + latency.answers[0].encode_ms
    costs = cost_table(latency, "32x32")
    assert costs.overhead_ms == 0
    assert costs.after_ms("32x32") == pytest.approx(latency.overhead_ms)
    assert costs.decode_row("32x32")[4] >= latency.answers[1].decode_ms


def test_a_first_start_on_a_cpu_decodes_one_picture_and_takes_more_to_be_as_many_times_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    one, four = latency_of(pipeline, tmp_path).answers
    assert (one.batch, four.batch, four.is_interpolated) == (1, 4, True)
    assert four.decode_ms == pytest.approx(4 * one.decode_ms)


def test_a_file_without_answers_or_of_another_autoencoder_is_used_for_steps(pipeline: Pipeline, tmp_path: Path) -> None:
    told = {"batch": 1, "decode_ms": 9999.0, "encode_ms": 1.0}
    own = here(pipeline, answers=[told], autoencoder_hash=pipeline.autoencoder_hash)
    put_beside_the_model(pipeline, own.model_dump_json())
    assert latency_of(pipeline, tmp_path / "cache") == own
    (file,) = (pipeline.path / "latency").iterdir()
    for other in (here(pipeline), here(pipeline, answers=[told], autoencoder_hash="0" * 12)):
        file.write_text(other.model_dump_json())
        known = latency_of(pipeline, tmp_path / "cache")
        assert known.steps == own.steps
        assert max(answer.decode_ms for answer in known.answers) < 9999


@pytest.mark.parametrize(
    "change", [{"backbone_hash": "0" * 12}, {"dtype": "bfloat16"}, {"threads": 999}, {"device": "another"}]
)
def test_a_measurement_of_something_else_is_not_used(
    pipeline: Pipeline, tmp_path: Path, change: dict[str, object]
) -> None:
    other = here(pipeline, **change)
    put_beside_the_model(pipeline, other.model_dump_json())
    assert latency_of(pipeline, tmp_path / "cache") != other


def test_a_damaged_measurement_in_the_model_directory_is_an_error_that_names_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    put_beside_the_model(pipeline, here(pipeline).model_dump_json().replace('"overhead_ms":0.0', '"overhead_ms":-1'))
    with pytest.raises(CheckpointError, match=r"latency/.*overhead_ms"):
        latency_of(pipeline, tmp_path / "cache")


def test_device_names_become_file_names() -> None:
    assert device_slug("NVIDIA H200") == "nvidia-h200"
    assert device_slug("AMD EPYC (tm) 9B14 @ 2.6GHz") == "amd-epyc-tm-9b14-2-6ghz"


def test_steps_that_skip_their_cores_are_measured_where_a_served_plan_has_them(
    tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    content["plans"][-1]["skips"] = {"core": [1, 2, 4], "weak": [3]}
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    file = profile_to_file(pipeline, None, repeats=2, command="", console=Console(file=io.StringIO()))
    skipped = [(step.weak_level, step.batch) for step in read_latency(file).steps if step.is_skipped]
    assert sorted(skipped, key=str) == sorted(((weak, batch) for weak in (None, 1) for batch in (1, 4)), key=str)
    costs = cost_table(read_latency(file), "32x32")
    assert costs.knows_skips("32x32")
    assert costs.steps_ms.keys() >= {(StepKind("32x32", 1, weak, is_skipped=True), 1) for weak in (None, 1)}
    (tiny_model_dir / "quality.json").unlink()
    assert known_latency(Pipeline.load(tiny_model_dir, device="cpu")) == read_latency(file)


def test_a_first_start_measures_them_too_and_reads_nothing_off_them(
    tiny_model_dir: Path, make_quality: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    content = make_quality(model_hash=read_config(tiny_model_dir).model_hash)
    content["plans"][-1]["skips"] = {"core": [1, 2, 4], "weak": []}
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    served = served_steps(pipeline.config, pipeline.shape_names, pipeline.device, pipeline.quality)
    executor = Executor(pipeline, num_slots=4, keeps=served.keeps)
    latency = latency_of_steps(pipeline, executor, served, clock=CLOCK, cache_folder=tmp_path)
    assert {(step.weak_level, step.is_interpolated) for step in latency.steps if step.is_skipped} == {
        (None, False),
        (1, False),
    }


def on_a_gpu(pipeline: Pipeline) -> StepSet:
    """What a GPU would be prepared for, with fewer batches."""
    return replace(served_steps(pipeline.config, pipeline.shape_names, torch.device("cuda")), batches=(1, 2, 4))


def test_mixed_steps_are_measured_in_batches_of_two_and_more(pipeline: Pipeline) -> None:
    latency = measure(pipeline, Executor(pipeline, num_slots=4), on_a_gpu(pipeline), clock=CLOCK, repeats=1)
    mixed = {(step.level, step.weak_level, step.batch) for step in latency.steps if step.is_mixed}
    assert mixed == {(level, weak, batch) for level in (2, 4) for weak in (None, 1) for batch in (2, 4)}
    costs = cost_table(Latency.model_validate_json(latency.model_dump_json()), "32x32")
    assert costs.mixed_levels("32x32", 1) == (1, 2, 4)
    assert costs.mixed_levels("32x32", 4) == ()  # nothing of the kind is captured
    text = io.StringIO()
    Console(file=text, width=200).print(_as_table(latency))
    assert text.getvalue().count("up to 4") == 2


def test_a_first_start_measures_no_mixed_steps_where_it_measures_few(pipeline: Pipeline, tmp_path: Path) -> None:
    executor, served = Executor(pipeline, num_slots=4), on_a_gpu(pipeline)
    latency = latency_of_steps(pipeline, executor, served, clock=CLOCK, cache_folder=tmp_path)
    assert {(step.level, step.weak_level, step.batch) for step in latency.steps} == {
        (kind.level, kind.weak_level, batch) for kind, batch in served.costs if not kind.is_mixed
    }
    assert not any(step.is_mixed for step in latency.steps)


def test_a_file_without_mixed_steps_is_used_and_then_none_are_captured(pipeline: Pipeline) -> None:
    served = on_a_gpu(pipeline)
    assert prepared_steps(pipeline, served) == served  # nothing is known, so all will be measured
    latency = measure(pipeline, Executor(pipeline, num_slots=4), served, clock=CLOCK, repeats=1)
    unmixed = latency.model_copy(update={"steps": tuple(step for step in latency.steps if not step.is_mixed)})
    put_beside_the_model(pipeline, unmixed.model_dump_json())
    assert known_latency(pipeline, served) == unmixed
    prepared = prepared_steps(pipeline, served)
    assert not any(kind.is_mixed for kind, _ in [*prepared.costs, *prepared.captures])
    assert set(prepared.costs) == {(kind, batch) for kind, batch in served.costs if not kind.is_mixed}


def test_mixed_steps_of_a_file_that_are_not_captured_are_not_used(pipeline: Pipeline) -> None:
    """As those of a menu that has changed since."""
    served = on_a_gpu(pipeline)
    latency = measure(pipeline, Executor(pipeline, num_slots=4), served, clock=CLOCK, repeats=1)
    put_beside_the_model(pipeline, latency.model_dump_json())
    assert known_latency(pipeline, served) == latency
    gone = StepKind("32x32", 4, 1, is_mixed=True)
    known = known_latency(pipeline, served.without({gone}))
    assert known is not None
    assert set(latency.steps) - set(known.steps) == {step for step in latency.steps if step.kind("32x32") == gone}


def test_a_server_of_small_batches_takes_a_file_that_knows_larger_ones(pipeline: Pipeline) -> None:
    served = on_a_gpu(pipeline)
    latency = measure(pipeline, Executor(pipeline, num_slots=4), served, clock=CLOCK, repeats=1)
    put_beside_the_model(pipeline, latency.model_dump_json())
    known = known_latency(pipeline, prepared_steps(pipeline, served, max_batch=2))
    assert known is not None
    assert {step.batch for step in known.steps} == {1, 2}


@pytest.fixture
def several_sizes(tiny_model_dir: Path) -> Path:
    """The tiny model, which is asked for two sizes."""
    file = tiny_model_dir / "config.json"
    config = json.loads(file.read_text())
    config["shapes"] = {"32x32": [3, 32, 32], "16x24": [3, 16, 24]}
    file.write_text(json.dumps(config))
    return tiny_model_dir


def test_steps_of_every_size_are_measured_and_a_server_of_some_takes_theirs(several_sizes: Path) -> None:
    file = profile_to_file(
        Pipeline.load(several_sizes, device="cpu"), None, repeats=1, command="", console=Console(file=io.StringIO())
    )
    costs = cost_table(read_latency(file))
    assert costs.shapes == ("32x32", "16x24")
    both = known_latency(Pipeline.load(several_sizes, device="cpu"))
    assert both is not None
    assert cost_table(both).shapes == costs.shapes
    one = known_latency(Pipeline.load(several_sizes, device="cpu", sizes=["24x16"]))
    assert one is not None
    assert cost_table(one).shapes == ("16x24",)
    assert {step.shape for step in one.steps} == {answer.shape for answer in one.answers} == {"16x24"}
