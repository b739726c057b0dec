"""Charts, the one way to make them in Python: points with bars, lines and a floor, as SVG in a page or as a file.

    chart = Chart(title="Quality", x_label="level", y_label="quality", series=(Series(name="model", points=points),))
    svg(chart)                                                # for a page, together with `style`
    ChartGrid(title="Both", rows=((chart, other),)).save(Path("both.png"))

Nothing but Pillow is needed.
"""

from elit_serve.charts.canvas import DARK, LIGHT, style
from elit_serve.charts.chart import Chart, Point, Series
from elit_serve.charts.grid import FILE_KINDS, ChartGrid, check_file, svg

__all__ = ["DARK", "FILE_KINDS", "LIGHT", "Chart", "ChartGrid", "Point", "Series", "check_file", "style", "svg"]
