"""Charts, the one way to make them in Python: points with bars, lines and a floor, in a file or inside a page.

    chart = Chart(title="Quality", x_label="level", y_label="quality", series=(Series(name="model", points=points),))
    save([[chart, other]], Path("both.png"))
    inline_svg(chart)                                        # an element for a page, in the colours of its style sheet

matplotlib, of the extra `charts`, is imported when one is drawn. Series differ in colour and in the shape of their
marks, so that neither eyes nor printers need colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import chain
from math import inf, nan
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from elit_serve.errors import InvalidInput, MissingPackage
from elit_serve.files.writing import write_whole
from elit_serve.plans.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

FILE_KINDS = (".png", ".svg", ".pdf")
WIDTH, HEIGHT, LINE = 720, 400, 18  # of a chart, and of a line of text above it; in points, pixels of a page
MARKS = "osD^vPX<>p"
SERIES = ("#1f62c9", "#c2570c", "#23803f", "#8a3fb5", "#a11d2b", "#0b7c86", "#7a5c00", "#b0307f", "#7b4a2d")
TEXT, SOFT, GRID, MUTED = "#1c1e21", "#5d6470", "#d9dce1", "#a3a8b0"
# What a page's style sheet may call these colours, to have others, as in the dark.
VARIABLES = {TEXT: "--text", SOFT: "--soft", GRID: "--line", MUTED: "--muted"} | {
    colour: f"--s{index}" for index, colour in enumerate(SERIES)
}
FONT = "DejaVu Sans"  # comes with matplotlib; a page has its own
SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("figure.constrained_layout.h_pad", "figure.constrained_layout.w_pad"), 0.1),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon"), False),
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "font.family": FONT, "font.size": 14},
    **{"svg.fonttype": "none", "text.parse_math": False},  # text stays text, and a dollar a dollar
}
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that XML cannot hold
ALONE = Lock()  # matplotlib's settings are the process's


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured point; its bar is the interval, where there is one.

    text: shown when a pointer rests on it in a page. tag: written beside it.
    """

    x: float
    y: Estimate
    text: str = ""
    tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind. joined: by a line from left to right. is_muted: others stand out from it."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False
    is_muted: bool = False

    @property
    def from_left(self) -> list[Point]:
        return sorted(self.points, key=lambda point: point.x)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of several series.

    title: for those who cannot see it. heading: lines above it. floor: a dashed line with its name.
    log_x: logarithmic. x_ticks: what to mark there instead of round values.
    y_limits: what is shown even where nothing lies, and where bars end.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    heading: tuple[str, ...] = ()
    floor: tuple[float, str] | None = None
    log_x: bool = False
    x_ticks: tuple[float, ...] = ()
    y_limits: tuple[float, float] | None = None


def check_file(file: Path, *, field: str) -> None:
    """Before a long run: whether a chart can be drawn there; `field` is what an error calls it."""
    check_package()
    if file.suffix.lower() not in FILE_KINDS or not file.parent.is_dir():
        raise InvalidInput(field, str(file), f"a file in an existing folder, ending in {', '.join(FILE_KINDS)}")


