"""What pydantic finds wrong in a file, in the words of this project: the key, the value, and what is allowed."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from elit_serve.errors import shown

MAX_PROBLEMS = 12


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
