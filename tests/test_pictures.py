"""Labelled photographs from folders and tars, fitting, and facts inside picture files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elit_serve.errors import DataError
from elit_serve.pictures import (
    OUTPUT_FORMATS,
    DamagedPicture,
    OutputFormat,
    decode,
    encode,
    fit,
    grid,
    list_photographs,
    read_facts,
)

FACTS = {"label": "tulip", "seed": 7, "levels": [4, 4, 1], "guidance": {"scale": 2.5}}


def photograph(color: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def as_folder(root: Path) -> Path:
    for name in ("tulip/b.png", "tulip/a.jpg", "daisy/c.webp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photograph().save(root / name)
    (root / "tulip" / "notes.txt").write_text("no picture")
    (root / "stray.png").write_bytes(b"no class")
    return root


def as_tar(root: Path) -> Path:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(as_folder(root), arcname=".")
    return path


@pytest.mark.parametrize("collect", [as_folder, as_tar])
def test_a_folder_and_a_tar_list_the_same_photographs(collect: Callable[[Path], Path], tmp_path: Path) -> None:
    found = list_photographs(collect(tmp_path / "set"))
    names = [(photograph.label, photograph.name) for photograph in found if photograph.name != "stray.png"]
    assert names == [("daisy", "c.webp"), ("tulip", "a.jpg"), ("tulip", "b.png")]
    assert {decode(each).size for each in found if each.name != "stray.png"} == {(8, 8)}


def test_a_picture_beside_the_class_folders_has_no_class_and_is_left_out(tmp_path: Path) -> None:
    assert "stray.png" not in [each.name for each in list_photographs(as_folder(tmp_path / "set"))]
    assert "stray.png" not in [each.name for each in list_photographs(as_tar(tmp_path / "set"))]


def test_sets_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list_photographs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no class/name"):
        list_photographs(tmp_path)
    not_a_tar = tmp_path / "set.tar"
    not_a_tar.write_bytes(b"x" * 4096)
    with pytest.raises(DataError, match="not an uncompressed tar"):
        list_photographs(not_a_tar)


@pytest.mark.parametrize("damage", [b"", b"not a picture"])
def test_a_damaged_picture_is_named(tmp_path: Path, damage: bytes) -> None:
    as_folder(tmp_path)
    (tmp_path / "tulip" / "a.jpg").write_bytes(damage)
    found = {each.name: each for each in list_photographs(tmp_path)}
    with pytest.raises(DamagedPicture, match=r"tulip/a\.jpg"):
        decode(found["a.jpg"])


@pytest.mark.parametrize("content", ["EPS", "BMP", "GIF", "TIFF"])
def test_a_picture_of_another_format_is_damaged_whatever_its_name(tmp_path: Path, content: str) -> None:
    as_folder(tmp_path)
    photograph().save(tmp_path / "tulip" / "b.png", content)
    found = {each.name: each for each in list_photographs(tmp_path)}
    with pytest.raises(DamagedPicture, match=r"tulip/b\.png: not a picture"):
        decode(found["b.png"])


def test_a_truncated_picture_is_damaged(tmp_path: Path) -> None:
    as_folder(tmp_path)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "tulip" / "b.png"
    noisy.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    found = {each.name: each for each in list_photographs(tmp_path)}
    with pytest.raises(DamagedPicture, match=r"tulip/b\.png"):
        decode(found["b.png"])


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


def test_png_keeps_every_pixel() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(encode(image, "png", FACTS))) as read:
        assert np.array_equal(np.asarray(read), np.asarray(image))


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
