"""A shift of the time grid in a file: a number, or a table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from elit_serve.files.config import ModelConfig, SamplingConfig
from elit_serve.files.validation import problems_in
from elit_serve.plans.grid import Shift, TimeShift


@pytest.mark.parametrize(
    ("written", "shift"),
    [
        (2.0, 2.0),
        (3, 3.0),
        ({"factor": 3.0, "last": 0.003}, TimeShift(factor=3.0, last=0.003)),
        ({"factor": 2.5, "terminal": 0.02}, TimeShift(factor=2.5, terminal=0.02)),
        ({"factor": 7.0, "growth": -0.01}, TimeShift(factor=7.0, growth=-0.01)),
    ],
)
def test_it_is_written_as_it_is_read(written: Any, shift: Shift) -> None:
    read = SamplingConfig.model_validate({"time_shift": written})
    assert read.time_shift == shift
    assert json.loads(read.model_dump_json())["time_shift"] == written
    assert SamplingConfig.model_validate_json(read.model_dump_json()) == read
    assert read.plan(1).time_shift == shift


def test_shapes_may_have_shifts_of_their_own(tiny_config: ModelConfig) -> None:
    written = tiny_config.model_dump() | {"shapes": {"32x32": (3, 32, 32), "16x48": (3, 16, 48)}}
    written["sampling"] |= {"time_shift": 2.0, "shape_shifts": {"16x48": 3.0}}
    config = ModelConfig.model_validate(written)
    assert config.shifts == {"32x32": 2.0, "16x48": 3.0}
    assert config.sampled_at("16x48").sampling.time_shift == 3.0
    assert config.sampled_at("16x48").shifts == config.shifts
    written["sampling"] |= {"shape_shifts": {"48x16": 3.0}}
    with pytest.raises(ValidationError, match=r"shape_shifts: 48x16 is not one of the shapes, 32x32, 16x48"):
        ModelConfig.model_validate(written)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (0.0, "time_shift: 0.0 is not allowed; input should be greater than or equal to 0.01"),
        ("fast", "time_shift: 'fast' is not allowed; input should be a valid number"),
        ({"last": 0.1}, "time_shift.factor: Field required"),
        (
            {"factor": 1.0, "last": 1.0},
            "time_shift.last: 1.0 is not allowed; input should be less than or equal to 0.99",
        ),
        (
            {"factor": 1.0, "growth": 2.0},
            "time_shift.growth: 2.0 is not allowed; input should be less than",
        ),
        ({"factor": 1.0, "late": 0.1}, "time_shift.late: Extra inputs are not permitted"),
    ],
)
def test_what_is_none_is_told_by_its_place(written: Any, problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SamplingConfig.model_validate({"time_shift": written})
    (told,) = problems_in(refused.value)
    assert told.startswith(problem)
