"""What the steps of a picture count whose levels change: late ones more than early ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def step_weights(strides: Sequence[int], late: float) -> list[float]:
    """What each step weighs, 1 together: the steps that cover the first share u of the grid weigh u^`late`.

    What becomes of early steps is still mended by those that follow, what becomes of the last ones is not. Fitted to
    measured pictures of half their steps at one level and half at another, see `files.quality.Quality.late`.

    strides: how many steps of the grid each covers. late: at least 1, where all that is covered counts alike.

    >>> step_weights([1, 1, 2], late=2)
    [0.0625, 0.1875, 0.75]
    """
    whole = sum(strides)
    weights = [weight_until(covered / whole, late) for covered in accumulate(strides, initial=0)]
    return [after - before for before, after in pairwise(weights)]


def weight_until(share: float, late: float) -> float:
    """What the steps weigh together that cover this first share of the grid, of 1."""
    return float(share**late)
