"""An evaluation as one HTML page for somebody who was not there: no scripts, nothing from other hosts.

Whatever comes from files is escaped: by the template in text, by `charts` in drawings.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

import elit_serve
from elit_serve.charts import Chart, Point, Series, inline_svg
from elit_serve.evaluation.report.folder import MeasuredRow, Measurements, read_measurements
from elit_serve.files.opening import read_file
from elit_serve.files.writing import write_whole
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.grid import Shift

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.jinja")
MAX_PICTURE_BYTES = 8 << 20
MAX_MARKED_LEVELS = 6
PICTURES = (
    ("budgets.png", "Samples: rows are budgets, columns classes; each column has one seed"),
    ("nearest.png", "Samples above their nearest training photographs; the lower rows are the closest pairs found"),
    ("front.png", "The measured plans and their Pareto front, as the sweep drew them"),
    ("attention/reads.png", "What the latents read at several levels and steps: orange more than uniformly, blue less"),
    ("attention/first-latent.png", "What the first latent of every group reads, the one that every level keeps"),
    ("attention/latents.png", "What each of the first latents reads, one by one"),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing or a picture, and what it shows."""

    content: Markup
    caption: str


def write_page(folder: Path) -> Path:
    """Writes `report.html` into a folder with evaluation.json, quality.json or both, and returns its path.

    Sample sheets (`budgets.png` and others of `PICTURES`) and a latency file beside them are told as well.
    """
    page, file = render(read_measurements(folder), _pictures(folder)), folder / PAGE
    write_whole(file, page, field="report")
    return file


def render(measured: Measurements, pictures: Sequence[Figure] = ()) -> str:
    """The page, as text."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["estimate"] = estimate_text
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        measured=measured,
        answers=list(answers(measured)),
        trade_offs=list(_trade_offs(measured)),
        levels=_level_chart(measured),
        guidance=_guidance_chart(measured),
        pictures=pictures,
        shown=measured.evaluated or measured.swept,
        version=elit_serve.__version__,
    )


def estimate_text(estimate: Estimate | None, digits: int = 1) -> str:
    """As `164.7 ± 1.1`; a dash for what was not measured."""
    return "–" if estimate is None else estimate.text(digits)


def answers(measured: Measurements) -> Iterator[str]:
    """What the figures say, in sentences; only what their uncertainty allows."""
    floor = measured.floor.value
    rows = measured.evaluated or measured.swept
    best = min(rows, key=lambda row: row.distance.value)
    if floor > 0:
        yield (
            f"The best measured plan (level {best.level_text}, {best.plan.num_steps} steps, guidance {best.guidance}) "
            f"scores {estimate_text(best.distance)}, {best.distance.value / floor:.2f} times the floor of {floor:.1f} "
            f"that {measured.floor_text} score."
        )
    by_level = sorted(_by_level(measured), key=lambda row: row.plan.mean_level)
    if len(by_level) > 1:
        low, high = by_level[0], by_level[-1]
        yield (
            f"With nothing but the level changed, level {low.level_text} scores {estimate_text(low.distance)} and "
            f"level {high.level_text} {estimate_text(high.distance)}: {_compared(low.distance, high.distance)}."
        )
        alike = [row for row in by_level if row is not high and row.distance.overlaps(high.distance)]
        if alike:
            names = ", ".join(row.level_text for row in alike)
            yield f"This measure cannot tell level {names} from level {high.level_text}: their intervals overlap."
    front = [row for row in measured.swept if row.on_front]
    if len(front) > 1 and front[0].gflops and front[-1].gflops and front[0].quality and front[-1].quality:
        yield (
            f"{len(front)} of {len(measured.swept)} plans are worth their cost. From the cheapest to the dearest of "
            f"them cost grows {front[-1].gflops / front[0].gflops:.1f} times and quality from "
            f"{front[0].quality.value:.3f} to {front[-1].quality.value:.3f}."
        )


def _compared(low: Estimate, high: Estimate) -> str:
    if low.overlaps(high):
        return "no difference beyond the uncertainty"
    return f"{abs(low.value / high.value - 1):.0%} {'worse' if low.value > high.value else 'better'} at the lowest"


def _by_level(measured: Measurements) -> list[MeasuredRow]:
    """Plans that differ in nothing but one level for all steps: the default's kind, or the kind with most levels."""
    rows = [row for row in measured.evaluated or measured.swept if len(set(row.plan.levels)) == 1]
    kinds: dict[tuple[object, ...], list[MeasuredRow]] = {}
    for row in rows:
        kinds.setdefault(row.sampled_like, []).append(row)
    default = [row.sampled_like for row in measured.swept if row.name == measured.default]
    if default and default[0] in kinds and not measured.evaluated:
        return kinds[default[0]]
    return max(kinds.values(), key=len, default=[])


