"""Charts: marks, bars and floors lie where they belong, in SVG and in pixels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from elit_serve.charts import LIGHT, Chart, ChartGrid, Point, Series, check_file, style, svg
from elit_serve.charts.chart import log_ticks, ticks
from elit_serve.errors import InvalidInput
from elit_serve.plans.estimate import Estimate

POINTS = (
    Point(x=1, y=Estimate(value=10, half_width=2)),
    Point(x=3, y=Estimate(value=20, half_width=0), text="a < b", tag="2"),
)
CHART = Chart(title="t", x_label="x", y_label="y", series=(Series(name="s", points=POINTS),), floor=(10, "floor"))


def marks(drawn: str) -> list[tuple[float, float]]:
    """Middles of the circles, the last of which is the legend's."""
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]


def lines(drawn: str, name: str) -> list[list[tuple[float, float]]]:
    """Corners of the paths of a class."""
    paths = re.findall(rf'class="(?:\w+ )?{name}" d="M([^"]+)"', drawn)
    return [[(float(x), float(y)) for x, y in (at.split() for at in path.split("L"))] for path in paths]


def test_a_chart_puts_points_bars_and_the_floor_where_they_belong() -> None:
    drawn = svg(CHART)
    first, second, _ = marks(drawn)
    assert first[0] < second[0]
    assert first[1] > second[1]  # upwards is less
    floor, in_legend = lines(drawn, "floor")
    assert floor[0][1] == floor[1][1] == pytest.approx(first[1])
    assert in_legend[0][1] > first[1]
    upright, *caps = lines(drawn, "bar")  # nothing is known but the value of the second point
    assert (upright[0][1] + upright[1][1]) / 2 == pytest.approx(first[1], abs=0.1)
    assert [cap[0][1] for cap in caps] == [upright[0][1], upright[1][1]]
    assert "a &lt; b" in drawn
    assert ">2</text>" in drawn


def test_bars_end_at_the_limits_and_a_point_without_an_interval_has_none() -> None:
    points = (Point(x=1, y=Estimate(value=99, half_width=5)), Point(x=2, y=Estimate(value=50, half_width=float("inf"))))
    limited = replace(CHART, series=(Series(name="s", points=points),), floor=None, y_limits=(0.0, 100.0))
    first, _, _ = marks(svg(limited))
    ((_, top), (_, bottom)), *_ = bars = lines(svg(limited), "bar")
    assert len(bars) == 3
    assert bottom - first[1] == pytest.approx(5 * (first[1] - top), rel=0.1)


def test_series_are_told_apart_by_shape_and_colour_and_muted_ones_lie_below() -> None:
    series = [Series(name=f"s{i}", points=(Point(x=i, y=Estimate(value=i, half_width=0)),)) for i in range(3)]
    series.append(Series(name="others", points=POINTS, is_muted=True))
    drawn = svg(replace(CHART, series=tuple(series)))
    assert drawn.index('class="muted"') < drawn.index('class="s0"')
    kinds = re.findall(r'<g class="(\w+)">', drawn)
    assert set(kinds) == {"s0", "s1", "s2", "muted"}
    for kind in kinds:
        assert f".{kind} {{" in style()


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.3, 1.04) == [0.4, 0.6, 0.8, 1.0]
    assert log_ticks(8, 120) == [10, 20, 50, 100]
    assert log_ticks(101, 104) == ticks(101, 104)
    point = Point(x=2, y=Estimate(value=0, half_width=0))
    lone = Chart(title="t", x_label="x", y_label="y", series=(Series(name="s", points=(point,)),), log_x=True)
    assert "nan" not in svg(lone)


@pytest.mark.parametrize("name", ["drawn.png", "drawn.svg", "drawn.pdf"])
def test_a_drawing_is_saved_as_its_name_ends(name: str, tmp_path: Path) -> None:
    drawing = ChartGrid(title="both < one", rows=((CHART, CHART), (CHART, CHART)), shows_title=True)
    check_file(tmp_path / name, field="plot")
    drawing.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<svg xmlns=", "pdf": b"%PDF"}[name[-3:]])
    if name.endswith("png"):
        with Image.open(tmp_path / name) as image:
            assert image.width == 4 * 720
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
            assert tuple(bytes.fromhex(LIGHT["s0"][1:])) in colours
    if name.endswith("svg"):
        assert b"both &lt; one" in content


def test_a_drawing_needs_a_folder_and_a_known_ending(tmp_path: Path) -> None:
    for file in (tmp_path / "drawn.gif", tmp_path / "gone" / "drawn.png"):
        with pytest.raises(InvalidInput, match="plot"):
            check_file(file, field="plot")
