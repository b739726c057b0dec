"""`elit-serve simulate` on small tables and traces of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from elit_serve.bench.comparison.command import (
    SimulateOptions,
    decision_times,
    looseness_by_window,
    plan_table,
    presets_as_floors,
    run_comparison,
)
from elit_serve.bench.comparison.policies import CONTENDERS
from elit_serve.bench.comparison.side_by_side import over_seeds
from elit_serve.bench.simulate.workload import Mix
from elit_serve.errors import InvalidInput

QUIET = Console(file=StringIO())
FIELDS = {
    "policy",
    "load",
    "quality_curve",
    "attainment",
    "accepted_attainment",
    "mean_quality",
    "effective_quality",
    "regret",
    "bound",
    "p50_latency_ms",
    "p99_latency_ms",
    "mean_decision_us",
    "p99_decision_us",
}


def options(cost: Path, **changes: object) -> SimulateOptions:
    given = {
        "trace": "gamma:cv=1.5",
        "cost": cost,
        "loads": (0.8, 1.4),
        "policies": ("elastic", "slackfit"),
        "slo_scales": (2.0, 4.0),
        "quality": None,
        "curves": ("gentle", "steep"),
        "seeds": 2,
        "requests": 40,
        "num_steps": 8,
        "weak_level": None,
        "noise": 0.1,
        "bias": 0.0,
        "plot": None,
    }
    return SimulateOptions(**{**given, **changes})  # type: ignore[arg-type]


def rows(chosen: SimulateOptions) -> list[dict[str, object]]:
    report, _ = run_comparison(chosen, QUIET)
    listed = report["rows"]
    assert isinstance(listed, list)
    return listed


def test_a_row_for_every_policy_load_and_curve_with_figures_that_fit_together(cost: Path) -> None:
    found = rows(options(cost, policies=("all",)))
    assert len(found) == (len(CONTENDERS) - 1) * 2 * 2  # without --strides, none of longer steps
    for row in found:
        assert set(row) >= FIELDS
        figures = {name: row[name] for name in ("attainment", "accepted_attainment", "mean_quality", "regret")}
        assert all(isinstance(value, float) and -1e-9 <= value <= 1 + 1e-9 for value in figures.values()), row
        assert row["attainment"] <= row["accepted_attainment"]  # type: ignore[operator]
        assert row["effective_quality"] <= row["attainment"]  # type: ignore[operator]
        assert row["effective_quality"] <= row["bound"]  # type: ignore[operator]
        assert row["regret_ci"] >= 0  # type: ignore[operator]


def test_steps_in_flight_are_compared_with_the_level_alone(cost: Path) -> None:
    found = rows(options(cost, loads=(2.0,), policies=("elastic", "elastic-strides"), strides="2:0.99", num_steps=8))
    for curve in ("gentle", "steep"):
        alone, strides = (row["effective_quality"] for row in found if row["quality_curve"] == curve)
        assert strides > alone  # type: ignore[operator]


@pytest.mark.parametrize("strides", ["", "2", "1:0.9", "2:1.5", "9:0.9", "2:0", "2:0.99;4:0.9"])
def test_longer_steps_that_nothing_is_known_of_are_refused(cost: Path, strides: str) -> None:
    with pytest.raises(InvalidInput, match=r"--strides beside it|STRIDE:KEPT"):
        rows(options(cost, policies=("elastic-strides",), strides=strides, num_steps=8))


def test_the_same_seeds_give_the_same_figures(cost: Path) -> None:
    def figures() -> list[object]:
        return [
            {name: row[name] for name in row if "decision" not in name}
            for row in rows(options(cost, loads=(1.4,), curves=("gentle",)))
        ]

    assert figures() == figures()


def test_a_quality_file_takes_the_place_of_the_stated_curves(
    cost: Path, tmp_path: Path, make_quality: Callable[..., dict[str, object]]
) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(make_quality(levels={"1": 0.5, "2": 0.5, "4": 0.5})))
    found = rows(options(cost, quality=file, loads=(0.8,)))
    assert [row["quality_curve"] for row in found] == ["measured", "measured"]
    assert all(row["mean_quality"] == pytest.approx(0.5) for row in found)
    assert all(row["effective_quality"] == pytest.approx(0.5 * row["attainment"]) for row in found)  # type: ignore[operator]


def test_a_slower_device_is_judged_by_what_it_could_have_done(cost: Path) -> None:
    (told,) = rows(options(cost, loads=(1.0,), curves=("gentle",), policies=("fixed",)))
    (slower,) = rows(options(cost, loads=(1.0,), curves=("gentle",), policies=("fixed",), bias=0.3))
    assert slower["bound"] < told["bound"]  # type: ignore[operator]
    assert slower["attainment"] < told["attainment"]  # type: ignore[operator]


def test_what_a_server_adds_is_charged_if_wanted(cost: Path) -> None:
    shared = {"loads": (1.0,), "curves": ("gentle",), "policies": ("fixed",)}
    (bare,), (served,) = rows(options(cost, **shared)), rows(options(cost, **shared, as_served=True))
    assert served["attainment"] <= bare["attainment"]  # type: ignore[operator]
    assert served["p50_latency_ms"] != bare["p50_latency_ms"]


def test_a_mix_is_served_by_those_who_know_it(cost: Path) -> None:
    mixed = options(cost, policies=("elastic", "fixed"), loads=(1.0,), mix=Mix(pins=0.3, unguided=0.3, batch_class=0.3))
    for row in rows(mixed):
        assert row["effective_quality"] <= row["bound"]  # type: ignore[operator]
    with pytest.raises(InvalidInput, match="slackfit"):
        rows(replace(mixed, policies=("elastic", "slackfit")))


def test_other_sizes_need_a_table_that_has_some(cost: Path) -> None:
    mixed = options(cost, policies=("elastic",), loads=(1.0,), curves=("gentle",), mix=Mix(other_sizes=0.5))
    with pytest.raises(InvalidInput, match=r"other-sizes.*more than one shape"):
        rows(mixed)
    made = json.loads(cost.read_text("utf-8"))
    halves = [{**step, "shape": "16x16", "step_ms": step["step_ms"] / 2} for step in made["steps"]]
    made["steps"] = [{**step, "shape": "32x32"} for step in made["steps"]] + halves
    cost.write_text(json.dumps(made), "utf-8")
    (some,), (none,) = rows(mixed), rows(replace(mixed, mix=Mix()))
    assert some["effective_quality"] > none["effective_quality"]  # type: ignore[operator]


@pytest.mark.parametrize("instead", [plan_table, presets_as_floors, looseness_by_window, decision_times])
def test_a_mix_is_for_policies_side_by_side(
    cost: Path, tmp_path: Path, make_quality: Callable[..., dict[str, Any]], instead: Callable[..., object]
) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(make_quality()))
    with pytest.raises(InvalidInput, match=r"images: \[1, 4\].*side by side"):
        instead(options(cost, quality=file, decisions=10, requests=6, mix=Mix(images=(1, 4))), QUIET)


def test_a_confidence_interval_is_student_s() -> None:
    estimate = over_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.half_width) == (2.0, pytest.approx(4.302653 / 3**0.5))
    assert not over_seeds([1.0]).has_interval


def test_the_picture_is_drawn(cost: Path, tmp_path: Path) -> None:
    file = tmp_path / "comparison.png"
    rows(options(cost, plot=file, policies=("fifo-step",), requests=10))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_looseness_of_the_bound_on_small_windows(cost: Path) -> None:
    report, _ = looseness_by_window(options(cost, requests=6, loads=(1.0,), seeds=1), QUIET)
    listed = report["rows"]
    assert isinstance(listed, list)
    assert [row["quality_curve"] for row in listed] == ["gentle", "steep"]
    assert all(0 <= row["looseness"] < 0.25 for row in listed)


def test_decisions_are_timed_with_many_in_flight_and_with_many_waiting(cost: Path) -> None:
    report, _ = decision_times(options(cost, decisions=30, seeds=2), QUIET)
    listed = report["rows"]
    assert isinstance(listed, list)
    assert [(row["situation"], row["seed"]) for row in listed] == [
        ("64 in flight", 0),
        ("64 in flight", 1),
        ("1,000 waiting", 0),
        ("1,000 waiting", 1),
    ]
    assert all(0 < row["p50_us"] <= row["p99_us"] <= row["max_us"] for row in listed)
    assert all(1 <= row["mean_batch"] <= 8 for row in listed)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policies": ("elastic", "magic")}, "policy"),
        ({"curves": ("wavy",)}, "curve"),
        ({"loads": (0.5, 0.0)}, "load"),
        ({"slo_scales": (float("nan"),)}, "slo-scale"),
        ({"trace": "gamma:cv=-1"}, "trace"),
        ({"trace": "gone.csv"}, "trace"),
        ({"plot": Path("comparison.gif.nonsense")}, "plot"),
        ({"plot": Path("gone/comparison.png")}, "plot"),
        ({"quality": Path("gone.json")}, "quality"),
    ],
)
def test_bad_input_is_named_before_anything_is_computed(cost: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        run_comparison(options(cost, requests=10**9, **changes), QUIET)
    assert refused.value.field == field


def test_a_missing_latency_file_is_named() -> None:
    with pytest.raises(InvalidInput, match="cost"):
        run_comparison(options(Path("gone.json")), QUIET)


@pytest.mark.parametrize("levels", ["{}", '{"1": 0.9, "4": 0.5}', '{"1": 0.1, "2": 0.2, "4": 1.0}', '{"1": -1}', "[]"])
def test_a_quality_file_that_is_no_concave_rise_is_refused(
    cost: Path, tmp_path: Path, levels: str, make_quality: Callable[..., dict[str, object]]
) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(make_quality(levels=json.loads(levels))))
    with pytest.raises(InvalidInput, match="quality"):
        run_comparison(options(cost, quality=file), QUIET)


def test_what_richer_plans_add_is_measured_on_the_same_arrivals(
    cost: Path, tmp_path: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    file = tmp_path / "menu.json"
    made = make_quality(levels={"1": 0.6, "4": 1.0}, default="half the steps")
    late = {"method": "ccfg", "scale": 2.0, "weak_level": 1, "interval": [0.1, 1.0]}
    half = {"name": "half the steps", "levels": [[2, 1], [4, 3]], "guidance": late}
    poor = {"name": "two steps", "levels": [[4, 2]]}
    made["plans"] = [
        {**made["plans"][0], **half, "quality": {"value": 0.99, "half_width": 0.0}},
        {**made["plans"][0], **poor, "quality": {"value": 0.2, "half_width": 0.0}},
    ]
    file.write_text(json.dumps(made))
    report, _ = plan_table(options(cost, quality=file, loads=(1.6,)), QUIET)
    listed = report["rows"]
    assert isinstance(listed, list)
    gains = {row["menu"]: row["gain"] for row in listed}
    assert gains.keys() == {"level alone", "half the steps", "two steps", "chosen per request"}
    assert gains["level alone"] == 0
    assert gains["half the steps"] > 0.05 > 0 > gains["two steps"]
    assert gains["chosen per request"] > gains["two steps"]


def test_a_table_of_plans_needs_plans(cost: Path) -> None:
    with pytest.raises(InvalidInput, match="plans"):
        plan_table(options(cost), QUIET)


def test_floors_share_launches_and_are_worth_more_than_exact_budgets(
    cost: Path, tmp_path: Path, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """Four steps at level 4 are worth 0.8, and share no launch with those that must run at another level."""
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(make_quality()))
    report, _ = presets_as_floors(options(cost, quality=file, loads=(1.5,), num_steps=4, requests=150), QUIET)
    listed = report["rows"]
    assert isinstance(listed, list)
    rows = {(row["share"], row["meaning"]): row for row in listed}
    assert len(rows) == 6
    for share in (0.3, 1.0):
        assert rows[share, "exact"]["num_below"] == rows[share, "quality floor"]["num_below"] == 0
    for figure in ("effective_quality", "per_launch"):
        assert rows[1.0, "exact"][figure] < rows[1.0, "quality floor"][figure], figure


def test_presets_need_measurements(cost: Path) -> None:
    with pytest.raises(InvalidInput, match="--quality beside it"):
        presets_as_floors(options(cost), QUIET)


def test_large_windows_are_not_searched(cost: Path) -> None:
    with pytest.raises(InvalidInput, match="at most 15"):
        looseness_by_window(options(cost), QUIET)


def simulate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elit_serve.cli", "simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_prints_json(cost: Path) -> None:
    shared = ["--trace", "poisson", "--cost", cost, "--steps", "4", "--requests", "20", "--seeds", "2", "--json"]
    done = simulate(*shared, "--load", "0.7,1.3", "--policy", "elastic,slackfit", "--slo-scale", "2,3,5")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["policy"] for row in report["rows"]} == {"elastic", "slackfit"}
    assert {row["quality_curve"] for row in report["rows"]} == {"gentle", "steep"}
    assert report["conditions"]["seeds"] == 2


def test_the_command_line_draws_a_mix(cost: Path) -> None:
    shared = ["--trace", "poisson", "--cost", cost, "--steps", "4", "--requests", "20", "--seeds", "1", "--json"]
    done = simulate(*shared, "--policy", "elastic", "--pins", "0.3", "--batch-class", "0.2", "--images", "1,2")
    assert done.returncode == 0, done.stderr
    mix = json.loads(done.stdout)["conditions"]["mix"]
    assert mix == {"pins": 0.3, "unguided": 0.0, "batch_class": 0.2, "other_sizes": 0.0, "images": [1, 2]}


def test_the_command_line_names_a_bad_value_on_one_line(cost: Path) -> None:
    done = simulate("--trace", "poisson", "--cost", cost, "--policy", "magic")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "policy: 'magic' is not allowed" in done.stderr
