"""Plots as inline SVG: points with error bars, lines and a floor. Colours come from the page's style sheet.

Series differ in colour and in the shape of their marks, so that neither eyes nor printers need colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400  # of the whole drawing
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 16, 56  # margins around the plot
MARK = 5  # half the size of a mark
LEGEND_LINE = 22
PADDING = 0.06  # of the range of values, so that no mark touches the frame
SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{MARK}"/>',
    lambda x, y: f'<rect x="{x - MARK:.1f}" y="{y - MARK:.1f}" width="{2 * MARK}" height="{2 * MARK}"/>',
    lambda x, y: f'<path d="M{x:.1f} {y - MARK:.1f}l{MARK} {2 * MARK}h{-2 * MARK}z"/>',
    lambda x, y: (
        f'<path d="M{x:.1f} {y - MARK - 1:.1f}l{MARK + 1} {MARK + 1}l{-MARK - 1} {MARK + 1}l{-MARK - 1} {-MARK - 1}z"/>'
    ),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured point; its error bar reaches `half_width` up and down. `text` is shown when a pointer rests on it."""

    x: float
    y: float
    half_width: float = 0.0
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind; `joined` draws a line through them from left to right."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of several series.

    title: for those who cannot see it. floor: a dashed line with its name. log_x: logarithmic. x_ticks: what to mark
    there instead of round values.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    floor: tuple[float, str] | None = None
    log_x: bool = False
    x_ticks: tuple[float, ...] = ()

    def svg(self) -> str:
        """The drawing, as an `svg` element."""
        height = HEIGHT + LEGEND_LINE * (len(self.series) + (self.floor is not None))
        return "".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(self.title)}">',
                f"<title>{escape(self.title)}</title>",
                *self._axes(),
                *self._floor(),
                *(part for index, series in enumerate(self.series) for part in self._drawn(index, series)),
                *self._legend(),
                "</svg>",
            ]
        )

    def _axes(self) -> Iterator[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in ticks(*self._y_range):
            y = self._y(value)
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>'
        for value in self.x_ticks or (log_ticks if self.log_x else ticks)(*self._x_range):
            x = self._x(value)
            yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{value:g}</text>'
        yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        middle = (LEFT + right) / 2
        yield f'<text x="{middle}" y="{bottom + 44}" text-anchor="middle">{escape(self.x_label)}</text>'
        turned = f"rotate(-90 16 {(TOP + bottom) / 2})"
        label = escape(self.y_label)
        yield f'<text x="16" y="{(TOP + bottom) / 2}" text-anchor="middle" transform="{turned}">{label}</text>'

    def _floor(self) -> Iterator[str]:
        if self.floor is not None:
            yield f'<path class="floor" d="M{LEFT} {self._y(self.floor[0]):.1f}H{WIDTH - RIGHT}"/>'

    def _drawn(self, index: int, series: Series) -> Iterator[str]:
        points = sorted(series.points, key=lambda point: point.x)
        yield f'<g class="s{index % len(SHAPES)}">'
        if series.joined and len(points) > 1:
            path = "L".join(f"{self._x(point.x):.1f} {self._y(point.y):.1f}" for point in points)
            yield f'<path class="line" d="M{path}"/>'
        for point in points:
            x, y = self._x(point.x), self._y(point.y)
            if point.half_width:
                top, bottom = self._y(point.y + point.half_width), self._y(point.y - point.half_width)
                yield f'<path class="bar" d="M{x:.1f} {top:.1f}V{bottom:.1f}m-4 0h8M{x - 4:.1f} {top:.1f}h8"/>'
            yield f"<g><title>{escape(point.text)}</title>{SHAPES[index % len(SHAPES)](x, y)}</g>"
        yield "</g>"

    def _legend(self) -> Iterator[str]:
        names = [(f"s{i % len(SHAPES)}", series.name) for i, series in enumerate(self.series)]
        if self.floor is not None:
            names.append(("floor", self.floor[1]))
        for place, (kind, name) in enumerate(names):
            x, y = LEFT, HEIGHT + LEGEND_LINE * place + 8
            mark = SHAPES[place % len(SHAPES)](x + 8, y) if kind != "floor" else f'<path d="M{x - 4} {y}h24"/>'
            yield f'<g class="{kind}">{mark}</g><text x="{x + 26}" y="{y + 5}">{escape(name)}</text>'

    @property
    def _points(self) -> list[Point]:
        return [point for series in self.series for point in series.points]

    @property
    def _x_range(self) -> tuple[float, float]:
        return _padded([point.x for point in self._points], self.log_x)

    @property
    def _y_range(self) -> tuple[float, float]:
        ends = [point.y + side * point.half_width for point in self._points for side in (-1, 1)]
        return _padded(ends + ([self.floor[0]] if self.floor else []), False)

    def _x(self, value: float) -> float:
        low, high = self._x_range
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


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
