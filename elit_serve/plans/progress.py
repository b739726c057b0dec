"""How far a picture is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """The steps of a picture that were decided, in order: the level of each, and its stride, which is how many steps of
    the plan's time grid it is.

    at: the sum of the strides, where on the grid the next step starts.
    """

    levels: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    at: int = 0

    def take(self, level: int, stride: int = 1) -> None:
        """One more step was decided."""
        self.levels.append(level)
        self.strides.append(stride)
        self.at += stride

    def copy(self) -> Progress:
        return Progress(self.levels.copy(), self.strides.copy(), self.at)
