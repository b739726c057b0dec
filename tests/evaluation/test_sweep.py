"""The sweep against an evaluator that computes quality from a formula, with noise that repeats average out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from rich.console import Console

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.checkpoint import load_checkpoint, spec_of
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.skips import with_skips
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.runs.sweep.command import guidance_of, pair_of, part_of, quarters_of, usual_levels
from elit_serve.evaluation.runs.sweep.outcome import SweepFacts, SweepOptions, sweep_to_folder
from elit_serve.evaluation.runs.sweep.search import (
    SweepGrid,
    SweptPlan,
    concave_majorant,
    in_doubt,
    pareto_front,
    plan_gflops,
    plan_name,
    recommended,
    run_sweep,
)
from elit_serve.files.config import ModelConfig
from elit_serve.files.quality import read_quality
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import SkipRule, Skips

CCFG = Guidance(method="ccfg", scale=2.0, weak_level=1)
GRID = SweepGrid(levels=(1, 2, 4), steps=(2, 4, 8), guidances=(Guidance(), CCFG), schedules=((1, 4),))


@dataclass(frozen=True)
class Measures:
    frechet: Estimate
    images_per_second: float


@dataclass
class Formula:
    """More steps, more latents and guidance are better, by less and less."""

    noise: float = 2.0
    floor: Estimate = field(default_factory=lambda: Estimate(value=50.0, half_width=1.0))
    measured: list[tuple[Plan, int]] = field(default_factory=list)

    def truth(self, plan: Plan) -> float:
        guided = 0 if plan.guidance.method == "none" else 40
        return 60 + 200 / plan.num_steps + 60 / plan.mean_level - guided

    def distances(self, sets: Iterable[tuple[Plan, int]]) -> Iterator[Measures]:
        for plan, repeat in sets:
            self.measured.append((plan, repeat))
            drawn = self.truth(plan) + Random(f"{plan} {repeat}").gauss(0, self.noise)
            yield Measures(Estimate(value=drawn, half_width=2 * self.noise), images_per_second=8 / plan.num_steps)


def swept(config: ModelConfig, evaluator: Formula, first_repeat: int = 0, budget: int = 200) -> tuple[SweptPlan, ...]:
    return run_sweep(GRID.plans(), evaluator, spec_of(config), max_repeats=4, budget=budget, first_repeat=first_repeat)


def test_the_grid_has_every_combination_once() -> None:
    plans = GRID.plans()
    assert len(plans) == len(set(plans)) == 3 * 2 * (3 + 2)
    auto = SweepGrid(levels=(1, 2, 4), steps=(2,), guidances=(Guidance(method="ag", scale=2.0, weak_level=2),))
    assert [plan.levels for plan in auto.plans()] == [(4, 4)]


@pytest.mark.parametrize(
    ("trained", "usual"),
    [
        ((1, 2, 4, 8, 16), (1, 2, 4, 8, 16)),
        (range(1, 13), (1, 2, 4, 8, 12)),
        ((3, 5, 6), (3, 5, 6)),
        ((1,), (1,)),
    ],
)
def test_the_full_level_is_always_among_those_that_are_measured_unasked(
    trained: Sequence[int], usual: tuple[int, ...]
) -> None:
    assert usual_levels(trained) == usual


@pytest.mark.parametrize("num_steps", [1, 3, 8, 20, 28, 50])
def test_the_whole_is_at_least_four_times_the_fewest_of_its_quarters(num_steps: int) -> None:
    """A server takes as many times longer steps; without four steps there are no quarters, only one step."""
    quarters = quarters_of(num_steps)
    assert num_steps // quarters[0] >= min(4, num_steps)
    assert quarters[-1] == num_steps
    assert list(quarters) == sorted(set(quarters))


def test_flops_count_both_passes_of_guided_steps(tiny_config: ModelConfig) -> None:
    spec = spec_of(tiny_config)
    late = Plan(levels=(4, 4), guidance=Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1)))
    wanted = 2 * spec.flops(4).executed + spec.flops(1).executed
    assert plan_gflops(late, spec) == pytest.approx(wanted / 1e9)
    assert plan_name(late) == "2 steps at 4, ccfg 2/1 in 0.5-1"


def test_flops_leave_out_what_is_skipped_and_names_say_how_much(tiny_config: ModelConfig) -> None:
    spec = spec_of(tiny_config)
    plan = Plan(levels=(4,) * 4, guidance=CCFG, skips=Skips(core=(2,), weak=(1, 3)))
    passes = 4 * spec.flops(4).executed + 2 * spec.flops(1).executed
    assert plan_gflops(plan, spec) == pytest.approx((passes - spec.core_flops(4) - spec.core_flops(1)) / 1e9)
    assert plan_name(plan) == "4 steps at 4, ccfg 2/1 in 0-1, without 1 cores and 2 weak passes"
    assert plan_name(replace(plan, skips=Skips(core=(1, 2)))) == "4 steps at 4, ccfg 2/1 in 0-1, without 2 cores"


def test_skips_are_an_axis_of_the_grid_and_rules_that_skip_as_much_are_one(tiny_model_dir: Path) -> None:
    rules = tuple(map(SkipRule.read, ("none", "0.0001", "1000", "2000", "weak", "1000+weak")))
    skipping = partial(with_skips, Pipeline.load(tiny_model_dir, device="cpu"))
    grid = SweepGrid(levels=(1, 4), steps=(4,), guidances=(CCFG,), skips=rules, with_skips=skipping)
    for level in (1, 4):
        skips = [plan.skips for plan in grid.plans() if plan.levels[0] == level]
        assert skips == [Skips(), Skips(core=(1, 2)), Skips(weak=(1, 3)), Skips(core=(1, 2), weak=(1, 3))]


def test_plans_that_skip_are_written_and_read_and_none_is_the_default(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Here they are as good as others and cheaper, so the front is theirs."""
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    grid = SweepGrid(
        levels=(1, 4),
        steps=(4, 8),
        guidances=(CCFG,),
        skips=(SkipRule(), SkipRule(threshold=1000.0, halves_weak=True)),
        with_skips=partial(with_skips, pipeline),
    )
    exact = Formula(noise=1e-6)
    quality = sweep_to_folder(pipeline, exact, FACTS, options(tmp_path, grid=grid, max_measurements=8), console=QUIET)
    assert quality is not None
    read = read_quality(tmp_path / "quality.json")
    assert read == quality
    assert {plan.plan for plan in read.plans} == set(grid.plans())
    assert all(plan.skips for plan in read.front)
    assert read.plan(read.default).skips is None


