"""A small grammar of captions, what the pixels of a picture tell in it, and which of its words a text has.

    caption: ["a close-up of "] number colour class [" from afar"]
    number:  "a" or "an", "several", "many"
    colour:  red, orange, yellow, green, blue, purple, pink, brown, black, grey or white
    class:   the label with spaces for hyphens, in the plural behind "several" and "many"

So "a close-up of a red tulip", "several yellow lemons", "many white daisies from afar". What is not of the colour of
the picture's border is taken for its subject, whose colour is told, and whose share of the picture tells the framing;
how many there are follows from how much of the picture is edges. That is sometimes wrong for a photograph, and right
often enough for the words to mean something to a model that learns them. A photograph always gets the same caption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = 1  # higher whenever a picture may be told otherwise than before
SIDE = 64  # pixels that a picture is looked at in
BORDER = 6  # of them, what stands for what is around the subject
APART = 60.0  # how far RGB values of the subject are from those of the border, of 441
CLOSE, FAR = 0.5, 0.3  # shares of the picture that a subject fills: one thing this large, or anything this small
SMALLEST = 0.03  # share below which there is no subject
EDGE = 20.0  # brightness of 255 by which neighbours differ on an edge
SEVERAL, MANY = 0.32, 0.5  # shares of a picture on edges; of garden64's held-out half lies between 0.29 and 0.49
GREY, DARK, BRIGHT = 0.25, 0.25, 0.7  # saturation below which there is no hue, and values of black and white
COLOURS = {  # by the hue in degrees at which each begins
    "red": 0,
    "orange": 18,
    "yellow": 45,
    "green": 70,
    "blue": 170,
    "purple": 260,
    "pink": 310,
    "red again": 345,
}
BROWN_BELOW = 0.55  # the value of a dark orange
WORDS: Mapping[str, Sequence[str]] = {  # what each part of a caption but the class may say
    "framing": ("close", "middle", "far"),
    "number": ("one", "several", "many"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white"),
}
PLURALS = {"asparagus": "asparagus", "garlic": "garlic bulbs", "ginger": "ginger roots"}
_ADD_ES = ("s", "sh", "ch", "x", "to", "go")
_CAPTION = re.compile(
    r"(?P<close>a close-up of )?(?P<number>an?|several|many) "
    rf"(?P<colour>{'|'.join(WORDS['colour'])}) (?P<name>.+?)(?P<far> from afar)?"
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the pixels of a photograph tell. number: one, several or many. share: of the picture that they fill."""

    colour: str
    number: str
    share: float


def caption(label: str, look: Look) -> str:
    """What the grammar says of a photograph of a class."""
    name = label.replace("-", " ").replace("_", " ")
    if look.number == "one":
        article = "an" if look.colour[0] in "aeiou" else "a"
        words = f"{article} {look.colour} {name}"
    else:
        words = f"{look.number} {look.colour} {plural(name)}"
    if look.share >= CLOSE and look.number == "one":
        return f"a close-up of {words}"
    return f"{words} from afar" if look.share < FAR else words


def plural(name: str) -> str:
    """Of a class, as well as rules can: "daisies", "potatoes", "red beets"."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(_ADD_ES) else f"{name}s"


def look_at(picture: Image.Image) -> Look:
    """Of an RGB picture of any size."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float32)
    subject = _subject(rgb)
    hsv = np.asarray(small.convert("HSV"), dtype=np.float32)[subject]  # [P, 3], 0..255
    return Look(colour=_colour(hsv), number=_number(rgb), share=float(subject.mean()))


def _subject(rgb: NDArray[np.float32]) -> Mask:
    """The pixels [H, W] that are not as the border is; all of them, where that leaves next to nothing."""
    edge = np.ones(rgb.shape[:2], dtype=bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    apart = np.linalg.norm(rgb - np.median(rgb[edge], axis=0), axis=2)
    subject: Mask = apart > APART
    return subject if subject.mean() >= SMALLEST else np.ones_like(subject)


def _colour(hsv: NDArray[np.float32]) -> str:
    """The name of most pixels' colour, saturated ones counting for more."""
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1] / 255, hsv[:, 2] / 255
    has_hue = (saturation >= GREY) & (value >= DARK)
    if has_hue.mean() < 0.25:
        bright, dark = float((value >= BRIGHT).mean()), float((value < DARK).mean())
        return "white" if bright >= max(dark, 0.4) else "black" if dark >= 0.5 else "grey"
    names, starts = list(COLOURS), np.array(list(COLOURS.values()))
    found = np.searchsorted(starts, hue[has_hue], side="right") - 1
    name = names[int(np.bincount(found, weights=saturation[has_hue], minlength=len(names)).argmax())].split()[0]
    of_name = [index for index, each in enumerate(names) if each.split()[0] == name]
    mean_value = float(value[has_hue][np.isin(found, of_name)].mean())
    return "brown" if name == "orange" and mean_value < BROWN_BELOW else name


def _number(rgb: NDArray[np.float32]) -> str:
    """By the share of pixels [H, W, 3] that lie on an edge: what is one thing has few of them."""
    down, across = np.gradient(rgb.mean(axis=2))
    on_edge = float((np.hypot(down, across) > EDGE).mean())
    return "one" if on_edge < SEVERAL else "several" if on_edge < MANY else "many"


def words_of(text: str) -> dict[str, str] | None:
    """What a caption says of each part of `WORDS`; None of a text that is no caption of the grammar."""
    found = _CAPTION.fullmatch(text)
    if found is None:
        return None
    framing = "close" if found["close"] else "far" if found["far"] else "middle"
    number = "one" if found["number"] in ("a", "an") else found["number"]
    return {"framing": framing, "number": number, "colour": found["colour"]}


def class_of(text: str) -> str | None:
    """The class that a caption names, always in the plural; None of a text that is no caption of the grammar."""
    found = _CAPTION.fullmatch(text)
    if found is None:
        return None
    return plural(found["name"]) if found["number"] in ("a", "an") else found["name"]


def words_seen(picture: Image.Image) -> dict[str, str]:
    """What the caption of an RGB picture of any size would say of each part of `WORDS`."""
    words = words_of(caption("thing", look_at(picture)))
    assert words is not None
    return words
