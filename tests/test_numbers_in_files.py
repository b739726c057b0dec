"""Every number of every file, put to extremes one after another: it works, or one line names it and what is allowed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elit_serve.catalogue import ModelQuality, bundled_models, cost_table
from elit_serve.engine.checkpoint import read_spec
from elit_serve.errors import ElitError
from elit_serve.evaluation.report.folder import read_measurements
from elit_serve.files.latency import read_latency
from elit_serve.files.quality import read_quality
from elit_serve.nn import build_empty
from elit_serve.plans.grid import time_grid
from elit_serve.plans.step_kind import StepKind
from elit_serve.server.keys import read_keys

GARDEN = bundled_models() / "garden64"
EXTREMES = [-(10**30), -1, 0, 0.5, 1e-320, 4096, 10**9, 10**30, 1e308, math.nan, math.inf, -math.inf, True, None, "1"]
Place = tuple[str | int, ...]


def numbers_of(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where in a document a number stands; of a list, its first and its last entry stand for all."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key != "provenance":
                yield from numbers_of(member, (*place, key))
    elif isinstance(value, list):
        for index in {0, len(value) - 1} if value else set():
            yield from numbers_of(value[index], (*place, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


def with_number(document: Any, place: Place, value: object) -> Any:
    changed = copy.deepcopy(document)
    part = changed
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    return changed


def use_config(folder: Path) -> None:
    config, spec = read_spec(folder)
    build_empty(spec)
    sampling = config.sampling
    grid = time_grid(sampling.steps, sampling.time_shift)
    assert grid == sorted(grid)
    sampling.plan(max(config.levels))


def use_latency(folder: Path) -> None:
    table = cost_table(read_latency(folder / "latency.json"))
    costs = [
        cost
        for level in table.levels
        for cap in (None, 1)
        for cost in table.row(StepKind.capped(table.shapes[0], level, cap))
    ]
    assert all(0 <= cost < 1e9 for cost in costs)
    assert math.isfinite(table.overhead_ms + 1000 * max(costs))


def use_quality(folder: Path) -> None:
    quality = ModelQuality(read_quality(folder / "quality.json"))
    plan = quality.file.plan(quality.file.default)
    levels = sorted(quality.file.levels)
    values = [quality.table.at(level) for level in levels]
    values += [quality.table.of_plan(measured, [levels[0]] * measured.num_steps) for measured in quality.table.plans]
    values += [quality.of(plan.plan.at_level(level)) or 1.0 for level in levels]
    assert all(0 < value <= 1 for value in values)


FILES: dict[str, tuple[Path, Callable[[Path], None]]] = {
    "config.json": (GARDEN / "config.json", use_config),
    "latency.json": (GARDEN / "latency" / "nvidia-h200.json", use_latency),
    "quality.json": (GARDEN / "quality.json", use_quality),
}


def distinct(places: Iterator[Place]) -> dict[str, Place]:
    """One place for each key, whatever entries of lists it is in."""
    return {".".join("#" if isinstance(step, int) else step for step in place): place for place in places}


CASES = [
    pytest.param(name, place, id=f"{name}:{key}")
    for name, (source, _) in FILES.items()
    for key, place in distinct(numbers_of(json.loads(source.read_text(encoding="utf-8")))).items()
]


def refusal(read: Callable[[], None]) -> str | None:
    """What a reader says of what it refuses; None if it takes it."""
    try:
        read()
    except ElitError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "place"), CASES)
def test_an_extreme_number_works_or_is_named(name: str, place: Place, tmp_path: Path) -> None:
    source, use = FILES[name]
    document = json.loads(source.read_text(encoding="utf-8"))
    use_source = tmp_path / name
    use_source.write_text(json.dumps(document), encoding="utf-8")
    use(tmp_path)
    for value in EXTREMES:
        use_source.write_text(json.dumps(with_number(document, place, value)), encoding="utf-8")
        line = refusal(lambda: use(tmp_path))
        assert line is None or (name in line and "\n" not in line and len(line) < 1000), value


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("config.json", ("sampling", "time_shift"), 1e-320, "sampling.time_shift: 1e-320 is not allowed; input should"),
        (
            "config.json",
            ("backbone", "zeros_between"),
            4096,
            "64 x 64 in patches of 4 with 4096 zeros between is 4297064704 tokens",
        ),
        (
            "config.json",
            ("sampling", "guidance", "scale"),
            1e300,
            "scale: 1e+300 is not allowed; input should",
        ),
        (
            "latency.json",
            ("steps", 0, "step_ms"),
            1e300,
            "steps.0.step_ms: 1e+300 is not allowed; input should",
        ),
        ("latency.json", ("steps", 0, "step_ms"), 1e-320, "steps.0.step_ms: 1e-320 is not allowed; input should be"),
        (
            "latency.json",
            ("steps", 0, "batch"),
            10**9,
            "steps.0.batch: 1000000000 is not allowed; input should",
        ),
        ("latency.json", ("overhead_ms",), -1.0, "overhead_ms: -1.0 is not allowed; input should be greater"),
        ("quality.json", ("plans", 0, "gflops"), 1e-320, "plans.0.gflops: 1e-320 is not allowed; input should be"),
        ("quality.json", ("plans", 0, "time_shift"), 1e-320, "plans.0.time_shift: 1e-320 is not allowed; input should"),
    ],
)
def test_absurd_numbers_are_refused_with_file_key_value_and_what_is_allowed(
    name: str, place: Place, value: object, words: str, tmp_path: Path
) -> None:
    source, use = FILES[name]
    document = json.loads(source.read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps(with_number(document, place, value)), encoding="utf-8")
    with pytest.raises(ElitError) as caught:
        use(tmp_path)
    assert name in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["requests_per_minute", "burst", "share"])
@pytest.mark.parametrize("value", ["0", "-1", "1e-320", "1e308", "inf", "-inf", "nan", "1" + "0" * 30])
def test_limits_of_a_key_that_nobody_can_keep_are_refused(key: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'alice = {{ sha256 = "{"0" * 64}", scopes = ["generate"], {key} = {value} }}\n')
    with pytest.raises(ElitError) as caught:
        read_keys(file)
    assert f"alice.{key} in {file}" in str(caught.value)


def test_the_page_of_an_evaluation_with_absurd_numbers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_text((GARDEN / "quality.json").read_text().replace('"gflops": ', '"gflops": -'))
    with pytest.raises(ElitError, match=r"plans\.0\.gflops: -.+ is not allowed"):
        read_measurements(tmp_path)
