"""From the bytes of a picture file to the RGB that a viewer shows: upright, in sRGB, on white.

A plain sRGB file comes out as its decoder gives it, to the bit.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from elit_serve.photographs.profiles import to_srgb

DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow knows more, and runs Ghostscript for one of them
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded

_WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # grey with more than 8 bits, which Pillow would clip to 255
_FULL_SCALES = (1.0, 255.0, 65_535.0, 2.0**31 - 1, 2.0**32 - 1)  # what white usually is, in numbers of any range
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

# What makes a picture upright, by the EXIF tag "orientation". 1 is upright already.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # of these, width and height change places


def to_rgb(data: bytes) -> Image.Image:
    """The picture in RGB; of an animation, its first frame.

    EXIF orientation is applied, grey of more than 8 bits is scaled, an embedded colour profile is converted to sRGB,
    and what is transparent shows white. A profile or EXIF block that is broken counts as absent. Raises `ValueError`
    with the reason when the bytes are not a whole picture of a kind that is taken.
    """
    with _decoded(data) as image:
        profile = image.info.get("icc_profile")
        method = _UPRIGHT.get(_orientation(image))
        colours, alpha = _colours_and_alpha(_narrowed(image))
    colours = to_srgb(colours, profile)
    if alpha is not None:
        colours = _on_white(colours, alpha)
    return colours if method is None else colours.transpose(method)


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of what `to_rgb` makes of a file with this beginning; None where that does not tell."""
    try:
        with Image.open(io.BytesIO(data), formats=DECODERS) as image:
            width, height = image.size
            is_turned = _orientation(image) in _SIDEWAYS
    except Exception:  # as with whole pictures
        return None
    return (height, width) if is_turned else (width, height)


def _decoded(data: bytes) -> Image.Image:
    """The file as its decoder gives it."""
    try:
        image = Image.open(io.BytesIO(data), formats=DECODERS)
        _check_size(image)
        _scale_transparent_colour(image)
        image.load()
        _check_size(image)  # a GIF's first frame may be larger than its header says
    except UnidentifiedImageError:  # its own text holds an address, so it would never be the same twice
        raise ValueError("not a picture") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged bytes in every way that there is
        raise ValueError(str(error) or type(error).__name__) from None
    return image


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")


def _scale_transparent_colour(image: Image.Image) -> None:
    """Of a PNG whose pixels are loaded in 8 bits: it names the colour that is transparent in bits of its own."""
    key, raw = image.info.get("transparency"), getattr(image, "tile", None)
    mode = raw[0][3] if raw else None
    if isinstance(key, int) and mode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if mode == "L;2" else 17)
    elif isinstance(key, tuple) and mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag; 1 where there is none, or where EXIF cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as with pictures, damaged EXIF fails in every way; the picture itself is whole
        return 1
    return orientation if isinstance(orientation, int) else 1


def _narrowed(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled to 8; a colour that stands for transparency becomes an alpha channel.

    Whole numbers of 16 bits know what white is. Others do not say: there it is the least usual white, 1, 255, 65535 and
    so on, that no value exceeds.
    """
    if image.mode not in _WIDE:
        return image
    values = np.asarray(image).astype(np.float32)  # [H, W]
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    white = np.float32(_white(image, values))
    scaled = values.clip(np.float32(0), white) / white
    if _tiff_tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = np.float32(1) - scaled
    grey = _to_image(scaled)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, _to_image(values != transparent)))


def _white(image: Image.Image, values: NDArray[np.float32]) -> float:
    """What white is in `values` [H, W] of a wide image."""
    bits = _tiff_tag(image, _TIFF_BITS)
    if image.mode.startswith("I;16"):
        return 2.0**bits - 1 if isinstance(bits, int) else 65_535.0  # TIFF has 12 bits, too
    if image.mode == "I" and bits == 16:  # of signed numbers
        return 32_767.0
    largest = float(values.max())
    usual = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
    return next((white for white in usual if largest <= np.float32(white)), largest)


def _tiff_tag(image: Image.Image, tag: int) -> object:
    """A tag of a TIFF, the first value where there are several; None of other files."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _to_image(values: NDArray[np.floating[Any]] | NDArray[np.bool_]) -> Image.Image:
    """values [H, W] in [0, 1] -> 8-bit grey."""
    return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))


def _colours_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(the picture without transparency, its alpha channel); None if nothing in it can be transparent."""
    if not image.has_transparency_data:
        return image, None
    grey = image.mode in ("1", "L", "LA", "La")
    with_alpha = image.convert("LA" if grey else "RGBA")
    return with_alpha.convert("L" if grey else "RGB"), with_alpha.getchannel("A")


def _on_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", colours.size, "white")
    sheet.paste(colours, mask=alpha)
    return sheet
