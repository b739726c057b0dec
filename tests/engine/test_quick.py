"""From a few measured steps to all: exact where time is a line in the latents, and never less for more of them."""

from __future__ import annotations

import pytest

from elit_serve.engine.profile.quick import anchors, interpolated
from elit_serve.plans.step_kind import StepKind


def kind(level: int, weak_level: int | None = None) -> StepKind:
    return StepKind("s", level, weak_level)


KINDS = [
    *(kind(level) for level in (1, 2, 4, 8)),
    *(kind(level, level) for level in (1, 2, 4, 8)),
    *(kind(level, 1) for level in (2, 4, 8)),
]


def line_ms(step: StepKind) -> float:
    """40 ms unguided, 60 guided in one batch, 75 in two passes, and 5 ms for each latent."""
    _, level, weak_level, *_ = step
    base_ms = 40.0 if weak_level is None else 60.0 if weak_level == level else 75.0
    return base_ms + 5.0 * (level + (weak_level or 0))


def test_the_lowest_of_each_kind_and_the_highest_of_the_last_are_measured() -> None:
    assert anchors(KINDS) == [kind(1), kind(1, 1), kind(2, 1), kind(8, 1)]


@pytest.mark.parametrize(
    "steps",
    [
        KINDS,
        [step for step in KINDS if step.weak_level in (None, step.level)],  # guidance at the level only
        [step for step in KINDS if step.weak_level is None],
        [kind(1), kind(2), kind(1, 1), kind(2, 2), kind(2, 1)],  # the last alone has no slope
        [*KINDS, kind(4, 2), kind(8, 2), kind(8, 4)],
    ],
)
def test_what_lies_on_a_line_is_found_exactly(steps: list[StepKind]) -> None:
    measured = {step: line_ms(step) for step in anchors(steps)}
    found = interpolated(measured, steps)
    assert set(found) == set(steps) - set(measured)
    assert found == pytest.approx({step: line_ms(step) for step in found})


def test_a_model_of_one_level_is_measured_throughout() -> None:
    steps = [kind(1), kind(1, 1)]
    assert anchors(steps) == steps
    assert interpolated({kind(1): 3.0, kind(1, 1): 5.0}, steps) == {}


def test_noise_does_not_make_more_latents_cheaper() -> None:
    found = interpolated({kind(1): 10.0, kind(1, 1): 20.0, kind(2, 1): 30.0, kind(8, 1): 29.0}, KINDS)
    assert found[kind(4)] == found[kind(8)] == 10.0
    assert found[kind(4, 1)] == 30.0
