"""Charts: marks, bars and floors lie where they belong, inside a page and in files."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from elit_serve.charts import SERIES, Chart, Point, Series, check_file, inline_svg, save
from elit_serve.errors import InvalidInput, MissingPackage
from elit_serve.plans.estimate import Estimate

POINTS = (
    Point(x=3, y=Estimate(value=20, half_width=0), text="a < b", tag="2"),
    Point(x=1, y=Estimate(value=10, half_width=2), text="first"),
)
CHART = Chart(title="t", x_label="x", y_label="y", series=(Series(name="s", points=POINTS),), floor=(10, "floor"))


class Drawing:
    """What stands in an element for a page."""

    def __init__(self, chart: Chart) -> None:
        self.source = inline_svg(chart)
        self.root = ElementTree.fromstring(self.source)
        self.texts = [element.text for element in self.root.iter("text")]

    @property
    def marks(self) -> dict[str, tuple[float, float]]:
        """Places of points, by the text that a pointer shows."""
        uses = [use for use in self.root.iter("use") if use.find("title") is not None]
        return {use.findtext("title", ""): (float(use.attrib["x"]), float(use.attrib["y"])) for use in uses}

    def lines(self, colour: str, *, dashed: bool = False) -> list[list[float]]:
        """x, y, x, y of every straight line of a colour; those of the legend have a point between."""
        lines = []
        for path in self.root.iterfind(".//g/path"):
            style, numbers = path.get("style", ""), re.findall(r"[\d.]+", path.get("d", ""))
            if f"stroke: var({colour}," in style and ("dasharray" in style) == dashed and len(numbers) == 4:
                lines.append([float(number) for number in numbers])
        return lines


def test_a_chart_puts_points_bars_and_the_floor_where_they_belong() -> None:
    drawing = Drawing(CHART)
    first, second = drawing.marks["first"], drawing.marks["a < b"]
    assert first[0] < second[0]
    assert first[1] > second[1]  # upwards is less
    (floor,) = drawing.lines("--soft", dashed=True)
    assert floor[1] == floor[3] == pytest.approx(first[1])
    bar, in_legend = drawing.lines("--s0")  # nothing is known but the value of the second point
    assert bar[0] == bar[2] == pytest.approx(first[0])
    assert (bar[1] + bar[3]) / 2 == pytest.approx(first[1])
    assert in_legend[1] > bar[1]
    assert {"x", "y", "s", "floor", "2"} <= set(drawing.texts)


def test_a_joined_series_is_a_line_from_left_to_right() -> None:
    drawing = Drawing(replace(CHART, series=(Series(name="s", points=POINTS, joined=True),)))
    line = [*drawing.marks["first"], *drawing.marks["a < b"]]
    assert pytest.approx(line) in drawing.lines("--s0")


def test_bars_end_at_the_limits_and_a_point_without_an_interval_has_none() -> None:
    points = (
        Point(x=1, y=Estimate(value=99, half_width=5), text="high"),
        Point(x=2, y=Estimate(value=-1e-9, half_width=5), text="low"),
        Point(x=3, y=Estimate(value=50, half_width=float("inf")), text="alone"),
    )
    limited = replace(CHART, series=(Series(name="s", points=points),), floor=None, y_limits=(0.0, 100.0))
    drawing = Drawing(limited)
    bars = {
        text: line for text, (x, _) in drawing.marks.items() for line in drawing.lines("--s0") if line[0] == approx(x)
    }
    assert set(bars) == {"high", "low"}
    bottom, top = bars["high"][1::2]
    y = drawing.marks["high"][1]
    assert bottom - y == pytest.approx(5 * (y - top), rel=0.01)
    assert max(bars["low"][1::2]) == approx(drawing.marks["low"][1])


def approx(value: float) -> object:
    return pytest.approx(value, abs=0.01)


def test_series_are_told_apart_by_shape_and_colour_and_muted_ones_lie_below() -> None:
    def point(at: int) -> Point:
        return Point(x=at, y=Estimate(value=at, half_width=1), text=f"point {at}")

    series = [Series(name=f"s{at}", points=(point(at),)) for at in range(1, len(SERIES) + 1)]
    series.append(Series(name="others", points=(point(20),), is_muted=True))
    drawing = Drawing(replace(CHART, series=tuple(series)))
    marks = [use for use in drawing.root.iter("use") if use.find("title") is not None]
    colours = [re.findall(r"fill: var\((--\w+)", mark.attrib["style"])[0] for mark in marks]
    assert colours == ["--muted", *(f"--s{index}" for index in range(len(SERIES)))]
    shapes = {path.attrib["id"]: path.attrib["d"] for path in drawing.root.iter("path") if path.get("id")}
    assert len({shapes[mark.attrib["href"][1:]] for mark in marks}) == len(marks)


@pytest.mark.parametrize(
    ("values", "marked"),
    [
        ((8.0, 120.0), ["10", "20", "50", "100"]),
        ((101.0, 104.0), ["101", "102", "103", "104"]),
        ((2.0,), ["2"]),
    ],
)
def test_a_logarithmic_axis_has_round_numbers(values: tuple[float, ...], marked: list[str]) -> None:
    points = tuple(Point(x=value, y=Estimate(value=-1, half_width=0)) for value in values)
    chart = replace(CHART, series=(Series(name="s", points=points),), floor=None, log_x=True)
    drawing = Drawing(chart)
    assert set(marked) <= set(drawing.texts)
    assert "nan" not in drawing.source
    chosen = Drawing(replace(chart, x_ticks=values))
    assert {f"{value:g}" for value in values} <= set(chosen.texts)
    assert not {"10", "20", "50"} & set(chosen.texts)


def test_a_series_may_be_empty() -> None:
    drawing = Drawing(replace(CHART, series=(*CHART.series, Series(name="none", points=()))))
    assert len(drawing.marks) == 2
    assert "none" in drawing.texts


def test_whatever_it_is_called_is_text() -> None:
    strange = "</svg><script>alert('x')</script> $\\bad$ & #1f62c9"
    named = tuple(Series(name=strange, points=(replace(point, text=strange, tag=strange),)) for point in POINTS)
    with pytest.warns(UserWarning, match="Glyph 1 "):
        drawing = Drawing(replace(CHART, title=strange, x_label=f"{strange}\x01", y_label=strange, series=named))
    assert drawing.texts.count(strange) == 6
    assert drawing.root.attrib["aria-label"] == drawing.root.findtext("title")
    assert "<script" not in drawing.source


def test_a_drawing_has_words_and_nothing_that_acts_on_the_page_around_it() -> None:
    drawing = Drawing(CHART)
    assert drawing.root.attrib["role"] == "img"
    assert drawing.root.attrib["aria-label"] == drawing.root.findtext("title") == "t"
    assert drawing.root.findtext("desc") == "y, against x: s"
    assert not {"style", "script", "metadata"} & {element.tag for element in drawing.root.iter()}
    assert "http" not in drawing.source
    other = Drawing(replace(CHART, title="other"))
    ids = [{element.get("id") for element in each.root.iter() if element.get("id")} for each in (drawing, other)]
    assert not ids[0] & ids[1]


def test_the_same_chart_is_the_same_drawing_in_every_thread_and_leaves_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    charts = [replace(CHART, title=f"chart {index}") for index in range(4)] * 2
    alone = [inline_svg(chart) for chart in charts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(inline_svg, charts)) == alone
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["drawn.png", "drawn.svg", "drawn.pdf"])
def test_a_drawing_is_saved_as_its_name_ends(name: str, tmp_path: Path) -> None:
    check_file(tmp_path / name, field="plot")
    save([[CHART, CHART], [CHART, replace(CHART, heading=("above", "it"))]], tmp_path / name, title="both < one")
    content = (tmp_path / name).read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[name[-3:]])
    if name.endswith("png"):
        with Image.open(tmp_path / name) as image:
            assert image.width == 4 * 720
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}
            assert tuple(bytes.fromhex(SERIES[0][1:])) in colours
    if name.endswith("svg"):
        assert b"both &lt; one" in content


def test_a_drawing_needs_a_folder_and_a_known_ending(tmp_path: Path) -> None:
    for file in (tmp_path / "drawn.gif", tmp_path / "gone" / "drawn.png"):
        with pytest.raises(InvalidInput, match="plot"):
            check_file(file, field="plot")


def test_matplotlib_is_imported_when_a_chart_is_drawn() -> None:
    users = "elit_serve.charts, elit_serve.bench.comparison.command, elit_serve.evaluation.report.page"
    program = f"import sys, {users}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"elit-serve\[charts\]"):
        check_file(tmp_path / "drawn.png", field="plot")
    with pytest.raises(MissingPackage, match="matplotlib"):
        inline_svg(CHART)
