"""Sizes of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """name: how files, costs and launches call it. size: of one sample, channels first."""

    name: str
    size: tuple[int, ...]

    @classmethod
    def of(cls, size: Sequence[int]) -> Shape:
        """Named by its sides, as "64x64".

        >>> Shape.of((3, 64, 32)).name
        '64x32'
        """
        return cls("x".join(map(str, size[1:])), tuple(size))
