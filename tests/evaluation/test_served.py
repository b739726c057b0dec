"""The sweep and the check of served pictures with a real model, real features and photographs."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import open_features
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.served import measure_served, read_served, remake
from elit_serve.evaluation.runs.sweep.command import (
    SweepWords,
    guidance_of,
    part_of,
    run_sweep_command,
)
from elit_serve.files.quality import Quality
from elit_serve.files.records import RequestEnding, RequestRecord, write_records
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

QUIET = Console(file=StringIO())


def words(out: Path, **changes: object) -> SweepWords:
    given = {
        "levels": [1, 2, 4],
        "steps": [1, 2],
        "guidance": "none,ccfg:2/1,ag:2/2@0.5-1",
        "schedules": None,
        "part": "1/1",
        "latency": None,
        "out": out,
        "max_repeats": 2,
        "max_measurements": None,
        "first_repeat": 0,
        "writes_defaults": True,
    }
    return SweepWords(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def photographs(training: Path, held_out: Path) -> ReferenceOptions:
    return ReferenceOptions(reference=training, held_out=held_out, batch_size=18)


@pytest.fixture
def swept(tiny_model_dir: Path, tmp_path: Path, photographs: ReferenceOptions, feature_file: Path) -> Quality:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    quality = run_sweep_command(pipeline, extractor, photographs, words(tmp_path / "sweep"), QUIET)
    assert quality is not None
    return quality


def record(plan: Any, levels: list[int]) -> RequestRecord:
    guidance = {**asdict(plan.guidance), "weak_budget": 0.25}
    done = {"planned_s": 5.0, "sent_s": 5.0, "ended_s": 5.5, "latency_ms": 700.0, "ending": "done"}
    return RequestRecord.model_validate(
        {**done, "levels": [levels], "strides": [[1] * len(levels)], "guidance": guidance}
    )


def test_served_levels_are_made_again_and_compared(
    swept: Quality, tiny_model_dir: Path, tmp_path: Path, photographs: ReferenceOptions, feature_file: Path
) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    plan = next(plan for plan in swept.plans if plan.steps == 2 and plan.guidance.method == "ccfg")
    file = tmp_path / "records.jsonl"
    refused = record(plan, [1, 1]).model_copy(update={"ending": RequestEnding.REFUSED, "levels": None})
    write_records(file, [record(plan, [1, 4]), refused, record(plan, [2, 2]), record(plan, [4, 4])])
    served = read_served(file, pipeline)
    assert [each.levels for each in served] == [(1, 4), (2, 2), (4, 4)]
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    evaluator = open_evaluator(pipeline, extractor, photographs, tmp_path / "sweep")
    found = measure_served(pipeline, evaluator, extractor, served)
    assert (found.num_served, found.num_plans, found.num_samples) == (3, 3, 18)
    assert found.error == found.interpolated - found.measured.value
    assert 0 < found.feature_distance < 1
    assert 20 < found.psnr_db < 54.2
    full = measure_served(pipeline, evaluator, extractor, served[2:])
    assert full.feature_distance == 0
    own = evaluator.measure(served[2], repeats=1).scores.frechet.value
    assert full.distance.value == pytest.approx(own, rel=1e-4)


def test_another_number_of_pictures_than_the_model_was_measured_with_is_refused(
    swept: Quality, tiny_model_dir: Path, tmp_path: Path, photographs: ReferenceOptions, feature_file: Path
) -> None:
    content = swept.model_dump(mode="json")
    extractor = open_features(f"torchscript:{feature_file}", torch.device("cpu"))
    for change, field in (({"num_samples": 715}, "held_out"), ({"features_sha256": "0" * 64}, "features")):
        (tiny_model_dir / "quality.json").write_text(json.dumps(content | change))
        pipeline = Pipeline.load(tiny_model_dir, device="cpu")
        evaluator = open_evaluator(pipeline, extractor, photographs, tmp_path / "sweep")
        with pytest.raises(InvalidInput) as refused:
            measure_served(pipeline, evaluator, extractor, [Plan(levels=(4, 4))])
        assert refused.value.field == field


def test_pictures_made_again_are_those_of_the_pipeline(tiny_model_dir: Path) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    guidance = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.4, 1.0))
    plans = [Plan(levels=levels, guidance=guidance) for levels in ((1, 4, 2), (4, 4), (1, 2, 2))]
    made = remake(pipeline, plans, pipeline.conditions, [5, 6, 7], batch_size=2)
    for index, plan in enumerate(plans):
        alone = pipeline.sample([pipeline.conditions[index]], [5 + index], plan)[0].permute(1, 2, 0)
        assert torch.allclose(made[index].float() / 255, alone, atol=1.01 / 255)


def test_the_sweep_went_into_the_model(swept: Quality, tiny_model_dir: Path) -> None:
    loaded = Pipeline.load(tiny_model_dir, device="cpu")
    assert loaded.quality == ModelQuality(swept, precision="float32", can_skip=True)
    assert loaded.config.sampling.steps == swept.plan(swept.default).steps
    assert len(swept.plans) == 2 * 3 + 2 * (3 + 6) + 2 * 1  # of one step, of two, and autoguidance
    assert swept.num_samples == 18


@pytest.mark.parametrize("text", ["", "{", '{"ending": "done"}', '{"ending": "refused"}'])
def test_a_file_that_holds_no_served_pictures_is_named(tiny_model_dir: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(text)
    with pytest.raises(InvalidInput, match="records"):
        read_served(file, Pipeline.load(tiny_model_dir, device="cpu"))


def test_guidance_is_spelled_in_a_word() -> None:
    assert guidance_of("none") == Guidance()
    assert guidance_of("cfg:3") == Guidance(method="cfg", scale=3.0)
    wanted = Guidance(method="ccfg", scale=4.5, weak_level=2, interval=(0.1, 1.0))
    assert guidance_of("ccfg:4.5/2@0.1-1") == wanted
    for word in ("magic:2", "ccfg", "ccfg:1.2.3", "cfg:3@1"):
        with pytest.raises(InvalidInput, match="guidance"):
            guidance_of(word)
    with pytest.raises(InvalidInput, match="part"):
        part_of("3/2")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"levels": [1, 7]}, "levels"),
        ({"guidance": "ccfg:2/7"}, "guidance"),
        ({"schedules": "1-7"}, "schedules"),
        ({"schedules": "4-1"}, "schedules"),
        ({"steps": [0]}, "steps"),
        ({"part": "0/2"}, "part"),
        ({"max_measurements": 3}, "max_measurements"),
        ({"latency": Path("gone.json")}, "cost"),
    ],
)
def test_bad_words_are_named_before_anything_is_sampled(
    tiny_model_dir: Path,
    tmp_path: Path,
    photographs: ReferenceOptions,
    feature_file: Path,
    changes: dict[str, object],
    field: str,
) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    with pytest.raises(InvalidInput) as refused:
        run_sweep_command(pipeline, extractor, photographs, words(tmp_path / "sweep", **changes), QUIET)
    assert refused.value.field == field
