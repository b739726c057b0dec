"""Whether pictures show what their prompts say, read with the grammar of captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from elit_serve.evaluation.features.words import WordsSeen, numbered
from elit_serve.evaluation.metrics import agreements
from elit_serve.photographs.grammar import WORDS, words_of

PARTS = list(WORDS)


def disc(ground: str, radius: int, colour: str) -> Tensor:
    """One in the middle of a ground, [3, 64, 64] in [0, 1]."""
    made = Image.new("RGB", (64, 64), ground)
    ImageDraw.Draw(made).ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), fill=colour)
    return torch.from_numpy(np.array(made)).permute(2, 0, 1) / 255


def said(*captions: str) -> Tensor:
    words = [words_of(caption) for caption in captions]
    return numbered([each for each in words if each is not None])


def test_pictures_are_told_in_the_words_of_their_captions() -> None:
    pictures = torch.stack([disc("black", 30, "red"), disc("white", 12, "orange"), disc("green", 22, "yellow")])
    seen = WordsSeen()(pictures).features
    assert torch.equal(seen.long(), said("a close-up of a red tulip", "an orange tulip from afar", "a yellow tulip"))


def test_pictures_of_their_prompts_agree_and_those_of_others_agree_by_chance() -> None:
    prompts = said(*["a close-up of a red tulip", "a red rose", "a white rose", "many white daisies"] * 16)
    found = agreements(prompts.float(), prompts, PARTS)
    assert [found[part].share.value for part in PARTS] == [1, 1, 1]
    assert [found[part].share.half_width for part in PARTS] == [0, 0, 0]
    shares = {"framing": (1 + 9) / 16, "number": (9 + 1) / 16, "colour": (4 + 4) / 16}
    assert {part: found[part].chance for part in PARTS} == pytest.approx(shares)
    other = agreements(prompts[torch.randperm(64, generator=torch.Generator().manual_seed(0))].float(), prompts, PARTS)
    for part in PARTS:
        assert other[part].chance == pytest.approx(shares[part])
        assert abs(other[part].share.value - shares[part]) < 2 * other[part].share.half_width
