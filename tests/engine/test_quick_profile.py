"""From a few measured steps to all: exact where time is a line in the latents, and never less for more of them."""

from __future__ import annotations

import pytest
from elit_serve.engine.profile.quick_profile import Point, anchors, interpolated

POINTS: list[Point] = [
    *((level, None) for level in (1, 2, 4, 8)),
    *((level, level) for level in (1, 2, 4, 8)),
    *((level, 1) for level in (2, 4, 8)),
]


def line_ms(point: Point) -> float:
    """40 ms unguided, 60 guided in one batch, 75 in two passes, and 5 ms for each latent."""
    level, weak_level = point
    base_ms = 40.0 if weak_level is None else 60.0 if weak_level == level else 75.0
    return base_ms + 5.0 * (level + (weak_level or 0))


def test_the_lowest_of_each_kind_and_the_highest_of_the_last_are_measured() -> None:
    assert anchors(POINTS) == [(1, None), (1, 1), (2, 1), (8, 1)]


@pytest.mark.parametrize(
    "points",
    [
        POINTS,
        [point for point in POINTS if point[1] is None or point[1] == point[0]],  # guidance at the level only
        [point for point in POINTS if point[1] is None],
        [(1, None), (2, None), (1, 1), (2, 2), (2, 1)],  # one point of the last kind has no slope
        [*POINTS, (4, 2), (8, 2), (8, 4)],
    ],
)
def test_what_lies_on_a_line_is_found_exactly(points: list[Point]) -> None:
    measured = {point: line_ms(point) for point in anchors(points)}
    found = interpolated(measured, points)
    assert set(found) == set(points) - set(measured)
    assert found == pytest.approx({point: line_ms(point) for point in found})


def test_a_model_of_one_level_is_measured_throughout() -> None:
    points: list[Point] = [(1, None), (1, 1)]
    assert anchors(points) == points
    assert interpolated({(1, None): 3.0, (1, 1): 5.0}, points) == {}


def test_noise_does_not_make_more_latents_cheaper() -> None:
    found = interpolated({(1, None): 10.0, (1, 1): 20.0, (2, 1): 30.0, (8, 1): 29.0}, POINTS)
    assert found[4, None] == found[8, None] == 10.0
    assert found[4, 1] == 30.0
