"""`quality.json`: read strictly, all problems at once, and what the scheduler gets of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elit_serve.catalogue import ModelQuality, read_config
from elit_serve.engine.checkpoint import load_checkpoint, write_sampling
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import SamplingConfig
from elit_serve.files.quality import MAX_SERVED_PLANS, Quality, read_quality
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, PlanMenu

Make = Callable[..., dict[str, Any]]


def parsed(content: dict[str, Any]) -> ModelQuality:
    return ModelQuality(Quality.model_validate_json(json.dumps(content)))


def with_quality(model: Path, content: dict[str, Any]) -> Path:
    own = {"model_hash": read_config(model).model_hash, **content}
    (model / "quality.json").write_text(json.dumps(own))
    return model


def of_this_model(make_quality: Make, **changes: object) -> dict[str, Any]:
    content = make_quality(**changes)
    del content["model_hash"]
    return content


def test_a_model_brings_its_quality(tiny_model_dir: Path, make_quality: Make) -> None:
    assert load_checkpoint(tiny_model_dir).quality is None
    quality = load_checkpoint(with_quality(tiny_model_dir, of_this_model(make_quality))).quality
    assert quality is not None
    assert [plan.name for plan in quality.file.front] == ["two low steps", "two steps", "rising", "usual", "long"]
    assert quality.file.plan("rising").step_levels == (1, 1, 4, 4)


def test_the_quality_of_other_weights_is_passed_over(tiny_model_dir: Path, make_quality: Make) -> None:
    assert load_checkpoint(with_quality(tiny_model_dir, make_quality(model_hash="f" * 12))).quality is None


def test_a_bad_file_stops_the_load_with_all_that_is_wrong(tiny_model_dir: Path, make_quality: Make) -> None:
    content = of_this_model(make_quality, metric=3, surprise=True)
    content["plans"][0]["gflops"] = -1
    (tiny_model_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(with_quality(tiny_model_dir, content))
    problems = "\n".join(refused.value.problems)
    for part in ("model.safetensors is missing", "quality.json: metric", "quality.json: surprise", "plans.0.gflops"):
        assert part in problems


def test_levels_that_the_model_was_not_trained_at_stop_the_load(tiny_model_dir: Path, make_quality: Make) -> None:
    content = of_this_model(make_quality, levels={"1": 0.4, "5": 0.8})
    content["plans"][0]["levels"] = [[7, 2]]
    with pytest.raises(CheckpointError, match=r"5 is no trained level.*plan two low steps: 7 is no trained level"):
        load_checkpoint(with_quality(tiny_model_dir, content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"default": "gone"}, "not among the plans"),
        ({"levels": {"1": 0.9, "2": 0.5}}, "must rise"),
        ({"levels": {"1": 0.1, "2": 0.2, "4": 0.9}}, "by less and less"),
        ({"levels": {"1": 1.5}}, "levels.1: 1.5 is not allowed"),
        ({"format_version": 2}, "format_version"),
        ({"plans": []}, "plans"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, make_quality: Make, changes: dict[str, Any], said: str
) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(make_quality(**changes)))
    with pytest.raises(CheckpointError, match=said):
        read_quality(file)


def with_precisions(make_quality: Make, factor: float = 0.9, **changes: Any) -> dict[str, Any]:
    """Measured in bfloat16, and in fp8 beside it."""
    ratio = {"value": factor, "half_width": 0.01}
    fp8 = {"factor": ratio, "plans": {"usual": ratio, "long": ratio}, **changes}
    return make_quality(provenance={"dtype": "bfloat16"}, precisions={"fp8": fp8})


def test_what_another_precision_makes_of_quality_is_read_and_absent_where_it_was_not_measured(
    make_quality: Make,
) -> None:
    quality = parsed(with_precisions(make_quality)).file
    assert quality.measured_in == "bfloat16"
    assert quality.factor_in("fp8") == Estimate(value=0.9, half_width=0.01)
    assert quality.factor_in("bfloat16") == Estimate(value=1.0, half_width=0.0)
    assert quality.factor_in("float16") is None
    old = parsed(make_quality()).file
    assert (old.measured_in, old.precisions, old.factor_in("fp8")) == (None, {}, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factor": 0.0}, "0.0 is not allowed; above 0, at most 2"),
        ({"factor": 2.1}, "2.1 is not allowed; above 0, at most 2"),
        ({"plans": {"gone": {"value": 1.0, "half_width": 0.0}}}, "precisions.fp8.plans: gone is not among the plans"),
        ({"plans": {}}, "precisions.fp8.plans"),
        ({"surprise": 1}, "precisions.fp8.surprise"),
    ],
)
def test_what_no_precision_makes_of_quality_is_refused(
    tmp_path: Path, make_quality: Make, changes: dict[str, Any], said: str
) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(with_precisions(make_quality, **changes)))
    with pytest.raises(CheckpointError, match=said):
        read_quality(file)


def test_a_precision_that_is_none_or_the_measured_one_is_refused(tmp_path: Path, make_quality: Make) -> None:
    file = tmp_path / "quality.json"
    fp8 = with_precisions(make_quality)["precisions"]["fp8"]
    for dtype, precision, said in (
        ({"dtype": "bfloat16"}, "int4", r"int4.*'float32', 'bfloat16', 'float16' or 'fp8'"),
        ({"dtype": "fp8"}, "fp8", "the plans themselves were measured in fp8"),
        ({}, "fp8", "provenance must say as dtype"),
    ):
        file.write_text(json.dumps(make_quality(provenance=dtype, precisions={precision: fp8})))
        with pytest.raises(CheckpointError, match=said):
            read_quality(file)


def test_every_quality_is_multiplied_by_what_the_precision_makes_of_it(make_quality: Make) -> None:
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    for factor, at_full, at_two in ((0.9, 0.81, 0.63), (1.2, 1.0, 0.84), (None, 0.9, 0.7)):
        content = make_quality() if factor is None else with_precisions(make_quality, factor)
        quality = replace(parsed(content), precision="fp8")
        assert quality.of(Plan(levels=(4,) * 8, guidance=ccfg)) == pytest.approx(at_full)
        assert quality.table.at(2) == pytest.approx(at_two)
        assert max(plan.quality for plan in quality.table.plans) == pytest.approx(at_full)


def test_a_missing_or_huge_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="quality"):
        read_quality(tmp_path / "gone.json")
    file = tmp_path / "huge.json"
    file.write_text(" " * (1 << 21))
    with pytest.raises(CheckpointError, match="larger"):
        read_quality(file)


def test_quality_is_read_off_plans_that_are_sampled_alike(make_quality: Make) -> None:
    """From level 4 to 2 the default plan keeps 0.7 of 0.8; with two steps levels 1 and 4 are measured themselves."""
    quality = parsed(make_quality())
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    assert quality.of(Plan(levels=(4,) * 8, guidance=ccfg)) == pytest.approx(0.9)
    assert quality.of(Plan(levels=(2,) * 8, guidance=ccfg)) == pytest.approx(0.9 * 0.7 / 0.8)
    assert quality.of(Plan(levels=(1, 1), guidance=ccfg)) == pytest.approx(0.3)
    assert quality.of(Plan(levels=(2, 2), guidance=ccfg)) == pytest.approx(0.35)
    assert quality.of(Plan(levels=(4,) * 6, guidance=Guidance())) == pytest.approx(0.5)
    assert quality.of(Plan(levels=(4,) * 7, guidance=Guidance())) is None


def test_a_schedule_has_its_own_quality_and_any_other_the_mean_of_its_steps(make_quality: Make) -> None:
    quality = parsed(make_quality())
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    assert quality.of(Plan(levels=(1, 1, 4, 4), guidance=ccfg)) == pytest.approx(0.7)
    assert quality.of(Plan(levels=(4, 1), guidance=ccfg)) == pytest.approx((0.45 + 0.3) / 2)


@pytest.mark.parametrize("late", [1.0, 2.0, 3.2])
def test_how_much_late_steps_count_is_read_off_schedules_with_the_guidance_of_the_default_plan(
    make_quality: Make, late: float
) -> None:
    """Levels 1 and 4 are worth 0.4 and 0.8; half of the steps at either, in both orders."""
    content = make_quality()
    usual = content["plans"][3]

    def like_usual(name: str, levels: list[list[int]], value: float, **changes: object) -> dict[str, object]:
        return {**usual, "name": name, "levels": levels, "quality": {"value": value, "half_width": 0.01}, **changes}

    first, unguided = 0.5**late, {**usual["guidance"], "method": "none"}
    content["plans"] += [
        like_usual("low", [[1, 4]], 0.4),
        like_usual("up", [[1, 2], [4, 2]], 0.8 - 0.4 * first),
        like_usual("down", [[4, 2], [1, 2]], 0.4 + 0.4 * first),
        like_usual("up unguided", [[1, 2], [4, 2]], 0.1, guidance=unguided),
    ]
    del content["plans"][2]  # a schedule of other values
    quality = parsed(content)
    assert quality.file.late == pytest.approx(late)
    assert quality.file.late_error(quality.file.late) == pytest.approx(0, abs=1e-9)
    assert (quality.file.late_error(1) > 0.05) == (late > 1)
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    assert quality.of(Plan(levels=(1, 4, 4, 4), guidance=ccfg)) == pytest.approx(0.8 - 0.4 * 0.25**late)
    assert quality.of(Plan(levels=(4, 1), guidance=ccfg)) == pytest.approx(0.3 + 0.15 * first)


def test_without_a_schedule_all_steps_count_alike(make_quality: Make) -> None:
    content = make_quality()
    del content["plans"][2]
    assert parsed(content).file.late == 1
    assert parsed(content).file.late_error(2) == 0


def test_a_served_plan_is_worth_at_other_levels_what_was_measured_there(make_quality: Make) -> None:
    plans = {plan.name: plan for plan in parsed(make_quality()).table.plans}
    table = parsed(make_quality()).table
    assert table.of_plan(plans["two low steps"], (4, 4)) == pytest.approx(0.45)
    assert table.of_plan(plans["two low steps"], (1, 4)) == pytest.approx(0.375)
    assert table.of_plan(plans["long"], (2,) * 8) == pytest.approx(0.9 * 0.7 / 0.8)  # nothing else has eight steps


def test_what_a_plan_is_chosen_for_is_what_is_said_of_its_pictures(make_quality: Make) -> None:
    """Of every plan at every level: at its ceilings as measured, and below them by the same steps and guidance."""
    quality = parsed(make_quality())
    table = CostTable(
        steps_ms={(StepKind("32x32", level, cap), 1): 1.0 * level for level in (1, 2, 3, 4) for cap in (None, 1)},
        overhead_ms=0,
    )
    menu = PlanMenu.of(quality.table, table, "32x32")
    assert {option.plan.name for option in menu.options} == {plan.name for plan in quality.served}
    for option in menu.options:
        plan = quality.file.plan(option.plan.name)
        held = [min(option.level, level) for level in plan.step_levels]
        assert quality.of(replace(plan.plan, levels=tuple(held))) == option.quality


def test_a_long_front_is_thinned_evenly_over_cost(make_quality: Make) -> None:
    (first, *_) = make_quality()["plans"]
    many = [{**first, "name": str(i), "gflops": 1.1**i, "quality": {"value": 0.01 * i + 0.1, "half_width": 0.0}}
            for i in range(40)]  # fmt: skip
    served = parsed(make_quality(plans=many, default="0")).served
    assert len(served) == MAX_SERVED_PLANS
    assert (served[0].name, served[-1].name) == ("0", "39")


def test_what_the_served_plans_need_is_captured(tiny_model_dir: Path, make_quality: Make) -> None:
    content = make_quality()
    content["plans"][5]["guidance"] = {"method": "ccfg", "scale": 2.0, "weak_level": 2, "interval": [0.5, 1.0]}
    config, cpu = read_config(tiny_model_dir), torch.device("cpu")

    def weak_levels(quality: Quality | None) -> set[int | None]:
        return {kind.weak_level for kind in served_steps(config, ["32x32"], cpu, quality).captured if kind.level == 4}

    assert weak_levels(None) == {1, None}
    assert weak_levels(parsed(content)) == {1, 2, None}


def test_new_defaults_leave_the_weights_and_their_hash_alone(tiny_model_dir: Path) -> None:
    before = read_config(tiny_model_dir)
    write_sampling(tiny_model_dir, SamplingConfig(steps=9, guidance=Guidance(method="cfg", scale=3.0)))
    after = load_checkpoint(tiny_model_dir)
    assert after.config.sampling.steps == 9
    assert after.model_hash == before.model_hash


def test_new_defaults_leave_time_shifts_that_depend_on_the_shape_alone(tiny_model_dir: Path) -> None:
    shape = read_config(tiny_model_dir).default_shape.name
    of_shapes = SamplingConfig(time_shift=2.0, shape_shifts={shape: 3.0})
    write_sampling(tiny_model_dir, of_shapes)
    written = write_sampling(tiny_model_dir, SamplingConfig(steps=9, time_shift=3.0)).sampling
    assert written == of_shapes.model_copy(update={"steps": 9})


def with_grids(make_quality: Make, **changes: Any) -> dict[str, Any]:
    """Longer steps were measured: half of what they lose at level 4 is lost at the last one, and nothing at level 1."""
    guidance = {"method": "ccfg", "scale": 2.0, "weak_level": 1, "interval": [0.0, 1.0]}
    grid = {"level": 4, "steps": 4, "guidance": guidance, "time_shift": 1.0, "strides": [[1, 2], [2, 1]], "repeats": 1}
    measured = [{**grid, "ratio": {"value": 0.9, "half_width": 0.01}, "expected": 0.9, **changes}]
    return make_quality(grids={"last": {"1": 0.0, "4": 0.5}, "error": 0.01, "noise": 0.01, "measured": measured})


def test_steps_may_become_as_long_as_fewer_were_measured_with_the_same_guidance(make_quality: Make) -> None:
    """With this guidance eight steps are worth 0.9 at level 4, four 0.8 and two 0.45."""
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    quality = parsed(with_grids(make_quality))
    long = quality.coarsening_of(Plan(levels=(4,) * 8, guidance=ccfg))
    assert long is not None
    assert long.max_stride == 4
    assert [long.loss(4, stride) + long.end_loss(4, stride) for stride in (1, 2, 4)] == pytest.approx([0, 1 / 9, 1 / 2])
    assert long.end_loss(4, 2) == pytest.approx(1 / 18)
    usual = quality.coarsening_of(Plan(levels=(4,) * 4, guidance=ccfg))
    assert usual is not None
    assert usual.max_stride == 2
    assert quality.coarsening_of(Plan(levels=(2,) * 8, guidance=ccfg)) is long, "one object for each guidance and grid"
    assert quality.coarsening_of(Plan(levels=(4,) * 2, guidance=ccfg)) is None
    assert quality.coarsening_of(Plan(levels=(4,) * 6)) is None, "unguided, nothing else was measured"
    assert {plan.name: plan.coarsening for plan in quality.table.plans}["long"] is long
    assert parsed(make_quality()).coarsening_of(Plan(levels=(4,) * 8, guidance=ccfg)) is None


def test_a_picture_of_longer_steps_is_worth_what_they_leave_of_its_plan(make_quality: Make) -> None:
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    quality = parsed(with_grids(make_quality))

    def of(*strides: int) -> float | None:
        return quality.of(Plan(levels=(4,) * len(strides), strides=strides, guidance=ccfg))

    assert of(2, 2, 2, 2) == pytest.approx(0.8), "as four even steps"
    assert of(4, 4) == pytest.approx(0.45)
    assert of(1, 1, 1, 1, 2, 2) == pytest.approx(0.9 * (1 - (0.5 + 0.5 * 0.125) / 9))
    assert of(8) is None, "one step was not measured"
    assert of(2, 2) == pytest.approx(0.45), "of the usual plan"


def test_grids_that_do_not_come_to_their_steps_are_refused(tmp_path: Path, make_quality: Make) -> None:
    file = tmp_path / "quality.json"
    for changes, said in (
        ({"strides": [[2, 3]]}, "strides come to 6 steps of the grid, not to 4"),
        ({"strides": [[0, 4]]}, "grids.measured.0.strides"),
        ({"expected": 3.0}, "grids.measured.0.expected"),
    ):
        file.write_text(json.dumps(with_grids(make_quality, **changes)))
        with pytest.raises(CheckpointError, match=said):
            read_quality(file)
