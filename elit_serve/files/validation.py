"""What pydantic finds wrong in a file, in the words of this project: the key, the value, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from elit_serve.errors import shown

MAX_PROBLEMS = 12
FieldProblem = tuple[tuple[str, ...], object, str]  # where it is, what is there (None: a whole table), what is wrong


def as_validation_error(title: str, problems: Sequence[FieldProblem]) -> ValidationError:
    """What somebody else found wrong, as pydantic would tell it, to be raised in a validator of a part of a file."""
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError("value_error", "{what}", {"what": what}), loc=place, input=value)
            for place, value, what in problems
        ],
    )


def problems_in(error: ValidationError, root: str = "file") -> list[str]:
    """One line for each, the first `MAX_PROBLEMS`. root: what is wrong where no key is to blame."""
    found = error.errors(include_url=False)
    rest = [f"and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else []
    return [*(_problem(one, root) for one in found[:MAX_PROBLEMS]), *rest]


def _problem(found: ErrorDetails, root: str) -> str:
    place, value = ".".join(map(str, found["loc"])) or root, found["input"]
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden" or not isinstance(value, str | int | float):
        return f"{place}: {message}"  # no value of this key would do; or it has none, or a whole table
    return f"{place}: {shown(value)} is not allowed; {message[:1].lower()}{message[1:]}"
