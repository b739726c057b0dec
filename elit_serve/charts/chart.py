"""One plot: what stands on it, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elit_serve.charts.canvas import KINDS, MUTED, NOTE_PX, XY, Canvas
from elit_serve.plans.estimate import Estimate

WIDTH, HEIGHT = 720, 400  # of a plot with its margins, but for what is written above it
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 16, 56  # margins
HEADING_LINE = 18
PADDING = 0.06  # of the range of values, so that no mark touches the frame
CAP = 4  # half the width of a bar's ends


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured point; the bar is its interval, where there is one.

    text: shown when a pointer rests on it. tag: written beside it.
    """

    x: float
    y: Estimate
    text: str = ""
    tag: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind. joined: a line goes through them from left to right. is_muted: others stand out from it."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False
    is_muted: bool = False

    def kind(self, index: int) -> str:
        """What style sheets call it, the `index`-th of its chart."""
        return MUTED if self.is_muted else KINDS[index % len(KINDS)]


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

    @property
    def legend(self) -> list[tuple[str, int, str]]:
        """(kind, shape, name) of every series, and of the floor."""
        entries = [(series.kind(index), index % len(KINDS), series.name) for index, series in enumerate(self.series)]
        return entries + ([("floor", 0, self.floor[1])] if self.floor is not None else [])

    def draw(self, canvas: Canvas, origin: XY, heading_lines: int) -> None:
        """Everything but the legend, below so many lines that are kept for headings."""
        _Plot(self, canvas, origin, heading_lines).draw()


class _Plot:
    """A chart at its place on a canvas."""

    def __init__(self, chart: Chart, canvas: Canvas, origin: XY, heading_lines: int) -> None:
        self._chart = chart
        self._canvas = canvas
        self._heading_at = origin[0] + LEFT, origin[1] + TOP + NOTE_PX / 2
        top = origin[1] + TOP + HEADING_LINE * heading_lines
        self._left, self._right = origin[0] + LEFT, origin[0] + WIDTH - RIGHT
        self._top, self._bottom = top, top + HEIGHT - TOP - BOTTOM
        points = [point for series in chart.series for point in series.points]
        self._x_range = _padded([point.x for point in points], chart.log_x)
        ends = [end for point in points for end in self._bar(point)]
        ends += [chart.floor[0]] if chart.floor else []
        self._y_range = _padded(ends + list(chart.y_limits or ()), False)

    def draw(self) -> None:
        self._axes()
        if self._chart.floor is not None:
            height = self._y(self._chart.floor[0])
            self._canvas.path([(self._left, height), (self._right, height)], "floor")
        for index, series in sorted(enumerate(self._chart.series), key=lambda each: not each[1].is_muted):
            self._series(index, series)

    def _axes(self) -> None:
        chart, canvas = self._chart, self._canvas
        for line, text in enumerate(chart.heading):
            at = self._heading_at[0], self._heading_at[1] + HEADING_LINE * line
            canvas.words(at, text, "start", is_note=True)
        for value in ticks(*self._y_range):
            y = self._y(value)
            canvas.path([(self._left, y), (self._right, y)], "grid")
            canvas.words((self._left - 8, y), f"{value:g}", "end")
        for value in chart.x_ticks or (log_ticks if chart.log_x else ticks)(*self._x_range):
            x = self._x(value)
            canvas.path([(x, self._top), (x, self._bottom)], "grid")
            canvas.words((x, self._bottom + 15), f"{value:g}", "middle")
        canvas.path([(self._left, self._top), (self._left, self._bottom), (self._right, self._bottom)], "axis")
        canvas.words(((self._left + self._right) / 2, self._bottom + 39), chart.x_label, "middle")
        canvas.words((self._left - LEFT + 12, (self._top + self._bottom) / 2), chart.y_label, "middle", turned=True)

    def _series(self, index: int, series: Series) -> None:
        points = sorted(series.points, key=lambda point: point.x)
        kind = series.kind(index)
        if series.joined and len(points) > 1:
            self._canvas.path([(self._x(point.x), self._y(point.y.value)) for point in points], "line", kind)
        for point in points:
            x, y = self._x(point.x), self._y(point.y.value)
            low, high = (self._y(end) for end in self._bar(point))
            if low > high:
                for bar in (
                    [(x, high), (x, low)],
                    [(x - CAP, high), (x + CAP, high)],
                    [(x - CAP, low), (x + CAP, low)],
                ):
                    self._canvas.path(bar, "bar", kind)
            self._canvas.mark((x, y), kind, index % len(KINDS), point.text)
            if point.tag:
                self._canvas.words((x - 8, y - 12), point.tag, "end", is_note=True)

    def _bar(self, point: Point) -> Iterator[float]:
        """Its ends, within the limits; the point itself where nothing is known of its uncertainty."""
        low, high = self._chart.y_limits or (-math.inf, math.inf)
        reach = point.y.half_width if point.y.has_interval else 0.0
        yield max(point.y.value - reach, min(low, point.y.value))
        yield min(point.y.value + reach, max(high, point.y.value))

    def _x(self, value: float) -> float:
        low, high = self._x_range
        if self._chart.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self._left + (value - low) / (high - low) * (self._right - self._left)

    def _y(self, value: float) -> float:
        low, high = self._y_range
        return self._bottom - (value - low) / (high - low) * (self._bottom - self._top)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values between low and high, about `count` of them.

    >>> ticks(0.3, 1.04)
    [0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between low and high; linear ticks if these are fewer than two.

    >>> log_ticks(8, 120)
    [10.0, 20.0, 50.0, 100.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) > 1 else ticks(low, high)


def _padded(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        factor = (high / low) ** PADDING if high > low else 1.5
        return low / factor, high * factor
    pad = (high - low) * PADDING or abs(high) * PADDING or 1.0
    return low - pad, high + pad
