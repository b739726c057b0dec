"""`elit-serve tournament` on a small table: what a cell is, what standings say, and rivals of an earlier run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from elit_serve.bench.comparison.standings import Standings, standings_table
from elit_serve.bench.comparison.tournament import Cell, Result, Scene, Tournament, play, with_rivals_of
from elit_serve.errors import InvalidInput

TIGHT, LOOSE = Cell("gentle", "poisson", "tight", 1.0), Cell("gentle", "poisson", "loose", 1.0)


def result(quality: float, num_late: int = 0) -> Result:
    return Result(effective_quality=quality, attainment=0.9, num_accepted=9, num_late=num_late)


def test_the_best_rival_of_a_cell_is_that_cell_s_and_the_best_mean_that_of_one_rival() -> None:
    standings = Standings.of(
        "elastic",
        {
            TIGHT: {
                "elastic": [result(0.5), result(0.7)],
                "slackfit": [result(0.6), result(0.62)],
                "ewma": [result(0.4), result(0.4)],
            },
            LOOSE: {
                "elastic": [result(0.9), result(0.9, num_late=1)],
                "slackfit": [result(0.5), result(0.5)],
                "ewma": [result(0.8), result(0.8)],
            },
        },
    )
    tight, loose = standings.cells
    assert (tight.best_rival, loose.best_rival) == ("slackfit", "ewma")
    assert tight.difference.value == pytest.approx(-0.01)
    assert tight.difference.half_width == pytest.approx(12.7062 * 0.09, rel=1e-4)  # Student's t with one degree
    assert loose.difference.value == pytest.approx(0.1)
    assert standings.worst is tight
    assert standings.behind == [tight]
    assert (standings.rival, standings.rival_mean) == ("ewma", pytest.approx(0.6))
    assert standings.mean == pytest.approx(0.75)
    assert (standings.num_late, standings.num_accepted) == (1, 36)
    assert "worst cell -1.0 points (gentle, poisson, tight, load 1, slackfit)" in standings.summary
    assert standings_table(standings).row_count == 3  # a heading and two cells


def small(cost: Path, **changes: object) -> Tournament:
    given = {
        "scenes": (Scene(cost=str(cost)),),
        "traces": ("poisson",),
        "targets": ("tight", "usual"),
        "loads": (1.0,),
        "seeds": 2,
        "requests": 12,
        "noise": 0.1,
        "policies": ("elastic", "slackfit-step", "fixed"),
    }
    return Tournament(**{**given, **changes})  # type: ignore[arg-type]


def test_every_policy_plays_in_every_cell_and_rivals_can_be_taken_from_an_earlier_run(
    cost: Path, tmp_path: Path
) -> None:
    tournament = small(cost)
    results = play(tournament, jobs=2)
    assert set(results) == {
        Cell(curve, "poisson", targets, 1.0) for curve in ("gentle", "steep") for targets in ("tight", "usual")
    }
    for found in results.values():
        assert set(found) == set(tournament.policies)
        assert all(len(by_seed) == 2 for by_seed in found.values())
        assert all(0 < one.effective_quality <= one.attainment <= 1 for by_seed in found.values() for one in by_seed)

    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(tournament.as_dict(results)))
    assert with_rivals_of(earlier, tournament) == results
    with pytest.raises(InvalidInput, match="3 windows of Cell"):
        with_rivals_of(earlier, small(cost, seeds=3))
    earlier.write_text("{}")
    with pytest.raises(InvalidInput, match="tournament --json"):
        with_rivals_of(earlier, tournament)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"targets": ("tight", "whenever")}, "slo-scale"),
        ({"traces": ("gone.csv",)}, "trace"),
        ({"loads": (1.0, 0.0)}, "load"),
        ({"policies": ("elastic", "magic")}, "policy"),
        ({"scenes": (Scene.of("gone.json:quality.json"),)}, "cost"),
    ],
)
def test_bad_input_is_named_before_anything_is_played(cost: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        small(cost, **changes).check()
    assert refused.value.field == field


def test_the_command_line_prints_the_table_of_all_drawn_arrivals(cost: Path) -> None:
    options = ["--cost", str(cost), "--targets", "short", "--load", "0.8", "--requests", "6", "--seeds", "1", "--json"]
    command = [sys.executable, "-m", "elit_serve.cli", "tournament", *options, "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["cells"]) == 5 * 2
    assert report["num_behind"] <= len(report["cells"])
    assert report["conditions"]["requests"] == 6