def check_package() -> None:
    """Whether charts can be drawn at all. Raises `MissingPackage`."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackage("matplotlib", "charts") from None


def save(rows: Sequence[Sequence[Chart]], file: Path, *, title: str = "") -> None:
    """A grid of charts, in the format that the name ends in.

    The legend is that of the first. Charts of a row have one scale for y; what is marked on x stands in the last row.
    """
    with _drawn(rows, title) as figure:
        drawn = BytesIO()
        figure.savefig(drawn, format=file.suffix.lower().removeprefix("."), dpi=144)
    write_whole(file, drawn.getvalue(), field="plot")


def inline_svg(chart: Chart) -> str:
    """An `svg` element for a page, with everything escaped; always the same for the same chart."""
    drawn = StringIO()
    with _drawn([[chart]], "") as figure:
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(CONTROLS.sub("", drawn.getvalue()))
    _fit_into_page(root, chart)
    names = ", ".join(series.name for series in chart.series)
    for tag, text in (("desc", f"{chart.y_label}, against {chart.x_label}: {names}"), ("title", chart.title)):
        root.insert(0, ElementTree.Element(tag))
        root[0].text = text
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": chart.title}
    return CONTROLS.sub("", ElementTree.tostring(root, encoding="unicode"))


def _fit_into_page(root: ElementTree.Element, chart: Chart) -> None:
    """Marks tell their text, and font and colours are the page's; nothing is left that would act on the whole page.

    The ids that stay are those of marks: hashes, which the chart's title goes into.
    """
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)
        if "style" in element.attrib:
            style = element.attrib["style"].replace(f"'{FONT}'", "system-ui, sans-serif")
            for colour, name in VARIABLES.items():
                style = style.replace(colour, f"var({name}, {colour})")
            element.attrib["style"] = style
    for index, series in enumerate(chart.series):
        for mark, point in zip(root.iterfind(f".//*[@id='series-{index}']//use"), series.from_left, strict=True):
            ElementTree.SubElement(mark, "title").text = point.text
    used = {mark.attrib["href"] for mark in root.iter("use")}
    for element in root.iter():
        element[:] = [child for child in element if child.tag not in ("metadata", "style", "clipPath")]
        if f"#{element.get('id')}" not in used:
            element.attrib.pop("id", None)


@contextmanager
def _drawn(rows: Sequence[Sequence[Chart]], title: str) -> Iterator[Figure]:
    """A figure, to be saved inside, where matplotlib's settings are ours."""
    check_package()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = sum(HEIGHT + LINE * max(len(chart.heading) for chart in row) for row in rows)
    with ALONE, rc_context(SETTINGS | {"svg.hashsalt": rows[0][0].title}):
        figure = Figure(figsize=(WIDTH * len(rows[0]) / 72, height / 72), layout="constrained")
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey="row")
        handles = [_draw(axes, chart) for axes, chart in zip(grid.flat, chain(*rows), strict=True)]
        widths, width = [50 + 8 * len(handle.get_label()) for handle in handles[0]], WIDTH * len(rows[0])
        columns = len(widths) if sum(widths) < width else max(1, width // max(widths))
        figure.legend(handles=handles[0], loc="outside lower center", ncols=columns)
        figure.suptitle(title)
        yield figure


def _draw(axes: Axes, chart: Chart) -> list[Any]:
    """Everything but the legend, whose entries are returned."""
    from matplotlib.ticker import LogLocator

    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.set_title("\n".join(chart.heading), loc="left", fontsize=12)
    if chart.log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
    handles: list[Any] = [_draw_series(axes, index, chart) for index in range(len(chart.series))]
    if chart.x_ticks:
        axes.set_xticks(chart.x_ticks, [f"{x:g}" for x in chart.x_ticks])
    if chart.y_limits:
        pad = 0.02 * (chart.y_limits[1] - chart.y_limits[0])
        axes.set_ylim(chart.y_limits[0] - pad, chart.y_limits[1] + pad)
    if chart.floor:
        handles.append(axes.axhline(chart.floor[0], color=SOFT, linewidth=2, linestyle="--", label=chart.floor[1]))
    axes.label_outer()
    return handles


def _draw_series(axes: Axes, index: int, chart: Chart) -> ErrorbarContainer:
    series = chart.series[index]
    drawn = axes.errorbar(
        [point.x for point in series.from_left],
        [point.y.value for point in series.from_left],
        yerr=list(zip(*(_bar(point.y, chart.y_limits) for point in series.from_left), strict=True)),
        label=series.name,
        color=MUTED if series.is_muted else SERIES[index % len(SERIES)],
        zorder=2 if series.is_muted else 3,
        marker=MARKS[index % len(MARKS)],
        markersize=4 if series.is_muted else 7,
        linestyle="-" if series.joined else "none",
        capsize=3,
    )
    drawn.lines[0].set_gid(f"series-{index}")
    for point in series.points:
        place = point.x, point.y.value
        axes.annotate(point.tag, place, xytext=(-6, 6), textcoords="offset points", ha="right", fontsize=12)
    return drawn


def _bar(y: Estimate, limits: tuple[float, float] | None) -> tuple[float, float]:
    """How far it reaches downwards and upwards; not a number where there is none."""
    if not (y.has_interval and y.half_width):
        return nan, nan
    low, high = limits or (-inf, inf)
    return max(0.0, min(y.half_width, y.value - low)), max(0.0, min(y.half_width, high - y.value))
