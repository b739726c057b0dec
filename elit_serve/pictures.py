"""Pictures in and out: labelled collections of photographs, and encoding with provenance inside the file.

Knows Pillow and nothing else of elit-serve but its errors. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from elit_serve.errors import DataError, InvalidInput

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_DECODERS = ("JPEG", "PNG", "WEBP")  # Pillow knows more by their content, and runs Ghostscript for one of them
MAX_PIXELS = 64_000_000  # a larger picture is refused as damaged before it is decoded

OutputFormat = Literal["png", "jpeg", "webp"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
FILE_QUALITY = 95  # of JPEG and lossy WebP, of at most 100

_EXIF_IMAGE_DESCRIPTION = 0x010E


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """Where one labelled picture lies: a file of its own, or a span of bytes in a tar."""

    label: str
    name: str
    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class DamagedPicture(DataError):
    """A file that is not a whole picture; names it."""


def list_photographs(source: Path) -> list[Photograph]:
    """All `class/name.jpg|png|webp` of a folder or an uncompressed tar, sorted by class and name."""
    if source.is_dir():
        found = _list_folder(source)
    elif source.is_file():
        found = _list_tar(source)
    else:
        raise DataError(f"{source} does not exist; a data set is a folder or a tar of class/name.jpg, png or webp")
    photographs = sorted(found, key=lambda photograph: (photograph.label, photograph.name))
    if not photographs:
        raise DataError(f"{source} holds no class/name.jpg, .png or .webp")
    return photographs


def _list_folder(folder: Path) -> Iterator[Photograph]:
    for path in folder.glob("*/*"):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            yield Photograph(label=path.parent.name, name=path.name, path=path)


def _list_tar(path: Path) -> Iterator[Photograph]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isreg() and name.suffix.lower() in PICTURE_SUFFIXES and len(name.parts) >= 2:
                    yield Photograph(
                        label=name.parts[-2],
                        name=name.name,
                        path=path,
                        offset=member.offset_data,
                        size=member.size,
                    )
    except tarfile.TarError as error:
        raise DataError(f"{path} is not an uncompressed tar: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def decode(photograph: Photograph) -> Image.Image:
    """The picture in RGB; raises `DamagedPicture` when it is not a whole one."""
    try:
        with Image.open(io.BytesIO(photograph.read()), formats=_DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return image.convert("RGB")
    except UnidentifiedImageError:  # its own text holds an address, so it would never be the same twice
        raise DamagedPicture(f"{photograph.label}/{photograph.name}: not a picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedPicture(f"{photograph.label}/{photograph.name}: {error}") from None


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
    with Image.open(io.BytesIO(data), formats=_DECODERS) as image:
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
