"""`elit-serve precision`: the plans of a model's quality.json in the precision of the measurements and in another."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from elit_serve.cli.sweeps import precision
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import open_features
from elit_serve.evaluation.metrics import MeasuredSet
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.precision import ComparedPlan, PrecisionOptions, run_precision_command
from elit_serve.files.quality import PlanQuality, read_quality

Make = Callable[..., dict[str, Any]]
WIDE = {"width": 160}


@pytest.fixture
def photographs(training: Path, held_out: Path) -> ReferenceOptions:
    return ReferenceOptions(reference=training, held_out=held_out, batch_size=18)


@pytest.fixture
def measured(
    tiny_model_dir: Path, tmp_path: Path, make_quality: Make, photographs: ReferenceOptions, feature_file: Path
) -> Path:
    """The tiny model with a quality.json as a sweep in float32 leaves it, though its plans' figures are made up."""
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    floor = open_evaluator(pipeline, extractor, photographs, tmp_path / "floor").floor
    own = {"model_hash": pipeline.model_hash, "features_sha256": extractor.fingerprint, "floor": vars(floor)}
    content = make_quality(**own, provenance={"dtype": "float32"})
    (tiny_model_dir / "quality.json").write_text(json.dumps(content))
    return tiny_model_dir


def run_command(
    model: Path, photographs: ReferenceOptions, feature_file: Path, out: Path, *, dtype: str, **changes: Any
) -> tuple[Any, str]:
    """What it found, and what it printed."""
    pipeline = Pipeline.load(model, device="cpu", dtype=dtype)
    said = StringIO()
    options = PrecisionOptions(against=photographs, out=out, **{"plans": ["two low steps", "rising"], **changes})
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    return run_precision_command(pipeline, extractor, options, Console(file=said, **WIDE)), said.getvalue()  # type: ignore[arg-type]


def test_bfloat16_is_compared_with_float32_and_the_server_s_quality_follows(
    measured: Path, photographs: ReferenceOptions, feature_file: Path, tmp_path: Path
) -> None:
    before = read_quality(measured / "quality.json")
    out = tmp_path / "out"
    found, said = run_command(measured, photographs, feature_file, out, dtype="bfloat16", writes=True)
    assert set(found.plans) == {"two low steps", "rising"}
    assert found.factor.value == pytest.approx(sum(ratio.value for ratio in found.plans.values()) / 2)
    assert found.factor.value == pytest.approx(1, abs=0.05)
    assert found.provenance["dtype"] == "bfloat16"
    assert all(word in said for word in ("two low steps", "rising", "mean of 2", "float32", "bfloat16"))

    after = read_quality(measured / "quality.json")
    assert after == before.model_copy(update={"precisions": {"bfloat16": found}})
    assert json.loads((out / "bfloat16.json").read_text()) == found.model_dump(mode="json")
    served = Pipeline.load(measured, device="cpu", dtype="bfloat16").quality
    assert served is not None
    assert served.table.at(4) == pytest.approx(min(1.0, 0.8 * found.factor.value))
    assert len(list((out / "features").iterdir())) == 2 * 2 * 2  # plans, sets of each, precisions


def test_without_being_told_the_model_stays_as_it_is_and_what_was_made_is_not_made_again(
    measured: Path, photographs: ReferenceOptions, feature_file: Path, tmp_path: Path
) -> None:
    before = (measured / "quality.json").read_bytes()
    options: dict[str, Any] = {"dtype": "bfloat16", "plans": ["two low steps"], "max_repeats": 1}
    first, _ = run_command(measured, photographs, feature_file, tmp_path / "out", **options)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()}
    again, _ = run_command(measured, photographs, feature_file, tmp_path / "out", **options)
    assert again.plans == first.plans
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()} == files
    assert (len(files), (measured / "quality.json").read_bytes()) == (2, before)


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"features_sha256": "0" * 64}, "features", "those of the model's quality.json, Pooled-FD"),
        ({"num_samples": 715}, "held_out", "715, as in"),
        ({"floor": {"value": 50.0, "half_width": 2.0}}, "reference", "60 made photographs"),
        ({"model_hash": "0" * 12}, "model", "of its own weights"),
        ({"provenance": {}}, "model", "whose provenance has a dtype"),
        ({"provenance": {"dtype": "bfloat16"}}, "dtype", "another one"),
    ],
)
def test_what_is_not_on_the_scale_of_the_measurements_is_refused(
    measured: Path,
    photographs: ReferenceOptions,
    feature_file: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    field: str,
    allowed: str,
) -> None:
    file = measured / "quality.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InvalidInput, match=allowed) as refused:
        run_command(measured, photographs, feature_file, tmp_path / "out", dtype="bfloat16")
    assert refused.value.field == field


def test_an_unknown_plan_and_an_unknown_dtype_are_refused(
    measured: Path, photographs: ReferenceOptions, feature_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"plan: 'gone' .* on its front are: two low steps; two steps; rising"):
        run_command(measured, photographs, feature_file, tmp_path / "out", dtype="bfloat16", plans=["gone"])
    with pytest.raises(InvalidInput, match="dtype: 'int4'"):
        precision(tmp_path, "unread", tmp_path / "out", str(measured), device="cpu", dtype="int4")


def test_the_interval_of_a_ratio_is_of_pairs(make_quality: Make) -> None:
    """Halves that are worse on both sides alike tell nothing against a ratio."""
    plan = PlanQuality.model_validate_json(json.dumps(make_quality()["plans"][0]))
    here = [MeasuredSet(frechets=(100.0, 90.0, 110.0), images_per_second=1)]
    there = [MeasuredSet(frechets=(125.0, 112.5, 137.5), images_per_second=1)]
    compared = ComparedPlan.of(plan, here, there)
    assert compared.ratio.value == pytest.approx(0.8)
    assert compared.ratio.half_width == pytest.approx(0, abs=1e-12)
    assert compared.here.half_width == pytest.approx(1.96 * 10)
