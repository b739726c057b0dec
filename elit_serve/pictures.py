"""What is done with pictures: cropping, encoding with provenance inside the file, grids.

Knows Pillow and nothing else of elit-serve but its errors.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, PngImagePlugin

from elit_serve.errors import InvalidInput

OutputFormat = Literal["png", "jpeg", "webp"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
FILE_QUALITY = 95  # of JPEG and lossy WebP, of at most 100

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
    image: Image.Image, output_format: OutputFormat, facts: Mapping[str, object], quality: int = FILE_QUALITY
) -> bytes:
    """The encoded file, with `facts` as JSON inside it (PNG text `elit-serve`, EXIF image description otherwise).

    The same image and facts give the same bytes. `quality` is for JPEG and lossy WebP.
    """
    text = json.dumps(dict(facts), sort_keys=True)
    buffer = io.BytesIO()
    if output_format == "png":
        chunk = PngImagePlugin.PngInfo()
        chunk.add_text("elit-serve", text)
        image.save(buffer, "PNG", pnginfo=chunk)
    else:
        exif = Image.Exif()
        exif[_EXIF_IMAGE_DESCRIPTION] = text
        image.save(buffer, output_format.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def format_of(path: str | os.PathLike[str]) -> OutputFormat:
    """By the name of the file. Raises `InvalidInput` for `output` if it is none that can be written."""
    suffix = Path(path).suffix.lower().lstrip(".")
    for known in OUTPUT_FORMATS:
        if known == {"jpg": "jpeg"}.get(suffix, suffix):
            return known
    raise InvalidInput("output", os.fspath(path), f"a name ending in .{', .'.join(OUTPUT_FORMATS)} or .jpg")


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Raises `InvalidInput` for `output` if it cannot be written."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise InvalidInput("output", os.fspath(path), f"it cannot be written: {error.strerror or error}") from None


def read_facts(data: bytes) -> dict[str, object] | None:
    """The facts that `encode` put into a file, or None."""
    with Image.open(io.BytesIO(data), formats=OUTPUT_FORMATS) as image:
        text = image.info.get("elit-serve") or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
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