def test_repeats_go_to_plans_that_may_lie_on_the_front(tiny_config: ModelConfig) -> None:
    evaluator = Formula()
    points = swept(tiny_config, evaluator)
    repeats = {point.plan: point.repeats for point in points}
    front = {point.plan for point in pareto_front(points)}
    assert fmean(repeats[plan] for plan in front) > 2
    hopeless = Plan(levels=(1,) * 8)
    assert repeats[hopeless] == 1
    assert len(evaluator.measured) < 4 * len(points)


def test_the_front_keeps_its_order_with_other_seeds(tiny_config: ModelConfig) -> None:
    front = [point.plan for point in pareto_front(swept(tiny_config, Formula()))]
    again = {point.plan: point.quality.value for point in swept(tiny_config, Formula(), first_repeat=100)}
    assert len(front) >= 3
    assert [again[plan] for plan in front] == sorted(again[plan] for plan in front)


def test_the_budget_is_kept_and_must_suffice_for_one_round(tiny_config: ModelConfig) -> None:
    evaluator = Formula(noise=10.0)
    swept(tiny_config, evaluator, budget=37)
    assert len(evaluator.measured) == 37
    with pytest.raises(InvalidInput, match="at least 30"):
        swept(tiny_config, evaluator, budget=29)


def point(gflops: float, quality: float, half_width: float = 0.0, levels: tuple[int, ...] = (4,)) -> SweptPlan:
    figure = Estimate(value=quality, half_width=half_width)
    return SweptPlan(
        plan=Plan(levels=levels), gflops=gflops, repeats=1, distance=figure, quality=figure, images_per_second=1
    )


