"""A picture file's bytes become what a viewer shows, and plain ones what their decoder gives."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from elit_serve.photographs import MAX_PIXELS, to_rgb

WHITE = (255, 255, 255)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def colour(data: bytes) -> tuple[int, ...]:
    """Of the top left pixel."""
    pixel = to_rgb(data).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def plain_png(depth: int, colour_type: int, row: bytes, width: int, transparent: bytes) -> bytes:
    """A PNG of one row with a transparent colour, of kinds that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", transparent), chunk(b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB in which red and green have changed places."""
    profile = srgb_profile()
    assert profile.count(b"rXYZ") == profile.count(b"gXYZ") == 1
    return profile.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def linear_grey_profile() -> bytes:
    """Grey whose numbers are proportional to light."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)  # D50, in units of 1 / 65536
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    offset = 128 + 4 + 2 * 12
    table = struct.pack(">I", 2) + struct.pack(">4sII", b"wtpt", offset, len(white))
    table += struct.pack(">4sII", b"kTRC", offset + len(white), len(curve))
    header = bytearray(srgb_profile()[:128])
    header[0:4] = struct.pack(">I", offset + len(white) + len(curve))
    header[16:20] = b"GRAY"
    return bytes(header) + table + white + curve


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "WEBP")],
)
def test_a_plain_picture_is_what_its_decoder_gives(mode: str, file_format: str) -> None:
    for options in ({}, {"icc_profile": srgb_profile()}):
        data = encoded(noise(mode), file_format, **options)
        with Image.open(io.BytesIO(data)) as image:
            assert to_rgb(data).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_held(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(noise(), file_format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert to_rgb(data).size == ((40, 24) if orientation < 5 else (24, 40))
    assert to_rgb(data).tobytes() == upright.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_leaves_the_picture_as_it_is() -> None:
    plain = encoded(noise(), "JPEG")
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert to_rgb(data).tobytes() == to_rgb(plain).tobytes()


@pytest.mark.parametrize("value", [0, 300, 32_768, 40_000, 65_535])
def test_grey_of_16_bits_is_scaled(value: int) -> None:
    grey = Image.fromarray(np.full((4, 6), value, np.uint16))
    big_endian = grey.convert("I").convert("I;16B")
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF"), encoded(big_endian, "TIFF")):
        assert colour(data) == (round(value / 257),) * 3


@pytest.mark.parametrize(
    ("mode", "value", "shown"),
    [
        ("F", 0.5, 128),
        ("F", 200.0, 200),
        ("F", 32_768.0, 128),
        ("F", -0.2, 0),
        ("I", 100, 100),
        ("I", 32_768, 128),
        ("I", 1 << 30, 128),
        ("I", (1 << 31) - 1, 255),
    ],
)
def test_grey_that_does_not_say_what_white_is_has_the_least_usual_one(mode: str, value: float, shown: int) -> None:
    assert colour(encoded(Image.new(mode, (4, 4), value), "TIFF")) == (shown,) * 3


def test_values_that_are_not_finite_are_damage() -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_rgb(encoded(Image.new("F", (4, 4), float("nan")), "TIFF"))


@pytest.mark.parametrize("hidden", [0, 40, 255])
@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG"), ("PA", "TIFF")]
)
def test_what_is_transparent_shows_white(mode: str, file_format: str, hidden: int) -> None:
    pixel = (hidden,) * 3 + (0,) if mode == "RGBA" else (hidden, 0)
    image = Image.new(mode, (8, 8), pixel)
    if mode == "PA":
        image.putpalette([channel for shade in range(256) for channel in (shade,) * 3])
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    assert colour(encoded(image, file_format, **options)) == WHITE


def test_half_transparent_colours_lie_on_white() -> None:
    assert colour(encoded(Image.new("RGBA", (4, 4), (0, 100, 200, 128)), "PNG")) == (127, 177, 227)


def test_a_colour_that_stands_for_transparency_shows_white_and_others_stay() -> None:
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([channel for shade in range(256) for channel in (shade, 0, shade)])
    for file_format in ("PNG", "GIF"):
        assert colour(encoded(palette, file_format, transparency=3)) == WHITE
        assert colour(encoded(palette, file_format, transparency=4)) == (3, 0, 3)
    assert colour(encoded(palette, "PNG", transparency=bytes([255, 255, 255, 0]))) == WHITE
    assert colour(encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)) == WHITE
    assert colour(encoded(Image.new("RGB", (4, 4), (7, 8, 9)), "PNG", transparency=(7, 8, 9))) == WHITE
    sixteen = Image.fromarray(np.array([[40_000, 40_001]], np.uint16))
    seen = to_rgb(encoded(sixteen, "PNG", transparency=40_000))
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == (WHITE, (156, 156, 156))


def test_a_transparent_colour_is_known_in_bits_of_every_number() -> None:
    two_bits = to_rgb(plain_png(2, 0, bytes([0b01_10_00_00]), 4, struct.pack(">H", 1)))
    assert [two_bits.getpixel((x, 0)) for x in range(3)] == [WHITE, (170,) * 3, (0,) * 3]
    sixteen = struct.pack(">HHH", 5_000, 6_000, 7_000)
    assert colour(plain_png(16, 2, sixteen, 1, sixteen)) == WHITE


def test_colours_are_those_that_the_profile_means() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    for file_format in ("PNG", "TIFF"):
        assert colour(encoded(red, file_format, icc_profile=swapped_profile())) == (0, 255, 0)
    red.putalpha(0)
    red.paste((255, 0, 0, 255), (0, 0, 4, 4))
    shown = to_rgb(encoded(red, "PNG", icc_profile=swapped_profile()))
    assert (shown.getpixel((0, 0)), shown.getpixel((7, 7))) == ((0, 255, 0), WHITE)


def test_grey_and_palettes_have_profiles_too() -> None:
    linear = linear_grey_profile()
    for grey in (Image.new("L", (8, 8), 55), Image.new("LA", (8, 8), (55, 255))):
        assert colour(encoded(grey, "PNG", icc_profile=linear)) == pytest.approx((128, 128, 128), abs=2)
    palette = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    assert colour(encoded(palette, "PNG", icc_profile=swapped_profile())) == (0, 255, 0)


def test_a_profile_that_is_broken_or_of_other_colours_counts_as_none() -> None:
    picture = noise()
    for profile in (b"no profile", srgb_profile()[:200], bytes(300), linear_grey_profile()):
        data = encoded(picture, "PNG", icc_profile=profile)
        assert to_rgb(data).tobytes() == picture.tobytes()


def test_cmyk_as_printing_programs_write_it() -> None:
    cyan, paper = Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert colour(encoded(cyan, "JPEG", quality=100)) == pytest.approx((0, 255, 255), abs=2)
    assert colour(encoded(paper, "JPEG")) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_stands_for_an_animation(file_format: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), name) for name in ("red", "blue"))
    data = encoded(red, file_format, save_all=True, append_images=[blue])
    assert colour(data) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("content", [b"", b"not a picture", encoded(noise(), "JPEG")[:500], encoded(noise(), "PPM")])
def test_what_is_no_whole_picture_of_a_kind_that_is_taken_says_why(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        to_rgb(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded() -> None:
    side = int((MAX_PIXELS * 1.2) ** 0.5)
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match=rf"{side} x {side} pixels"):
        to_rgb(bomb)
