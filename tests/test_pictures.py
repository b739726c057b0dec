"""Fitting, facts inside picture files, and grids."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFont

from elit_serve.pictures import encode, fit, grid, labelled, read_facts
from elit_serve.plans.formats import OUTPUT_FORMATS, OutputFormat, PngCompression

FACTS = {"label": "tulip", "seed": 7, "levels": [4, 4, 1], "guidance": {"scale": 2.5}}


def photograph(color: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_fit_keeps_the_centre_and_the_aspect_ratio() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))  # the middle third
    fitted = np.asarray(fit(wide, 16, 16), dtype=int)
    assert fitted.shape == (16, 16, 3)
    assert abs(fitted - (0, 0, 255)).max() < 20  # the filter's taps reach a little over the crop's edge
    assert fit(fit(wide, 16, 16), 16, 16).size == (16, 16)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_facts_travel_inside_the_file_and_its_bytes_repeat(output_format: OutputFormat) -> None:
    data = encode(photograph(), output_format, FACTS)
    assert read_facts(data) == FACTS
    assert encode(photograph(), output_format, dict(reversed(FACTS.items()))) == data
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == output_format.upper()


@pytest.mark.parametrize("compression", ["fast", "small"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (24, 1), (24, 16), (512, 640)])
def test_png_keeps_every_pixel(compression: PngCompression, size: tuple[int, int]) -> None:
    """Noise, of which no filter foretells anything, beside a surface of one colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[size[0] // 2 :] = 255
    data = encode(Image.fromarray(pixels), "png", FACTS, compression=compression)
    with Image.open(io.BytesIO(data)) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(read), pixels)
    assert read_facts(data) == FACTS


def test_a_png_has_nothing_but_what_a_strict_reader_expects() -> None:
    """Chunks in their order, each with its length and checksum, and no byte after the last."""
    data = encode(photograph(), "png", FACTS)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    kinds, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kinds.append(data[place + 4 : place + 8])
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        assert checksum == zlib.crc32(data[place + 4 : place + 8 + length])
        place += 12 + length
    assert (kinds, place) == ([b"IHDR", b"tEXt", b"IDAT", b"IEND"], len(data))


def test_a_picture_from_elsewhere_has_no_facts() -> None:
    for text in (None, "not json", "[1, 2]"):
        buffer = io.BytesIO()
        exif = Image.Exif()
        if text is not None:
            exif[0x010E] = text
        photograph().save(buffer, "JPEG", exif=exif)
        assert read_facts(buffer.getvalue()) is None


def test_a_grid_places_enlarged_pictures_with_gaps() -> None:
    red, blue = photograph((255, 0, 0), (4, 2)), photograph((0, 0, 255), (4, 2))
    sheet = grid([[red, blue], [blue]], scale=3, gap=1)
    assert sheet.size == (2 * 12 + 1, 2 * 6 + 1)
    assert [sheet.getpixel(at) for at in ((0, 0), (12, 0), (13, 0), (0, 7), (13, 7))] == [
        (255, 0, 0),
        (255, 255, 255),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_names_beyond_ascii_can_be_read_with_and_without_a_font_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own font has none of their letters, and would draw boxes."""

    def header(name: str) -> bytes:
        sheet = labelled([[photograph()]], row_labels=["level 1"], column_labels=[name])
        return sheet.crop((sheet.width - 128, 0, sheet.width, 20)).tobytes()

    assert header("Löwe") != header("L\uffffwe")
    own = ImageFont.truetype
    monkeypatch.setattr(ImageFont, "truetype", lambda font, *args, **options: own(_bytes_only(font), *args, **options))
    assert header("Löwe") == header("Lowe")
    assert header("蓮") == header("?")


def _bytes_only(font: object) -> io.BytesIO:
    """Pillow's own font comes as bytes; a name is that of a file of the machine."""
    if not isinstance(font, io.BytesIO):
        raise OSError
    return font
