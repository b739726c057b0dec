"""Budgets and levels: the one place where a fraction becomes an integer.

A *budget* is a fraction in (0, 1] of a model's latent tokens and exists only at the edges (HTTP, CLI, Python
API). A *level* is the number of latents kept per group, J̃ in the paper (section 3.4), and is what
everything inside works with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elit_serve.errors import InvalidInput

TOLD_LATENTS = 0.05  # by which a bound may miss the level that it was read from: budgets are told in a few digits


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A model's budgets and levels: whoever meets a budget asks this, as `config.budgets.level_of(0.25)`.

    levels: those it was trained at, rising. latents_per_group: J, which the budget 1 stands for.
    """

    levels: tuple[int, ...]
    latents_per_group: int

    @classmethod
    def told(cls, budgets: Mapping[int, float]) -> Budgets:
        """From level -> budget, as a server tells them."""
        levels = tuple(sorted(budgets))
        return cls(levels=levels, latents_per_group=round(levels[-1] / budgets[levels[-1]]))

    @property
    def full_level(self) -> int:
        """The highest trained level."""
        return self.levels[-1]

    def level_of(self, budget: float, *, field: str = "budget") -> int:
        """The trained level nearest to a budget; `field` is what an error calls it. See `level_of_budget`."""
        return level_of_budget(budget, self.levels, self.latents_per_group, field=field)

    def level_from(self, budget: float) -> int:
        """The lowest trained level of at least this budget; the highest one if all have less."""
        wanted = budget * self.latents_per_group - TOLD_LATENTS
        return next((level for level in self.levels if level >= wanted), self.full_level)

    def level_up_to(self, budget: float, *, field: str) -> int:
        """The highest trained level of at most this budget; raises `InvalidInput` for `field` if all have more."""
        wanted = budget * self.latents_per_group + TOLD_LATENTS
        fitting = [level for level in self.levels if level <= wanted]
        if not fitting:
            raise InvalidInput(field, budget, f"at least {self.of_level(self.levels[0]):g}, which the lowest level has")
        return fitting[-1]

    def check(self, level: int, *, field: str = "levels") -> int:
        """`level` itself if the model was trained at it; raises `InvalidInput` for `field` otherwise."""
        return check_level(level, self.levels, field=field)

    def of_level(self, level: float) -> float:
        """The budget of a level, or of a mean of levels."""
        return budget_of_level(level, self.latents_per_group)


def level_of_budget(budget: float, levels: Sequence[int], latents_per_group: int, *, field: str = "budget") -> int:
    """The one of the trained `levels` nearest to `budget` x J, J being the latents per group.

    Halves round up, and a tie between two trained levels goes to the higher one.

    >>> level_of_budget(0.25, range(1, 17), 16)
    4
    """
    if not (isinstance(budget, int | float) and math.isfinite(budget) and 0 < budget <= 1):
        raise InvalidInput(field, budget, "a budget is a fraction above 0 and at most 1")
    wanted = max(1, math.floor(budget * latents_per_group + 0.5))
    return min(levels, key=lambda level: (abs(level - wanted), -level))


def check_level(level: int, levels: Sequence[int], *, field: str = "levels") -> int:
    """`level` itself if the model was trained at it."""
    if level not in levels:
        raise InvalidInput(field, level, f"this model was trained at levels {spans(levels)}")
    return level


def budget_of_level(level: float, latents_per_group: int) -> float:
    """The fraction of the latents that `level`, or a mean of levels, keeps."""
    return level / latents_per_group


def spans(values: Sequence[int]) -> str:
    """Integers as short text.

    >>> spans([1, 2, 3, 8, 16])
    '1-3, 8, 16'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
