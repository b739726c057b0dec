"""Captions by a grammar: what pixels tell of class, number, colour and framing, and the tar of them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.errors import DataError, InvalidInput
from elit_serve.photographs import open_captioned_set, open_data_set
from elit_serve.photographs.grammar import Look, caption, class_of, look_at, plural, words_of, words_seen
from elit_serve.trainer.captioning import write_captioned


def picture(ground: str, spots: list[tuple[int, int, int]], colour: str) -> Image.Image:
    """Discs at (x, y) of a radius on a ground, 64 x 64."""
    made = Image.new("RGB", (64, 64), ground)
    for x, y, radius in spots:
        ImageDraw.Draw(made).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return made


LARGE, SMALL = [(32, 32, 30)], [(32, 32, 12)]
MANY = [(x, y, 2) for x in range(3, 64, 7) for y in range(3, 64, 7)]
SOME = [(x, y, 2) for x in range(8, 60, 7) for y in range(8, 60, 7)]


@pytest.mark.parametrize(
    ("ground", "spots", "colour", "expected"),
    [
        ("black", LARGE, "red", "a close-up of a red tulip"),
        ("white", SMALL, "orange", "an orange tulip from afar"),
        ("green", LARGE, "yellow", "a close-up of a yellow tulip"),
        ("green", SMALL, "white", "a white tulip from afar"),
        ("white", SMALL, "#703000", "a brown tulip from afar"),
        ("white", SMALL, "#202020", "a black tulip from afar"),
        ("black", SOME, "#a030e0", "several purple tulips"),
        ("black", MANY, "#ff40a0", "many pink tulips"),
    ],
)
def test_a_caption_says_what_the_pixels_show(
    ground: str, spots: list[tuple[int, int, int]], colour: str, expected: str
) -> None:
    made = picture(ground, spots, colour)
    assert caption("tulip", look_at(made)) == expected
    assert words_seen(made) == words_of(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a close-up of an orange brown cap mushroom", {"framing": "close", "number": "one", "colour": "orange"}),
        ("several white daisies", {"framing": "middle", "number": "several", "colour": "white"}),
        ("many green apples from afar", {"framing": "far", "number": "many", "colour": "green"}),
        ("a tulip", None),
        ("a red", None),
        ("the red tulip", None),
        ("two red tulips", None),
    ],
)
def test_a_caption_is_read_back_and_another_text_is_none(text: str, expected: dict[str, str] | None) -> None:
    assert words_of(text) == expected
    assert (class_of(text) is None) == (expected is None)


def test_a_picture_of_one_colour_has_one_subject_that_fills_it() -> None:
    assert look_at(picture("green", [], "green")) == Look(colour="green", number="one", share=1.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("daisy", "daisies"), ("tomato", "tomatoes"), ("mango", "mangoes"), ("radish", "radishes"), ("key", "keys"),
        ("asparagus", "asparagus"), ("red beet", "red beets"), ("avocado", "avocados"),
    ],
)  # fmt: skip
def test_names_have_a_plural(name: str, expected: str) -> None:
    assert plural(name) == expected
    assert class_of(f"a close-up of a red {name}") == class_of(f"many red {expected} from afar") == expected


def test_a_data_set_of_classes_becomes_one_of_captions(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label, colour in (("brown-cap-mushroom", "white"), ("rose", "red")):
        (folder / label).mkdir(parents=True)
        picture("green", SMALL, colour).save(folder / label / "1.png")
    (folder / "rose" / "2.jpg").write_bytes(b"no picture")
    picture("white", SMALL, "blue").save(folder / "rose" / "1.bmp")
    done = CliRunner().invoke(app, ["caption", str(folder), str(tmp_path / "captioned.tar")])
    assert done.exit_code == 0, done.output
    assert "3 photographs with captions" in done.output
    assert "rose/2.jpg" in done.output
    found = open_captioned_set(tmp_path / "captioned.tar")
    assert [(each.place, each.caption) for each in found.photographs] == [
        ("brown-cap-mushroom/1.png", "a white brown cap mushroom from afar"),
        ("rose/1.bmp", "a blue rose from afar"),
        ("rose/1~2.png", "a red rose from afar"),
    ]
    assert [each.read() for each in found.photographs] == [
        each.read() for each in open_data_set(folder).photographs if each.name != "2.jpg"
    ]
    assert found.note is None


def test_a_file_that_is_there_stays_as_it_is_and_a_failure_leaves_none(tmp_path: Path) -> None:
    photos = tmp_path / "photos.tar"
    picture("green", SMALL, "red").save(tmp_path / "1.png")
    with tarfile.open(photos, "w") as tar:
        tar.add(tmp_path / "1.png", "rose/1.png")
    before = photos.read_bytes()
    with pytest.raises(InvalidInput, match=r"out: .* is not allowed; a file that does not exist yet"):
        write_captioned(photos, photos)
    assert photos.read_bytes() == before
    with pytest.raises(DataError, match="does not exist"):
        write_captioned(tmp_path / "none", tmp_path / "captioned.tar")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.png", "photos.tar"]
