"""`elit-serve grids`: pictures with longer steps against the same seeds on the whole grid, and the rule behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from elit_serve.catalogue import read_offer
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import open_features
from elit_serve.evaluation.runs.grids import (
    ChangedGrid,
    GridOptions,
    MeasuredGrid,
    changed_grid,
    judged,
    run_grids_command,
)
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.files.quality import Quality
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

Make = Callable[..., dict[str, Any]]
CHANGES = [changed_grid(word) for word in ("2", "4", "2@0.25-1", "2@0.5-1", "4@0.5-1", "2@0-0.5", "4@0-0.25")]


@pytest.fixture
def photographs(training: Path, held_out: Path) -> ReferenceOptions:
    return ReferenceOptions(reference=training, held_out=held_out, batch_size=18)


@pytest.fixture
def measured(
    tiny_model_dir: Path, tmp_path: Path, make_quality: Make, photographs: ReferenceOptions, feature_file: Path
) -> Path:
    """The tiny model with a quality.json whose plans' figures are made up."""
    pipeline = Pipeline.load(tiny_model_dir, device="cpu")
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    floor = open_evaluator(pipeline, extractor, photographs, tmp_path / "floor").floor
    own = {"model_hash": pipeline.model_hash, "features_sha256": extractor.fingerprint, "floor": vars(floor)}
    (tiny_model_dir / "quality.json").write_text(json.dumps(make_quality(**own)))
    return tiny_model_dir


def run_command(
    model: Path, photographs: ReferenceOptions, feature_file: Path, out: Path, **changes: Any
) -> tuple[Quality, str]:
    pipeline = Pipeline.load(model, device="cpu")
    said = StringIO()
    fixed: dict[str, Any] = {"levels": [4], "steps": [8], "guidances": [pipeline.config.sampling.guidance]}
    options = GridOptions(against=photographs, out=out, **{**fixed, "changes": CHANGES[:4], "repeats": 1, **changes})
    extractor = open_features(f"torchscript:{feature_file}", pipeline.device)
    return run_grids_command(pipeline, extractor, options, Console(file=said, width=160)), said.getvalue()


def test_changed_grids_are_measured_into_the_model(
    measured: Path, photographs: ReferenceOptions, feature_file: Path, tmp_path: Path
) -> None:
    before = read_offer(measured).quality
    found, said = run_command(measured, photographs, feature_file, tmp_path / "out", writes=True)
    after = read_offer(measured).quality
    assert before is not None
    assert after is not None
    assert after.file == found == before.file.model_copy(update={"grids": found.grids})
    assert found.grids is not None
    assert [grid.strides for grid in found.grids.measured] == [
        ((2, 4),),
        ((4, 2),),
        ((1, 2), (2, 3)),
        ((1, 4), (2, 2)),
    ]
    assert all(0.3 < grid.ratio.value < 3 for grid in found.grids.measured)
    assert "8 steps at 4" in said
    assert len(list((tmp_path / "out" / "features").iterdir())) == 5


def test_without_being_told_the_model_stays_as_it_is(
    measured: Path, photographs: ReferenceOptions, feature_file: Path, tmp_path: Path
) -> None:
    before = (measured / "quality.json").read_bytes()
    run_command(measured, photographs, feature_file, tmp_path / "out")
    assert (measured / "quality.json").read_bytes() == before
    assert b'"grids"' in (tmp_path / "out" / "quality.json").read_bytes()


@pytest.mark.parametrize("word", ["", "1", "2@0.5", "2@1-0.5", "2@0-2", "2.5", "2@.-1"])
def test_words_that_name_no_changed_grid_are_refused(word: str) -> None:
    with pytest.raises(InvalidInput, match="grids"):
        changed_grid(word)


def test_a_changed_grid_ends_where_the_whole_one_does() -> None:
    assert ChangedGrid(stride=4).strides(10, 1.0) == (4, 4, 2)
    assert ChangedGrid(stride=2, start=0.5).strides(8, 1.0) == (1, 1, 1, 1, 2, 2)
    assert ChangedGrid(stride=4, end=0.5).strides(10, 1.0) == (4, 4, 1, 1)


WHOLE = Plan(levels=(4,) * 40, guidance=Guidance())
RULE = Coarsening.of(WHOLE.times, {4: (0.0, 0.0, 0.08, 0.14, 0.2)}, {4: 0.35})


@pytest.mark.parametrize(
    ("strides", "is_even"), [((2, 2), True), ((4, 4, 2), True), ((1, 1, 2), False), ((2, 1, 1), False), ((6,), True)]
)
def test_a_grid_is_even_whose_last_step_alone_is_shorter(strides: tuple[int, ...], is_even: bool) -> None:
    plan = Plan(levels=(4,) * len(strides), strides=strides)
    whole = Plan(levels=(4,) * sum(strides))
    grid = MeasuredGrid(plan=plan, whole=whole, repeats=1, ratio=Estimate(value=1.0, half_width=0.0))
    assert grid.is_even == is_even


def made_up(noise: Sequence[float] = (0.0,)) -> list[MeasuredGrid]:
    """Measurements that follow the rule, but for noise."""
    grids = []
    for index, change in enumerate(CHANGES):
        strides = change.strides(40, 1.0)
        plan = Plan(levels=(4,) * len(strides), strides=strides)
        kept = 1 - RULE.lost(plan.levels, plan.strides) + noise[index % len(noise)] * (index > 1)
        ratio = Estimate(value=kept, half_width=0.0196)
        grids.append(MeasuredGrid(plan=plan, whole=WHOLE, repeats=1, ratio=ratio))
    return grids


def test_the_rule_is_found_again_in_what_follows_it() -> None:
    found = judged(made_up(), {})
    assert found.last == {4: pytest.approx(0.35)}
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.noise == pytest.approx(0.01, rel=0.01)
    assert [grid.expected for grid in found.measured] == pytest.approx([grid.ratio.value for grid in found.measured])


def test_what_the_rule_does_not_catch_is_its_error() -> None:
    found = judged(made_up(noise=(0.03, -0.03)), {})
    assert 0.02 < found.error < 0.04


def test_a_stride_for_a_part_of_the_way_needs_one_throughout() -> None:
    partly = [grid for grid in made_up() if grid.plan.strides[0] != 4 or len(set(grid.plan.strides)) > 1]
    with pytest.raises(InvalidInput, match="a stride of 4 for a part of the way"):
        judged(partly, {})
    with pytest.raises(InvalidInput, match="2 even grids"):
        judged(made_up()[:2], {})
