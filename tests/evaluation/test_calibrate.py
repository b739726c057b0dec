"""What a threshold means for a model: fitted on its own pictures, and kept beside its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.skips import embedding_shares, share_of
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.evaluation.runs.calibrate import calibrate, fitted, output_shares
from elit_serve.files.skips import SkipCalibration, read_skips, write_skips
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import SkipRule, Skips
from elit_serve.sampling import initial_noise


@pytest.fixture
def pipeline(tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(tiny_model_dir, device="cpu")


def calibration_of(pipeline: Pipeline, **changes: object) -> SkipCalibration:
    fields = {
        "model": "tiny",
        "model_hash": pipeline.model_hash,
        "polynomial": [0.1, 0.0, 2.0],
        "lowest": 0.1,
        "highest": 0.5,
        "error": 0.01,
        "mean": 0.2,
        "steps": [4],
        "levels": [4],
        "guidance": {"method": "none"},
        "num_samples": 2,
    }
    return SkipCalibration.model_validate(fields | changes)


def test_shares_of_the_embedding_depend_on_the_times_alone(pipeline: Pipeline) -> None:
    embedded = pipeline.model.time_embedding(torch.tensor([0.0, 0.25, 0.5]))
    by_hand = [float((embedded[i + 1] - embedded[i]).abs().sum() / embedded[i].abs().sum()) for i in (0, 1)]
    assert embedding_shares(pipeline, (0.0, 0.25, 0.5)) == pytest.approx(by_hand, rel=1e-4)


@torch.inference_mode()
def test_shares_of_the_output_are_those_of_the_main_passes_core(pipeline: Pipeline) -> None:
    plan = Plan(levels=(3,) * 3, guidance=Guidance(method="ccfg", scale=2.0, weak_level=1))
    conditions, seeds = [pipeline.conditions[0], pipeline.conditions[2]], [4, 5]
    given, none = torch.tensor([0, 2]), torch.tensor([3, 3])
    x, outputs = initial_noise(seeds, pipeline.shapes[0].size), []
    for t, t_next in zip(plan.times, plan.times[1:], strict=False):
        at, change = torch.full((2,), t), CoreChange()
        main = pipeline.model(x, at, given, 3, changes=[change])
        weak = pipeline.model(x, at, none, 1)
        x = x + (t_next - t) * (2 * main - weak)
        assert change.output is not None
        outputs.append(change.output)
    by_hand = [share_of(outputs[1], outputs[0]), share_of(outputs[2], outputs[1])]
    assert output_shares(pipeline, plan, conditions, seeds) == pytest.approx(by_hand, rel=1e-4)


def test_the_fit_finds_a_polynomial_and_says_what_it_leaves() -> None:
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    polynomial, error = fitted(shares, [0.1 + 2 * share**2 for share in shares])
    assert polynomial == pytest.approx((0.1, 0, 2, 0, 0), abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)
    polynomial, error = fitted([0.1, 0.1, 0.2, 0.2], [0.0, 0.2, 0.3, 0.3])
    assert polynomial == pytest.approx((-0.1, 2.0))
    assert error == pytest.approx(0.1 / 2**0.5)


def test_outside_the_fit_its_nearest_end_counts_and_nothing_is_below_zero(pipeline: Pipeline) -> None:
    calibration = calibration_of(pipeline)
    assert calibration.expected([0.0, 0.3, 9.0]) == pytest.approx([0.12, 0.28, 0.6])
    assert calibration_of(pipeline, polynomial=[-1.0]).expected([0.3]) == [0.0]


def test_a_calibrated_model_skips_by_its_own_threshold_and_a_picture_says_what_it_skipped(pipeline: Pipeline) -> None:
    write_skips(calibration_of(pipeline, polynomial=[0.1]), pipeline.path / "skips.json")
    calibrated = Pipeline.load(pipeline.path, device="cpu")
    plan = calibrated.plan(steps=8, skips=SkipRule(threshold=0.25))
    assert plan.skips == Skips(core=(1, 2, 4, 5))
    assert pipeline.plan(steps=8, skips=SkipRule(threshold=0.25)).skips != plan.skips
    picture = calibrated.run([calibrated.conditions[0]], [1], plan)[0]
    again = calibrated.generate(0, seed=1, levels=picture.facts["levels"], skips=Skips(**picture.facts["skips"]))
    assert again.image.tobytes() == picture.image.tobytes()


def test_a_calibration_of_other_weights_is_passed_over_and_a_bad_one_stops_the_load(pipeline: Pipeline) -> None:
    file = pipeline.path / "skips.json"
    write_skips(calibration_of(pipeline, model_hash="f" * 12), file)
    assert load_checkpoint(pipeline.path).calibration is None
    file.write_text(file.read_text().replace('"polynomial"', '"polynomials"'))
    with pytest.raises(CheckpointError, match=r"skips\.json: polynomial"):
        load_checkpoint(pipeline.path)


def test_a_model_is_calibrated_from_the_command_line(tiny_model_dir: Path) -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "calibrate", tiny_model_dir]
    options = ["--steps", "4,6", "--samples", "3", "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    calibration = read_skips(tiny_model_dir / "skips.json")
    assert (calibration.steps, calibration.levels, calibration.num_samples) == ((4, 6), (1, 4), 3)
    assert calibration.lowest < calibration.highest
    assert load_checkpoint(tiny_model_dir).calibration == calibration
    assert calibration.provenance["device"]


def test_too_few_steps_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidInput, match="at least 3"):
        calibrate(pipeline, steps=(2,), levels=(4,), num_samples=1)
