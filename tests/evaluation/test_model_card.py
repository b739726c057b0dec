"""A whole small evaluation, from the command line to the model card."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from elit_serve.cli import main
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import TorchScriptFeatures
from elit_serve.evaluation.frechet import FeatureStatistics, frechet_distance
from elit_serve.evaluation.model_card import Benchmark, evaluate_model, evaluate_plan, evenly, prepare, sample_features
from elit_serve.evaluation.page import write_report
from elit_serve.pictures import list_photographs


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def extractor(feature_file: Path) -> TorchScriptFeatures:
    return TorchScriptFeatures(feature_file, torch.device("cpu"))


@pytest.fixture(scope="module")
def measured(pipeline: Pipeline, extractor: TorchScriptFeatures, training: Path, held_out: Path) -> Benchmark:
    return prepare(pipeline, list_photographs(training), list_photographs(held_out), extractor)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command line in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["elit-serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_samples_repeat_the_held_out_class_mix(measured: Benchmark) -> None:
    assert measured.class_ids == (0,) * 4 + (1,) * 6 + (2,) * 8
    assert measured.metric == "pooled-FD"


def test_the_floor_is_what_held_out_photographs_score(
    pipeline: Pipeline, measured: Benchmark, extractor: TorchScriptFeatures, training: Path
) -> None:
    assert measured.floor > 0
    against_itself = prepare(pipeline, list_photographs(training), list_photographs(training), extractor)
    assert against_itself.floor == pytest.approx(0, abs=1e-6)
    assert against_itself.held_out_nearest.median_distance == pytest.approx(0, abs=1e-6)


def test_a_smaller_reference_is_an_even_selection(
    pipeline: Pipeline, extractor: TorchScriptFeatures, training: Path, held_out: Path, measured: Benchmark
) -> None:
    photographs = list_photographs(training)
    smaller = prepare(pipeline, photographs, list_photographs(held_out), extractor, num_reference=30)
    assert smaller.reference.statistics.n == 30
    assert len(smaller.training_features) == 60
    expected = FeatureStatistics.of(measured.training_features[evenly(60, 30)])
    assert frechet_distance(smaller.reference.statistics, expected) == pytest.approx(0, abs=1e-6)


def test_repeats_have_seeds_of_their_own_and_can_be_repeated(pipeline: Pipeline, measured: Benchmark) -> None:
    plan = pipeline.plan(steps=2)
    first = sample_features(pipeline, plan, measured)
    assert torch.equal(sample_features(pipeline, plan, measured), first)
    assert not torch.equal(sample_features(pipeline, plan, measured, repeat=1), first)
    in_batches = sample_features(pipeline, plan, measured, batch_size=5)
    torch.testing.assert_close(in_batches, first, atol=1e-3, rtol=1e-3)  # a pixel may round the other way


def test_features_are_those_of_the_pictures_a_user_gets(
    pipeline: Pipeline, measured: Benchmark, extractor: TorchScriptFeatures
) -> None:
    plan = pipeline.plan(steps=2)
    pictures = pipeline.sample(measured.class_ids, range(18), plan)
    rounded = (pictures * 255).round() / 255
    assert not torch.equal(pictures, rounded)
    assert torch.equal(sample_features(pipeline, plan, measured), extractor(rounded))


def test_a_plan_is_measured_over_repeats(pipeline: Pipeline, measured: Benchmark) -> None:
    plan, done = pipeline.plan(budget=0.5, steps=2), []
    quality = evaluate_plan(pipeline, plan, measured, repeats=3, batch_size=10, on_pictures=done.append)
    assert done == [10, 8] * 3
    assert len(set(quality.distances)) == 3
    assert min(quality.distances) < quality.mean < max(quality.distances)
    expected = torch.tensor(quality.distances, dtype=torch.float64).std() / 3**0.5
    assert quality.standard_error == pytest.approx(float(expected))
    assert quality.mean > measured.floor  # random weights make no photographs
    assert quality.nearest_ratio > 1


def test_a_card_holds_a_row_per_level_and_the_floor(pipeline: Pipeline, measured: Benchmark) -> None:
    card = evaluate_model(pipeline, measured, pipeline.plan(steps=2), levels=[1, 4], repeats=2)
    facts = json.loads(card.as_json())
    assert [level["level"] for level in facts["levels"]] == [4, 1]
    assert facts["levels"][1]["plan"]["levels"] == [1, 1]
    assert facts["levels"][0]["distance_over_floor"] == pytest.approx(
        facts["levels"][0]["distance_mean"] / facts["floor"]
    )
    assert facts["num_samples"] == 18
    assert facts["provenance"]["dtype"] == "float32"
    table = card.as_markdown().splitlines()
    assert table[0].startswith("| budget | level | pooled-FD |")
    assert [row.split("|")[1].strip() for row in table[2:5]] == ["1", "0.25", "held-out photographs"]


def test_one_repeat_claims_no_standard_error(pipeline: Pipeline, measured: Benchmark) -> None:
    card = evaluate_model(pipeline, measured, pipeline.plan(steps=1), levels=[1], repeats=1)
    assert "±" not in card.as_markdown().splitlines()[2]
    assert json.loads(card.as_json())["levels"][0]["distance_standard_error"] is None


def test_the_command_writes_the_card_and_its_pictures(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    out = tmp_path / "results" / "tiny"
    arguments = ("evaluate", tiny_model_dir, "--reference", training, "--held-out", held_out, "--device", "cpu")
    features = ("--features", f"torchscript:{feature_file}", "--levels", "1,2,4", "--seeds", 2, "--steps", 3)
    guidance = ("--guidance", "cfg", "--scale", 1.5, "--interval-end", 0.7, "--batch-size", 8, "--show", "rose")
    assert run(monkeypatch, *arguments, *features, *guidance, "--out", out) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "budgets.png",
        "evaluation.json",
        "nearest.png",
        "table.md",
    ]
    facts = json.loads((out / "evaluation.json").read_text())
    assert facts["levels"][0]["plan"]["guidance"] == {
        "method": "cfg",
        "scale": 1.5,
        "weak_level": 1,
        "interval": [0.0, 0.7],
    }
    assert facts["provenance"]["command"].startswith("elit-serve evaluate ")
    assert (out / "table.md").read_text().strip() == capsys.readouterr().out.strip()
    with Image.open(out / "budgets.png") as budgets, Image.open(out / "nearest.png") as pairs:
        assert budgets.height > 3 * 128
        assert pairs.width > 10 * 128
    page = write_report(out).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert f"{facts['levels'][0]['distance_mean']:.1f} ± " in page


def test_bad_values_stop_the_command_before_any_sampling(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model_dir: Path,
    training: Path,
    held_out: Path,
    feature_file: Path,
) -> None:
    strangers = tmp_path / "strangers"
    shutil.copytree(held_out, strangers)
    (strangers / "rose").rename(strangers / "orchid")
    lone = tmp_path / "lone"
    shutil.copytree(held_out / "rose", lone / "rose", ignore=lambda _, names: sorted(names)[1:])
    good = {
        "--reference": training,
        "--held-out": held_out,
        "--features": f"torchscript:{feature_file}",
        "--out": tmp_path / "out",
        "--device": "cpu",
        "--seeds": 1,
        "--levels": "1",
        "--steps": 1,
    }
    for option, value, words in (
        ("--held-out", strangers, "held_out: 'orchid' is not allowed"),
        ("--held-out", lone, "held_out: 1 is not allowed; at least two photographs"),
        ("--reference", tmp_path / "nowhere", "does not exist"),
        ("--features", "inception", "features: 'inception' is not allowed; torchscript:PATH"),
        ("--levels", "1,7", "levels: 7 is not allowed"),
        ("--levels", "all", "levels: 'all' is not allowed"),
        ("--reference-size", 61, "reference_size: 61 is not allowed"),
        ("--show", "orchid", "show: 'orchid' is not allowed"),
        ("--interval-end", 1.5, "guidance.interval"),
        ("--out", feature_file, "out: "),
    ):
        arguments = [part for pair in (good | {option: value}).items() for part in pair]
        assert run(monkeypatch, "evaluate", tiny_model_dir, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_no_repeats_are_refused(pipeline: Pipeline, measured: Benchmark) -> None:
    with pytest.raises(InvalidInput, match="seeds"):
        evaluate_plan(pipeline, pipeline.plan(steps=1), measured, repeats=0)


@pytest.mark.parametrize(("count", "wanted"), [(10, 1), (10, 10), (10, 4), (715, 10), (2, 2)])
def test_an_even_selection_is_sorted_distinct_and_within_range(count: int, wanted: int) -> None:
    chosen = evenly(count, wanted)
    assert len(set(chosen)) == wanted
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(count))
