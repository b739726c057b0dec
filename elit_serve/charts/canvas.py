"""What charts are drawn on: SVG, whose colours come from a style sheet, or pixels.

Series differ in colour and in the shape of their marks, so that neither eyes nor printers need colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, ImageDraw, ImageFont

XY = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
PILLOW_ANCHORS: Mapping[Anchor, str] = {"start": "lm", "middle": "mm", "end": "rm"}

MARK, MUTED_MARK = 5, 3  # half the size of a mark
TEXT_PX, NOTE_PX = 15, 12
SCALE, SMOOTHING = 2, 2  # pixels for each unit of a drawing; drawn so many times larger first, as lines have no edges
MUTED = "muted"  # a series that others stand out from
LIGHT: Mapping[str, str] = {
    "text": "#1c1e21",
    "soft": "#5d6470",
    "line": "#d9dce1",
    "floor": "#6b7280",
    MUTED: "#a3a8b0",
    "s0": "#1f62c9",
    "s1": "#c2570c",
    "s2": "#23803f",
    "s3": "#8a3fb5",
    "s4": "#a11d2b",
    "s5": "#0b7c86",
    "s6": "#7a5c00",
    "s7": "#b0307f",
}
DARK: Mapping[str, str] = {
    "text": "#e6e8eb",
    "soft": "#a3abb8",
    "line": "#363b43",
    "floor": "#9aa3b2",
    MUTED: "#6b727d",
    "s0": "#78aaff",
    "s1": "#ff9c54",
    "s2": "#66cf85",
    "s3": "#cf94f2",
    "s4": "#ff8a8f",
    "s5": "#5cc8d1",
    "s6": "#d9b64a",
    "s7": "#f58fc8",
}
KINDS = [name for name in LIGHT if name.startswith("s") and name[1:].isdigit()]
DASHED = {"floor"}
WIDTHS: Mapping[str, float] = {"grid": 1.0, "axis": 1.0, "floor": 2.0, "line": 1.5, "bar": 1.5}
COLOURS: Mapping[str, str] = {"grid": "line", "axis": "soft", "floor": "floor"}  # a line or bar has its series'


def _polygon(corners: int, turn: float = 0.0, size: float = 1.25) -> tuple[XY, ...]:
    angles = [2 * math.pi * (corner / corners + turn) - math.pi / 2 for corner in range(corners)]
    return tuple((size * math.cos(angle), size * math.sin(angle)) for angle in angles)


def _star(points: int) -> tuple[XY, ...]:
    angles = [math.pi * corner / points - math.pi / 2 for corner in range(2 * points)]
    reach = [1.45 if corner % 2 == 0 else 0.6 for corner in range(2 * points)]
    return tuple((r * math.cos(angle), r * math.sin(angle)) for r, angle in zip(reach, angles, strict=True))


# Corners around the middle, as parts of `MARK`; none is a circle.
SHAPES: tuple[tuple[XY, ...], ...] = (
    (),
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    _polygon(3),
    _polygon(4),
    _polygon(3, turn=0.5),
    _star(5),
    _polygon(5),
    _star(4),
)


def style(colours: Mapping[str, str] = LIGHT, dark: Mapping[str, str] | None = None) -> str:
    """A style sheet for drawings in SVG, with other colours where the reader prefers them `dark`."""
    sheet = [f":root {{ {_variables(colours)} }}"]
    if dark is not None:
        sheet.append(f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(dark)} }} }}")
    sheet.append(f"svg text {{ fill: var(--text); font: {TEXT_PX}px system-ui, sans-serif; }}")
    sheet.append(f"svg text.note {{ font-size: {NOTE_PX}px; }}")
    sheet += [f".{kind} {{ fill: var(--{kind}); stroke: var(--{kind}); }}" for kind in (*KINDS, MUTED)]
    for name, width in WIDTHS.items():
        stroke = f" stroke: var(--{COLOURS[name]});" if name in COLOURS else ""
        dash = " stroke-dasharray: 6 4;" if name in DASHED else ""
        sheet.append(f"path.{name} {{ fill: none;{stroke} stroke-width: {width:g};{dash} }}")
    return "\n".join(sheet)


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


class Canvas(Protocol):
    """Units are those of the drawing, from its upper left corner."""

    def path(self, points: Sequence[XY], name: str, kind: str = "") -> None:
        """A line through these points. name: of `WIDTHS`. kind: of a series, whose colour it has."""

    def mark(self, at: XY, kind: str, shape: int, text: str = "") -> None:
        """A mark of a series. shape: of `SHAPES`. text: shown when a pointer rests on it, where that can be."""

    def words(self, at: XY, text: str, anchor: Anchor, *, is_note: bool = False, turned: bool = False) -> None:
        """Text whose middle line is at this height. turned: to be read from below."""


class SvgCanvas:
    """Writes elements; classes say what they are."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._size = width, height
        self._title = title
        self._parts: list[str] = []

    def path(self, points: Sequence[XY], name: str, kind: str = "") -> None:
        through = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path class="{" ".join(filter(None, (kind, name)))}" d="M{through}"/>')

    def mark(self, at: XY, kind: str, shape: int, text: str = "") -> None:
        (x, y), size = at, _mark_size(kind)
        corners = "L".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in SHAPES[shape])
        drawn = f'<path d="M{corners}z"/>' if corners else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
        self._parts.append(f'<g class="{kind}"><title>{escape(text)}</title>{drawn}</g>')

    def words(self, at: XY, text: str, anchor: Anchor, *, is_note: bool = False, turned: bool = False) -> None:
        x, y = at
        facts = f'x="{x:.1f}" y="{y + (NOTE_PX if is_note else TEXT_PX) / 3:.1f}" text-anchor="{anchor}"'
        facts += ' class="note"' if is_note else ""
        facts += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self._parts.append(f"<text {facts}>{escape(text)}</text>")

    def element(self) -> str:
        """The drawing inside a page, which has the `style`."""
        width, height = self._size
        title = escape(self._title)
        start = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{title}"><title>{title}</title>'
        return "".join([start, *self._parts, "</svg>"])

    def save(self, file: Path) -> None:
        """The drawing alone, on white."""
        start = '<svg xmlns="http://www.w3.org/2000/svg" '
        ground = f'<style>{style()}</style><rect width="100%" height="100%" fill="#fff"/>'
        whole = self.element().replace("<svg ", start, 1).replace("</title>", f"</title>{ground}", 1)
        file.write_text(whole + "\n", encoding="utf-8")


