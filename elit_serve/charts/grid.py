"""A grid of charts with one legend: inside a page, or in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elit_serve.charts.canvas import Canvas, PixelCanvas, SvgCanvas
from elit_serve.charts.chart import HEADING_LINE, HEIGHT, LEFT, WIDTH, Chart
from elit_serve.errors import InvalidInput

FILE_KINDS = (".png", ".svg", ".pdf")
LEGEND_LINE = 22
TITLE_LINE = 32


@dataclass(frozen=True, kw_only=True)
class ChartGrid:
    """rows: of charts, all of the same length; the legend is that of the first. title: written above if it is shown."""

    title: str
    rows: tuple[tuple[Chart, ...], ...]
    shows_title: bool = False

    def svg(self) -> str:
        """An `svg` element for a page that has the `style`."""
        canvas = SvgCanvas(*self._size, self.title)
        self._draw(canvas)
        return canvas.element()

    def save(self, file: Path) -> None:
        """A picture of the kind that the file's name ends in, see `FILE_KINDS`."""
        canvas = SvgCanvas(*self._size, self.title) if file.suffix.lower() == ".svg" else PixelCanvas(*self._size)
        self._draw(canvas)
        canvas.save(file)

    @property
    def _columns(self) -> int:
        return len(self.rows[0])

    @property
    def _legend_lines(self) -> int:
        return -(-len(self.rows[0][0].legend) // self._columns)

    @property
    def _size(self) -> tuple[float, float]:
        title = TITLE_LINE if self.shows_title else 0
        return WIDTH * self._columns, title + sum(map(_height, self.rows)) + LEGEND_LINE * self._legend_lines

    def _draw(self, canvas: Canvas) -> None:
        top = 0.0
        if self.shows_title:
            canvas.words((LEFT, TITLE_LINE / 2), self.title, "start")
            top += TITLE_LINE
        for row in self.rows:
            for column, chart in enumerate(row):
                chart.draw(canvas, (WIDTH * column, top), _heading_lines(row))
            top += _height(row)
        for place, (kind, shape, name) in enumerate(self.rows[0][0].legend):
            column, line = divmod(place, self._legend_lines)
            x, y = WIDTH * column + LEFT, top + LEGEND_LINE * line + 8
            if kind == "floor":
                canvas.path([(x - 4, y), (x + 20, y)], "floor")
            else:
                canvas.mark((x + 8, y), kind, shape)
            canvas.words((x + 26, y), name, "start")


def svg(chart: Chart) -> str:
    """A chart alone, as an `svg` element for a page that has the `style`."""
    return ChartGrid(title=chart.title, rows=((chart,),)).svg()


def check_file(file: Path, *, field: str) -> None:
    """Before a long run: whether there can be a drawing there; `field` is what an error calls it."""
    if file.suffix.lower() not in FILE_KINDS or not file.parent.is_dir():
        raise InvalidInput(field, str(file), f"a file in an existing folder, ending in {', '.join(FILE_KINDS)}")


def _heading_lines(row: Sequence[Chart]) -> int:
    return max(len(chart.heading) for chart in row)


def _height(row: Sequence[Chart]) -> float:
    return HEIGHT + HEADING_LINE * _heading_lines(row)
