"""Sizes of pictures as callers write them: WIDTHxHEIGHT in pixels, as OpenAI does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from elit_serve.errors import InvalidInput

AUTO = "auto"  # whatever the model does by itself


class Size(NamedTuple):
    """Of a picture in pixels; of a sample where there is no way to a picture."""

    width: int
    height: int

    @classmethod
    def read(cls, text: str, *, field: str = "size") -> Size:
        """As a caller wrote it. Raises `InvalidInput` for `field`.

        >>> Size.read("640x384")
        Size(width=640, height=384)
        """
        sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
        if sides is None:
            raise InvalidInput(field, text, "a size is WIDTHxHEIGHT in pixels, as 640x384")
        return cls(int(sides[1]), int(sides[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


def nearest_multiples(side: int, step: int) -> str:
    """The multiples of `step` on both sides of `side`, for an error about a side that is none.

    >>> nearest_multiples(60, 16)
    '48 and 64'
    """
    below = side // step * step
    return " and ".join(str(multiple) for multiple in (below, below + step) if multiple)


def listed(sizes: Sequence[Size]) -> str:
    """For an error that says what there is."""
    return ", ".join(map(str, sizes))
