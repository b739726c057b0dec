"""Sizes of samples."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """name: how files, costs and launches call it. size: of one sample, channels first."""

    name: str
    size: tuple[int, ...]
