"""What is done with pictures: cropping, encoding with provenance inside the file, grids.

Knows Pillow and nothing else of elit-serve but its errors, the names of formats, and the writer of PNGs.
"""

from __future__ import annotations

import io
import json
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from elit_serve.errors import InvalidInput
from elit_serve.files.writing import write_whole
from elit_serve.plans.formats import FILE_QUALITY, OUTPUT_FORMATS, OutputFormat, PngCompression
from elit_serve.png import png

TEXT_PX = 13
MIN_CELL_PX = 128  # in labelled grids
GAP_PX = 2

_FACTS_KEY = "elit-serve"
_EXIF_IMAGE_DESCRIPTION = 0x010E


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred crop of the aspect ratio height : width, resized to it."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    crop_width, crop_height = width / scale, height / scale
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def encode(
    image: Image.Image,
    output_format: OutputFormat,
    facts: Mapping[str, object],
    *,
    quality: int = FILE_QUALITY,
    compression: PngCompression = "fast",
) -> bytes:
    """The encoded file of an RGB picture, with `facts` as JSON inside it (PNG text `elit-serve`, EXIF image description
    otherwise).

    The same image and facts give the same bytes. `quality` is for JPEG and lossy WebP, `compression` for PNG.
    """
    text = json.dumps(dict(facts), sort_keys=True)
    if output_format == "png":
        return _PNG_WRITERS[compression](image, text)
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = text
    buffer = io.BytesIO()
    image.save(buffer, output_format.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def _fast_png(image: Image.Image, text: str) -> bytes:
    return png(np.asarray(image), {_FACTS_KEY: text})


def _small_png(image: Image.Image, text: str) -> bytes:
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text(_FACTS_KEY, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunk)
    return buffer.getvalue()


_PNG_WRITERS: dict[PngCompression, Callable[[Image.Image, str], bytes]] = {"fast": _fast_png, "small": _small_png}


def format_of(path: str | os.PathLike[str]) -> OutputFormat:
    """By the name of the file. Raises `InvalidInput` for `output` if it is none that can be written."""
    suffix = Path(path).suffix.lower().lstrip(".")
    for known in OUTPUT_FORMATS:
        if known == {"jpg": "jpeg"}.get(suffix, suffix):
            return known
    raise InvalidInput("output", os.fspath(path), f"a name ending in .{', .'.join(OUTPUT_FORMATS)} or .jpg")


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """All of it or nothing. Raises `InvalidInput` for `output` if it cannot be written."""
    write_whole(Path(path), data, field="output")


def write_sheet(file: Path, sheet: Image.Image, *, field: str = "out") -> None:
    """As PNG, all of it or nothing. Raises `InvalidInput` for `field` if it cannot be written."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_whole(file, buffer.getvalue(), field=field)


def read_facts(data: bytes) -> dict[str, object] | None:
    """The facts that `encode` put into a file, or None."""
    with Image.open(io.BytesIO(data), formats=OUTPUT_FORMATS) as image:
        text = image.info.get(_FACTS_KEY) or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if not isinstance(text, str):
        return None
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        return None
    return facts if isinstance(facts, dict) else None


def grid(rows: Sequence[Sequence[Image.Image]], *, scale: int = 1, gap: int = 2) -> Image.Image:
    """Pictures side by side on white; all of one size, enlarged by a whole factor."""
    width, height = (side * scale for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * (width + gap), y * (height + gap)))
    return sheet


def labelled(
    rows: Sequence[Sequence[Image.Image]], *, row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """A grid of pictures of one size on white, with text at the left of each row, of a line or several, and above each
    column. Small pictures are enlarged by a whole factor, so that the text can be read beside them."""
    row_labels, column_labels, font = _drawable(row_labels, column_labels)
    scale = max(1, MIN_CELL_PX // rows[0][0].width)
    pictures = grid(rows, scale=scale, gap=GAP_PX)
    width, height = (side * scale + GAP_PX for side in rows[0][0].size)
    left = 8 + max(int(font.getlength(line)) for text in row_labels for line in text.splitlines())
    top = TEXT_PX + 8 if column_labels else 0
    sheet = Image.new("RGB", (left + pictures.width, top + pictures.height), "white")
    sheet.paste(pictures, (left, top))
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(row_labels):
        draw.text(
            (left - 4, top + row * height + height // 2), text, fill="black", font=font, anchor="rm", align="right"
        )
    for column, text in enumerate(column_labels):
        position = (left + column * width + width // 2, top // 2)
        draw.text(position, _shortened(text, width, font), fill="black", font=font, anchor="mm")
    return sheet


def _drawable(
    row_labels: Sequence[str], column_labels: Sequence[str]
) -> tuple[Sequence[str], Sequence[str], ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The labels and a font that has their letters: Pillow's own has ASCII only.

    For others the machine's DejaVu is used, and where there is none, letters lose their accents.
    """
    own = ImageFont.load_default(TEXT_PX)
    if all(text.isascii() for text in (*row_labels, *column_labels)):
        return row_labels, column_labels, own
    try:
        return row_labels, column_labels, ImageFont.truetype("DejaVuSans.ttf", TEXT_PX)
    except OSError:
        return [_plain(text) for text in row_labels], [_plain(text) for text in column_labels], own


def _plain(text: str) -> str:
    """In ASCII, a question mark for what has no letter there.

    >>> _plain("Löwenzahn 蓮")
    'Lowenzahn ?'
    """
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode("ascii")


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def level_label(level: int, budget: float) -> str:
    """What stands beside a row of pictures at a level: it, and the budget that asks for it.

    >>> level_label(4, 0.25)
    'level 4\\nbudget 0.25'
    """
    return f"level {level}\nbudget {budget:.3g}"
