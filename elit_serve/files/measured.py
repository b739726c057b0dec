"""What the measured files of a model directory share: strict reading, bounds, and values with their intervals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.opening import read_file
from elit_serve.files.validation import problems_in
from elit_serve.plans.bounds import MAX_LEVEL, MAX_MEASURED, MIN_MEASURED
from elit_serve.plans.estimate import Estimate

MAX_FILE_BYTES = 1 << 20


class Measured(BaseModel):
    """Unknown fields are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


Level = Annotated[int, Field(ge=1, le=MAX_LEVEL)]
Figure = Annotated[float, Field(ge=0, le=MAX_MEASURED)]
Divisor = Annotated[float, Field(ge=MIN_MEASURED, le=MAX_MEASURED)]
Precision = Literal["float32", "bfloat16", "float16", "fp8"]  # what a model computes in, as answers name it
ShapeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Interval(Measured):
    """An `Estimate` in a file."""

    value: Figure
    half_width: Figure


def _estimate(written: Any) -> Estimate:
    fields = vars(written) if isinstance(written, Estimate) else written
    interval = _Interval.model_validate(fields)
    return Estimate(value=interval.value, half_width=interval.half_width)


# {"value": 1.5, "half_width": 0.1} in a file
EstimatedFigure = Annotated[Estimate, PlainValidator(_estimate), PlainSerializer(asdict)]
M = TypeVar("M", bound=Measured)


def read_measured(kind: type[M], file: Path, name: str, *, model: Path | None, missing: tuple[str, str]) -> M:
    """A measured file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it.

    name: what problems call the file. missing: the field and the words of the `InvalidInput` where there is none.
    """
    try:
        return kind.model_validate_json(read_file(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        raise InvalidInput(missing[0], str(file), missing[1]) from None
    except OSError as error:
        raise CheckpointError(model or file, [f"{name} cannot be read: {error.strerror or error}"]) from None
    except ValidationError as error:
        raise CheckpointError(model or file, [f"{name}: {problem}" for problem in problems_in(error)]) from None