def _level_chart(measured: Measurements) -> Figure | None:
    rows = _by_level(measured)
    if len(rows) < 2:
        return None
    return _figure(
        Chart(
            title=f"{measured.metric} at each level, beside the floor",
            x_label="level: latents kept per group",
            y_label=f"{measured.metric}, lower is better",
            series=(Series(name=_kind_text(rows[0]), points=tuple(map(_distance_by_level, rows)), joined=True),),
            floor=(measured.floor.value, f"floor: {measured.floor_text}"),
            log_x=True,
            x_ticks=tuple(sorted(row.plan.mean_level for row in rows if _is_apart(row, rows))),
        ),
        f"Distance to {measured.reference_text} against the level, everything else equal.",
    )


def _is_apart(row: MeasuredRow, rows: Sequence[MeasuredRow]) -> bool:
    """Whether a level can be marked beside the others: halves of the highest always can."""
    halves = {max(other.plan.mean_level for other in rows) / 2**power for power in range(12)}
    return len(rows) <= MAX_MARKED_LEVELS or row.plan.mean_level in halves


def _distance_by_level(row: MeasuredRow) -> Point:
    return Point(
        x=row.plan.mean_level,
        y=row.distance,
        text=f"level {row.level_text}: {estimate_text(row.distance)}",
    )


def _trade_offs(measured: Measurements) -> Iterator[Figure]:
    """Quality against FLOPs, and against time where the device was measured."""
    if len(measured.swept) < 2:
        return
    label = "quality: floor / distance, higher is better"
    for field, x_label, on in (
        ("gflops", "GFLOPs of a picture", ""),
        ("time_ms", f"milliseconds of a picture alone on {measured.timed_on}", " in measured time"),
    ):
        if any(getattr(row, field) is None for row in measured.swept):
            continue
        kinds = (
            ("worth their cost (the Pareto front)", [row for row in measured.swept if row.on_front], True),
            ("other plans", [row for row in measured.swept if not row.on_front], False),
        )
        series = tuple(
            Series(
                name=name,
                points=tuple(_quality_point(row, field) for row in rows),
                joined=on_front,
                is_muted=not on_front,
            )
            for name, rows, on_front in kinds
            if rows
        )
        chart = Chart(title=f"Quality against cost{on}", x_label=x_label, y_label=label, series=series, log_x=True)
        yield _figure(chart, f"Every measured plan{on}; bars are uncertainty, the line joins the front.")


def _quality_point(row: MeasuredRow, field: str) -> Point:
    assert row.quality is not None
    return Point(
        x=getattr(row, field),
        y=row.quality,
        text=f"{row.name}: quality {estimate_text(row.quality, 3)}",
    )


def _guidance_chart(measured: Measurements) -> Figure | None:
    """Distance against the scale for each method: at the default's levels, else where most scales were measured."""
    plans: dict[tuple[tuple[int, ...], Shift], list[MeasuredRow]] = {}
    for row in measured.swept or measured.evaluated:
        plans.setdefault((row.plan.levels, row.plan.time_shift), []).append(row)
    default = [key for key, rows in plans.items() if any(row.name == measured.default for row in rows)]
    rows = plans[default[0]] if default else max(plans.values(), key=len, default=[])
    if len({(row.plan.guidance.method, row.scale) for row in rows}) < 2:
        return None
    series = tuple(
        Series(
            name=method,
            points=tuple(
                Point(
                    x=row.scale,
                    y=row.distance,
                    text=f"{row.guidance}: {estimate_text(row.distance)}",
                )
                for row in rows
                if row.plan.guidance.method == method
            ),
        )
        for method in sorted({row.plan.guidance.method for row in rows})
    )
    chart = Chart(
        title=f"{measured.metric} against the guidance scale",
        x_label="guidance scale, 1 is off",
        y_label=f"{measured.metric}, lower is better",
        series=series,
        floor=(measured.floor.value, f"floor: {measured.floor_text}"),
    )
    level, steps = rows[0].level_text, rows[0].plan.num_steps
    return _figure(
        chart, f"Guidance methods and scales at level {level}, {steps} steps; rest a pointer for the details."
    )


def _kind_text(row: MeasuredRow) -> str:
    return f"{row.plan.num_steps} steps, guidance {row.guidance}"


def _figure(chart: Chart, caption: str) -> Figure:
    return Figure(content=Markup(inline_svg(chart)), caption=caption)  # charts escape what they are given


def _pictures(folder: Path) -> list[Figure]:
    """The sample sheets that are there, inside the page."""
    found = []
    for name, caption in PICTURES:
        file = folder / name
        with suppress(OSError):  # a page without a picture is still one
            data = base64.b64encode(read_file(file, MAX_PICTURE_BYTES)).decode()
            image = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(caption, data)
            found.append(Figure(content=image, caption=caption))
    return found