class PixelCanvas:
    """Paints, in the colours of `LIGHT` on white."""

    def __init__(self, width: float, height: float) -> None:
        self._scale = SCALE * SMOOTHING
        self._image = Image.new("RGB", (round(width * self._scale), round(height * self._scale)), "white")
        self._draw = ImageDraw.Draw(self._image)

    def path(self, points: Sequence[XY], name: str, kind: str = "") -> None:
        colour = LIGHT[kind or COLOURS[name]]
        width = max(1, round(WIDTHS[name] * self._scale))
        for part in _dashes(points) if name in DASHED else [points]:
            self._draw.line([self._at(point) for point in part], fill=colour, width=width, joint="curve")

    def mark(self, at: XY, kind: str, shape: int, text: str = "") -> None:  # noqa: ARG002 (no pointer rests on pixels)
        (x, y), size = at, _mark_size(kind)
        if SHAPES[shape]:
            corners = [self._at((x + size * dx, y + size * dy)) for dx, dy in SHAPES[shape]]
            self._draw.polygon(corners, fill=LIGHT[kind])
        else:
            self._draw.ellipse([self._at((x - size, y - size)), self._at((x + size, y + size))], fill=LIGHT[kind])

    def words(self, at: XY, text: str, anchor: Anchor, *, is_note: bool = False, turned: bool = False) -> None:
        font = ImageFont.load_default((NOTE_PX if is_note else TEXT_PX) * self._scale)
        if not turned:
            self._draw.text(self._at(at), text, fill=LIGHT["text"], font=font, anchor=PILLOW_ANCHORS[anchor])
            return
        left, top, right, bottom = (round(side) for side in font.getbbox(text))
        line = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(line).text((-left, -top), text, fill=255, font=font)
        line = line.transpose(Image.Transpose.ROTATE_90)
        x, y = self._at(at)
        place = round(x - line.width / 2), round(y - line.height / 2)
        self._image.paste(Image.new("RGB", line.size, LIGHT["text"]), place, line)

    def save(self, file: Path) -> None:
        """In the format that the name ends in."""
        size = self._image.width // SMOOTHING, self._image.height // SMOOTHING
        self._image.resize(size, Image.Resampling.LANCZOS).save(file)

    def _at(self, point: XY) -> XY:
        return point[0] * self._scale, point[1] * self._scale


def _mark_size(kind: str) -> int:
    return MUTED_MARK if kind == MUTED else MARK


def _dashes(points: Sequence[XY], dash: float = 6, gap: float = 4) -> list[Sequence[XY]]:
    """A straight line in pieces."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    starts = [i * (dash + gap) for i in range(math.ceil(length / (dash + gap)))]

    def at(way: float) -> XY:
        share = min(way, length) / length
        return x0 + share * (x1 - x0), y0 + share * (y1 - y0)

    return [(at(start), at(start + dash)) for start in starts]