def test_a_plan_that_is_not_surely_better_than_a_cheaper_one_is_not_on_the_front() -> None:
    points = [point(1, 0.5, 0.02), point(2, 0.51, 0.02), point(3, 0.6, 0.02), point(4, 0.2, 0.02)]
    assert [chosen.gflops for chosen in pareto_front(points)] == [1, 3]
    assert [chosen.gflops for chosen in in_doubt(points)] == [1, 2, 3]


def test_the_default_is_the_best_of_one_level_that_costs_no_more_than_usual() -> None:
    points = [point(1, 0.3), point(2, 0.5), point(3, 0.6, levels=(1, 4)), point(9, 0.9)]
    assert recommended(points, 5).gflops == 2
    assert recommended(points, 9).gflops == 9
    assert recommended(points, 0.1).gflops == 1


def test_the_majorant_touches_what_is_concave_and_bridges_the_rest() -> None:
    assert concave_majorant({1: 0.2, 2: 0.5, 4: 0.6, 8: 0.5}) == {1: 0.2, 2: 0.5, 4: 0.6, 8: 0.6}
    assert concave_majorant({1: 0.2, 2: 0.3, 3: 0.6}) == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6})
    assert concave_majorant({4: 0.7}) == {4: 0.7}


def options(out: Path, **changes: object) -> SweepOptions:
    return SweepOptions(**{"grid": GRID, "out": out, "max_measurements": 100, **changes})  # type: ignore[arg-type]


FACTS = SweepFacts(
    batch_size=18,
    metric="Pooled-FD",
    features_sha256="0" * 64,
    reference="none",
    num_samples=18,
    provenance={"command": "test"},
)
QUIET = Console(file=StringIO())


def test_a_sweep_writes_what_a_model_loads(tiny_model_dir: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    quality = sweep_to_folder(
        pipeline, Formula(), FACTS, options(tmp_path / "out", writes_defaults=True), console=QUIET
    )
    assert quality is not None
    assert read_quality(tmp_path / "out" / "quality.json") == quality
    assert quality.size == "32x32"
    throughput = json.loads((tmp_path / "out" / "throughput.json").read_text())["plans"]
    assert set(throughput) == {plan.name for plan in quality.plans}
    assert throughput["2 steps at 4, unguided"]["images_per_second"] == pytest.approx(4)
    assert throughput["2 steps at 4, unguided"]["share_of_saturated"] is None  # this machine is not measured
    assert (tmp_path / "out" / "front.png").read_bytes().startswith(b"\x89PNG")
    loaded = load_checkpoint(tiny_model_dir)
    assert loaded.quality == ModelQuality(quality)
    default = quality.plan(quality.default)
    assert default.on_front
    assert loaded.config.sampling.steps == default.steps
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["provenance"] == {"command": "test"}


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "\u0661", "+1", ""])
def test_numbers_in_words_of_the_command_line_have_plain_digits_and_not_thousands(text: str) -> None:
    for read, word in ((pair_of, f"{text}-16"), (part_of, f"{text}/16"), (guidance_of, f"ccfg:4/{text}")):
        with pytest.raises(InvalidInput):
            read(word)


def test_parts_measure_disjoint_plans_and_write_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    parts = [Formula(), Formula()]
    for number, evaluator in enumerate(parts, 1):
        assert sweep_to_folder(pipeline, evaluator, FACTS, options(tmp_path, part=(number, 2)), console=QUIET) is None
    first, second = ({plan for plan, _ in evaluator.measured} for evaluator in parts)
    assert not first & second
    assert first | second == set(GRID.plans())
    assert not (tmp_path / "quality.json").exists()
    with pytest.raises(InvalidInput, match="part"):
        sweep_to_folder(pipeline, Formula(), FACTS, options(tmp_path, part=(3, 2)), console=QUIET)
